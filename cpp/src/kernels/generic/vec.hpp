// Vectors of 4 floats that any machine has: whatever the compiler makes of them.
#pragma once

#include "../vec4.inl"

namespace {

constexpr int GEMM_MR = 6, GEMM_NV = 2;

inline vf square_root(vf x) {
  for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

}  // namespace
