// layers.hpp: the nonlinearities, a line or two of binding behind each docstring.
#include <pybind11/stl.h>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

// A constructor argument that the layer keeps in its config alone.
auto argument(const char* name) {
  return [name](const Layer& layer) { return py::cast(layer.config().at(name)); };
}

void bind_sigmoids(py::module_& m) {
  bind_layer_class<Sigmoid>(m, "Sigmoid", R"doc(
The logistic function, element by element: y = 1 / (1 + exp(-x)), dE/dx = y (1 - y) dE/dy.

Any shape, float32. y lies in [0, 1]; its slope is at most 1/4, which is why gradients vanish in deep stacks of it.

References
----------
Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", eq. 2.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Sigmoid()
>>> layer(np.array([-1000.0, 0.0, 1000.0]))
array([0. , 0.5, 1. ], dtype=float32)
>>> layer.backward(np.ones(3))
array([0.  , 0.25, 0.  ], dtype=float32)
)doc")
      .def(py::init<>());

  bind_layer_class<Tanh>(m, "Tanh", R"doc(
The hyperbolic tangent, element by element: y = tanh(x), dE/dx = (1 - y^2) dE/dy.

Any shape, float32. Its outputs centre on 0, so that the next layer's gradients do not all share one sign.

References
----------
LeCun, Bottou, Orr and Mueller 1998, "Efficient BackProp", sec. 4.4.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Tanh()
>>> layer(np.array([-1000.0, 0.0, 1000.0]))
array([-1.,  0.,  1.], dtype=float32)
>>> layer.backward(np.ones(3))
array([0., 1., 0.], dtype=float32)
)doc")
      .def(py::init<>());
}

void bind_rectifiers(py::module_& m) {
  bind_layer_class<ReLU>(m, "ReLU", R"doc(
The rectifier, element by element: y = max(0, x), dE/dx = dE/dy where x > 0, else 0.

Any shape, float32. At its kink, x = 0, the derivative is 0, as PyTorch's. NaN stays NaN.

References
----------
Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines";
Glorot, Bordes and Bengio 2011, "Deep sparse rectifier neural networks".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.ReLU()
>>> layer(np.array([-2.0, 0.0, 3.0]))
array([0., 0., 3.], dtype=float32)
>>> layer.backward(np.ones(3))
array([0., 0., 1.], dtype=float32)
)doc")
      .def(py::init<>());

  bind_layer_class<Softplus>(m, "Softplus", R"doc(
The smooth rectifier, element by element: y = log(1 + exp(beta x)) / beta, dE/dx = dE/dy / (1 + exp(-beta x)).

Any shape, float32. The larger beta, the closer to `ReLU`; where beta x > 20 it is x.

Parameters
----------
beta : float
    Sharpness, finite and > 0.

Raises
------
ValueError
    beta is not finite or not > 0.

References
----------
Dugas et al. 2001, "Incorporating second-order functional knowledge for better option pricing".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Softplus()
>>> layer(np.array([-1.0, 0.0, 1.0])).round(4)
array([0.3133, 0.6931, 1.3133], dtype=float32)
>>> layer.backward(np.ones(3)).round(4)
array([0.2689, 0.5   , 0.7311], dtype=float32)
)doc")
      .def(py::init<double>(), py::arg("beta") = 1.0)
      .def_property_readonly("beta", argument("beta"), "The sharpness, a float.");

  bind_layer_class<LeakyReLU>(m, "LeakyReLU", R"doc(
The rectifier with a slope below 0, element by element: y = x where x > 0, else negative_slope x.

dE/dx = dE/dy where x > 0, else negative_slope dE/dy. Any shape, float32.

Parameters
----------
negative_slope : float
    Finite.

Raises
------
ValueError
    negative_slope is not finite.

References
----------
Maas, Hannun and Ng 2013, "Rectifier nonlinearities improve neural network acoustic models".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.LeakyReLU(0.25)
>>> layer(np.array([-2.0, 0.0, 3.0]))
array([-0.5,  0. ,  3. ], dtype=float32)
>>> layer.backward(np.ones(3))
array([0.25, 0.25, 1.  ], dtype=float32)
)doc")
      .def(py::init<double>(), py::arg("negative_slope") = 0.01)
      .def_property_readonly("negative_slope", argument("negative_slope"), "The slope where x <= 0, a float.");

  bind_layer_class<ELU>(m, "ELU", R"doc(
The exponential linear unit, element by element: y = x where x > 0, else alpha (exp(x) - 1).

dE/dx = dE/dy where x > 0, else alpha exp(x) dE/dy. Any shape, float32.

Parameters
----------
alpha : float
    Finite; -alpha is what very negative x give.

Raises
------
ValueError
    alpha is not finite.

References
----------
Clevert, Unterthiner and Hochreiter 2016, "Fast and accurate deep network learning by exponential linear units", sec. 3.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.ELU()
>>> layer(np.array([-1000.0, 0.0, 3.0]))
array([-1.,  0.,  3.], dtype=float32)
>>> layer.backward(np.ones(3))
array([0., 1., 1.], dtype=float32)
)doc")
      .def(py::init<double>(), py::arg("alpha") = 1.0)
      .def_property_readonly("alpha", argument("alpha"), "The scale of the exponential, a float.");

  bind_layer_class<GELU>(m, "GELU", R"doc(
The Gaussian error linear unit, element by element: y = x Phi(x), Phi the normal distribution function.

dE/dx = (Phi(x) + x phi(x)) dE/dy, phi the normal density. Any shape, float32. This is the exact form, not the one with
tanh.

References
----------
Hendrycks and Gimpel 2016, "Gaussian error linear units", sec. 2.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.GELU()
>>> layer(np.array([-1.0, 0.0, 1.0])).round(4)
array([-0.1587,  0.    ,  0.8413], dtype=float32)
>>> layer.backward(np.ones(3)).round(4)
array([-0.0833,  0.5   ,  1.0833], dtype=float32)
)doc")
      .def(py::init<>());

  bind_layer_class<SiLU>(m, "SiLU", R"doc(
The sigmoid linear unit (swish), element by element: y = x s, s = 1 / (1 + exp(-x)).

dE/dx = s (1 + x (1 - s)) dE/dy. Any shape, float32.

References
----------
Elfwing, Uchibe and Doya 2018, "Sigmoid-weighted linear units for neural network function approximation in
reinforcement learning".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.SiLU()
>>> layer(np.array([-1.0, 0.0, 1.0])).round(4)
array([-0.2689,  0.    ,  0.7311], dtype=float32)
>>> layer.backward(np.ones(3)).round(4)
array([0.0723, 0.5   , 0.9277], dtype=float32)
)doc")
      .def(py::init<>());
}

void bind_softmaxes(py::module_& m) {
  bind_layer_class<Softmax>(m, "Softmax", R"doc(
The joint nonlinearity along one axis: y_i = exp(x_i) / sum_j exp(x_j), in [0, 1] and of sum 1.

Backward is the whole Jacobian product, dE/dx_i = y_i (dE/dy_i - sum_j y_j dE/dy_j). Any shape, float32; the largest x
is subtracted first, so that nothing overflows.

Parameters
----------
axis : int
    Counted from the last axis where it is negative.

Raises
------
ShapeError
    At the call: the input has no such axis.

References
----------
Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Softmax()
>>> layer(np.zeros((1, 4)))
array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
>>> layer.backward(np.array([[1.0, 0.0, 0.0, 0.0]]))
array([[ 0.1875, -0.0625, -0.0625, -0.0625]], dtype=float32)
)doc")
      .def(py::init<int>(), py::arg("axis") = -1)
      .def_readonly("axis", &Softmax::axis, "The axis along which outputs add up to 1, as it was given.");

  bind_layer_class<LogSoftmax>(m, "LogSoftmax", R"doc(
The logarithm of `Softmax` along one axis: y_i = x_i - log sum_j exp(x_j).

dE/dx_i = dE/dy_i - exp(y_i) sum_j dE/dy_j. Any shape, float32. Exact where the softmax itself would round to 0.
`NLLLoss` takes its outputs; `CrossEntropyLoss` does both at once.

Parameters
----------
axis : int
    Counted from the last axis where it is negative.

Raises
------
ShapeError
    At the call: the input has no such axis.

References
----------
Blanchard, Higham and Higham 2021, "Accurately computing the log-sum-exp and softmax functions".

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.LogSoftmax()
>>> layer(np.array([[1000.0, 0.0]]))
array([[    0., -1000.]], dtype=float32)
>>> layer.backward(np.array([[1.0, 0.0]]))
array([[0., 0.]], dtype=float32)
)doc")
      .def(py::init<int>(), py::arg("axis") = -1)
      .def_readonly("axis", &LogSoftmax::axis, "The axis of the sum, as it was given.");
}

}  // namespace

void bind_activations(py::module_& m) {
  bind_sigmoids(m);
  bind_rectifiers(m);
  bind_softmaxes(m);
}

}  // namespace deepnet::python
