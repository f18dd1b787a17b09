// recurrent.hpp: the layers nn.RNN, nn.LSTM and nn.GRU.
#include <pybind11/stl.h>

#include <optional>
#include <string>

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

template <class L>
using StackClass = py::class_<L, RecurrentStack, py::smart_holder>;

// --- docstrings, of parts that the three layers share ----------------------------------------------------------------

constexpr const char* shapes_doc = R"doc(
(N, T, input_size) -> (N, T, D H), or (N, D H) without `return_sequences`; float32. H is hidden_size, D = 2 if
`bidirectional`, else 1, side by side in the last axis. ``layer(x, state)`` starts from a state other than zeros,
``lengths`` or ``mask`` tell steps of padding, and `state`, `step` and `reset_state` are as in `RecurrentLayer`. The rows
of a state are layer 0 forward, layer 0 reverse, layer 1 forward, ... Backward is backpropagation through time.

Parameters are named and laid out as PyTorch's, for layer l and, with "_reverse" behind, for its other direction:
``weight_ih_l{l}``, ``weight_hh_l{l}``, ``bias_ih_l{l}`` and ``bias_hh_l{l}``. All start uniform in +-1/sqrt(H).
)doc";

constexpr const char* arguments_doc = R"doc(
Parameters
----------
input_size, hidden_size : int
    F and H.
num_layers : int
    Layers of the stack; each reads the outputs of the one below it.
bidirectional : bool
    A second set of weights reads each sequence from its end to its beginning.
return_sequences : bool
    False: only the last output of each direction, which of the reverse one is that at step 0.
)doc";

constexpr const char* more_arguments_doc = R"doc(bias : bool
    Whether b_ih and b_hh are there.
dropout : float
    In training: probability of zeroing an element that goes from one layer of the stack to the next.
stateful : bool
    The final state is the initial state of the next call, without a gradient; `reset_state` starts anew. Such a layer
    has one place in a network, for two would share the state.
truncate : int or None
    Cuts the state's gradient every so many steps, as detaching the state there would: between t - 1 and t for every
    multiple t.

Raises
------
ValueError
    input_size, hidden_size, num_layers or truncate < 1, or a dropout outside [0, 1].
ShapeError
    At the call: x not (N, T, F) with T >= 1, a state that is not (rows, N, H), a mask that is not (N, T), lengths that
    are not N, or a carried state of another N.
)doc";

constexpr const char* rnn_doc = R"doc(
The simple recurrent network: h(t) = f(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh), the output at step t.
)doc";

constexpr const char* rnn_source_doc = R"doc(
References
----------
Elman 1990, "Finding structure in time"; Werbos 1990, "Backpropagation through time: what it does and how to do it".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.RNN(1, 1, nonlinearity="relu", bias=False)
>>> for parameter in layer.parameters().values():
...     parameter.data[...] = 1                 # h(t) = x(t) + h(t-1)
>>> y = layer(np.ones((1, 4, 1)))
>>> y[0, :, 0]
array([1., 2., 3., 4.], dtype=float32)
>>> layer.backward(np.ones_like(y))[0, :, 0]    # x(t) is in every output from step t on
array([4., 3., 2., 1.], dtype=float32)
>>> y = layer(np.ones((1, 4, 1)), np.full((1, 1, 1), 10.0))
>>> dx, dstate = layer.backward(np.ones_like(y))
>>> y[0, :, 0], dstate
(array([11., 12., 13., 14.], dtype=float32), array([[[4.]]], dtype=float32))
)doc";

constexpr const char* nonlinearity_doc = R"doc(nonlinearity : "tanh", "relu", "sigmoid" or "softplus"
    f; a ValueError for another.
)doc";

constexpr const char* lstm_doc = R"doc(
Long short-term memory: a state c, which the gates i, f and o write, forget and read, so that errors last.

    i, f, o = sigmoid(...), g = tanh(...) of W_ih x(t) + b_ih + W_hh h(t-1) + b_hh
    c(t) = f c(t-1) + i g,   h(t) = o tanh(c(t)), the output at step t

The state is the pair (h, c). The rows of the weights, (4 H, F), and biases are in the order i, f, g, o.
)doc";

constexpr const char* lstm_source_doc = R"doc(
References
----------
Hochreiter and Schmidhuber 1997, "Long short-term memory";
Gers, Schmidhuber and Cummins 2000, "Learning to forget: continual prediction with LSTM", for the forget gate.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.LSTM(3, 4, bidirectional=True)
>>> y = layer(np.ones((2, 5, 3)), lengths=[5, 2])
>>> y.shape, bool((y[1, 2:] == 0).all())
((2, 5, 8), True)
>>> h, c = layer.state
>>> h.shape, c.shape
((2, 2, 4), (2, 2, 4))
>>> y = layer(np.ones((2, 5, 3)), (h, c))
>>> dx, (dh, dc) = layer.backward(np.ones_like(y))
>>> dx.shape, dh.shape
((2, 5, 3), (2, 2, 4))
)doc";

constexpr const char* gru_doc = R"doc(
The gated recurrent unit, in PyTorch's form: gates r and z choose what to forget of a state and how much to renew.

    r, z = sigmoid(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh)
    n = tanh(W_in x(t) + b_in + r (W_hn h(t-1) + b_hn)),   h(t) = (1 - z) n + z h(t-1), the output at step t

The rows of the weights, (3 H, F), and biases are in the order r, z, n. In the paper r acts before the product with W_hn,
on h(t-1).
)doc";

constexpr const char* gru_source_doc = R"doc(
References
----------
Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine translation", sec.
2.3.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> net = nn.Sequential(nn.GRU(3, 4, num_layers=2, return_sequences=False), nn.Linear(4, 2))
>>> net(np.ones((8, 5, 3))).shape
(8, 2)
>>> layer, x = nn.GRU(3, 4, stateful=True), np.ones((1, 6, 3))
>>> whole = layer(x)
>>> layer.reset_state()
>>> first, second = layer(x[:, :3]), layer(x[:, 3:])    # the second call goes on where the first one stopped
>>> np.allclose(whole, np.concatenate([first, second], axis=1), atol=1e-6)
True
)doc";

// A docstring from the layer's own parts: equation, further arguments, and source with an example.
std::string stack_doc(const char* equation, const char* further_arguments, const char* source) {
  return std::string(equation) + shapes_doc + arguments_doc + further_arguments + more_arguments_doc + source;
}

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

void bind_base(py::module_& m) {
  py::class_<RecurrentStack, RecurrentLayer, py::smart_holder>(m, "RecurrentStack", R"doc(
Base of `RNN`, `LSTM` and `GRU`: a stack of recurrent layers, each of one or two directions. Not to be made directly.

Examples
--------
>>> from deepnet import nn
>>> layer = nn.GRU(3, 4, num_layers=2, bidirectional=True)
>>> [name for name in layer.parameters() if name.startswith("weight_ih")]
['weight_ih_l0', 'weight_ih_l0_reverse', 'weight_ih_l1', 'weight_ih_l1_reverse']
)doc")
      .def_readonly("input_size", &RecurrentStack::input_size, "Features of each step of the input, F.")
      .def_readonly("hidden_size", &RecurrentStack::hidden_size, "Units of a layer and direction, H.")
      .def_property_readonly(
          "num_layers", [](const RecurrentStack& l) { return l.options.num_layers; }, "Layers of the stack, an int.")
      .def_property_readonly(
          "bidirectional", [](const RecurrentStack& l) { return l.options.bidirectional; },
          "Whether each layer also reads from the end, a bool.")
      .def_property_readonly(
          "return_sequences", [](const RecurrentStack& l) { return l.options.return_sequences; },
          "Whether the output has every step, a bool.")
      .def_property_readonly(
          "bias", [](const RecurrentStack& l) { return l.options.bias; }, "Whether there are biases, a bool.")
      .def_property_readonly(
          "dropout", [](const RecurrentStack& l) { return l.options.dropout; },
          "Probability of zeroing what goes from layer to layer in training, a float.")
      .def_property_readonly(
          "stateful", [](const RecurrentStack& l) { return l.options.stateful; },
          "Whether the state goes on from call to call, a bool.")
      .def_property_readonly(
          "truncate",
          [](const RecurrentStack& l) {
            return l.options.truncate > 0 ? std::optional<Index>(l.options.truncate) : std::nullopt;
          },
          "Steps from one cut of the state's gradient to the next, an int, or None.");
}

void bind_rnn(py::module_& m) {
  const std::string doc = stack_doc(rnn_doc, nonlinearity_doc, rnn_source_doc);
  StackClass<RNN>(m, "RNN", doc.c_str())
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
      .def_readonly("nonlinearity", &RNN::nonlinearity, "The name of f, a str.");
}

}  // namespace

void bind_recurrent_stack(py::module_& m) {
  bind_base(m);
  bind_rnn(m);
  bind_gated<LSTM>(m, "LSTM", stack_doc(lstm_doc, "", lstm_source_doc));
  bind_gated<GRU>(m, "GRU", stack_doc(gru_doc, "", gru_source_doc));
}

}  // namespace deepnet::python
