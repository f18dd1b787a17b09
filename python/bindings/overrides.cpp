// Subclasses in Python of native classes: a method that native code calls, on the native object, cannot be replaced.
#include "bindings.hpp"

namespace deepnet::python {
namespace {

// The native class that `type` derives from; null if that is `base` itself.
py::handle native_base(py::handle type, py::handle base) {
  for (const py::detail::type_info* info : py::detail::all_type_info(reinterpret_cast<PyTypeObject*>(type.ptr()))) {
    const py::handle native(reinterpret_cast<PyObject*>(info->type));
    if (!native.is(base) && PyType_IsSubtype(info->type, reinterpret_cast<PyTypeObject*>(base.ptr()))) return native;
  }
  return {};
}

void check(py::handle type, py::handle base, const std::vector<std::string>& methods, const char* instead) {
  const py::handle native = native_base(type, base);
  if (!native) return;
  for (const std::string& method : methods) {
    const py::object own = py::getattr(type, method.c_str(), py::none());
    if (own.is(py::getattr(native, method.c_str(), py::none()))) continue;
    const std::string name = py::str(native.attr("__name__"));
    throw TypeError("[" + std::string(py::str(type.attr("__name__"))) + "] expected no method " + method +
                    " on a subclass of the native " + name + ", which would not call it: " + instead);
  }
}

}  // namespace

void refuse_overrides(py::handle base, std::vector<std::string> methods, const char* instead) {
  const py::cpp_function hook(
      [base, methods = std::move(methods), instead](const py::handle type, const py::kwargs& keywords) {
        const py::object super = py::module_::import("builtins").attr("super")(base, type);
        super.attr("__init_subclass__")(**keywords);
        check(type, base, methods, instead);
      });
  base.attr("__init_subclass__") = py::reinterpret_steal<py::object>(PyClassMethod_New(hook.ptr()));
}

}  // namespace deepnet::python
