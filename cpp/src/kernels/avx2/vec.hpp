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
typedef uint64_t vu_wide __attribute__((vector_size(32)));

typedef vi vmask;

// Lanes [first, last).
inline vmask lane_range(int first, int last) {
  const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (lane >= first) & (lane < last);
}

// Other lanes are 0 and their memory is not touched.
inline vf load_lanes(const float* p, vmask m) { return (vf)_mm256_maskload_ps(p, (__m256i)m); }
inline void store_lanes(float* p, vmask m, vf v) { _mm256_maskstore_ps(p, (__m256i)m, (__m256)v); }

// Lanes [4 q, 4 q + 4) are the 4 floats at p + q * stride for q < n, else 0.
inline vf load_quads(const float* p, int64_t stride, int n) {
  const __m256 v = n > 0 ? _mm256_zextps128_ps256(_mm_loadu_ps(p)) : _mm256_setzero_ps();
  return (vf)(n > 1 ? _mm256_insertf128_ps(v, _mm_loadu_ps(p + stride), 1) : v);
}

// The first n lanes, n < W, by halves: on AMD's Zen 3 vmaskmovps takes 15 cycles to store, this 2 to 4.
inline void store_front(float* p, int64_t n, vf v) {
  if (n <= 0) return;
  __m128 rest = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi((__m64*)p, rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, rest);
}

// Products ask for lines ahead of their packing: on Zen 3 1x1 convolutions take 0.6 to 0.95 of the time.
constexpr bool asks_ahead = true;
// Past the caches; p is aligned to 32 bytes. Others see it from streaming_fence() on.
constexpr bool streaming_stores = true;
inline void store_streaming(float* p, vf v) { _mm256_stream_ps(p, (__m256)v); }
inline void streaming_fence() { _mm_sfence(); }

// Lanes 0, 2, 4, ...
inline void store_even(float* p, vf v) {
  for (int i = 0; i < W; i += 2) p[i] = v[i];
}

// Lane i is p[i * stride] where the mask has it, else 0.
inline vf gather_lanes(const float* p, int32_t stride, vmask m) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i index = _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride));
  return (vf)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, index, (__m256)m, 4);
}

constexpr bool has_fast_lookup = false;

inline vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
inline vf reciprocal(vf x) { return 1.0f / x; }
// a b of lanes 0, 2, 4, ...
inline vu_wide multiply_even(vu a, vu b) { return (vu_wide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }

}  // namespace
