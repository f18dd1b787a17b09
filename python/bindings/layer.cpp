// layer.hpp and model.hpp: Parameter and the base class nn.Layer.
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <set>

#include "call.hpp"
#include "python_layer.hpp"

namespace deepnet::python {
namespace {

std::vector<std::pair<std::string, LayerPtr>> named_children(const Layer& layer) {
  if (const auto* python = dynamic_cast<const PythonLayer*>(&layer)) return python->named_children();
  std::vector<std::pair<std::string, LayerPtr>> list;
  for (const LayerPtr& child : layer.children()) list.emplace_back(std::to_string(list.size()), child);
  return list;
}

// "Conv2d(in_channels=3, kernel_size=(3, 3))"; a Sequential's layers follow, indented.
std::string repr(const Layer& layer, const std::string& indent = "") {
  std::string text = layer.kind() + "(";
  const char* comma = "";
  for (const auto& [name, value] : layer.config()) {
    const bool never = name == "truncate" && value == ConfigValue(Index{0});  // in Python's terms: None
    text += comma + name + "=" + std::string(py::str(py::repr(never ? py::none() : py::cast(value))));
    comma = ", ";
  }
  const auto children = named_children(layer);
  if (children.empty()) return text + ")";
  text += "\n";
  for (const auto& [name, child] : children) {
    text += indent + "  (" + name + "): " + repr(*child, indent + "  ") + "\n";
  }
  return text + indent + ")";
}

void assign(Tensor& to, py::handle value, const std::string& what) {
  const Tensor from = as_float(value, what);
  if (from.shape() != to.shape()) {
    throw ShapeError("[" + what + "] expected shape " + to.shape().str() + ", got " + from.shape().str());
  }
  if (from.raw() != to.raw() && from.bytes() > 0) std::memmove(to.raw(), from.raw(), from.bytes());
}

py::dict state_dict(const Layer& layer) {
  py::dict state;
  for (const auto& [name, parameter] : layer.parameters()) state[py::str(name)] = as_array(parameter->data.clone());
  return state;
}

// All names and shapes are checked before the first value changes.
void load_state_dict(Layer& layer, const py::object& mapping) {
  const std::string what = layer.kind() + ".load_state_dict";
  if (!py::isinstance(mapping, py::module_::import("collections.abc").attr("Mapping"))) {
    throw TypeError("[" + what + "] expected a mapping from names to arrays, got a " +
                    std::string(py::str(py::type::of(mapping).attr("__name__"))));
  }
  const py::dict state(mapping);
  const NamedParameters parameters = layer.parameters();
  std::string missing, unexpected;
  std::set<std::string> names;
  for (const auto& [name, parameter] : parameters) {
    names.insert(name);
    if (!state.contains(name)) missing += (missing.empty() ? "" : ", ") + name;
  }
  for (const auto& [key, value] : state) {
    const std::string name = py::str(key);
    if (names.count(name) == 0) unexpected += (unexpected.empty() ? "" : ", ") + name;
  }
  if (!missing.empty() || !unexpected.empty()) {
    throw ValueError("[" + what +
                     "] expected exactly the layer's parameters; missing: " + (missing.empty() ? "none" : missing) +
                     "; unexpected: " + (unexpected.empty() ? "none" : unexpected));
  }
  std::vector<Tensor> values;
  for (const auto& [name, parameter] : parameters) {
    values.push_back(as_float(state[py::str(name)], what));
    if (values.back().shape() != parameter->data.shape()) {
      throw ShapeError("[" + what + "] expected " + name + " of shape " + parameter->data.shape().str() + ", got " +
                       values.back().shape().str());
    }
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i].bytes() > 0) std::memmove(parameters[i].second->data.raw(), values[i].raw(), values[i].bytes());
  }
}

// Rows of Layer.summary: (name, kind, output shape or None, parameters). Shapes follow from the one given, or from that
// of a recent run.
py::list summary(Layer& layer, const std::optional<std::vector<Index>>& input) {
  const Graph graph = graph_of(LayerPtr(std::shared_ptr<void>(), &layer));
  std::vector<std::optional<Shape>> shapes(static_cast<std::size_t>(graph.value_count));
  const Shape shape = input ? Shape(*input) : without_gil([&] { return model_of(layer).recent_input_shape(); });
  if (shape.rank() > 0) shapes[static_cast<std::size_t>(graph.inputs[0])] = shape;
  py::list rows;
  std::set<const Parameter*> counted;
  for (const Node& node : graph.nodes) {
    std::vector<Shape> in;
    for (int v : node.inputs) {
      if (shapes[static_cast<std::size_t>(v)]) in.push_back(*shapes[static_cast<std::size_t>(v)]);
    }
    auto& out = shapes[static_cast<std::size_t>(node.output)];
    if (in.size() == node.inputs.size()) {
      try {
        out = node.layer->output_shape(in);
      } catch (const ShapeUnknown&) {  // only a run tells: a Python layer that has not run yet
      }
    }
    Index count = 0;
    for (const auto& [name, parameter] : node.layer->parameters()) {
      if (counted.insert(parameter.get()).second) count += parameter->data.size();
    }
    rows.append(py::make_tuple(node.name, node.layer->kind(), out ? py::object(as_tuple(*out)) : py::none(), count));
  }
  return rows;
}

void bind_parameter(py::module_& m) {
  py::class_<Parameter, py::smart_holder>(m, "Parameter", R"doc(
A trained array and dE/d(array), both as views of the native memory.

Parameters
----------
data : array
    Initial values, of any shape; copied, as float32.

Raises
------
TypeError
    data is of complex numbers or objects.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> weight = nn.Linear(2, 3).parameters()["weight"]
>>> weight.data[...] = 0.5
>>> weight.grad.shape
(3, 2)
)doc")
      .def(py::init([](py::handle data) { return std::make_shared<Parameter>(as_float(data, "Parameter").clone()); }),
           py::arg("data"))
      .def_property(
          "data", [](Parameter& p) { return as_array(p.data); },
          [](Parameter& p, py::handle value) { assign(p.data, value, "Parameter.data"); },
          "The values: a writable float32 view, no copy. Assigning an array of its shape copies the elements.")
      .def_property(
          "grad", [](Parameter& p) { return as_array(p.grad()); },
          [](Parameter& p, py::handle value) { assign(p.grad(), value, "Parameter.grad"); },
          "dE/d(data), to which backward adds: a writable float32 view, no copy; zeros at first.")
      .def_property_readonly(
          "shape", [](const Parameter& p) { return as_tuple(p.data.shape()); }, "Sizes along the axes, a tuple.")
      .def_property_readonly(
          "size", [](const Parameter& p) { return p.data.size(); }, "Number of elements.")
      .def("__repr__", [](const Parameter& p) { return "Parameter(shape=" + p.data.shape().str() + ")"; });
}

}  // namespace

void bind_layer(py::module_& m) {
  bind_parameter(m);
  py::class_<Layer, PythonLayer, py::smart_holder>(m, "Layer", py::dynamic_attr(), R"doc(
Base of all layers: given its input it makes its output, given dE/dOutput it makes dE/dInput and dE/dW.

Subclass it to write a layer in Python: ``forward(self, x)`` and ``backward(self, dy)`` on float32 arrays; attributes
of type `Parameter` are its parameters, to whose ``grad`` backward adds. Such a layer works alone, in `Sequential` and
in training, where ``self.training`` tells the mode of the run. The arrays it is given are read-only views of the
network's memory, valid until its backward: copy what must last or change. Called alone it may have several inputs,
``forward(self, a, b)``; its backward then returns a tuple. With an attribute ``state_size`` it is a cell, one step of a
recurrent layer: see `Recurrent`.

Attributes that are layers, alone or in a list, tuple or dict, are its `children`: their parameters are its own, named
"lin.weight" or "all.0.weight", and they follow its mode. Forward calls them, and backward calls their `backward`. As a
method of its own, backward is not checked: called by hand it must follow a forward.

References
----------
LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", sec. IV-A.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> class Square(nn.Layer):
...     def forward(self, x):
...         self.x = x
...         return x * x
...     def backward(self, dy):
...         return 2 * self.x * dy
>>> net = nn.Sequential(nn.Linear(3, 4), Square(), nn.Linear(4, 2))
>>> net(np.ones((5, 3))).shape
(5, 2)
>>> square = Square()
>>> square(np.array([[1.0, 2.0]]))
array([[1., 4.]], dtype=float32)
>>> square.backward(np.ones((1, 2), np.float32))
array([[2., 4.]], dtype=float32)
)doc")
      .def(py::init<>())
      .def("__call__", &call, py::kw_only(), py::arg("state") = py::none(), py::arg("lengths") = py::none(),
           py::arg("mask") = py::none(), R"doc(
Forward: the layer's output for the given input(s), a new float32 array.

A float32, C-contiguous input is borrowed, not copied: do not change it before the last `backward`. Other real types are
converted to float32. The class tells the shapes.

Parameters
----------
inputs : arrays
    One, or as many as the layer has.
state : array or pair of arrays
    The initial state of a recurrent layer; may also be the second positional argument.
lengths : N integers in 1 to T
    How many steps of each of the N sequences (N, T, ...) there are; the rest is padding.
mask : array (N, T)
    The same as 0 (or False) at steps of padding, else 1. Recurrent layers obey it, others ignore it.

Raises
------
ShapeError
    An input's shape does not fit the layer.
TypeError
    An input is of complex numbers or objects; a state for a layer that is not recurrent; lengths that are floats.
ValueError
    Lengths outside [1, T], a mask of other numbers than 0 and 1, or both.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer, x = nn.GRU(3, 4), np.ones((2, 5, 3))
>>> layer(x, np.zeros((1, 2, 4)), lengths=[5, 2]).shape
(2, 5, 4)
)doc")
      .def("predict", &predict, py::arg("x"), py::arg("batch_size") = default_batch_size, py::kw_only(),
           py::arg("lengths") = py::none(), py::arg("mask") = py::none(), R"doc(
Outputs for inputs of shape (N, ...), in evaluation mode, `batch_size` rows at a time: a new float32 array (N, ...).

The mode of the network does not change. Stateful recurrent layers go on from the state they carry and carry theirs on,
as in a call; the rows of their state are those of x, so that all are taken at once.

Parameters
----------
x : array (N, ...)
    Inputs, converted to float32; N may be 0.
batch_size : int
    Rows at a time, at least 1. Rows do not depend on each other in layers of this library, so that it changes outputs
    by rounding at most, but for a softmax along axis 0, which sums over the rows of one batch.
lengths, mask
    Which steps of sequences (N, T, ...) count, as in a call.

Raises
------
ShapeError, TypeError
    The inputs, lengths or mask do not fit the network or each other; `batch_size` is no int.
ValueError
    `batch_size` is below 1, lengths outside [1, T], a mask of other numbers than 0 and 1, or both.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.Softmax().predict(np.array([[0.0, 0.0], [1000.0, 0.0]]), batch_size=1)
array([[0.5, 0.5],
       [1. , 0. ]], dtype=float32)
>>> y = nn.GRU(3, 4).predict(np.ones((2, 5, 3)), lengths=[5, 2])
>>> bool((y[1, 2:] == 0).all())
True
)doc")
      .def("backward", &backward, py::arg("dy"), R"doc(
dE/dInput for dE/dOutput of the last forward; adds dE/dW to every parameter's ``grad``.

May be called any number of times after a forward. Returns a tuple where the layer has several inputs or was given a
state.

Parameters
----------
dy : array
    dE/dOutput, of the output's shape.

Raises
------
RuntimeError
    No forward came before.
ShapeError
    dy has not the output's shape.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Tanh()
>>> y = layer(np.zeros((1, 2)))
>>> layer.backward(np.ones_like(y))
array([[1., 1.]], dtype=float32)
)doc")
      .def(
          "parameters",
          [](const Layer& layer) {
            py::dict parameters;
            for (const auto& [name, parameter] : layer.parameters()) parameters[py::str(name)] = parameter;
            return parameters;
          },
          R"doc(
The trained arrays by name, as PyTorch names them: {"weight": Parameter, ...}.

Examples
--------
>>> from deepnet import nn
>>> nn.Linear(3, 2).parameters()
{'weight': Parameter(shape=(2, 3)), 'bias': Parameter(shape=(2,))}
)doc")
      .def("zero_grad", &Layer::zero_grad, R"doc(
Set the gradients of all parameters to 0.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Linear(1, 1)
>>> y, dx = layer(np.ones((1, 1))), layer.backward(np.ones((1, 1)))
>>> layer.zero_grad()
>>> layer.weight.grad
array([[0.]], dtype=float32)
)doc")
      .def(
          "train",
          [](py::object self, bool mode) {
            self.cast<Layer&>().train(mode);
            return self;
          },
          py::arg("mode") = true, R"doc(
Set training mode (dropout drops), for children too. Returns the layer.

Parameters
----------
mode : bool
    False sets evaluation mode, as `eval`.

Examples
--------
>>> from deepnet import nn
>>> nn.Dropout().train().training
True
)doc")
      .def(
          "eval",
          [](py::object self) {
            self.cast<Layer&>().eval();
            return self;
          },
          R"doc(
Set evaluation mode (dropout passes), for children too. Returns the layer.

Examples
--------
>>> from deepnet import nn
>>> nn.Dropout().eval().training
False
)doc")
      .def_property_readonly("training", &Layer::training,
                             "Whether the layer is in training mode, a bool; True at first.")
      .def("state_dict", &state_dict, R"doc(
Copies of all parameters by name, a dict of float32 arrays; PyTorch's names and layouts.

Examples
--------
>>> from deepnet import nn
>>> {name: array.shape for name, array in nn.Linear(3, 2).state_dict().items()}
{'weight': (2, 3), 'bias': (2,)}
)doc")
      .def("load_state_dict", &load_state_dict, py::arg("state"), R"doc(
Set all parameters from a dict of arrays.

Parameters
----------
state : dict or other mapping
    An array for each name of `parameters`, and no other.

Raises
------
TypeError
    No mapping.
ValueError
    A name is missing or unexpected.
ShapeError
    An array has not its parameter's shape. After either, no parameter has changed.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Linear(2, 1)
>>> layer.load_state_dict({"weight": np.array([[1, 2]]), "bias": np.array([3])})
>>> layer(np.array([[1, 1]]))
array([[6.]], dtype=float32)
)doc")
      .def_property_readonly("kind", &Layer::kind, "The layer's class name, which opens its error messages.")
      .def("children", &Layer::children, R"doc(
The layers inside, a list in order; empty for a layer that has none.

Examples
--------
>>> from deepnet import nn
>>> nn.Sequential(nn.ReLU(), nn.Tanh()).children()
[ReLU(), Tanh()]
)doc")
      .def("__repr__", [](const Layer& layer) { return repr(layer); })
      .def("__reduce_ex__",
           [](const Layer& layer, py::handle) -> py::object {
             throw TypeError("[" + layer.kind() +
                             "] layers can be neither copied nor pickled: use save and deepnet.load, or state_dict and "
                             "load_state_dict of a second layer");
           })
      .def("reset_state", &Layer::reset_state, R"doc(
Forget the state that recurrent layers carry from call to call and from step to step, of children too.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> net, x = nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2)), np.ones((1, 3))
>>> first, second = net.step(x), net.step(x)
>>> net.reset_state()
>>> again = net.step(x)
>>> bool((again == first).all()), bool((again == second).all())
(True, False)
)doc")
      .def("_summary", &summary, py::arg("input_shape"));
  shorten_predict(m.attr("Layer"));
  refuse_overrides(m.attr("Layer"), {"forward", "backward"}, "subclass nn.Layer, and use the native layer inside");
  m.def(
      "sequence_mask",
      [](const std::string& what, const std::vector<Index>& shape, py::handle lengths, py::handle mask) -> py::object {
        const Tensor padding = as_mask(what, Shape(shape), lengths, mask);
        return padding.defined() ? py::object(as_array(padding)) : py::none();
      },
      py::arg("what"), py::arg("shape"), py::arg("lengths"), py::arg("mask"),
      "The float32 mask (N, T) for inputs of that shape, from lengths or a mask; None where neither is given.");
}

}  // namespace deepnet::python
