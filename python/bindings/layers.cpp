// layers.hpp: every layer, a line or two of binding behind its docstring.
#include <pybind11/stl.h>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

py::tuple pair(Size2 s) { return py::make_tuple(s.h, s.w); }

template <class L>
py::class_<L, Layer, py::smart_holder> bind(py::module_& m, const char* name, const char* doc) {
  return py::class_<L, Layer, py::smart_holder>(m, name, doc);
}

std::shared_ptr<Conv2d> make_conv2d(Index in_channels, Index out_channels, py::handle kernel_size, py::handle stride,
                                    py::handle padding, py::handle dilation, Index groups, bool bias) {
  Conv2dOptions o;
  o.stride = as_size2(stride, "Conv2d", "stride");
  o.dilation = as_size2(dilation, "Conv2d", "dilation");
  o.groups = groups;
  o.bias = bias;
  if (py::isinstance<py::str>(padding)) {
    o.padding_mode = padding.cast<std::string>();
    if (o.padding_mode.empty()) o.padding_mode = "(empty)";
  } else {
    o.padding = as_size2(padding, "Conv2d", "padding");
  }
  return std::make_shared<Conv2d>(in_channels, out_channels, as_size2(kernel_size, "Conv2d", "kernel_size"), o);
}

py::object padding_of(const Conv2d& layer) {
  if (!layer.options.padding_mode.empty()) return py::str(layer.options.padding_mode);
  return pair(layer.options.padding);
}

void bind_conv2d(py::module_& m) {
  bind<Conv2d>(m, "Conv2d", R"doc(
Each image slid over by K learned kernels with shared weights (cross-correlation, the kernel as printed):

    y[n,k,p,q] = b[k] + sum_{c,r,s} W[k,c,r,s] x[n, c, p stride + r dilation - padding, q stride + s dilation - padding]

(N, C, H, W) -> (N, K, P, Q), P = (H + 2 padding - dilation (R - 1) - 1) // stride + 1, float32.
``weight`` is (K, C/groups, R, S), ``bias`` (K,); both start uniform in +-1/sqrt(C/groups R S), as PyTorch's.

Parameters
----------
in_channels, out_channels : int
    C and K.
kernel_size, stride, dilation : int or (int, int)
    Height and width; one number means both.
padding : int, (int, int), "same" or "valid"
    Zeros around the image; "same" keeps H and W (stride 1 only; an odd zero goes below and right).
groups : int
    Cuts channels and filters into groups that do not see each other.
bias : bool

Raises
------
ValueError
    A size, stride, dilation or groups < 1, or groups that do not divide the channels.
ShapeError
    At the call: not (N, C, H, W), or a kernel larger than the padded input.

References
----------
LeCun et al. 1989, "Backpropagation applied to handwritten zip code recognition", sec. 4;
Chellapilla et al. 2006 for the product with a column matrix (im2col).

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.Conv2d(1, 1, 3, stride=2, padding=2)(np.zeros((1, 1, 9, 9))).shape
(1, 1, 6, 6)
)doc")
      .def(py::init(&make_conv2d), py::arg("in_channels"), py::arg("out_channels"), py::arg("kernel_size"),
           py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1, py::arg("groups") = 1,
           py::arg("bias") = true)
      .def_readonly("in_channels", &Conv2d::in_channels)
      .def_readonly("out_channels", &Conv2d::out_channels)
      .def_property_readonly("kernel_size", [](const Conv2d& l) { return pair(l.kernel_size); })
      .def_property_readonly("stride", [](const Conv2d& l) { return pair(l.options.stride); })
      .def_property_readonly("padding", &padding_of)
      .def_property_readonly("dilation", [](const Conv2d& l) { return pair(l.options.dilation); })
      .def_property_readonly("groups", [](const Conv2d& l) { return l.options.groups; })
      .def_readonly("weight", &Conv2d::weight)
      .def_readonly("bias", &Conv2d::bias);
}

py::array_t<std::int64_t> max_pool_indices(MaxPool2d& layer) {
  const auto trace = trace_of(layer);
  if (!trace) throw StateError("[MaxPool2d] indices came before forward: call the layer on an input first");
  const Shape& shape = trace->output();
  py::array_t<std::int64_t> indices(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  trace->read([&](const void* cache) {
    const auto* position = static_cast<const std::int32_t*>(cache);
    std::copy(position, position + shape.size(), indices.mutable_data());
  });
  return indices;
}

template <class P>
std::shared_ptr<P> make_pool(const char* kind, py::handle kernel_size, py::handle stride, py::handle padding) {
  const Size2 window = as_size2(kernel_size, kind, "kernel_size");
  Size2 step = window;
  if (!stride.is_none()) {
    step = as_size2(stride, kind, "stride");
    if (step.h == 0 || step.w == 0) throw ValueError("[" + std::string(kind) + "] expected stride >= 1, got 0");
  }
  return std::make_shared<P>(window, step, as_size2(padding, kind, "padding"));
}

void bind_pools(py::module_& m) {
  py::class_<Pool2d, Layer, py::smart_holder>(m, "Pool2d", "Base of the poolings.")
      .def_property_readonly("kernel_size", [](const Pool2d& l) { return pair(l.kernel_size); })
      .def_property_readonly("stride", [](const Pool2d& l) { return pair(l.stride); })
      .def_property_readonly("padding", [](const Pool2d& l) { return pair(l.padding); });

  py::class_<MaxPool2d, Pool2d, py::smart_holder>(m, "MaxPool2d", R"doc(
The maximum of each window: (N, C, H, W) -> (N, C, P, Q), P = (H + 2 padding - kernel_size) // stride + 1.

Backward sends the error to the one winning cell, the first maximum in row-major order. A NaN in the window wins;
padding never does.

Parameters
----------
kernel_size, stride, padding : int or (int, int)
    The stride is the kernel's size where it is None; padding is at most half of the kernel.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> pool = nn.MaxPool2d(2)
>>> pool(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))
array([[[[4.]]]], dtype=float32)
>>> pool.indices
array([[[[2]]]])
>>> pool.backward(np.ones((1, 1, 1, 1)))
array([[[[0., 0.],
         [1., 0.]]]], dtype=float32)
)doc")
      .def(py::init([](py::handle kernel_size, py::handle stride, py::handle padding) {
             return make_pool<MaxPool2d>("MaxPool2d", kernel_size, stride, padding);
           }),
           py::arg("kernel_size"), py::arg("stride") = py::none(), py::arg("padding") = 0)
      .def_property_readonly("indices", &max_pool_indices,
                             "After a forward: each maximum's flat H*W position, int64 of the output's shape.");

  py::class_<AvgPool2d, Pool2d, py::smart_holder>(m, "AvgPool2d", R"doc(
The mean of each window, padding counting as zeros: (N, C, H, W) -> (N, C, P, Q) as `MaxPool2d`.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.AvgPool2d(2)(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
array([[[[2.5]]]], dtype=float32)
)doc")
      .def(py::init([](py::handle kernel_size, py::handle stride, py::handle padding) {
             return make_pool<AvgPool2d>("AvgPool2d", kernel_size, stride, padding);
           }),
           py::arg("kernel_size"), py::arg("stride") = py::none(), py::arg("padding") = 0);

  bind<GlobalAvgPool2d>(m, "GlobalAvgPool2d", "The mean over H and W: (N, C, H, W) -> (N, C).").def(py::init<>());
}

// A constructor argument that the layer keeps in its config alone.
auto argument(const char* name) {
  return [name](const Layer& layer) { return py::cast(layer.config().at(name)); };
}

void bind_activations(py::module_& m) {
  bind<ReLU>(m, "ReLU", "max(0, x), element by element; its derivative at 0 is 0. NaN stays NaN.").def(py::init<>());
  bind<Sigmoid>(m, "Sigmoid", "1 / (1 + exp(-x)), element by element; dE/dx = y (1 - y) dE/dy.").def(py::init<>());
  bind<Tanh>(m, "Tanh", "tanh(x), element by element; dE/dx = (1 - y^2) dE/dy.").def(py::init<>());
  bind<Softplus>(m, "Softplus", "log(1 + exp(beta x)) / beta, the smooth rectifier; dE/dx = sigmoid(beta x) dE/dy.")
      .def(py::init<double>(), py::arg("beta") = 1.0)
      .def_property_readonly("beta", argument("beta"));
  bind<LeakyReLU>(m, "LeakyReLU", "x where x > 0, else negative_slope x.")
      .def(py::init<double>(), py::arg("negative_slope") = 0.01)
      .def_property_readonly("negative_slope", argument("negative_slope"));
  bind<ELU>(m, "ELU", "x where x > 0, else alpha (exp(x) - 1) (Clevert et al. 2016, eq. 16).")
      .def(py::init<double>(), py::arg("alpha") = 1.0)
      .def_property_readonly("alpha", argument("alpha"));
  bind<GELU>(m, "GELU", "x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016, eq. 1).")
      .def(py::init<>());
  bind<SiLU>(m, "SiLU", "x sigmoid(x) (Elfwing et al. 2018).").def(py::init<>());
  bind<Softmax>(m, "Softmax", R"doc(
The joint nonlinearity y_i = exp(x_i) / sum_j exp(x_j) along one axis; any shape.

Backward is the whole Jacobian product, dE/dx_i = y_i (dE/dy_i - sum_j y_j dE/dy_j) (Bridle 1990).

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.Softmax()(np.zeros((1, 4)))
array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
)doc")
      .def(py::init<int>(), py::arg("axis") = -1)
      .def_readonly("axis", &Softmax::axis);
  bind<LogSoftmax>(m, "LogSoftmax",
                   "y_i = x_i - log sum_j exp(x_j) along one axis; the logarithm of `Softmax`, stable.")
      .def(py::init<int>(), py::arg("axis") = -1)
      .def_readonly("axis", &LogSoftmax::axis);
}

py::array step(Sequential& net, py::handle x) {
  const Tensor input = as_float(x, "Sequential.step");
  Model& model = model_of(net);
  Tensor y;
  {
    py::gil_scoped_release release;
    y = model.step(input);
  }
  return as_array(y);
}

void bind_sequential(py::module_& m) {
  bind<Sequential>(m, "Sequential", R"doc(
Layers one after the other; itself a layer. Parameters are named "0.weight", "0.bias", ...

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
>>> net(np.zeros((8, 4))).shape
(8, 3)
>>> list(net.parameters())
['0.weight', '0.bias', '2.weight', '2.bias']
)doc")
      .def(py::init([](const py::args& layers) {
        std::vector<LayerPtr> list;
        for (py::handle layer : layers) {
          if (!py::isinstance<Layer>(layer)) {
            throw TypeError("[Sequential] expected layers, got " + std::string(py::str(py::repr(layer))));
          }
          list.push_back(layer.cast<LayerPtr>());
        }
        return std::make_shared<Sequential>(std::move(list));
      }))
      .def("step", &step, py::arg("x"), R"doc(
One step of streaming inference: x(t), (N, F), goes through recurrent layers as their `step`, through others forward.

The state stays in the layers until `reset_state`. Evaluation mode. Raises ValueError where a layer reads sequences
backwards, ShapeError where N is not that of the states.
)doc")
      .def("__len__", [](const Sequential& s) { return s.children().size(); })
      .def("__getitem__",
           [](const Sequential& s, Index i) {
             const auto layers = s.children();
             const Index n = static_cast<Index>(layers.size());
             if (i < -n || i >= n) throw py::index_error("Sequential index out of range");
             return layers[static_cast<std::size_t>(i < 0 ? i + n : i)];
           })
      .def("__iter__", [](const Sequential& s) { return py::iter(py::cast(s.children())); });
}

}  // namespace

void bind_layers(py::module_& m) {
  bind<Linear>(m, "Linear", R"doc(
Fully connected: y = x W^T + b over the last axis, (..., in_features) -> (..., out_features), float32.

Backward: dE/dx = dE/dy W, dE/dW = dE/dy^T x, dE/db = sum_n dE/dy. ``weight`` is (out_features, in_features), ``bias``
(out_features,); both start uniform in +-1/sqrt(in_features), as PyTorch's.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> nn.Linear(3, 2)(np.zeros((5, 3))).shape
(5, 2)
)doc")
      .def(py::init<Index, Index, bool>(), py::arg("in_features"), py::arg("out_features"), py::arg("bias") = true)
      .def_readonly("in_features", &Linear::in_features)
      .def_readonly("out_features", &Linear::out_features)
      .def_readonly("weight", &Linear::weight)
      .def_readonly("bias", &Linear::bias);
  bind_conv2d(m);
  bind_pools(m);
  bind_activations(m);
  bind<Flatten>(m, "Flatten", "(N, ...) -> (N, product of the rest); no copy inside a network.").def(py::init<>());
  bind<Dropout>(m, "Dropout", R"doc(
In training y = x m / (1 - p), each m 0 with probability p, else 1; in evaluation y = x (Srivastava et al. 2014, sec. 4).

The mask comes from a counter-based generator (Philox) that `manual_seed` starts: the same for any number of threads.
)doc")
      .def(py::init<double>(), py::arg("p") = 0.5)
      .def_readonly("p", &Dropout::p);
  bind_sequential(m);
}

}  // namespace deepnet::python
