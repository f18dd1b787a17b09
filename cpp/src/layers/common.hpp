// What several layers share: checks of their inputs and PyTorch's default initial weights.
#pragma once

#include <algorithm>
#include <cmath>

#include <deepnet/init.hpp>
#include <deepnet/layer.hpp>

namespace deepnet {

/// The shape of a one-input layer's input.
inline const Shape& one_input(const Layer& layer, const std::vector<Shape>& inputs) {
  if (inputs.size() != 1) {
    throw ShapeError("[" + layer.kind() + "] expected 1 input, got " + std::to_string(inputs.size()));
  }
  return inputs[0];
}

/// Checks for an image batch (N, C, H, W); `channels` of 0 takes any C.
inline const Shape& image_input(const Layer& layer, const std::vector<Shape>& inputs, Index channels = 0) {
  const Shape& x = one_input(layer, inputs);
  if (x.rank() != 4 || (channels != 0 && x[1] != channels)) {
    throw ShapeError("[" + layer.kind() + "] expected input of shape (N, " +
                     (channels ? std::to_string(channels) : "C") + ", H, W), got " + x.str());
  }
  return x;
}

/// The call's mask, or null; for a layer whose input is (N, T, ...).
inline const float* mask_of(const Layer& layer, const Shape& x, const Tensor* mask) {
  if (mask == nullptr) return nullptr;
  if (mask->shape() != Shape{x[0], x[1]}) {
    throw ShapeError("[" + layer.kind() + "] expected a mask of shape " + Shape{x[0], x[1]}.str() +
                     " for input of shape " + x.str() + ", got " + mask->shape().str());
  }
  return mask->data();
}

/// Uniform in +-1/sqrt(fan_in): PyTorch's start for the weights and biases of Linear and Conv2d.
inline ParameterPtr default_parameter(const Shape& shape, Index fan_in) {
  auto parameter = std::make_shared<Parameter>(Tensor(shape));
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  init::uniform(parameter->data, -bound, bound);
  return parameter;
}

}  // namespace deepnet
