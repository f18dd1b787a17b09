// recurrent.hpp and cells.hpp: what every recurrent layer can be asked; cells, and Recurrent, which unrolls them.
#include <pybind11/stl.h>

#include <optional>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

py::object state_of(RecurrentLayer& layer) {
  const auto trace = trace_of(layer);
  if (!trace) throw StateError("[" + layer.kind() + "] state came before forward: call the layer on a sequence first");
  std::vector<Tensor> states;
  without_gil([&] {
    trace->read([&](void* cache) {
      for (const Tensor& state : layer.final_state(cache, trace->input())) states.push_back(state.clone());
    });
  });
  if (states.size() == 1) return as_array(states[0]);
  py::tuple arrays(states.size());
  for (std::size_t i = 0; i < states.size(); ++i) arrays[i] = as_array(states[i]);
  return std::move(arrays);
}

py::array state_gradient_norms(RecurrentLayer& layer) {
  const auto trace = trace_of(layer);
  Tensor norms;
  if (trace) {
    without_gil(
        [&] { trace->read([&](void* cache) { norms = layer.state_gradient_norms(cache, trace->input()).clone(); }); });
  }
  if (!norms.defined() || norms.data()[0] < 0.0f) {
    throw StateError("[" + layer.kind() + "] state_gradient_norms came before a backward");
  }
  return as_array(norms);
}

template <class C>
py::class_<C, GatedCell, py::smart_holder> bind_cell(py::module_& m, const char* name, const char* doc) {
  return py::class_<C, GatedCell, py::smart_holder>(m, name, doc);
}

void bind_cells(py::module_& m) {
  py::class_<RecurrentCell, Layer, py::smart_holder>(m, "RecurrentCell", R"doc(
Base of the cells: one step of a recurrent layer, ``state = cell(x, state)``, x (N, F); without a state: zeros.
)doc");
  py::class_<GatedCell, RecurrentCell, py::smart_holder>(m, "GatedCell", "Base of `RNNCell`, `LSTMCell`, `GRUCell`.")
      .def_property_readonly("input_size", &GatedCell::input_size)
      .def_property_readonly("hidden_size", &GatedCell::hidden_size)
      .def_readonly("weight_ih", &GatedCell::weight_ih)
      .def_readonly("weight_hh", &GatedCell::weight_hh)
      .def_readonly("bias_ih", &GatedCell::bias_ih)
      .def_readonly("bias_hh", &GatedCell::bias_hh);
  bind_cell<RNNCell>(m, "RNNCell", R"doc(
One step of a simple recurrent layer (Elman 1990): h' = f(W_ih x + b_ih + W_hh h + b_hh).

x (N, input_size) and h (N, hidden_size), zeros where none is given, -> h' (N, hidden_size), float32. ``backward(dh')``
returns (dE/dx, dE/dh). Parameters as PyTorch's: ``weight_ih`` (H, F), ``weight_hh`` (H, H), ``bias_ih``, ``bias_hh``
(H,), all uniform in +-1/sqrt(H) at first.

Parameters
----------
input_size, hidden_size : int
    F and H.
bias : bool
nonlinearity : "tanh", "relu", "sigmoid" or "softplus"
    f.

Raises ValueError for sizes < 1 or another nonlinearity, ShapeError at the call where x or h do not fit.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> cell = nn.RNNCell(3, 4)
>>> h = cell(np.ones((2, 3)))
>>> h = cell(np.ones((2, 3)), h)
>>> dx, dh = cell.backward(np.ones((2, 4)))
>>> dx.shape, dh.shape
((2, 3), (2, 4))
)doc")
      .def(py::init<Index, Index, bool, const std::string&>(), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("bias") = true, py::arg("nonlinearity") = "tanh")
      .def_readonly("nonlinearity", &RNNCell::nonlinearity);
  bind_cell<LSTMCell>(m, "LSTMCell", R"doc(
One step of long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000):

    i, f, o = sigmoid(...), g = tanh(...) of W_ih x + b_ih + W_hh h + b_hh;   c' = f c + i g;   h' = o tanh(c')

x (N, input_size) and the pair (h, c), zeros where none is given, each (N, hidden_size), -> (h', c').
``backward((dh', dc'))`` returns (dE/dx, (dE/dh, dE/dc)). Parameters as PyTorch's, the rows of ``weight_ih`` (4H, F) and
the others in the order i, f, g, o.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> cell = nn.LSTMCell(3, 4)
>>> h, c = cell(np.ones((2, 3)))
>>> h, c = cell(np.ones((2, 3)), (h, c))
>>> dx, (dh, dc) = cell.backward((np.ones((2, 4)), np.zeros((2, 4))))
)doc")
      .def(py::init<Index, Index, bool>(), py::arg("input_size"), py::arg("hidden_size"), py::arg("bias") = true);
  bind_cell<GRUCell>(m, "GRUCell", R"doc(
One step of a gated recurrent unit (Cho et al. 2014), in PyTorch's form:

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh);   n = tanh(W_in x + b_in + r (W_hn h + b_hn));   h' = (1 - z) n + z h

x (N, input_size) and h (N, hidden_size), zeros where none is given, -> h'. ``backward(dh')`` returns (dE/dx, dE/dh).
Parameters as PyTorch's, the rows of ``weight_ih`` (3H, F) and the others in the order r, z, n.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.GRUCell(3, 4)(np.ones((2, 3))).shape
(2, 4)
)doc")
      .def(py::init<Index, Index, bool>(), py::arg("input_size"), py::arg("hidden_size"), py::arg("bias") = true);
}

std::shared_ptr<Recurrent> make_recurrent(const py::object& cell, bool return_sequences, bool stateful,
                                          std::optional<Index> truncate, bool reverse) {
  const auto one =
      py::isinstance<Layer>(cell) ? std::dynamic_pointer_cast<RecurrentCell>(cell.cast<LayerPtr>()) : nullptr;
  if (!one) {
    throw TypeError(
        "[Recurrent] expected a cell: RNNCell, LSTMCell, GRUCell or a subclass of nn.Layer with state_size, got " +
        std::string(py::str(py::repr(cell))));
  }
  if (truncate && *truncate < 1) {
    throw ValueError("[Recurrent] expected truncate >= 1 or None, got " + std::to_string(*truncate));
  }
  UnrollOptions o;
  o.return_sequences = return_sequences;
  o.stateful = stateful;
  o.truncate = truncate.value_or(0);
  o.reverse = reverse;
  return std::make_shared<Recurrent>(one, o);
}

void bind_unrolled(py::module_& m) {
  py::class_<Recurrent, RecurrentLayer, py::smart_holder>(m, "Recurrent", R"doc(
Any cell unrolled over a sequence: the same shared layer at every step, its deltas added up.

    state(t) = cell(x(t), state(t-1)),   y(t) = state(t), or the first of several states

(N, T, F) -> (N, T, H), or y(T-1) alone, (N, H), without `return_sequences`. Parameters are the cell's: "cell.weight_ih",
... States have shape (1, N, S), see `RecurrentLayer`. Backward is backpropagation through time (Werbos 1990).

A cell of your own is a subclass of `Layer` with an attribute ``state_size`` (S) and the methods
``forward(self, x, state) -> state`` and ``backward(self, d_state) -> (d_x, d_state_before)`` on arrays (N, F) and
(N, S). Backward may use what forward left on ``self``: forward is called again right before it. With
``state_size = (H, H)`` states and their gradients are tuples, and the output is the first.

Parameters
----------
cell : Layer
return_sequences : bool
    False: only the output of the last step (of each sequence, where there are lengths or a mask).
stateful : bool
    The final state is the initial state of the next call, without a gradient; `reset_state` starts anew.
truncate : int or None
    Cuts the state's gradient every so many steps, as detaching the state there would: between t - 1 and t for every
    multiple t.
reverse : bool
    Reads each sequence from its end to its beginning; y(t) stays at t.

Raises
------
TypeError
    No cell.
ShapeError
    At the call: x not (N, T, F) with T >= 1, or a state or mask of another shape, or a carried state of another N.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> class Decay(nn.Layer):
...     state_size = 2
...     def forward(self, x, state):
...         return 0.5 * state + x
...     def backward(self, d_state):
...         return d_state, 0.5 * d_state
>>> layer = nn.Recurrent(Decay())
>>> layer(np.ones((1, 3, 2)))[0]
array([[1.  , 1.  ],
       [1.5 , 1.5 ],
       [1.75, 1.75]], dtype=float32)
)doc")
      .def(py::init(&make_recurrent), py::arg("cell"), py::arg("return_sequences") = true, py::arg("stateful") = false,
           py::arg("truncate") = py::none(), py::arg("reverse") = false)
      .def_property_readonly("cell", [](const Recurrent& r) -> LayerPtr { return r.cell; })
      .def_property_readonly("return_sequences", [](const Recurrent& r) { return r.options.return_sequences; })
      .def_property_readonly("stateful", [](const Recurrent& r) { return r.options.stateful; })
      .def_property_readonly("truncate",
                             [](const Recurrent& r) {
                               return r.options.truncate > 0 ? std::optional<Index>(r.options.truncate) : std::nullopt;
                             })
      .def_property_readonly("reverse", [](const Recurrent& r) { return r.options.reverse; });
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
  bind_cells(m);
  bind_unrolled(m);
}

}  // namespace deepnet::python
