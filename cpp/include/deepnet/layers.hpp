// The layers. Arguments, defaults, parameter names, layouts and initial values are PyTorch's.
// Shape letters: N batch, C/H/W input, K filters, R/S kernel, P/Q output, F features.
//
// Constructors throw ValueError for arguments out of range; from_config is the constructor by the names that config()
// gives, for model files. output_shape throws ShapeError where an input does not fit. Overrides are told in layer.hpp.
#pragma once

#include <string>
#include <vector>

#include <deepnet/cells.hpp>
#include <deepnet/layer.hpp>
#include <deepnet/recurrent.hpp>

namespace deepnet {

/// Height and width; one number means both.
struct Size2 {
  Size2(Index both) : h(both), w(both) {}  // NOLINT: implicit on purpose
  Size2(Index h, Index w) : h(h), w(w) {}
  Index h, w;  ///< not checked here
};

/// y = x W^T + b over the last axis: (..., in_features) -> (..., out_features); weight (out, in), bias (out).
class Linear : public Layer {
 public:
  Linear(Index in_features, Index out_features, bool bias = true);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "Linear"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  NamedParameters parameters() const override;

  const Index in_features, out_features;
  const ParameterPtr weight, bias;  ///< bias is null where there is none
};

/// What a Conv2d may be told beyond its sizes, with PyTorch's defaults.
struct Conv2dOptions {
  Size2 stride = 1;
  Size2 padding = 0;   ///< zeros on each side
  Size2 dilation = 1;  ///< distance of the kernel's cells
  Index groups = 1;    ///< groups of channels and filters that do not see each other; divides both numbers
  bool bias = true;
  std::string padding_mode = "";  ///< "", "same" or "valid"; the last two override padding
};

/// Cross-correlation of each image with K learned kernels (kernel as printed, no flip):
///   y[n,k,p,q] = b[k] + sum_{c,r,s} W[k,c,r,s] x[n, c, p*stride + r*dilation - padding, q*... ]
/// (N, C, H, W) -> (N, K, P, Q) with P = (H + 2 padding - dilation (R - 1) - 1) / stride + 1;
/// weight (K, C/groups, R, S), bias (K). "same" pads so that P = H; an odd pixel goes below and right.
/// Many 3 x 3 convolutions of stride 1 go by Winograd's transform (Lavin and Gray 2016): cells near the largest float
/// overflow there where their sum would not, and an infinity or NaN may spread to the outputs next to those that see
/// it.
class Conv2d : public Layer {
 public:
  Conv2d(Index in_channels, Index out_channels, Size2 kernel_size, Conv2dOptions options = {});
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "Conv2d"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void pack(const std::vector<Shape>& inputs, void* packed) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  NamedParameters parameters() const override;

  const Index in_channels, out_channels;
  const Size2 kernel_size;
  const Conv2dOptions options;
  const ParameterPtr weight, bias;  ///< bias is null where there is none

 private:
  struct Padding {
    Index top, bottom, left, right;
  };
  Padding padding() const;
  Shape output_of(const Shape& input) const;
  struct ConvShape geometry(const Shape& input) const;
};

/// Base of the poolings: window, stride (the window's where 0 is given) and padding.
class Pool2d : public Layer {
 public:
  Config config() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;

  const Size2 kernel_size, stride, padding;

 protected:
  Pool2d(const char* kind, Size2 kernel_size, Size2 stride, Size2 padding);
};

/// y = max over each window. Backward sends the error to the one winning cell: the first maximum in
/// row-major order. A NaN in the window wins.
class MaxPool2d : public Pool2d {
 public:
  explicit MaxPool2d(Size2 kernel_size, Size2 stride = 0, Size2 padding = 0);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "MaxPool2d"; }
  Contract contract() const override;
  /// The cache is one int32 per output: the flat H*W position of its maximum.
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
};

/// y = sum over each window / (R S); padding counts as zeros, as in PyTorch.
class AvgPool2d : public Pool2d {
 public:
  explicit AvgPool2d(Size2 kernel_size, Size2 stride = 0, Size2 padding = 0);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "AvgPool2d"; }
  Contract contract() const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
};

/// y[n,c] = mean over H and W: (N, C, H, W) -> (N, C).
class GlobalAvgPool2d : public Layer {
 public:
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "GlobalAvgPool2d"; }
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
};

/// Base of the element-wise nonlinearities y = f(x), any shape; dE/dx = f'(x) dE/dy.
class ActivationLayer : public Layer {
 public:
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;

 protected:
  explicit ActivationLayer(Activation activation) : activation_(activation) {}
  const Activation activation_;
};

/// max(0, x)
class ReLU : public ActivationLayer {
 public:
  ReLU() : ActivationLayer({ActivationKind::relu}) {}
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "ReLU"; }
};

/// 1 / (1 + exp(-x))
class Sigmoid : public ActivationLayer {
 public:
  Sigmoid() : ActivationLayer({ActivationKind::sigmoid}) {}
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "Sigmoid"; }
};

/// tanh(x)
class Tanh : public ActivationLayer {
 public:
  Tanh() : ActivationLayer({ActivationKind::tanh}) {}
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "Tanh"; }
};

/// log(1 + exp(beta x)) / beta
class Softplus : public ActivationLayer {
 public:
  explicit Softplus(double beta = 1.0);
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "Softplus"; }
  Config config() const override;
};

/// x where x > 0, else negative_slope x
class LeakyReLU : public ActivationLayer {
 public:
  explicit LeakyReLU(double negative_slope = 0.01);
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "LeakyReLU"; }
  Config config() const override;
};

/// x where x > 0, else alpha (exp(x) - 1)
class ELU : public ActivationLayer {
 public:
  explicit ELU(double alpha = 1.0);
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "ELU"; }
  Config config() const override;
};

/// x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016, eq. 1; not the tanh form)
class GELU : public ActivationLayer {
 public:
  GELU() : ActivationLayer({ActivationKind::gelu}) {}
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "GELU"; }
};

/// x sigmoid(x)
class SiLU : public ActivationLayer {
 public:
  SiLU() : ActivationLayer({ActivationKind::silu}) {}
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "SiLU"; }
};

/// y_i = exp(x_i) / sum_j exp(x_j) along one axis: the joint nonlinearity.
/// Backward is the whole Jacobian product: dE/dx_i = y_i (dE/dy_i - sum_j y_j dE/dy_j).
class Softmax : public Layer {
 public:
  explicit Softmax(int axis = -1) : axis(axis) {}
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "Softmax"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;

  const int axis;
};

/// y_i = x_i - log sum_j exp(x_j) along one axis. dE/dx_i = dE/dy_i - exp(y_i) sum_j dE/dy_j.
class LogSoftmax : public Layer {
 public:
  explicit LogSoftmax(int axis = -1) : axis(axis) {}
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "LogSoftmax"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;

  const int axis;
};

/// (N, ...) -> (N, product of the rest); no copy inside a network.
class Flatten : public Layer {
 public:
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "Flatten"; }
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
};

/// In training y = x m / (1 - p), m = 0 with probability p, else 1; in evaluation y = x.
/// The mask is not stored: Philox regenerates it from the call's key (Salmon et al. 2011).
class Dropout : public Layer {
 public:
  explicit Dropout(double p = 0.5);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "Dropout"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;

  const double p;
};

/// Layers one after the other; itself a layer. Parameters are named "0.weight", ...
class Sequential : public Layer {
 public:
  explicit Sequential(std::vector<LayerPtr> layers = {});
  static LayerPtr from_parts(const Config& config, const std::vector<LayerPtr>& layers);

  std::string kind() const override { return "Sequential"; }
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  NamedParameters parameters() const override;
  const Graph* graph() const override { return graph_.get(); }
  std::vector<LayerPtr> children() const override { return layers_; }

 private:
  const std::vector<LayerPtr> layers_;
  const std::shared_ptr<const Graph> graph_;
};

/// Layers that a model file may name; adding one here is part of declaring it.
// clang-format off
#define DEEPNET_LAYERS(X)                                                                                   \
  X(Linear) X(Conv2d) X(MaxPool2d) X(AvgPool2d) X(GlobalAvgPool2d) X(ReLU) X(Sigmoid) X(Tanh) X(Softplus)   \
  X(LeakyReLU) X(ELU) X(GELU) X(SiLU) X(Softmax) X(LogSoftmax) X(Flatten) X(Dropout)                        \
  X(RNN) X(LSTM) X(GRU) X(RNNCell) X(LSTMCell) X(GRUCell)
// clang-format on
/// Those that are made of layers.
#define DEEPNET_COMPOSITES(X) X(Sequential) X(Recurrent)

}  // namespace deepnet
