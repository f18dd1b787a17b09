// Depthwise convolutions of images in lanes (layout.hpp), one filter a channel: between layers that want lanes, turning
// the images back and forth would take longer than the convolution.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Whether images in lanes can be convolved so, by kernels of `taps` cells.
bool lane_depthwise_can_convolve(Index channels, Index filters, Index groups, Index taps);
bool lane_depthwise_applies(const ConvShape& shape);

/// Floats of workspace.
std::size_t lane_depthwise_forward_workspace(const ConvShape& shape);
std::size_t lane_depthwise_backward_data_workspace(const ConvShape& shape);
std::size_t lane_depthwise_backward_weight_workspace(const ConvShape& shape);

/// As conv_forward and its like.
void lane_depthwise_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y,
                            Activation activation, float* workspace);
void lane_depthwise_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx,
                                  float* workspace);
void lane_depthwise_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                    bool accumulate, float* workspace);

}  // namespace deepnet
