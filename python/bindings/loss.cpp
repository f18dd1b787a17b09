// loss.hpp: a loss in Python remembers the gradient of its last call, which the core leaves to its caller.
#include "bindings.hpp"

namespace deepnet::python {
namespace {

// dE/dy of the last call.
struct Gradient {
  Tensor last;
};

template <class L>
struct WithGradient : L, Gradient {};

template <class L>
void bind(py::module_& m, const char* name, const char* doc) {
  py::class_<WithGradient<L>, Loss, py::smart_holder>(m, name, doc).def(py::init<>());
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
      .def("__repr__", [](const Loss& loss) { return loss.kind() + "()"; });
  bind<CrossEntropyLoss>(m, "CrossEntropyLoss", R"doc(
E = mean_n -log softmax(y_n)[label_n]; softmax and logarithm fused, dE/dy = (softmax(y) - target) / N.

y are logits (N, C) or (N, C, ...). The target is class labels, integers (N,) or (N, ...), or probabilities, a float
array of y's shape: E = mean_n -sum_c t_nc log softmax(y_n)_c.

Raises TypeError for float labels, ValueError for labels outside [0, C), ShapeError where shapes do not fit.

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
  bind<NLLLoss>(m, "NLLLoss", "E = mean_n -y_n[label_n], y log-probabilities (N, C) or (N, C, ...), integer labels.");
  bind<MSELoss>(m, "MSELoss", "E = mean (y - target)^2 over all elements; dE/dy = 2 (y - target) / size.");
  bind<BCEWithLogitsLoss>(m, "BCEWithLogitsLoss",
                          "E = mean -(t log s(y) + (1 - t) log(1 - s(y))), s the sigmoid, over all elements; stable.");
  m.def(
      "count_correct",
      [](py::handle y, py::handle labels) {
        return count_correct(as_float(y, "count_correct"), as_labels(labels, "count_correct"));
      },
      py::arg("y"), py::arg("labels"), "How many rows of y have their first maximum, along axis 1, at their label.");
}

}  // namespace deepnet::python
