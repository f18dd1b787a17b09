// recurrent.hpp: the layers nn.RNN, nn.LSTM and nn.GRU.
#include <pybind11/stl.h>

#include <optional>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

RecurrentOptions options(const char* kind, Index num_layers, bool bidirectional, bool return_sequences, bool bias,
                         double dropout, bool stateful, std::optional<Index> truncate) {
  RecurrentOptions o;
  o.num_layers = num_layers;
  o.bidirectional = bidirectional;
  o.return_sequences = return_sequences;
  o.bias = bias;
  o.dropout = dropout;
  o.stateful = stateful;
  if (truncate && *truncate < 1) {
    throw ValueError("[" + std::string(kind) + "] expected truncate >= 1 or None, got " + std::to_string(*truncate));
  }
  o.truncate = truncate.value_or(0);
  return o;
}

// What the docstrings of the three share, behind the equations and the parameters' rows.
const char shared_doc[] = R"doc(
(N, T, input_size) -> (N, T, D hidden_size), D = 2 if bidirectional, else 1. Without `return_sequences` (N, D hidden_size):
the forward direction's state after each sequence's last step, and the reverse direction's after it has read back to step 0.
``lengths=`` or ``mask=`` tells which steps are padding. Every sequence's output, final state and dE/dx are the same bits
alone and in a padded batch.

``layer(x, state)`` starts from a state, see `RecurrentLayer`; its rows are layer 0, layer 0 reverse, layer 1, ...

Parameters are named, laid out and at first distributed (uniform in +-1/sqrt(hidden_size)) as PyTorch's: weight_ih_l0,
weight_hh_l0, bias_ih_l0, bias_hh_l0, with "_reverse" behind them for the reverse direction, l1, ... for further layers.
Backward is backpropagation through time (Werbos 1990).

Parameters
----------
input_size, hidden_size : int
num_layers : int
    Layers one on the other, each reading the one below.
bidirectional : bool
    A second set of weights reads every sequence from its end (Schuster and Paliwal 1997).
return_sequences : bool
bias : bool
dropout : float
    In training, the probability of 0 for each input of the second layer and those above it.
stateful : bool
    The final state is the initial state of the next call, without a gradient, and of `step`; `reset_state` starts anew.
truncate : int or None
    Cuts the state's gradient every so many steps, as detaching the state there would: between t - 1 and t for every
    multiple t.

Raises
------
ValueError
    A size < 1, dropout outside [0, 1], truncate < 1.
ShapeError
    At the call: x not (N, T, input_size) with T >= 1, a state or mask of another shape, a carried state of another N.
)doc";

std::string doc(const std::string& begin, const char* example) { return begin + shared_doc + example; }

template <class L>
using StackClass = py::class_<L, RecurrentStack, py::smart_holder>;

template <class L>
void bind_gated(py::module_& m, const char* kind, const std::string& doc) {
  StackClass<L>(m, kind, doc.c_str())
      .def(py::init([kind](Index input_size, Index hidden_size, Index num_layers, bool bidirectional,
                           bool return_sequences, bool bias, double dropout, bool stateful,
                           std::optional<Index> truncate) {
             return std::make_shared<L>(
                 input_size, hidden_size,
                 options(kind, num_layers, bidirectional, return_sequences, bias, dropout, stateful, truncate));
           }),
           py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers") = 1, py::arg("bidirectional") = false,
           py::arg("return_sequences") = true, py::arg("bias") = true, py::arg("dropout") = 0.0,
           py::arg("stateful") = false, py::arg("truncate") = py::none());
}

void bind_rnn(py::module_& m) {
  const std::string text = doc(R"doc(
The plain recurrent layer (Elman 1990):

    h(t) = f(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh),   f = `nonlinearity`: "tanh", "relu", "sigmoid" or "softplus"
)doc",
                               R"doc(
Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.RNN(3, 4, nonlinearity="relu")
>>> y = layer(np.ones((2, 5, 3)), lengths=[5, 2])
>>> y.shape, layer.state.shape
((2, 5, 4), (1, 2, 4))
>>> y[1, 2:].any()
np.False_
)doc");
  StackClass<RNN>(m, "RNN", text.c_str())
      .def(py::init([](Index input_size, Index hidden_size, Index num_layers, bool bidirectional, bool return_sequences,
                       const std::string& nonlinearity, bool bias, double dropout, bool stateful,
                       std::optional<Index> truncate) {
             return std::make_shared<RNN>(
                 input_size, hidden_size,
                 options("RNN", num_layers, bidirectional, return_sequences, bias, dropout, stateful, truncate),
                 nonlinearity);
           }),
           py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers") = 1, py::arg("bidirectional") = false,
           py::arg("return_sequences") = true, py::arg("nonlinearity") = "tanh", py::arg("bias") = true,
           py::arg("dropout") = 0.0, py::arg("stateful") = false, py::arg("truncate") = py::none())
      .def_readonly("nonlinearity", &RNN::nonlinearity);
}

}  // namespace

void bind_recurrent_stack(py::module_& m) {
  py::class_<RecurrentStack, RecurrentLayer, py::smart_holder>(m, "RecurrentStack", "Base of `RNN`, `LSTM` and `GRU`.")
      .def_readonly("input_size", &RecurrentStack::input_size)
      .def_readonly("hidden_size", &RecurrentStack::hidden_size)
      .def_property_readonly("num_layers", [](const RecurrentStack& l) { return l.options.num_layers; })
      .def_property_readonly("bidirectional", [](const RecurrentStack& l) { return l.options.bidirectional; })
      .def_property_readonly("return_sequences", [](const RecurrentStack& l) { return l.options.return_sequences; })
      .def_property_readonly("bias", [](const RecurrentStack& l) { return l.options.bias; })
      .def_property_readonly("dropout", [](const RecurrentStack& l) { return l.options.dropout; })
      .def_property_readonly("stateful", [](const RecurrentStack& l) { return l.options.stateful; })
      .def_property_readonly("truncate", [](const RecurrentStack& l) {
        return l.options.truncate > 0 ? std::optional<Index>(l.options.truncate) : std::nullopt;
      });
  bind_rnn(m);
  bind_gated<LSTM>(m, "LSTM",
                   doc(R"doc(
Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000):

    i, f, o = sigmoid(...), g = tanh(...) of W_ih x(t) + b_ih + W_hh h(t-1) + b_hh, their rows in the order i, f, g, o
    c(t) = f c(t-1) + i g,   h(t) = o tanh(c(t));   the output is h, the state the pair (h, c)
)doc",
                       R"doc(
Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
>>> layer(np.ones((2, 5, 3))).shape
(2, 5, 8)
>>> h, c = layer.state
>>> h.shape
(4, 2, 4)
>>> y = layer(np.ones((2, 5, 3)), (h, c))
>>> dx, (dh, dc) = layer.backward(np.ones_like(y))
)doc"));
  bind_gated<GRU>(m, "GRU",
                  doc(R"doc(
The gated recurrent unit (Cho et al. 2014), in PyTorch's form, its weights' rows in the order r, z, n:

    r, z = sigmoid(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh)
    n = tanh(W_in x(t) + b_in + r (W_hn h(t-1) + b_hn)),   h(t) = (1 - z) n + z h(t-1)
)doc",
                      R"doc(
Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.GRU(3, 4, return_sequences=False)
>>> x = np.ones((2, 5, 3))
>>> y = layer(x)
>>> y.shape
(2, 4)
>>> for t in range(5):
...     h = layer.step(x[:, t])
>>> np.allclose(h, y, atol=1e-6)
True
)doc"));
}

}  // namespace deepnet::python
