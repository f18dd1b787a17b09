// Vectors of 4 floats: AArch64 Advanced SIMD, 32 registers.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace {

constexpr int W = 4;
// 24 of the 32 registers hold the micro-tile's sums, 3 its columns of B.
constexpr int GEMM_MR = 8, GEMM_NV = 3;

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

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

// Lane i is p[i * stride] where the mask has it, else 0.
inline vf gather_lanes(const float* p, int32_t stride, vmask m) {
  vf v = {};
  for (int i = 0; i < W; ++i)
    if (m[i]) v[i] = p[int64_t{i} * stride];
  return v;
}

inline vf square_root(vf x) { return (vf)vsqrtq_f32((float32x4_t)x); }

}  // namespace
