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

template <class L>
using StackClass = py::class_<L, RecurrentStack, py::smart_holder>;

template <class L>
void bind_gated(py::module_& m, const char* kind, const char* doc) {
  StackClass<L>(m, kind, doc)
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
  StackClass<RNN>(m, "RNN", "h(t) = f(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh).")
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
  bind_gated<LSTM>(m, "LSTM", "Long short-term memory.");
  bind_gated<GRU>(m, "GRU", "Gated recurrent unit.");
}

}  // namespace deepnet::python
