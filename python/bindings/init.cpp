// init.hpp: initial weights; deepnet.nn.init wraps and documents them.
#include "bindings.hpp"

namespace deepnet::python {

void bind_init(py::module_& m) {
  const py::call_guard<GilLeft> without_gil;
  m.def("init_kaiming_normal", &init::kaiming_normal, without_gil, py::arg("layer"),
        "See deepnet.nn.init.kaiming_normal.");
  m.def("init_kaiming_uniform", &init::kaiming_uniform, without_gil, py::arg("layer"),
        "See deepnet.nn.init.kaiming_uniform.");
  m.def("init_xavier_normal", &init::xavier_normal, without_gil, py::arg("layer"),
        "See deepnet.nn.init.xavier_normal.");
  m.def("init_xavier_uniform", &init::xavier_uniform, without_gil, py::arg("layer"),
        "See deepnet.nn.init.xavier_uniform.");
  m.def("init_orthogonal", &init::orthogonal, without_gil, py::arg("layer"), "See deepnet.nn.init.orthogonal.");
}

}  // namespace deepnet::python
