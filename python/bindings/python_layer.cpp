#include "python_layer.hpp"

#include <cstring>

namespace deepnet::python {
namespace {

py::object self_of(const Layer* layer) { return py::cast(layer, py::return_value_policy::reference); }

bool overlap(const Tensor& a, const Tensor& b) {
  const char *first = static_cast<const char*>(a.raw()), *second = static_cast<const char*>(b.raw());
  return first < second + b.bytes() && second < first + a.bytes();
}

py::object method_of(const py::object& self, const std::string& kind, const char* name) {
  // nn.Layer itself has a backward; a subclass must bring its own.
  const py::object method = py::getattr(py::type::of(self), name, py::none());
  const py::object inherited = py::getattr(py::type::of<Layer>(), name, py::none());
  if (method.is_none() || method.is(inherited)) {
    throw TypeError("[" + kind + "] expected a method " + name + " on this subclass of nn.Layer, got none");
  }
  return py::getattr(self, name);
}

void expect_shape(const std::string& kind, const char* method, const Shape& expected, const Shape& got) {
  if (expected != got) {
    throw ShapeError("[" + kind + "] expected " + method + " to return an array of shape " + expected.str() + ", got " +
                     got.str());
  }
}

}  // namespace

std::string PythonLayer::kind() const {
  py::gil_scoped_acquire gil;
  return py::str(py::type::of(self_of(this)).attr("__name__"));
}

Contract PythonLayer::contract() const {
  Contract c;
  c.backward_needs_input = c.backward_needs_output = c.makes_output = true;
  return c;
}

Shape PythonLayer::output_shape(const std::vector<Shape>& inputs) const {
  py::gil_scoped_acquire gil;
  if (inputs.size() != 1) throw ShapeError("[" + kind() + "] expected 1 input, got " + std::to_string(inputs.size()));
  for (const auto& [in, out] : known_shapes_)
    if (in == inputs[0]) return out;
  throw ShapeUnknown();
}

Tensor PythonLayer::call_forward(const Tensor& input) const {
  const std::string name = kind();
  const py::object result = method_of(self_of(this), name, "forward")(as_array(input));
  Tensor output = as_float(result, name);
  // What lies in the plan's memory may be overwritten before the last reader is done.
  if (overlap(output, input)) output = output.clone();
  return output;
}

Tensor PythonLayer::discover_output(const std::vector<Tensor>& inputs, bool) {
  py::gil_scoped_acquire gil;
  discovered_input_ = Tensor();
  const Tensor output = call_forward(inputs[0]);
  constexpr std::size_t most_known = 16;
  if (known_shapes_.size() == most_known) known_shapes_.erase(known_shapes_.begin());
  known_shapes_.emplace_back(inputs[0].shape(), output.shape());
  discovered_input_ = inputs[0].clone();
  discovered_output_ = output;
  return output;
}

void PythonLayer::forward(const ForwardCall& call) const {
  py::gil_scoped_acquire gil;
  const Tensor& input = call.inputs[0];
  const bool discovered = discovered_input_.defined() && discovered_input_.shape() == input.shape() &&
                          std::memcmp(discovered_input_.raw(), input.raw(), input.bytes()) == 0;
  const Tensor output = discovered ? discovered_output_ : call_forward(input);
  discovered_input_ = discovered_output_ = Tensor();
  expect_shape(kind(), "forward", call.output->shape(), output.shape());
  *call.output = output;
}

void PythonLayer::backward(const BackwardCall& call) {
  py::gil_scoped_acquire gil;
  if (!call.accumulate) zero_grad();
  const std::string name = kind();
  const py::object result = method_of(self_of(this), name, "backward")(as_array(*call.d_output));
  Tensor d_input = as_float(result, name);
  expect_shape(name, "backward", call.inputs[0].shape(), d_input.shape());
  if (call.d_inputs[0].defined()) {
    if (d_input.bytes() > 0) std::memmove(call.d_inputs[0].raw(), d_input.raw(), d_input.bytes());
  } else {
    call.d_inputs[0] = overlap(d_input, *call.d_output) ? d_input.clone() : d_input;
  }
}

NamedParameters PythonLayer::parameters() const {
  py::gil_scoped_acquire gil;
  NamedParameters list;
  for (const auto& [name, value] : py::cast<py::dict>(self_of(this).attr("__dict__"))) {
    if (py::isinstance<Parameter>(value)) list.emplace_back(py::str(name), py::cast<ParameterPtr>(value));
  }
  return list;
}

}  // namespace deepnet::python
