// io.hpp: model files; Layer.save, deepnet.load and deepnet.load_optimizer_state wrap and document these.
#include <pybind11/stl.h>

#include "bindings.hpp"

namespace deepnet::python {

void bind_io(py::module_& m) {
  m.def(
      "save",
      [](const LayerPtr& net, const std::string& path, const Optimizer* optimizer, const Metadata& metadata) {
        save(Model(net), path, optimizer, metadata);
      },
      py::arg("net"), py::arg("path"), py::arg("optimizer") = nullptr, py::arg("metadata") = Metadata(),
      "See deepnet.nn.Layer.save.");
  m.def(
      "load",
      [](const std::string& path) {
        Metadata metadata;
        LayerPtr net;
        {
          py::gil_scoped_release release;
          net = load(path, &metadata).layer();
        }
        return std::make_pair(net, metadata);
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
