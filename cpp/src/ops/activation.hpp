// Activations on what a product has written.
#pragma once

#include <deepnet/layer.hpp>

#include "../dispatch.hpp"

namespace deepnet {

/// c = f(c), rows x columns, rows ldc apart.
inline void apply(Activation f, Index rows, Index columns, float* c, Index ldc) {
  if (f.kind == ActivationKind::none) return;
  for (Index i = 0; i < rows; ++i) {
    float* row = c + i * ldc;
    kernels().activation_forward(static_cast<int>(f.kind), f.parameter, columns, row, row);
  }
}

/// Whether kernels apply it as they write: ReLU alone.
inline bool is_fused(Activation f) { return f.kind == ActivationKind::relu; }

/// apply() of all that the kernels have not.
inline void apply_unfused(Activation f, Index rows, Index columns, float* c, Index ldc) {
  if (!is_fused(f)) apply(f, rows, columns, c, ldc);
}

}  // namespace deepnet
