// A layer written in Python: a subclass of nn.Layer with forward and backward on arrays.
#pragma once

#include <pybind11/trampoline_self_life_support.h>

#include "bindings.hpp"

namespace deepnet::python {

/// Python sees the plan's memory as arrays, without copies, and the arrays it returns are used where they lie.
class PythonLayer : public Layer, public py::trampoline_self_life_support {
 public:
  std::string kind() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Tensor discover_output(const std::vector<Tensor>& inputs, bool training) override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  /// Attributes of type Parameter.
  NamedParameters parameters() const override;

 private:
  Tensor call_forward(const Tensor& input) const;

  // Only a run tells the output's shape. All are read and written under the GIL, or python_mutex_ without one.
  mutable std::vector<std::pair<Shape, Shape>> known_shapes_;
  mutable Tensor discovered_input_, discovered_output_;  // copied input and its output, for the next forward
};

}  // namespace deepnet::python
