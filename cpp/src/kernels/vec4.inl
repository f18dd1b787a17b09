// Vectors of 4 floats in the compiler's own terms: the part of vec.hpp that ISAs of 128-bit registers share.
// Included by their vec.hpp, which adds the micro-tile's size and square_root.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace {

constexpr int W = 4;

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef uint64_t vu_wide __attribute__((vector_size(16)));

typedef vi vmask;

// Lanes [first, last).
inline vmask lane_range(int first, int last) {
  const vi lane = {0, 1, 2, 3};
  return (lane >= first) & (lane < last);
}

// Other lanes are 0 and their memory is not touched.
inline vf load_lanes(const float* p, vmask m) {
  vf v = {};
  for (int i = 0; i < W; ++i)
    if (m[i]) v[i] = p[i];
  return v;
}
inline void store_lanes(float* p, vmask m, vf v) {
  for (int i = 0; i < W; ++i)
    if (m[i]) p[i] = v[i];
}

// The 4 floats at p where n > 0, else 0: of such quads, wider vectors hold several.
inline vf load_quads(const float* p, int64_t, int n) {
  typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
  return n > 0 ? *(const quad*)p : vf{};
}

// The first n lanes, n < W.
inline void store_front(float* p, int64_t n, vf v) {
  for (int i = 0; i < W - 1; ++i)
    if (i < n) p[i] = v[i];
}
// Products do not ask for lines ahead of their packing.
constexpr bool asks_ahead = false;
// AArch64 finds out by itself that lines are written whole.
constexpr bool streaming_stores = false;
inline void store_streaming(float* p, vf v) { *(vf*)p = v; }
inline void streaming_fence() {}

// Lanes 0 and 2.
inline void store_even(float* p, vf v) {
  p[0] = v[0];
  p[2] = v[2];
}

// Lane i is p[i * stride] where the mask has it, else 0.
inline vf gather_lanes(const float* p, int32_t stride, vmask m) {
  vf v = {};
  for (int i = 0; i < W; ++i)
    if (m[i]) v[i] = p[int64_t{i} * stride];
  return v;
}

constexpr bool has_fast_lookup = false;

inline vf reciprocal(vf x) { return 1.0f / x; }
// a b of lanes 0 and 2.
inline vu_wide multiply_even(vu a, vu b) { return ((vu_wide)a & 0xffffffffu) * ((vu_wide)b & 0xffffffffu); }

}  // namespace
