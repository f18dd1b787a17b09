// io.hpp: model files; Layer.save, deepnet.load and deepnet.load_optimizer_state wrap and document these.
#include "bindings.hpp"

namespace deepnet::python {

void bind_io(py::module_& m) {
  m.def(
      "save",
      [](const LayerPtr& net, const std::string& path, const Optimizer* optimizer) {
        save(Model(net), path, optimizer);
      },
      py::arg("net"), py::arg("path"), py::arg("optimizer") = nullptr, "See deepnet.nn.Layer.save.");
  m.def(
      "load",
      [](const std::string& path) {
        py::gil_scoped_release release;
        return load(path).layer();
      },
      py::arg("path"), "See deepnet.load.");
  m.def(
      "load_optimizer_state",
      [](const LayerPtr& net, Optimizer& optimizer, const std::string& path) {
        load_optimizer_state(Model(net), optimizer, path);
      },
      py::arg("net"), py::arg("optimizer"), py::arg("path"), "See deepnet.load_optimizer_state.");
  m.def(
      "structure_json", [](const Layer& net) { return structure_json(net); }, py::arg("net"),
      "The structure as JSON text: {\"kind\": ..., \"config\": {...}, \"layers\": [...]}.");
}

}  // namespace deepnet::python
