// trainer.hpp
#include "bindings.hpp"

namespace deepnet::python {
namespace {

float step(Trainer& trainer, py::handle x, py::handle target, py::handle lengths, py::handle mask) {
  const Tensor input = as_float(x, "Trainer"), wanted = own_labels(as_target(target, *trainer.loss()));
  const Tensor padding = as_mask("Trainer", input.shape(), lengths, mask);
  float e = 0.0f;
  Traces traces;
  {
    GilLeft release;
    e = trainer.step(input, wanted, padding);
    traces = trainer.traces();
  }
  note(traces);
  return e;
}

float step_rows(Trainer& trainer, py::handle x, py::handle target, py::handle order, Index begin, Index end,
                py::handle mask) {
  const Tensor input = as_float(x, "Trainer"), wanted = as_target(target, *trainer.loss());
  const Tensor rows = as_labels(order, "Trainer");
  const Tensor padding = as_mask("Trainer", input.shape(), py::none(), mask);
  float e = 0.0f;
  Traces traces;
  {
    GilLeft release;
    e = trainer.step_rows(input, wanted, rows, begin, end, padding);
    traces = trainer.traces();
  }
  note(traces);
  return e;
}

}  // namespace

void bind_trainer(py::module_& m) {
  py::class_<Trainer, py::smart_holder>(m, "Trainer", R"doc(
Forward, loss, backward and update as one native call, without the GIL.

`Layer.fit` is this with batches, validation, callbacks and a progress bar.

Parameters
----------
net : Layer
    The network to train, in training mode whatever mode it is in.
loss : Loss
    What to minimise.
optimizer : Optimizer
    How to update the parameters.

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> from deepnet import nn, optim
>>> net = nn.Sequential(nn.Linear(2, 1))
>>> trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1))
>>> x, y = np.ones((4, 2)), np.ones((4, 1))
>>> first = trainer.step(x, y)
>>> trainer.step(x, y) < first
True
)doc")
      .def(py::init(
               [](const LayerPtr& net, const std::shared_ptr<Loss>& loss, const std::shared_ptr<Optimizer>& optimizer) {
                 return std::make_shared<Trainer>(Model(net), loss, optimizer);
               }),
           py::arg("net"), py::arg("loss"), py::arg("optimizer"))
      .def("step", &step, py::arg("x"), py::arg("y"), py::kw_only(), py::arg("lengths") = py::none(),
           py::arg("mask") = py::none(), R"doc(
One step on a batch, in training mode; returns the loss before the update. Gradients are this step's alone.

Parameters
----------
x : array
    Inputs of shape (N, ...), converted to float32.
y : array
    Targets as the loss takes them.
lengths, mask : arrays (N,) and (N, T)
    Which steps of sequences (N, T, ...) are padding, see `Layer.__call__`. Where targets have padding, too, give it the
    label that the loss ignores.

Raises
------
ShapeError, TypeError, ValueError
    As the network and the loss raise them.
FloatingPointError
    The loss is not finite; the message names where that began, and the weights are unchanged.

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> from deepnet import nn, optim
>>> trainer = dn.Trainer(nn.Linear(4, 2), nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
>>> trainer.step(np.zeros((8, 4)), np.zeros(8, int)) > 0
True
)doc")
      .def("_step_rows", &step_rows, py::arg("x"), py::arg("y"), py::arg("order"), py::arg("begin"), py::arg("end"),
           py::arg("mask") = py::none())
      .def(
          "save",
          [](const py::object& self, const py::object& path) {
            self.attr("net").attr("save")(path, self.attr("optimizer"));
          },
          py::arg("path"), R"doc(
Write the network, structure and weights, and the optimizer's state to a safetensors file.

`deepnet.load` reads the network back, `deepnet.load_optimizer_state` the state. The file is replaced whole: a crash
leaves the old one or the new one.

Parameters
----------
path : str or PathLike
    File to write.

Raises
------
OSError
    The file cannot be written.
TypeError
    The network has a layer written in Python, which a file cannot hold.

Examples
--------
>>> import deepnet as dn
>>> from deepnet import nn, optim
>>> trainer = dn.Trainer(nn.Sequential(nn.Linear(2, 1)), nn.MSELoss(), optim.SGD(lr=0.1))
>>> trainer.save("m.safetensors")
>>> dn.load("m.safetensors")
Sequential(
  (0): Linear(bias=True, in_features=2, out_features=1)
)
)doc")
      .def_property_readonly("last_correct", &Trainer::last_correct,
                             "How many rows of the last step were classified rightly; -1 without labels.")
      .def_property_readonly("last_counted", &Trainer::last_counted,
                             "How many labels of the last step count, those not ignored; -1 without labels.")
      .def_property_readonly(
          "net", [](const Trainer& t) { return t.model().layer(); }, "The network that it trains, a Layer.")
      .def_property_readonly("loss", &Trainer::loss, "What it minimises, a Loss.")
      .def_property_readonly("optimizer", &Trainer::optimizer, "How it updates the parameters, an Optimizer.");
}

}  // namespace deepnet::python
