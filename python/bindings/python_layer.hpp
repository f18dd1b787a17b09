// A layer written in Python: a subclass of nn.Layer with forward and backward on arrays.
#pragma once

#include <pybind11/trampoline_self_life_support.h>

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"

namespace deepnet::python {

/// Python sees the plan's memory as arrays, without copies but read-only, for others read that memory too; the arrays
/// it returns are used where they lie.
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
  /// Attributes of type Parameter, and the parameters of attributes that are layers: "weight", "lin.weight",
  /// "all.0.bias".
  NamedParameters parameters() const override;
  std::vector<LayerPtr> children() const override;
  /// Attributes that are layers, alone or in a list, tuple or dict, but for those that have this layer inside.
  std::vector<std::pair<std::string, LayerPtr>> named_children() const;

  /// TypeError where it is no cell.
  std::vector<Index> state_sizes() const override;
  /// Whether it is a cell also when it is called alone: it has an attribute state_size.
  bool has_state_size() const;

 private:
  class ModeScope;

  /// What discover_output made of the same inputs, once; undefined if they are others.
  Tensor take_discovered(const Tensor* inputs, int count) const;
  Tensor call_forward(const Tensor* inputs, int count) const;
  /// The sizes of a state_size of several numbers, if a call with so many inputs is one of a cell that has it.
  std::vector<Index> tuple_sizes(int input_count) const;

  // Only a run tells the output's shape. The mutex serves builds of Python without a GIL; Python code, which may wait
  // for another thread, never runs while it is held.
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<std::vector<Shape>, Shape>> known_shapes_;
  mutable std::vector<Tensor> discovered_inputs_;  // copied, for the next forward
  mutable Tensor discovered_output_;

  // See ModeScope. Waiting for this mutex releases the GIL, so Python code may run while it is held.
  mutable std::mutex modes_mutex_;
  mutable int calls_ = 0;
  mutable std::vector<std::pair<LayerPtr, bool>> modes_;
};

/// The columns of a cell's state (N, S) as arrays of these sizes of their own, and back.
py::object split_state(const Tensor& state, const std::vector<Index>& sizes);
/// `name` and `what` are for the error where it is not so many arrays, with so many columns.
Tensor join_state(py::handle arrays, const std::vector<Index>& sizes, const std::string& what, const std::string& name);

}  // namespace deepnet::python
