// Vectors of 16 floats: AVX-512 F, VL, BW, DQ and FMA.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

constexpr int W = 16;
// 28 of the 32 registers hold the micro-tile's sums, 2 its columns of B.
constexpr int GEMM_MR = 14, GEMM_NV = 2;

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint64_t vu_wide __attribute__((vector_size(64)));

typedef __mmask16 vmask;

// Lanes [first, last).
inline vmask lane_range(int first, int last) {
  const auto below = [](int n) { return n <= 0 ? 0u : n >= W ? 0xffffu : (1u << n) - 1u; };
  return static_cast<vmask>(below(last) & ~below(first));
}

// Other lanes are 0 and their memory is not touched.
inline vf load_lanes(const float* p, vmask m) { return (vf)_mm512_maskz_loadu_ps(m, p); }
inline void store_lanes(float* p, vmask m, vf v) { _mm512_mask_storeu_ps(p, m, (__m512)v); }

// Lanes [4 q, 4 q + 4) are the 4 floats at p + q * stride for q < n, else 0.
inline vf load_quads(const float* p, int64_t stride, int n) {
  __m512 v = n > 0 ? _mm512_zextps128_ps512(_mm_loadu_ps(p)) : _mm512_setzero_ps();
  if (n > 1) v = _mm512_insertf32x4(v, _mm_loadu_ps(p + stride), 1);
  if (n > 2) v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * stride), 2);
  if (n > 3) v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * stride), 3);
  return (vf)v;
}

// The first n lanes, n < W.
inline void store_front(float* p, int64_t n, vf v) { store_lanes(p, lane_range(0, (int)n), v); }
// Products leave it to the processor to fetch ahead of their packing: asking made 1x1 convolutions, whose lines Intel's
// processors had fetched already, 3 to 8 % slower, and Winograd's of images in lanes 2 to 5 %.
constexpr bool asks_ahead = false;
// Past the caches; p is aligned to 64 bytes. Others see it from streaming_fence() on.
constexpr bool streaming_stores = true;
inline void store_streaming(float* p, vf v) { _mm512_stream_ps(p, (__m512)v); }
inline void streaming_fence() { _mm_sfence(); }

// Lanes 0, 2, 4, ...
inline void store_even(float* p, vf v) { _mm512_mask_storeu_ps(p, 0x5555, (__m512)v); }

// Lane i is p[i * stride] where the mask has it, else 0.
inline vf gather_lanes(const float* p, int32_t stride, vmask m) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride));
  return (vf)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, index, p, 4);
}

// Lane i is table[index[i] % 32], in one instruction.
constexpr bool has_fast_lookup = true;
inline vf lookup(const float (&table)[32], vu index) {
  return (vf)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)index, _mm512_load_ps(table + 16));
}
// a b + c in one rounding, however little the compiler optimises.
inline vf fused(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline bool any_set(vu bits, uint32_t mask) {
  return _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32((int)mask)) != 0;
}

// Masked: GCC 12 takes the other form for a read of uninitialised lanes.
inline vf square_root(vf x) { return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }

// Of a < b ? a : b GCC 12 makes a comparison and a blend.
inline vf minimum(vf a, vf b) { return (vf)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
inline vf maximum(vf a, vf b) { return (vf)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }

// a b of lanes 0, 2, 4, ...
inline vu_wide multiply_even(vu a, vu b) { return (vu_wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b); }

// 1 / x within 1 ulp, for normal x of normal reciprocal: an estimate of 14 bits and a step of Newton's method.
inline vf reciprocal(vf x) {
  const __m512 estimate = _mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  const __m512 error = _mm512_fnmadd_ps((__m512)x, estimate, _mm512_set1_ps(1.0f));
  return (vf)_mm512_fmadd_ps(estimate, error, estimate);
}

}  // namespace
