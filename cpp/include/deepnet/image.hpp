// The convolution of a kernel over an array, and the image-to-column matrix that defines it.
#pragma once

#include <utility>

#include <deepnet/layers.hpp>
#include <deepnet/tensor.hpp>

namespace deepnet::image {

/// A size x size Gaussian exp(-(x^2 + y^2) / (2 sigma^2)), normalised to sum 1. ValueError unless size is odd and sigma
/// > 0.
Tensor gaussian_kernel(Index size = 7, double sigma = 0.84089642);

/// Zeros outside and an output as large as the input, or only where the kernel fits.
enum class Padding { same, valid };

/// Slides an (R, S) kernel as printed (no flip) over every (H, W) plane of a (..., H, W) array.
/// ShapeError unless the array has two axes or more, the kernel two, and the kernel fits where it must.
Tensor convolve(const Tensor& array, const Tensor& kernel, Padding padding = Padding::same);

/// Magnitude sqrt(Gx^2 + Gy^2) and angle arctan2(Gy, Gx) of the Sobel gradients of a (..., H, W) array:
/// Gx = [[-1,0,1],[-2,0,2],[-1,0,1]], Gy its transpose (rows grow downward); edges repeat outwards.
/// Angles are in radians; ShapeError for fewer than two axes.
std::pair<Tensor, Tensor> sobel(const Tensor& array);

/// Columns of receptive fields: (N, C, H, W) -> (N, C*R*S, P*Q); convolution is weight.reshape(K, -1) @ columns.
/// ValueError for sizes out of range, ShapeError where x has not four axes or the kernel is larger than the padded
/// image.
Tensor im2col(const Tensor& x, Size2 kernel_size, Size2 stride = 1, Size2 padding = 0, Size2 dilation = 1);

/// The adjoint of im2col: adds every column back to the cells it came from; output (N, C, H, W) with (H, W) =
/// output_size. Errors as im2col's.
Tensor col2im(const Tensor& columns, Size2 output_size, Size2 kernel_size, Size2 stride = 1, Size2 padding = 0,
              Size2 dilation = 1);

}  // namespace deepnet::image
