// recurrent.hpp: what every recurrent layer can be asked.
#include "bindings.hpp"

namespace deepnet::python {
namespace {

py::object state_of(RecurrentLayer& layer) {
  const auto trace = trace_of(layer);
  if (!trace) throw StateError("[" + layer.kind() + "] state came before forward: call the layer on a sequence first");
  std::vector<Tensor> states;
  trace->read([&](void* cache) {
    for (const Tensor& state : layer.final_state(cache, trace->input())) states.push_back(state.clone());
  });
  if (states.size() == 1) return as_array(states[0]);
  py::tuple arrays(states.size());
  for (std::size_t i = 0; i < states.size(); ++i) arrays[i] = as_array(states[i]);
  return std::move(arrays);
}

py::array state_gradient_norms(RecurrentLayer& layer) {
  const auto trace = trace_of(layer);
  Tensor norms;
  if (trace) trace->read([&](void* cache) { norms = layer.state_gradient_norms(cache, trace->input()).clone(); });
  if (!norms.defined() || norms.data()[0] < 0.0f) {
    throw StateError("[" + layer.kind() + "] state_gradient_norms came before a backward");
  }
  return as_array(norms);
}

}  // namespace

void bind_recurrent(py::module_& m) {
  py::class_<RecurrentLayer, Layer, py::smart_holder>(m, "RecurrentLayer", R"doc(
Base of the recurrent layers: x(t) = f(x(t-1), a(t)), one shared layer at every step of a sequence (N, T, F).

``layer(x)`` starts from a state of zeros, ``layer(x, state)`` from the one given; then `backward` returns
(dE/dx, dE/dstate). ``layer(x, lengths=[...])`` or ``layer(x, mask=...)`` tells which steps are padding: there the state
is carried through, the output is 0, the input may be anything, and its gradient is 0.
)doc")
      .def_property_readonly("state", &state_of, R"doc(
The final state of the last run, alone or in a network, in evaluation or training: (rows, N, H), a row a direction of a
layer; of an LSTM the pair (h, c). `predict` keeps none. RuntimeError before there is one.
)doc")
      .def_property_readonly("state_gradient_norms", &state_gradient_norms, R"doc(
After a backward: |dE/dh(t)| for the state h(t) after each step, float32 (rows, T): the root of the sum of squares over
batch and features. How it falls from step to step is the vanishing gradient in time. RuntimeError before a backward.
)doc")
      .def(
          "step",
          [](RecurrentLayer& layer, py::handle x) {
            const Tensor input = as_float(x, layer.kind() + ".step");
            Tensor y;
            {
              py::gil_scoped_release release;
              y = layer.step(input);
            }
            return as_array(y);
          },
          py::arg("x"), R"doc(
One step of streaming inference: x(t), (N, F), -> (N, H), in evaluation mode.

The layer keeps its state for the next step; it starts from zeros, and again after `reset_state`. Raises ValueError where
the layer reads sequences backwards, ShapeError where N is not that of the state.
)doc");
}

}  // namespace deepnet::python
