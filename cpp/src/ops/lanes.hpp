// The three products of a convolution with an image in every lane of a vector (kernels/lanes.inl). Images that are not
// in lanes are turned strip by strip.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Whether images in lanes can be convolved with kernels of so many weights and these strides.
bool lanes_can_multiply(Index depth, Index stride_h, Index stride_w);

/// Whether a product can be made so: of images in lanes always, of others where they fill lanes and the cache.
bool lanes_forward_applies(const ConvShape& shape);
bool lanes_backward_data_applies(const ConvShape& shape);
bool lanes_backward_weight_applies(const ConvShape& shape);

/// For images not in lanes, by shape alone: many images and several taps, where packing a column matrix costs more than
/// turning images.
bool lanes_forward_wins(const ConvShape& shape);
bool lanes_backward_data_wins(const ConvShape& shape);
bool lanes_backward_weight_wins(const ConvShape& shape);

/// Floats of packed weights, for forward; and of workspace.
std::size_t lanes_packed(const ConvShape& shape);
std::size_t lanes_forward_workspace(const ConvShape& shape);
std::size_t lanes_backward_data_workspace(const ConvShape& shape);
std::size_t lanes_backward_weight_workspace(const ConvShape& shape);

/// As conv_pack, conv_forward and its like.
void lanes_pack(const ConvShape& shape, const float* weight, float* packed);
void lanes_forward(const ConvShape& shape, const float* x, const float* packed, const float* bias, float* y,
                   Activation activation, float* workspace);
void lanes_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);
void lanes_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, bool accumulate,
                           float* workspace);
/// The bias's gradient too; d_bias may be null.
void lanes_backward_weight_and_bias(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                    float* d_bias, bool accumulate, float* workspace);

}  // namespace deepnet
