// dE/dx of a convolution by its definition as an adjoint: dx = col2im(W^T dy).
#pragma once

#include "convolution.hpp"

namespace deepnet {

std::size_t col2im_backward_data_workspace(const ConvShape& shape);

/// As conv_backward_data.
void col2im_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);

}  // namespace deepnet
