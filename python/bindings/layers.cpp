// layers.hpp: layers with weights, windows or children, a line or two of binding behind each docstring.
#include <pybind11/stl.h>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

py::tuple pair(Size2 s) { return py::make_tuple(s.h, s.w); }

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
  bind_layer_class<Conv2d>(m, "Conv2d", R"doc(
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
    Whether b is there.

Raises
------
ValueError
    A size, stride, dilation or groups < 1, a padding < 0, groups that do not divide the channels, or "same" with a
    stride > 1.
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
>>> layer = nn.Conv2d(1, 1, 2, bias=False)
>>> layer.weight.data[...] = [[1, 2], [3, 4]]
>>> layer(np.ones((1, 1, 2, 2)))
array([[[[10.]]]], dtype=float32)
>>> layer.backward(np.ones((1, 1, 1, 1)))
array([[[[1., 2.],
         [3., 4.]]]], dtype=float32)
)doc")
      .def(py::init(&make_conv2d), py::arg("in_channels"), py::arg("out_channels"), py::arg("kernel_size"),
           py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1, py::arg("groups") = 1,
           py::arg("bias") = true)
      .def_readonly("in_channels", &Conv2d::in_channels, "C, an int.")
      .def_readonly("out_channels", &Conv2d::out_channels, "K, an int.")
      .def_property_readonly(
          "kernel_size", [](const Conv2d& l) { return pair(l.kernel_size); }, "Height and width of the kernel, (R, S).")
      .def_property_readonly(
          "stride", [](const Conv2d& l) { return pair(l.options.stride); }, "Vertical and horizontal step, in pixels.")
      .def_property_readonly("padding", &padding_of,
                             "Zeros around the image, (vertical, horizontal), or \"same\" or \"valid\".")
      .def_property_readonly(
          "dilation", [](const Conv2d& l) { return pair(l.options.dilation); },
          "Vertical and horizontal distance of the kernel's cells, in pixels.")
      .def_property_readonly(
          "groups", [](const Conv2d& l) { return l.options.groups; }, "Number of groups, an int.")
      .def_readonly("weight", &Conv2d::weight, "`Parameter` of shape (K, C/groups, R, S).")
      .def_readonly("bias", &Conv2d::bias, "`Parameter` of shape (K,), or None.");
}

py::array_t<std::int64_t> max_pool_indices(MaxPool2d& layer) {
  const auto trace = trace_of(layer);
  if (!trace) throw StateError("[MaxPool2d] indices came before forward: call the layer on an input first");
  const Shape& shape = trace->output();
  py::array_t<std::int64_t> indices(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  std::int64_t* const out = indices.mutable_data();
  without_gil([&] {
    trace->read([&](const void* cache) {
      const auto* position = static_cast<const std::int32_t*>(cache);
      std::copy(position, position + shape.size(), out);
    });
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
  py::class_<Pool2d, Layer, py::smart_holder>(m, "Pool2d", R"doc(
Base of `MaxPool2d` and `AvgPool2d`: a window that slides over each (H, W) plane by itself. Not to be made directly.

Examples
--------
>>> from deepnet import nn
>>> pool = nn.MaxPool2d(3, stride=2, padding=1)
>>> pool.kernel_size, pool.stride, pool.padding
((3, 3), (2, 2), (1, 1))
)doc")
      .def_property_readonly(
          "kernel_size", [](const Pool2d& l) { return pair(l.kernel_size); }, "Height and width of the window, (R, S).")
      .def_property_readonly(
          "stride", [](const Pool2d& l) { return pair(l.stride); }, "Vertical and horizontal step, in pixels.")
      .def_property_readonly(
          "padding", [](const Pool2d& l) { return pair(l.padding); },
          "Pixels around the image, (vertical, horizontal).");

  py::class_<MaxPool2d, Pool2d, py::smart_holder>(m, "MaxPool2d", R"doc(
The maximum of each window: y[n,c,p,q] = max_{r,s} x[n, c, p stride + r - padding, q stride + s - padding].

(N, C, H, W) -> (N, C, P, Q), P = (H + 2 padding - R) // stride + 1, float32. Backward sends the error to the one
winning cell, the first maximum in row-major order. A NaN in the window wins; padding never does.

Parameters
----------
kernel_size, stride, padding : int or (int, int)
    Of the window (R, S). The stride is the window's size where it is None; padding is at most half of the window.

Raises
------
ValueError
    kernel_size or stride < 1, padding < 0 or above half of the window.
ShapeError
    At the call: not (N, C, H, W), or a window larger than the padded input.

References
----------
Riesenhuber and Poggio 1999, "Hierarchical models of object recognition in cortex".

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
                             R"doc(
Each maximum's flat position in its (H, W) plane, int64 of the output's shape; RuntimeError before a forward.
)doc");

  py::class_<AvgPool2d, Pool2d, py::smart_holder>(m, "AvgPool2d", R"doc(
The mean of each window: y[n,c,p,q] = sum_{r,s} x[n, c, p stride + r - padding, q stride + s - padding] / (R S).

(N, C, H, W) -> (N, C, P, Q), P = (H + 2 padding - R) // stride + 1, float32; padding counts as zeros. Backward hands
every cell of a window dE/dy / (R S).

Parameters
----------
kernel_size, stride, padding : int or (int, int)
    As those of `MaxPool2d`.

Raises
------
ValueError
    kernel_size or stride < 1, padding < 0 or above half of the window.
ShapeError
    At the call: not (N, C, H, W), or a window larger than the padded input.

References
----------
LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition", sec. II-A.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> pool = nn.AvgPool2d(2)
>>> pool(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
array([[[[2.5]]]], dtype=float32)
>>> pool.backward(np.ones((1, 1, 1, 1)))
array([[[[0.25, 0.25],
         [0.25, 0.25]]]], dtype=float32)
)doc")
      .def(py::init([](py::handle kernel_size, py::handle stride, py::handle padding) {
             return make_pool<AvgPool2d>("AvgPool2d", kernel_size, stride, padding);
           }),
           py::arg("kernel_size"), py::arg("stride") = py::none(), py::arg("padding") = 0);

  bind_layer_class<GlobalAvgPool2d>(m, "GlobalAvgPool2d", R"doc(
The mean of each plane: y[n,c] = sum_{h,w} x[n,c,h,w] / (H W), (N, C, H, W) -> (N, C), float32.

Backward spreads dE/dy / (H W) over the plane. Raises ShapeError at the call where the input is not (N, C, H, W) with
at least one pixel.

References
----------
Lin, Chen and Yan 2014, "Network in network", sec. 3.2.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.GlobalAvgPool2d()
>>> layer(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
array([[2.5]], dtype=float32)
>>> layer.backward(np.ones((1, 1)))
array([[[[0.25, 0.25],
         [0.25, 0.25]]]], dtype=float32)
)doc")
      .def(py::init<>());
}

py::array step(Sequential& net, py::handle x) {
  const Tensor input = as_float(x, "Sequential.step");
  Model& model = model_of(net);
  Tensor y;
  {
    GilLeft release;
    y = model.step(input);
  }
  return as_new_array(y);
}

void bind_sequential(py::module_& m) {
  bind_layer_class<Sequential>(m, "Sequential", R"doc(
Layers one after the other, y = f_n(... f_2(f_1(x))); itself a layer. Parameters are named "0.weight", "0.bias", ...

Backward is the chain rule: each layer's dE/dx is the dE/dy of the one before it. The network is planned once per input
shape: its activations share one block of memory, and element-wise layers run inside the layer before them.

Parameters
----------
layers : Layer
    In the order of forward; shapes are checked at the call.

Raises
------
TypeError
    An argument is no layer.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
>>> net(np.zeros((8, 4))).shape
(8, 3)
>>> list(net.parameters())
['0.weight', '0.bias', '2.weight', '2.bias']
>>> net[1], len(net)
(ReLU(), 3)
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

The state stays in the layers until `reset_state`. Evaluation mode.

Parameters
----------
x : array (N, F)
    Each sequence's next step, converted to float32.

Raises
------
ValueError
    A layer reads sequences from their end.
ShapeError
    x does not fit the first layer, or N is not that of the states.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> net = nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2))
>>> net.step(np.ones((1, 3))).shape
(1, 2)
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
  bind_layer_class<Linear>(m, "Linear", R"doc(
Fully connected: y = x W^T + b over the last axis, (..., in_features) -> (..., out_features), float32.

Backward: dE/dx = dE/dy W, dE/dW = dE/dy^T x, dE/db = sum_n dE/dy. ``weight`` is (out_features, in_features), ``bias``
(out_features,); both start uniform in +-1/sqrt(in_features), as PyTorch's.

Parameters
----------
in_features, out_features : int
    Length of the last axis of x and of y.
bias : bool
    Whether b is there.

Raises
------
ValueError
    in_features or out_features < 1.
ShapeError
    At the call: the last axis is not in_features long.

References
----------
Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", eq. 1, 6 and 7.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Linear(3, 2)
>>> layer.weight.data[...] = [[1, 0, 0], [0, 1, 1]]
>>> layer.bias.data[...] = [0, 10]
>>> layer(np.array([[1, 2, 3]]))
array([[ 1., 15.]], dtype=float32)
>>> layer.backward(np.array([[1, 2]]))
array([[1., 2., 2.]], dtype=float32)
>>> layer.weight.grad
array([[1., 2., 3.],
       [2., 4., 6.]], dtype=float32)
)doc")
      .def(py::init<Index, Index, bool>(), py::arg("in_features"), py::arg("out_features"), py::arg("bias") = true)
      .def_readonly("in_features", &Linear::in_features, "Length of the last axis of x, an int.")
      .def_readonly("out_features", &Linear::out_features, "Length of the last axis of y, an int.")
      .def_readonly("weight", &Linear::weight, "W, a `Parameter` of shape (out_features, in_features).")
      .def_readonly("bias", &Linear::bias, "b, a `Parameter` of shape (out_features,), or None.");
  bind_conv2d(m);
  bind_pools(m);
  bind_layer_class<Flatten>(m, "Flatten", R"doc(
Each sample as a vector: (N, ...) -> (N, product of the rest), float32, row-major order; no copy inside a network.

Backward gives dE/dy the input's shape. Raises ShapeError at the call where the input has fewer than two axes.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Flatten()
>>> layer(np.zeros((2, 3, 4, 4))).shape
(2, 48)
>>> layer.backward(np.zeros((2, 48))).shape
(2, 3, 4, 4)
)doc")
      .def(py::init<>());
  bind_layer_class<Dropout>(m, "Dropout", R"doc(
In training y = x m / (1 - p), each m 0 with probability p, else 1; in evaluation y = x.

dE/dx = dE/dy m / (1 - p). Any shape, float32. The mask comes from a counter-based generator (Philox) that
`deepnet.manual_seed` starts: the same for any number of threads.

Parameters
----------
p : float
    Probability of dropping an element, 0 <= p <= 1; with 1 all outputs are 0.

Raises
------
ValueError
    p is outside [0, 1].

References
----------
Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", sec. 4;
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", for Philox.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> layer = nn.Dropout(0.5)
>>> y = layer(np.ones((100, 100)))
>>> np.unique(y)
array([0., 2.], dtype=float32)
>>> bool((layer.backward(np.ones((100, 100))) == y).all())
True
>>> layer.eval()(np.ones(3))
array([1., 1., 1.], dtype=float32)
)doc")
      .def(py::init<double>(), py::arg("p") = 0.5)
      .def_readonly("p", &Dropout::p, "The probability of dropping an element, a float.");
  bind_sequential(m);
}

}  // namespace deepnet::python
