// The mask of a batch of sequences: (N, T) float32, 0 at steps of padding, else 1.
#pragma once

#include <string>

#include <deepnet/tensor.hpp>

namespace deepnet {

/// Throws ShapeError or ValueError, which open with `who`, unless the mask fits an input of shape (N, T, ...).
void check_mask_shape(const std::string& who, const Shape& x, const Tensor& mask);
void check_mask(const std::string& who, const Shape& x, const Tensor& mask);

/// The row and, of sequences (N, T, F), the step of the first value that is not finite; at padding none counts.
struct Place {
  Index row = -1;  ///< -1: all are finite
  Index step = -1;
};
Place first_nonfinite(const Tensor& values, const Tensor& mask);

}  // namespace deepnet
