// recurrent.hpp and cells.hpp: what every recurrent layer can be asked; cells, and Recurrent, which unrolls them.
#include <pybind11/stl.h>

#include <optional>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

py::object state_of(RecurrentLayer& layer) {
  const auto trace = trace_of(layer);
  std::vector<Tensor> states;
  const auto copy = [&](const std::vector<Tensor>& parts) {
    for (const Tensor& part : parts) states.push_back(part.clone());
  };
  copy(layer.newest_carried_state());
  if (states.empty() && !trace) {
    throw StateError("[" + layer.kind() + "] state came before forward: call the layer on a sequence, or step, first");
  }
  if (states.empty()) {
    without_gil([&] { trace->read([&](void* cache) { copy(layer.final_state(cache, trace->input())); }); });
  }
  if (states.size() == 1) return as_array(states[0]);
  py::tuple arrays(states.size());
  for (std::size_t i = 0; i < states.size(); ++i) arrays[i] = as_array(states[i]);
  return std::move(arrays);
}

// To put a state aside and to take it up again.
py::list carried_state(const RecurrentLayer& layer) {
  py::list arrays;
  for (const Tensor& part : layer.carried_state()) arrays.append(as_array(part));
  return arrays;
}

void carry_state(RecurrentLayer& layer, const py::list& arrays) {
  std::vector<Tensor> parts;
  for (py::handle array : arrays) parts.push_back(as_float(array, layer.kind()));
  layer.carry_state(std::move(parts));
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

Not to be made directly.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> cell, state = nn.GRUCell(3, 4), None
>>> for x in np.ones((5, 2, 3)):    # time first
...     state = cell(x, state)
>>> state.shape
(2, 4)
)doc");
  py::class_<GatedCell, RecurrentCell, py::smart_holder>(m, "GatedCell", R"doc(
Base of `RNNCell`, `LSTMCell` and `GRUCell`, which differ in what they make of W_ih x + b_ih and W_hh h + b_hh.

Each unit has G such sums: 1, 4 in an LSTM, 3 in a GRU. Not to be made directly.

Examples
--------
>>> from deepnet import nn
>>> cell = nn.LSTMCell(3, 4)
>>> cell.weight_ih.shape, cell.weight_hh.shape, cell.bias_ih.shape
((16, 3), (16, 4), (16,))
)doc")
      .def_property_readonly("input_size", &GatedCell::input_size, "Features of x, F.")
      .def_property_readonly("hidden_size", &GatedCell::hidden_size, "Number of units, H.")
      .def_readonly("weight_ih", &GatedCell::weight_ih, "`Parameter` of shape (G H, F).")
      .def_readonly("weight_hh", &GatedCell::weight_hh, "`Parameter` of shape (G H, H).")
      .def_readonly("bias_ih", &GatedCell::bias_ih, "`Parameter` of shape (G H,), or None.")
      .def_readonly("bias_hh", &GatedCell::bias_hh, "`Parameter` of shape (G H,), or None.");
  bind_cell<RNNCell>(m, "RNNCell", R"doc(
One step of a simple recurrent layer: h' = f(W_ih x + b_ih + W_hh h + b_hh).

x (N, input_size) and h (N, hidden_size), zeros where none is given, -> h' (N, hidden_size), float32. ``backward(dh')``
returns (dE/dx, dE/dh). Parameters as PyTorch's: ``weight_ih`` (H, F), ``weight_hh`` (H, H), ``bias_ih``, ``bias_hh``
(H,), all uniform in +-1/sqrt(H) at first.

Parameters
----------
input_size, hidden_size : int
    F and H.
bias : bool
    Whether b_ih and b_hh are there.
nonlinearity : "tanh", "relu", "sigmoid" or "softplus"
    f.

Raises
------
ValueError
    input_size or hidden_size < 1, or another nonlinearity.
ShapeError
    At the call: x not (N, F) or h not (N, H).

References
----------
Elman 1990, "Finding structure in time".

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
      .def_readonly("nonlinearity", &RNNCell::nonlinearity, "The name of f, a str.");
  bind_cell<LSTMCell>(m, "LSTMCell", R"doc(
One step of long short-term memory, see `LSTM`:

    i, f, o = sigmoid(...), g = tanh(...) of W_ih x + b_ih + W_hh h + b_hh;   c' = f c + i g;   h' = o tanh(c')

x (N, input_size) and the pair (h, c), zeros where none is given, each (N, hidden_size), -> (h', c').
``backward((dh', dc'))`` returns (dE/dx, (dE/dh, dE/dc)). Parameters as PyTorch's, the rows of ``weight_ih`` (4H, F) and
the others in the order i, f, g, o.

Parameters
----------
input_size, hidden_size : int
    F and H.
bias : bool
    Whether b_ih and b_hh are there.

Raises
------
ValueError
    input_size or hidden_size < 1.
TypeError
    At the call: a state that is not a pair.
ShapeError
    At the call: x not (N, F), or h or c not (N, H).

References
----------
Hochreiter and Schmidhuber 1997, "Long short-term memory";
Gers, Schmidhuber and Cummins 2000, "Learning to forget: continual prediction with LSTM", for the forget gate.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> cell = nn.LSTMCell(3, 4)
>>> h, c = cell(np.ones((2, 3)))
>>> h, c = cell(np.ones((2, 3)), (h, c))
>>> dx, (dh, dc) = cell.backward((np.ones((2, 4)), np.zeros((2, 4))))
>>> dx.shape, dc.shape
((2, 3), (2, 4))
)doc")
      .def(py::init<Index, Index, bool>(), py::arg("input_size"), py::arg("hidden_size"), py::arg("bias") = true);
  bind_cell<GRUCell>(m, "GRUCell", R"doc(
One step of a gated recurrent unit, in PyTorch's form, see `GRU`:

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh);   n = tanh(W_in x + b_in + r (W_hn h + b_hn));   h' = (1 - z) n + z h

x (N, input_size) and h (N, hidden_size), zeros where none is given, -> h'. ``backward(dh')`` returns (dE/dx, dE/dh).
Parameters as PyTorch's, the rows of ``weight_ih`` (3H, F) and the others in the order r, z, n.

Parameters
----------
input_size, hidden_size : int
    F and H.
bias : bool
    Whether b_ih and b_hh are there.

Raises
------
ValueError
    input_size or hidden_size < 1.
ShapeError
    At the call: x not (N, F) or h not (N, H).

References
----------
Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine translation", sec.
2.3.

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
... States have shape (1, N, S), see `RecurrentLayer`. Backward is backpropagation through time.

A cell of your own is a subclass of `Layer` with an attribute ``state_size`` (S) and the methods
``forward(self, x, state) -> state`` and ``backward(self, d_state) -> (d_x, d_state_before)`` on arrays (N, F) and
(N, S). Backward may use what forward left on ``self``: forward is called again right before it. With
``state_size = (H, H)`` states and their gradients are tuples, and the output is the first.

Parameters
----------
cell : Layer
    An `RNNCell`, `LSTMCell` or `GRUCell`, or one of your own.
return_sequences : bool
    False: only the output of the last step (of each sequence, where there are lengths or a mask).
stateful : bool
    The final state is the initial state of the next call, without a gradient; `reset_state` starts anew. Such a layer
    has one place in a network, for two would share the state.
truncate : int or None
    Cuts the state's gradient every so many steps, as detaching the state there would: between t - 1 and t for every
    multiple t.
reverse : bool
    Reads each sequence from its end to its beginning; y(t) stays at t.

Raises
------
TypeError
    No cell.
ValueError
    truncate < 1.
ShapeError
    At the call: x not (N, T, F) with T >= 1, or a state or mask of another shape, or a carried state of another N.

References
----------
Werbos 1990, "Backpropagation through time: what it does and how to do it".

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
>>> layer.backward(np.ones((1, 3, 2)))[0]
array([[1.75, 1.75],
       [1.5 , 1.5 ],
       [1.  , 1.  ]], dtype=float32)
)doc")
      .def(py::init(&make_recurrent), py::arg("cell"), py::arg("return_sequences") = true, py::arg("stateful") = false,
           py::arg("truncate") = py::none(), py::arg("reverse") = false)
      .def_property_readonly(
          "cell", [](const Recurrent& r) -> LayerPtr { return r.cell; }, "What is unrolled, a Layer.")
      .def_property_readonly(
          "return_sequences", [](const Recurrent& r) { return r.options.return_sequences; },
          "Whether the output has every step, a bool.")
      .def_property_readonly(
          "stateful", [](const Recurrent& r) { return r.options.stateful; },
          "Whether the state goes on from call to call, a bool.")
      .def_property_readonly(
          "truncate",
          [](const Recurrent& r) {
            return r.options.truncate > 0 ? std::optional<Index>(r.options.truncate) : std::nullopt;
          },
          "Steps from one cut of the state's gradient to the next, an int, or None.")
      .def_property_readonly(
          "reverse", [](const Recurrent& r) { return r.options.reverse; },
          "Whether sequences are read from their end, a bool.");
}

}  // namespace

void bind_recurrent(py::module_& m) {
  py::class_<RecurrentLayer, Layer, py::smart_holder>(m, "RecurrentLayer", R"doc(
Base of the recurrent layers: x(t) = f(x(t-1), a(t)), one shared layer at every step of a sequence (N, T, F).

``layer(x)`` starts from a state of zeros, ``layer(x, state)`` from the one given; then `backward` returns
(dE/dx, dE/dstate). ``layer(x, lengths=[...])`` or ``layer(x, mask=...)`` tells which steps are padding: there the state
is carried through, the output is 0, the input may be anything, and its gradient is 0. Not to be made directly.

References
----------
Rumelhart, Hinton and Williams 1986, "Learning internal representations by error propagation", for the network unrolled
in time; Werbos 1990, "Backpropagation through time: what it does and how to do it".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.GRU(3, 4)
>>> y = layer(np.ones((2, 5, 3)), lengths=[5, 2])
>>> bool((layer.state[0, 1] == y[1, 1]).all())    # of the second sequence: after its second step
True
)doc")
      .def_property_readonly("state", &state_of, R"doc(
The state after the last run or `step`, alone or in a network, in evaluation or training: (rows, N, H), a row a
direction of a layer; of an LSTM the pair (h, c). `predict` leaves none, but of a stateful layer, which carries it on.
RuntimeError before there is one.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.LSTM(3, 4, num_layers=2)
>>> y = layer(np.ones((5, 7, 3)))
>>> h, c = layer.state
>>> h.shape, bool((h[-1] == y[:, -1]).all())
((2, 5, 4), True)
)doc")
      .def_property("_carried_state", &carried_state, &carry_state)
      .def_property_readonly("state_gradient_norms", &state_gradient_norms, R"doc(
After a backward: |dE/dh(t)| for the state h(t) after each step, float32 (rows, T): the root of the sum of squares over
batch and features. How it falls from step to step is the vanishing gradient in time. RuntimeError before a backward.

References
----------
Bengio, Simard and Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.RNN(1, 1, nonlinearity="relu", return_sequences=False)
>>> for name, parameter in layer.parameters().items():
...     parameter.data[...] = 0.5 if name == "weight_hh_l0" else 1
>>> dx = layer.backward(np.ones_like(layer(np.ones((1, 4, 1)))))
>>> layer.state_gradient_norms
array([[0.125, 0.25 , 0.5  , 1.   ]], dtype=float32)
)doc")
      .def(
          "step",
          [](RecurrentLayer& layer, py::handle x) {
            const Tensor input = as_float(x, layer.kind() + ".step");
            Tensor y;
            {
              GilLeft release;
              y = layer.step(input);
            }
            return as_new_array(y);
          },
          py::arg("x"), R"doc(
One step of streaming inference: x(t), (N, F), -> (N, H), in evaluation mode.

The layer keeps its state for the next step; it starts from zeros, and again after `reset_state`. A stateful layer may
read a beginning as a sequence and go on step by step.

Parameters
----------
x : array (N, F)
    Each sequence's next step, converted to float32.

Raises
------
ValueError
    The layer reads sequences from their end.
ShapeError
    x is not (N, F), or N not that of the state.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer, x = nn.GRU(3, 4), np.ones((2, 5, 3))
>>> steps = [layer.step(x[:, t]) for t in range(5)]
>>> np.allclose(layer(x), np.stack(steps, axis=1), atol=1e-6)
True
)doc");
  bind_cells(m);
  bind_unrolled(m);
}

}  // namespace deepnet::python
