// init.hpp: initial weights.
#include "bindings.hpp"

namespace deepnet::python {

void bind_init(py::module_& m) {
  m.def("init_kaiming_normal", &init::kaiming_normal, py::arg("layer"));
  m.def("init_kaiming_uniform", &init::kaiming_uniform, py::arg("layer"));
  m.def("init_xavier_normal", &init::xavier_normal, py::arg("layer"));
  m.def("init_xavier_uniform", &init::xavier_uniform, py::arg("layer"));
  m.def("init_orthogonal", &init::orthogonal, py::arg("layer"));
}

}  // namespace deepnet::python
