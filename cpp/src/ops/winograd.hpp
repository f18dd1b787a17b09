// 3 x 3 convolution of stride 1 as 16 matrix products over 2 x 2 tiles of outputs, or, of images in lanes, 36 over 4 x
// 4 tiles; of these 5 x 5 convolution too, as 36 over 2 x 2 tiles. See kernels/winograd.inl.
//
// A tile's transform adds and subtracts up to 36 of its cells before any product, so inputs near the largest float
// overflow where the direct sum would not, and an infinity or a NaN spreads to all outputs of its tile (inf -
// inf), beyond the pixels whose window holds it. Looking for them first would cost a pass over every input.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Whether Winograd's way can be gone: forward and for dE/dW, and for dE/dx.
bool winograd_applies(const ConvShape& shape);
bool winograd_backward_data_applies(const ConvShape& shape);

/// Whether it is the faster one; false where it cannot be gone. By shape and by whether images are in lanes.
bool winograd_forward_wins(const ConvShape& shape);
bool winograd_backward_data_wins(const ConvShape& shape);
bool winograd_backward_weight_wins(const ConvShape& shape);

/// Floats of transformed weights, for forward, which needs no workspace; and of workspace.
std::size_t winograd_packed(const ConvShape& shape);
std::size_t winograd_backward_data_workspace(const ConvShape& shape);
std::size_t winograd_backward_weight_workspace(const ConvShape& shape);

/// As conv_pack, conv_forward and its like.
void winograd_pack(const ConvShape& shape, const float* weight, float* packed);
void winograd_forward(const ConvShape& shape, const float* x, const float* packed, const float* bias, float* y,
                      Activation activation, float* workspace);
void winograd_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);
void winograd_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace);

}  // namespace deepnet
