// loss.hpp: a loss in Python remembers the gradient of its last call, which the core leaves to its caller.
#include <mutex>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

// dE/dy of the last call; several threads may call one loss.
class Gradient {
 public:
  void set(Tensor gradient) {
    std::lock_guard<std::mutex> lock(mutex_);
    last_ = std::move(gradient);
  }
  Tensor get() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_;
  }

 private:
  mutable std::mutex mutex_;
  Tensor last_;
};

template <class L>
struct WithGradient : L, Gradient {
  using L::L;
};

template <class L>
void bind(py::module_& m, const char* name, const char* doc) {
  py::class_<WithGradient<L>, Loss, py::smart_holder>(m, name, doc).def(py::init<>());
}

template <class L>
void bind_labelled(py::module_& m, const char* name, const char* doc) {
  using Bound = WithGradient<L>;
  py::class_<Bound, Loss, py::smart_holder>(m, name, doc)
      .def(py::init(
               [](int axis, Index ignore_index) { return std::make_shared<Bound>(LabelOptions{axis, ignore_index}); }),
           py::arg("axis") = 1, py::arg("ignore_index") = -100)
      .def_property_readonly(
          "axis", [](const Bound& loss) { return loss.options.axis; }, "Where y has its classes, an int.")
      .def_property_readonly(
          "ignore_index", [](const Bound& loss) { return loss.options.ignore_index; },
          "The label of rows that do not count, an int.");
}

double call(Loss& loss, py::handle y, py::handle target) {
  const Tensor output = as_float(y, loss.kind()), wanted = own_labels(as_target(target, loss));
  loss.check(output, wanted);
  GilLeft release;
  Tensor gradient(output.shape());
  const double e = loss.evaluate(output, wanted, &gradient);
  dynamic_cast<Gradient&>(loss).set(gradient);
  return e;
}

py::array backward(const Loss& loss) {
  const Tensor gradient = dynamic_cast<const Gradient&>(loss).get();
  if (!gradient.defined()) throw StateError("[" + loss.kind() + "] backward came before the loss was called");
  return as_array(gradient.clone());
}

}  // namespace

void bind_loss(py::module_& m) {
  py::class_<Loss, py::smart_holder>(m, "Loss", R"doc(
Base of the losses: a number E that tells how far y is from its target, and dE/dy. Not to be made directly.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.MSELoss()
>>> loss(np.array([[3.0]]), np.array([[1.0]]))
4.0
>>> loss.backward()
array([[4.]], dtype=float32)
)doc")
      .def_property_readonly("kind", &Loss::kind, "The loss's class name, which opens its error messages.")
      .def("__call__", &call, py::arg("y"), py::arg("target"), R"doc(
The loss of y, a float: the mean over the batch. The class tells the shapes.

Parameters
----------
y : array
    What the network made; converted to float32.
target : array
    What it should have made.

Raises
------
ShapeError
    The shapes do not fit each other.
TypeError
    Arrays of complex numbers or objects; class labels that are floats.
ValueError
    An empty batch, or labels out of range.
)doc")
      .def("backward", &backward, R"doc(
dE/dy of the last call, a new float32 array of y's shape; RuntimeError before any call.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.MSELoss()
>>> e = loss(np.zeros((1, 2)), np.ones((1, 2)))
>>> loss.backward()
array([[-1., -1.]], dtype=float32)
)doc")
      .def("__repr__", [](const Loss& loss) {
        if (!loss.takes_labels()) return loss.kind() + "()";
        const LabelOptions options = loss.label_options();
        return loss.kind() + "(axis=" + std::to_string(options.axis) +
               ", ignore_index=" + std::to_string(options.ignore_index) + ")";
      });
  refuse_overrides(m.attr("Loss"), {"__call__", "backward"}, "call the loss from a function of your own");
  bind_labelled<CrossEntropyLoss>(m, "CrossEntropyLoss", R"doc(
E = mean_n -log softmax(y_n)[label_n]; softmax and logarithm fused, dE/dy = (softmax(y) - target) / N.

y are logits (N, C) or (N, C, ...), float32. The target is class labels, integers (N,) or (N, ...), or probabilities, a
float array of y's shape: E = mean_n -sum_c t_nc log softmax(y_n)_c. N counts the positions of (N, C, ...) too. E is in
nats.

Parameters
----------
axis : int
    Where y has its classes; -1 for sequences, y (N, T, V) and labels (N, T).
ignore_index : int
    Rows with this label, padding for instance, count neither in the mean, nor the gradient, nor an accuracy.

Raises
------
TypeError
    At the call: labels that are floats.
ValueError
    At the call: labels outside [0, C), all ignored, or an empty batch.
ShapeError
    At the call: shapes that do not fit.

References
----------
Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs";
Bishop 2006, "Pattern recognition and machine learning", eq. 4.108.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.CrossEntropyLoss()
>>> round(loss(np.zeros((1, 4)), np.array([2])), 4)
1.3863
>>> loss.backward()
array([[ 0.25,  0.25, -0.75,  0.25]], dtype=float32)
>>> sequences = nn.CrossEntropyLoss(axis=-1, ignore_index=-1)
>>> e = sequences(np.zeros((1, 3, 2)), np.array([[0, 1, -1]]))    # (N, T, V), the last step is padding
>>> sequences.backward()
array([[[-0.25,  0.25],
        [ 0.25, -0.25],
        [ 0.  ,  0.  ]]], dtype=float32)
)doc");
  bind_labelled<NLLLoss>(m, "NLLLoss", R"doc(
The negative log-likelihood E = mean_n -y_n[label_n]; dE/dy is -1 / N at each label, else 0.

y are log-probabilities (N, C) or (N, C, ...), float32, such as `LogSoftmax` makes; the target is class labels, integers
(N,) or (N, ...). N counts the positions of (N, C, ...) too. E is in nats.

Parameters
----------
axis : int
    Where y has its classes; -1 for sequences, y (N, T, V) and labels (N, T).
ignore_index : int
    Rows with this label, padding for instance, count neither in the mean, nor the gradient, nor an accuracy.

Raises
------
TypeError
    At the call: labels that are floats.
ValueError
    At the call: labels outside [0, C), all ignored, or an empty batch.
ShapeError
    At the call: shapes that do not fit.

References
----------
Bishop 2006, "Pattern recognition and machine learning", eq. 4.108.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.NLLLoss()
>>> loss(np.array([[-3.0, -0.5], [-1.5, -2.0]]), np.array([1, 0]))
1.0
>>> loss.backward()
array([[ 0. , -0.5],
       [-0.5,  0. ]], dtype=float32)
)doc");
  bind<MSELoss>(m, "MSELoss", R"doc(
The mean squared error E = mean (y - target)^2 over all elements; dE/dy = 2 (y - target) / size.

y and target are of one shape, any, float32; integers count as numbers.

Raises
------
ShapeError
    At the call: target has not y's shape.
ValueError
    At the call: no elements.

References
----------
Rumelhart, Hinton and Williams 1986, "Learning representations by back-propagating errors", eq. 3 (half of the
sum instead of the mean).

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.MSELoss()
>>> loss(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]]))
2.0
>>> loss.backward()
array([[0., 2.]], dtype=float32)
)doc");
  bind<BCEWithLogitsLoss>(m, "BCEWithLogitsLoss", R"doc(
Binary cross entropy E = mean -(t log s(y) + (1 - t) log(1 - s(y))) over all elements, s the sigmoid, t the target.

dE/dy = (s(y) - t) / size. y are logits and t probabilities in one shape, any, float32; integers 0 and 1 count as
numbers. Computed as max(y, 0) - y t + log(1 + exp(-|y|)), which neither overflows nor cancels. E is in nats.

Raises
------
ShapeError
    At the call: target has not y's shape.
ValueError
    At the call: no elements.

References
----------
Bishop 2006, "Pattern recognition and machine learning", eq. 4.90.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.BCEWithLogitsLoss()
>>> round(loss(np.array([0.0, 1000.0]), np.array([1, 1])), 4)
0.3466
>>> loss.backward()
array([-0.25,  0.  ], dtype=float32)
)doc");
  m.def(
      "count_correct",
      [](py::handle y, py::handle labels, int axis, Index ignore_index) {
        const Tensor output = as_float(y, "count_correct"), wanted = own_labels(as_labels(labels, "count_correct"));
        return without_gil([&] { return count_correct(output, wanted, {axis, ignore_index}); });
      },
      py::arg("y"), py::arg("labels"), py::arg("axis") = 1, py::arg("ignore_index") = -100,
      "How many rows of y have their first maximum, along the axis, at their label; ignored ones do not.");
}

}  // namespace deepnet::python
