// (N, ...) -> (N, product of the rest): the same numbers under another shape, copied only where the caller gave the
// output memory of its own.
#include <cstring>

#include <deepnet/layers.hpp>

#include "common.hpp"

namespace deepnet {
namespace {

void copy(const Tensor& from, Tensor& to) {
  if (from.raw() != to.raw()) std::memcpy(to.raw(), from.raw(), to.bytes());
}

}  // namespace

LayerPtr Flatten::from_config(const Config&) { return std::make_shared<Flatten>(); }

Contract Flatten::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.view = true;
  c.row_by_row = true;
  return c;
}

Shape Flatten::output_shape(const std::vector<Shape>& inputs) const {
  const Shape& x = one_input(*this, inputs);
  if (x.rank() < 2) throw ShapeError("[Flatten] expected input of shape (N, ...) with 2 axes or more, got " + x.str());
  return {x[0], x.size(1, x.rank())};
}

void Flatten::forward(const ForwardCall& call) const { copy(call.inputs[0], *call.output); }

void Flatten::backward(const BackwardCall& call) {
  if (call.d_inputs[0].defined()) copy(*call.d_output, call.d_inputs[0]);
}

}  // namespace deepnet
