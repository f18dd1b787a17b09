// Convolution as matrix products whose column matrix is packed straight from the image.
#pragma once

#include <deepnet/layer.hpp>
#include <deepnet/tensor.hpp>

namespace deepnet {

/// The sizes of one convolution: x (N, C, H, W), weight (K, C/groups, R, S), y (N, K, P, Q); or x and y with images in
/// lanes (layout.hpp), N a multiple of them.
struct ConvShape {
  Index N, C, H, W, K, R, S, P, Q;
  Index stride_h, stride_w, dilation_h, dilation_w;
  Index pad_top, pad_left;
  Index groups;
  bool lanes = false;
  bool training = false;  ///< of forward: whether a backward follows
};

/// Calls run(the shape of some images, the first one's number) for at most `at_once` images after another.
template <class Run>
void for_image_blocks(ConvShape s, Index at_once, Run run) {
  const Index images = s.N;
  for (Index first = 0; first < images; first += at_once) {
    s.N = images - first < at_once ? images - first : at_once;
    run(s, first);
  }
}

/// Floats of workspace for each of the three products.
std::size_t conv_forward_workspace(const ConvShape& shape);
std::size_t conv_backward_workspace(const ConvShape& shape);

/// What forward reads in the place of weights, made of them alone, so that several calls may share it; and its floats,
/// 0 where forward reads the weights as they lie.
std::size_t conv_packed(const ConvShape& shape);
void conv_pack(const ConvShape& shape, const float* weight, float* packed);

/// y = activation(W * x + bias); `packed` is what conv_pack made of the weights; bias may be null.
void conv_forward(const ConvShape& shape, const float* x, const float* weight, const float* packed, const float* bias,
                  float* y, Activation activation, float* workspace);

/// dx = dE/dx from dy = dE/dy; overwrites dx.
void conv_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace);

/// d_weight = or += dE/dW from x and dy, and d_bias, which may be null, the sums of dy over images and pixels.
void conv_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, float* d_bias,
                          bool accumulate, float* workspace);

}  // namespace deepnet
