// The three products of any convolution with column matrices that are never whole.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Floats of packed weights, none where there are so few columns that forward reads them as they lie; and of workspace.
std::size_t implicit_packed(const ConvShape& shape);
std::size_t implicit_forward_workspace(const ConvShape& shape);
std::size_t implicit_backward_data_workspace(const ConvShape& shape);
std::size_t implicit_backward_weight_workspace(const ConvShape& shape);

/// As conv_pack, conv_forward and its like; `weight` of forward is packed where implicit_packed() > 0.
void implicit_pack(const ConvShape& shape, const float* weight, float* packed);
void implicit_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y,
                      Activation activation, float* workspace);
void implicit_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);
void implicit_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace);
/// The bias's gradient too; d_bias may be null.
void implicit_backward_weight_and_bias(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                       float* d_bias, bool accumulate, float* workspace);

}  // namespace deepnet
