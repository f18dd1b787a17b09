// Convolutions whose groups have one input channel: plane by plane, without a column matrix.
#pragma once

#include "convolution.hpp"

namespace deepnet {

bool depthwise_applies(const ConvShape& shape);

/// Floats of workspace.
std::size_t depthwise_forward_workspace(const ConvShape& shape);
std::size_t depthwise_backward_data_workspace(const ConvShape& shape);
std::size_t depthwise_backward_weight_workspace(const ConvShape& shape);

/// As conv_forward and its like.
void depthwise_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y,
                       Activation activation, float* workspace);
void depthwise_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);
void depthwise_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                               bool accumulate, float* workspace);

}  // namespace deepnet
