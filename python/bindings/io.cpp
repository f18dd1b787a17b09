// io.hpp: model files, and runtime.hpp's file of choices; Layer.save, deepnet.load, deepnet.load_optimizer_state and
// deepnet.autotune wrap and document these.
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <optional>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

using Path = std::filesystem::path;  // Python's str where its bytes are no UTF-8 too

// f(path) without the GIL. What the system refuses is an OSError that has the path as its filename, and so not in its
// text.
template <class F>
auto with_file(const Path& path, const F& f) {
  const std::string name = path.u8string();
  try {
    return without_gil([&] { return f(name); });
  } catch (const FileError& error) {
    std::string text = error.what();
    const std::string quoted = " '" + name + "'";
    if (const std::size_t at = text.find(quoted); at != std::string::npos) text.erase(at, quoted.size());
    // OSError makes itself a FileNotFoundError, PermissionError, ...
    const py::object made = py::handle(PyExc_OSError)(error.error_number, as_text(text), as_text(name));
    PyErr_SetObject(py::type::handle_of(made).ptr(), made.ptr());
    throw py::error_already_set();
  }
}

}  // namespace

void bind_io(py::module_& m) {
  m.def(
      "save",
      [](const LayerPtr& net, const Path& path, const Optimizer* optimizer, const Metadata& metadata) {
        with_file(path, [&](const std::string& name) { save(Model(net), name, optimizer, metadata); });
      },
      py::arg("net"), py::arg("path"), py::arg("optimizer") = nullptr, py::arg("metadata") = Metadata(),
      "See deepnet.nn.Layer.save.");
  m.def(
      "load",
      [](const Path& path) {
        Metadata metadata;
        const LayerPtr net = with_file(path, [&](const std::string& name) { return load(name, &metadata).layer(); });
        return std::make_pair(net, metadata);
      },
      py::arg("path"), "See deepnet.load.");
  m.def(
      "load_optimizer_state",
      [](const LayerPtr& net, Optimizer& optimizer, const Path& path) {
        with_file(path, [&](const std::string& name) { load_optimizer_state(Model(net), optimizer, name); });
      },
      py::arg("net"), py::arg("optimizer"), py::arg("path"), "See deepnet.load_optimizer_state.");
  m.def(
      "autotune",
      [](bool on, const Path& cache) { with_file(cache, [&](const std::string& name) { autotune(on, name); }); },
      py::arg("on"), py::arg("cache"), "See deepnet.autotune.");
  m.def(
      "default_autotune_cache",
      [] {
        const std::string path = default_autotune_cache();
        return path.empty() ? std::nullopt : std::optional<Path>(std::filesystem::u8path(path));
      },
      "The file that deepnet.autotune keeps choices in by default, or None where there is no folder for it.");
  m.def(
      "structure_json", [](const Layer& net) { return structure_json(net); }, py::arg("net"),
      "The structure as JSON text: {\"kind\": ..., \"config\": {...}, \"layers\": [...]}.");
}

}  // namespace deepnet::python
