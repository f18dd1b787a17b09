// The three products of any convolution with column matrices that are never whole.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Floats of workspace.
std::size_t implicit_forward_workspace(const ConvShape& shape);
std::size_t implicit_backward_data_workspace(const ConvShape& shape);
std::size_t implicit_backward_weight_workspace(const ConvShape& shape);

/// As conv_forward and its like.
void implicit_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y,
                      Activation activation, float* workspace);
void implicit_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);
void implicit_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace);

}  // namespace deepnet
