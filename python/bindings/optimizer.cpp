// optimizer.hpp
#include "bindings.hpp"

namespace deepnet::python {

void bind_optimizer(py::module_& m) {
  py::class_<Optimizer, py::smart_holder>(m, "Optimizer", R"doc(
Base of the optimizers: from a parameter W and dE/dW to the next W. Not to be made directly.

What an optimizer remembers of a parameter, such as a velocity, belongs to that parameter wherever it is used.

Examples
--------
>>> from deepnet import optim
>>> isinstance(optim.SGD(lr=0.1), optim.Optimizer)
True
)doc")
      .def_property_readonly("kind", &Optimizer::kind, "The optimizer's class name, which opens its error messages.")
      .def(
          "step",
          [](Optimizer& optimizer, const Layer& layer) {
            const NamedParameters parameters = unique_parameters(layer);
            py::gil_scoped_release release;
            optimizer.step(parameters);
          },
          py::arg("net"), R"doc(
Update every parameter of a layer or network that has a gradient; gradients stay as they are.

Parameters
----------
net : Layer
    A parameter that it has in two places is updated once.

Raises
------
ValueError
    A setting was changed to a value outside its range.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn, optim
>>> layer = nn.Linear(1, 1)
>>> layer.weight.data[...] = 1
>>> y, dx = layer(np.ones((1, 1))), layer.backward(np.ones((1, 1)))
>>> optim.SGD(lr=0.25).step(layer)
>>> layer.weight.data
array([[0.75]], dtype=float32)
)doc")
      .def("__repr__", [](const Optimizer& optimizer) {
        std::string text = optimizer.kind() + "(";
        const char* comma = "";
        for (const auto& [name, value] : optimizer.config()) {
          text += comma + name + "=" +
                  std::string(py::str(std::visit([](auto v) { return py::repr(py::cast(v)); }, value)));
          comma = ", ";
        }
        return text + ")";
      });
  refuse_overrides(m.attr("Optimizer"), {"step"}, "set its attributes between steps instead");
  py::class_<SGD, Optimizer, py::smart_holder>(m, "SGD", R"doc(
Stochastic gradient descent, in PyTorch's form:

    g = dE/dW + weight_decay W;   v = momentum v + g;   W -= lr (g + momentum v if nesterov else v)

v begins as the first g. All settings are attributes that may be changed between steps.

Parameters
----------
lr : float
    Learning rate, >= 0.
momentum : float
    Share of the velocity that is kept, >= 0.
weight_decay : float
    Factor of W in its gradient, of biases too, >= 0.
nesterov : bool
    Look ahead along the velocity; needs momentum > 0.

Raises
------
ValueError
    A value outside its range, here or, changed later, at the step.

References
----------
Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", eq. 8 and 9;
Sutskever, Martens, Dahl and Hinton 2013, "On the importance of initialization and momentum in deep learning", eq. 3 and
4, for Nesterov's form.

Examples
--------
>>> from deepnet import optim
>>> opt = optim.SGD(lr=0.1, momentum=0.9)
>>> opt.lr = 0.01
>>> opt
SGD(lr=0.01, momentum=0.9, nesterov=False, weight_decay=0.0)
)doc")
      .def(py::init<double, double, double, bool>(), py::arg("lr"), py::arg("momentum") = 0.0,
           py::arg("weight_decay") = 0.0, py::arg("nesterov") = false)
      .def_readwrite("lr", &SGD::lr, "The learning rate, a float.")
      .def_readwrite("momentum", &SGD::momentum, "Share of the velocity that is kept, a float.")
      .def_readwrite("weight_decay", &SGD::weight_decay, "Factor of W in its gradient, a float.")
      .def_readwrite("nesterov", &SGD::nesterov, "Whether to look ahead along the velocity, a bool.");
}

}  // namespace deepnet::python
