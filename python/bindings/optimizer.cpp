// optimizer.hpp
#include <array>
#include <utility>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

[[noreturn]] void wrong_type(const std::string& kind, const std::string& name, const char* expected, py::handle got) {
  throw TypeError("[" + kind + "] expected " + name + " to be " + expected + ", got " + std::string(py::repr(got)));
}

// --- one setting from Python: arguments and attributes alike ---------------------------------------------------

void read(const std::string& kind, const std::string& name, py::handle from, double& to) {
  const double value = PyFloat_AsDouble(from.ptr());  // of whatever has __float__, as NumPy's scalars
  if (value == -1.0 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    wrong_type(kind, name, "a number", from);
  }
  to = value;
}

void read(const std::string& kind, const std::string& name, py::handle from, bool& to) {
  py::detail::make_caster<bool> flag;
  if (!flag.load(from, /*convert=*/false)) wrong_type(kind, name, "a bool", from);
  to = flag;
}

void read(const std::string& kind, const std::string& name, py::handle from, std::pair<double, double>& to) {
  if (!py::isinstance<py::sequence>(from) || py::isinstance<py::str>(from) || py::len(from) != 2) {
    wrong_type(kind, name, "two numbers", from);
  }
  const auto values = py::reinterpret_borrow<py::sequence>(from);
  std::pair<double, double> pair;
  read(kind, name + "[0]", py::object(values[0]), pair.first);
  read(kind, name + "[1]", py::object(values[1]), pair.second);
  to = pair;
}

template <class T>
T argument(const char* kind, const char* name, py::handle from) {
  T value{};
  read(kind, name, from, value);
  return value;
}

// PyTorch's optimizers are given the parameters where these are given the learning rate.
double learning_rate(const char* kind, py::handle lr) {
  if (py::isinstance<py::dict>(lr) || py::isinstance<py::list>(lr) || PyIter_Check(lr.ptr())) {
    throw TypeError(std::string("[") + kind + "] expected lr to be a number, got a " + Py_TYPE(lr.ptr())->tp_name +
                    ": an optimizer is given no parameters; Trainer, fit and step take the network, and it finds them");
  }
  return argument<double>(kind, "lr", lr);
}

template <class O, class... Bases, class T>
void setting(py::class_<O, Bases...>& type, const char* name, T O::* member, const char* doc) {
  type.def_property(
      name, [member](const O& optimizer) { return optimizer.*member; },
      [member, name](O& optimizer, py::handle value) { read(optimizer.kind(), name, value, optimizer.*member); }, doc);
}

// Optimizer(name=value, ...) of the settings in the constructor's order.
template <class O, class... Bases, std::size_t N>
void def_repr(py::class_<O, Bases...>& type, const std::array<const char*, N>& names) {
  type.def("__repr__", [names](py::handle self) {
    std::string text;
    for (const char* name : names) {
      text += (text.empty() ? "" : ", ") + std::string(name) + "=" + std::string(py::repr(self.attr(name)));
    }
    return self.cast<const O&>().kind() + "(" + text + ")";
  });
}

void bind_base(py::module_& m) {
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
            GilLeft release;
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
)doc");
  refuse_overrides(m.attr("Optimizer"), {"step"}, "set its attributes between steps instead");
}

void bind_sgd(py::module_& m) {
  py::class_<SGD, Optimizer, py::smart_holder> type(m, "SGD", R"doc(
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
TypeError
    A value that is no number, or for nesterov no bool.

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
SGD(lr=0.01, momentum=0.9, weight_decay=0.0, nesterov=False)
)doc");
  type.def(py::init([](py::handle lr, py::handle momentum, py::handle weight_decay, py::handle nesterov) {
             const auto number = [](const char* name, py::handle from) { return argument<double>("SGD", name, from); };
             return std::make_unique<SGD>(learning_rate("SGD", lr), number("momentum", momentum),
                                          number("weight_decay", weight_decay),
                                          argument<bool>("SGD", "nesterov", nesterov));
           }),
           py::arg("lr"), py::arg("momentum") = 0.0, py::arg("weight_decay") = 0.0, py::arg("nesterov") = false);
  setting(type, "lr", &SGD::lr, "The learning rate, a float.");
  setting(type, "momentum", &SGD::momentum, "Share of the velocity that is kept, a float.");
  setting(type, "weight_decay", &SGD::weight_decay, "Factor of W in its gradient, a float.");
  setting(type, "nesterov", &SGD::nesterov, "Whether to look ahead along the velocity, a bool.");
  def_repr(type, std::array{"lr", "momentum", "weight_decay", "nesterov"});
}

template <class A, class... Bases>
void def_adam_init(py::class_<A, Bases...>& type, const char* kind, double default_decay) {
  type.def(py::init([kind](py::handle lr, py::handle betas, py::handle eps, py::handle decay, py::handle amsgrad) {
             return std::make_unique<A>(
                 learning_rate(kind, lr), argument<std::pair<double, double>>(kind, "betas", betas),
                 argument<double>(kind, "eps", eps), argument<double>(kind, "weight_decay", decay),
                 argument<bool>(kind, "amsgrad", amsgrad));
           }),
           py::arg("lr") = 1e-3, py::arg("betas") = py::make_tuple(0.9, 0.999), py::arg("eps") = 1e-8,
           py::arg("weight_decay") = default_decay, py::arg("amsgrad") = false);
}

void bind_adam(py::module_& m) {
  py::class_<Adam, Optimizer, py::smart_holder> adam(m, "Adam", R"doc(
Adam, in PyTorch's form: steps along the mean of the gradients, m, each weight's scaled by its gradients' size, sqrt(v):

    g = dE/dW + weight_decay W;   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
    W -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

m and v begin as 0; t = 1, 2, ... counts the parameter's updates. All settings are attributes that may be changed
between steps.

Parameters
----------
lr : float
    Learning rate, >= 0: about the largest change of a weight in a step.
betas : tuple of float
    Shares of m and of v that are kept, each in [0, 1).
eps : float
    Added to the root, >= 0.
weight_decay : float
    Factor of W in its gradient, of biases too, >= 0. `AdamW` decays weights apart from the gradient.
amsgrad : bool
    Use the largest v so far in place of v.

Raises
------
ValueError
    A value outside its range, here or, changed later, at the step.
TypeError
    A value that is no number, for betas no two, or for amsgrad no bool.

References
----------
Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1;
Reddi, Kale and Kumar 2018, "On the convergence of Adam and beyond", algorithm 2, for amsgrad.

Examples
--------
The first step is lr in size, however large the gradient:

>>> import numpy as np
>>> from deepnet import nn, optim
>>> layer, opt = nn.Linear(2, 1), optim.Adam(lr=0.5)
>>> layer.weight.data[...] = 0
>>> y, dx = layer(np.array([[3, -100]])), layer.backward(np.ones((1, 1)))
>>> opt.step(layer)
>>> layer.weight.data
array([[-0.5,  0.5]], dtype=float32)
>>> opt
Adam(lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, amsgrad=False)
)doc");
  def_adam_init(adam, "Adam", 0.0);
  setting(adam, "lr", &Adam::lr, "The learning rate, a float.");
  setting(adam, "betas", &Adam::betas, "Shares of m and v that are kept, two floats.");
  setting(adam, "eps", &Adam::eps, "Added to the root, a float.");
  setting(adam, "weight_decay", &Adam::weight_decay, "How fast weights shrink, a float.");
  setting(adam, "amsgrad", &Adam::amsgrad, "Whether to use the largest v so far, a bool.");
  def_repr(adam, std::array{"lr", "betas", "eps", "weight_decay", "amsgrad"});

  py::class_<AdamW, Adam, py::smart_holder> adamw(m, "AdamW", R"doc(
Adam with decoupled weight decay, in PyTorch's form: weights shrink by themselves, not through m and v:

    W *= 1 - lr weight_decay;   m = beta1 m + (1 - beta1) dE/dW;   v = beta2 v + (1 - beta2) (dE/dW)^2
    W -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

m and v begin as 0; t = 1, 2, ... counts the parameter's updates. All settings are attributes that may be changed
between steps.

Parameters
----------
lr : float
    Learning rate, >= 0: about the largest change of a weight in a step.
betas : tuple of float
    Shares of m and of v that are kept, each in [0, 1).
eps : float
    Added to the root, >= 0.
weight_decay : float
    Share of W, of biases too, that is lost in a step, over lr; >= 0.
amsgrad : bool
    Use the largest v so far in place of v.

Raises
------
ValueError
    A value outside its range, here or, changed later, at the step.
TypeError
    A value that is no number, for betas no two, or for amsgrad no bool.

References
----------
Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2, its schedule multiplier as lr;
Reddi, Kale and Kumar 2018, "On the convergence of Adam and beyond", algorithm 2, for amsgrad.

Examples
--------
Without a gradient's pull only the decay is left:

>>> import numpy as np
>>> from deepnet import nn, optim
>>> layer = nn.Linear(1, 1)
>>> layer.weight.data[...] = 8
>>> y, dx = layer(np.zeros((1, 1))), layer.backward(np.ones((1, 1)))
>>> optim.AdamW(lr=0.5, weight_decay=0.25).step(layer)
>>> layer.weight.data
array([[7.]], dtype=float32)
)doc");
  def_adam_init(adamw, "AdamW", 1e-2);
}

void bind_rmsprop(py::module_& m) {
  py::class_<RMSprop, Optimizer, py::smart_holder> type(m, "RMSprop", R"doc(
RMSprop, in PyTorch's form: each weight's step is scaled by the root of its squared gradients' running mean:

    g = dE/dW + weight_decay W;   s = alpha s + (1 - alpha) g^2
    u = momentum u + g / (sqrt(s) + eps);   W -= lr u

With centered, sqrt(s - a^2) stands for sqrt(s), where a = alpha a + (1 - alpha) g: the gradients' variance about their
mean, of which rounding below 0 counts as 0. s, a and u begin as 0. All settings are attributes that may be changed
between steps.

Parameters
----------
lr : float
    Learning rate, >= 0.
alpha : float
    Share of s, and of a, that is kept, in [0, 1).
eps : float
    Added to the root, >= 0.
weight_decay : float
    Factor of W in its gradient, of biases too, >= 0.
momentum : float
    Share of u that is kept, >= 0.
centered : bool
    Divide by the gradients' deviation from their mean.

Raises
------
ValueError
    A value outside its range, here or, changed later, at the step.
TypeError
    A value that is no number, or for centered no bool.

References
----------
Tieleman and Hinton 2012, "Neural networks for machine learning", lecture 6.5;
Graves 2013, "Generating sequences with recurrent neural networks", eq. 38 to 41, for the mean and the momentum, though
there eps is under the root and lr within the momentum.

Examples
--------
The first step is lr / sqrt(1 - alpha) in size, however large the gradient:

>>> import numpy as np
>>> from deepnet import nn, optim
>>> layer, opt = nn.Linear(2, 1), optim.RMSprop(lr=0.25, alpha=0.75)
>>> layer.weight.data[...] = 0
>>> y, dx = layer(np.array([[3, -100]])), layer.backward(np.ones((1, 1)))
>>> opt.step(layer)
>>> layer.weight.data
array([[-0.5,  0.5]], dtype=float32)
>>> opt
RMSprop(lr=0.25, alpha=0.75, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False)
)doc");
  type.def(py::init([](py::handle lr, py::handle alpha, py::handle eps, py::handle weight_decay, py::handle momentum,
                       py::handle centered) {
             const auto number = [](const char* name, py::handle from) {
               return argument<double>("RMSprop", name, from);
             };
             return std::make_unique<RMSprop>(learning_rate("RMSprop", lr), number("alpha", alpha), number("eps", eps),
                                              number("weight_decay", weight_decay), number("momentum", momentum),
                                              argument<bool>("RMSprop", "centered", centered));
           }),
           py::arg("lr") = 1e-2, py::arg("alpha") = 0.99, py::arg("eps") = 1e-8, py::arg("weight_decay") = 0.0,
           py::arg("momentum") = 0.0, py::arg("centered") = false);
  setting(type, "lr", &RMSprop::lr, "The learning rate, a float.");
  setting(type, "alpha", &RMSprop::alpha, "Share of the running means that is kept, a float.");
  setting(type, "eps", &RMSprop::eps, "Added to the root, a float.");
  setting(type, "weight_decay", &RMSprop::weight_decay, "Factor of W in its gradient, a float.");
  setting(type, "momentum", &RMSprop::momentum, "Share of the velocity that is kept, a float.");
  setting(type, "centered", &RMSprop::centered, "Whether to divide by the deviation from the mean, a bool.");
  def_repr(type, std::array{"lr", "alpha", "eps", "weight_decay", "momentum", "centered"});
}

}  // namespace

void bind_optimizer(py::module_& m) {
  bind_base(m);
  bind_sgd(m);
  bind_adam(m);
  bind_rmsprop(m);
}

}  // namespace deepnet::python
