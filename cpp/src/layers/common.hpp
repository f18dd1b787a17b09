// What several layers share: checks of their inputs and PyTorch's default initial weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <deepnet/init.hpp>
#include <deepnet/layers.hpp>

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

/// Kernel sizes, strides, paddings and dilations beyond this are mistakes, and their products must not overflow.
constexpr Index most_cells = std::numeric_limits<std::int32_t>::max() / 4;

inline bool in_range(Size2 size, Index least) {
  return size.h >= least && size.w >= least && size.h <= most_cells && size.w <= most_cells;
}

/// "kernel_size in 1 ... 536870911"
inline std::string range_text(const char* name, Index least) {
  return std::string(name) + " in " + std::to_string(least) + " ... " + std::to_string(most_cells);
}

/// A weight's shape that memory can be asked for.
inline Shape addressable(const char* kind, const Shape& shape) {
  try {
    shape.size();
  } catch (const ShapeError&) {
    throw ShapeError("[" + std::string(kind) + "] a weight of shape " + shape.str() + " is too large to address");
  }
  return shape;
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
