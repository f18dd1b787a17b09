// optimizer.hpp
#include "bindings.hpp"

namespace deepnet::python {

void bind_optimizer(py::module_& m) {
  py::class_<Optimizer, py::smart_holder>(m, "Optimizer", "Base of the optimizers.")
      .def_property_readonly("kind", &Optimizer::kind)
      .def(
          "step",
          [](Optimizer& optimizer, const Layer& layer) {
            const NamedParameters parameters = unique_parameters(layer);
            py::gil_scoped_release release;
            optimizer.step(parameters);
          },
          py::arg("net"), "Update every parameter of a layer or network that has a gradient.")
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
  py::class_<SGD, Optimizer, py::smart_holder>(m, "SGD", R"doc(
Stochastic gradient descent, in PyTorch's form:

    g = dE/dW + weight_decay W;   v = momentum v + g;   W -= lr (g + momentum v if nesterov else v)

Parameters
----------
lr : float
    Learning rate, >= 0.
momentum, weight_decay : float
    >= 0.
nesterov : bool
    Look ahead along the velocity (Sutskever et al. 2013, eq. 3-4); needs momentum > 0.

All are attributes that may be changed between steps. Raises ValueError for values outside their range.

Examples
--------
>>> from deepnet import optim
>>> opt = optim.SGD(lr=0.1, momentum=0.9)
>>> opt.lr = 0.01
)doc")
      .def(py::init<double, double, double, bool>(), py::arg("lr"), py::arg("momentum") = 0.0,
           py::arg("weight_decay") = 0.0, py::arg("nesterov") = false)
      .def_readwrite("lr", &SGD::lr)
      .def_readwrite("momentum", &SGD::momentum)
      .def_readwrite("weight_decay", &SGD::weight_decay)
      .def_readwrite("nesterov", &SGD::nesterov);
}

}  // namespace deepnet::python
