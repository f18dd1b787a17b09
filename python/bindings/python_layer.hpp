// A layer written in Python: a subclass of nn.Layer with forward and backward on arrays.
#pragma once

#include <pybind11/trampoline_self_life_support.h>

#include <utility>
#include <vector>

#include "bindings.hpp"

namespace deepnet::python {

/// Python sees the plan's memory as arrays, without copies, and the arrays it returns are used where they lie.
///
/// With an attribute state_size (or hidden_size) it is also a cell, which nn.Recurrent unrolls: forward(x, state) ->
/// state, where a state_size of several numbers makes the state a tuple of arrays.
class PythonLayer : public RecurrentCell, public py::trampoline_self_life_support {
 public:
  std::string kind() const override;
  int input_count() const override { return 1; }
  bool takes_inputs(int count) const override { return count >= 1; }
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Tensor discover_output(const std::vector<Tensor>& inputs, bool training) override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  /// Attributes of type Parameter.
  NamedParameters parameters() const override;

  /// TypeError where it is no cell.
  std::vector<Index> state_sizes() const override;
  /// Whether it is a cell also when it is called alone: it has an attribute state_size.
  bool has_state_size() const;

 private:
  bool was_discovered(const Tensor* inputs, int count) const;
  Tensor call_forward(const Tensor* inputs, int count) const;
  /// The sizes of a state_size of several numbers, if a call with so many inputs is one of a cell that has it.
  std::vector<Index> tuple_sizes(int input_count) const;

  // Only a run tells the output's shape. All are read and written under the GIL.
  mutable std::vector<std::pair<std::vector<Shape>, Shape>> known_shapes_;
  mutable std::vector<Tensor> discovered_inputs_;  // copied, for the next forward
  mutable Tensor discovered_output_;
};

/// The columns of a cell's state (N, S) as arrays of these sizes of their own, and back.
py::object split_state(const Tensor& state, const std::vector<Index>& sizes);
/// `name` and `what` are for the error where it is not so many arrays, with so many columns.
Tensor join_state(py::handle arrays, const std::vector<Index>& sizes, const std::string& what, const std::string& name);

}  // namespace deepnet::python
