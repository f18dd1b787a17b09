// The 3 x 3 convolution, and its gradients, of images that are not in lanes, by 4 x 4 tiles: images are turned into
// lanes and multiplied there (winograd.hpp), and what comes out is turned back.
#pragma once

#include "convolution.hpp"

namespace deepnet {

/// Whether forward and dE/dW can be made so; and whether dE/dx can.
bool turned_winograd_applies(const ConvShape& shape);
bool turned_winograd_backward_data_applies(const ConvShape& shape);

/// Whether there are so many channels that turning costs less than what 4 x 4 tiles save against 2 x 2 tiles.
bool turned_winograd_forward_wins(const ConvShape& shape);
bool turned_winograd_backward_data_wins(const ConvShape& shape);
bool turned_winograd_backward_weight_wins(const ConvShape& shape);

/// Floats of transformed weights, for forward; and of workspace.
std::size_t turned_winograd_packed(const ConvShape& shape);
std::size_t turned_winograd_forward_workspace(const ConvShape& shape);
std::size_t turned_winograd_backward_data_workspace(const ConvShape& shape);
std::size_t turned_winograd_backward_weight_workspace(const ConvShape& shape);

/// As conv_pack, conv_forward and its like.
void turned_winograd_pack(const ConvShape& shape, const float* weight, float* packed);
void turned_winograd_forward(const ConvShape& shape, const float* x, const float* packed, const float* bias, float* y,
                             Activation activation, float* workspace);
void turned_winograd_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx,
                                   float* workspace);
void turned_winograd_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                     bool accumulate, float* workspace);

}  // namespace deepnet
