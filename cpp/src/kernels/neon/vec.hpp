// Vectors of 4 floats: AArch64 Advanced SIMD, 32 registers.
#pragma once

#include <arm_neon.h>

#include "../vec4.inl"

namespace {

// 24 of the 32 registers hold the micro-tile's sums, 3 its columns of B.
constexpr int GEMM_MR = 8, GEMM_NV = 3;

inline vf square_root(vf x) { return (vf)vsqrtq_f32((float32x4_t)x); }

}  // namespace
