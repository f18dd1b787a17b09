// loss.hpp: a loss in Python remembers the gradient of its last call, which the core leaves to its caller.
#include "bindings.hpp"

namespace deepnet::python {
namespace {

// dE/dy of the last call.
struct Gradient {
  Tensor last;
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
      .def_property_readonly("axis", [](const Bound& loss) { return loss.options.axis; })
      .def_property_readonly("ignore_index", [](const Bound& loss) { return loss.options.ignore_index; });
}

double call(Loss& loss, py::handle y, py::handle target) {
  const Tensor output = as_float(y, loss.kind()), wanted = as_target(target, loss);
  loss.check(output, wanted);
  py::gil_scoped_release release;
  Tensor gradient(output.shape());
  const double e = loss.evaluate(output, wanted, &gradient);
  dynamic_cast<Gradient&>(loss).last = gradient;
  return e;
}

py::array backward(const Loss& loss) {
  const Tensor& gradient = dynamic_cast<const Gradient&>(loss).last;
  if (!gradient.defined()) throw StateError("[" + loss.kind() + "] backward came before the loss was called");
  return as_array(gradient.clone());
}

}  // namespace

void bind_loss(py::module_& m) {
  py::class_<Loss, py::smart_holder>(m, "Loss",
                                     "Base of the losses: ``e = loss(y, target)``, ``dy = loss.backward()``.")
      .def_property_readonly("kind", &Loss::kind)
      .def("__call__", &call, py::arg("y"), py::arg("target"), "The loss of y, a float: the mean over the batch.")
      .def("backward", &backward, "dE/dy of the last call, of y's shape.")
      .def("__repr__", [](const Loss& loss) {
        if (!loss.takes_labels()) return loss.kind() + "()";
        const LabelOptions options = loss.label_options();
        return loss.kind() + "(axis=" + std::to_string(options.axis) +
               ", ignore_index=" + std::to_string(options.ignore_index) + ")";
      });
  bind_labelled<CrossEntropyLoss>(m, "CrossEntropyLoss", R"doc(
E = mean_n -log softmax(y_n)[label_n]; softmax and logarithm fused, dE/dy = (softmax(y) - target) / N.

y are logits (N, C) or (N, C, ...). The target is class labels, integers (N,) or (N, ...), or probabilities, a float
array of y's shape: E = mean_n -sum_c t_nc log softmax(y_n)_c.

Parameters
----------
axis : int
    Where y has its classes; -1 for sequences, y (N, T, V) and labels (N, T).
ignore_index : int
    Rows with this label, padding for instance, count neither in the mean, nor the gradient, nor an accuracy.

Raises TypeError for float labels, ValueError for labels outside [0, C) or all ignored, ShapeError where shapes do not
fit.

Examples
--------
>>> import numpy as np
>>> from deepnet import nn
>>> loss = nn.CrossEntropyLoss()
>>> round(loss(np.zeros((1, 4)), np.array([2])), 4)
1.3863
>>> loss.backward()
array([[ 0.25,  0.25, -0.75,  0.25]], dtype=float32)
)doc");
  bind_labelled<NLLLoss>(m, "NLLLoss", R"doc(
E = mean_n -y_n[label_n], y log-probabilities (N, C) or (N, C, ...), integer labels; `axis` and `ignore_index` as in
`CrossEntropyLoss`.
)doc");
  bind<MSELoss>(m, "MSELoss", "E = mean (y - target)^2 over all elements; dE/dy = 2 (y - target) / size.");
  bind<BCEWithLogitsLoss>(m, "BCEWithLogitsLoss",
                          "E = mean -(t log s(y) + (1 - t) log(1 - s(y))), s the sigmoid, over all elements; stable.");
  m.def(
      "count_correct",
      [](py::handle y, py::handle labels, int axis, Index ignore_index) {
        return count_correct(as_float(y, "count_correct"), as_labels(labels, "count_correct"), {axis, ignore_index});
      },
      py::arg("y"), py::arg("labels"), py::arg("axis") = 1, py::arg("ignore_index") = -100,
      "How many rows of y have their first maximum, along the axis, at their label; ignored ones do not.");
}

}  // namespace deepnet::python
