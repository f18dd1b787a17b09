// Vectors of 8 floats: AVX2 and FMA.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

constexpr int W = 8;
// 12 of the 16 registers hold the micro-tile's sums, 2 its columns of B.
constexpr int GEMM_MR = 6, GEMM_NV = 2;

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));

typedef vi vmask;

// Lanes [first, last).
inline vmask lane_range(int first, int last) {
  const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (lane >= first) & (lane < last);
}

// Lanes 0, 2, 4, ...
inline vmask even_mask() { return vi{-1, 0, -1, 0, -1, 0, -1, 0}; }

// Other lanes are 0 and their memory is not touched.
inline vf load_lanes(const float* p, vmask m) { return (vf)_mm256_maskload_ps(p, (__m256i)m); }
inline void store_lanes(float* p, vmask m, vf v) { _mm256_maskstore_ps(p, (__m256i)m, (__m256)v); }

// Lane i is p[i * stride] where the mask has it, else 0.
inline vf gather_lanes(const float* p, int32_t stride, vmask m) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i index = _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride));
  return (vf)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, index, (__m256)m, 4);
}

inline vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
inline vf reciprocal(vf x) { return 1.0f / x; }

}  // namespace
