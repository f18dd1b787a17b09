// Arguments of a wrong type or number: pybind11's error quotes C++ signatures and every value in full; what users get
// instead names the layer or function, what it expected and what it got.
#include <algorithm>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

struct Expected {
  std::string name, type;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// "in_features: int, bias: bool = True", of the first signature in pybind11's error text.
std::string signature_in(const std::string& error) {
  const std::size_t line = error.find("1. "), begin = error.find('(', line);
  std::size_t end = error.find('\n', line);
  const std::size_t arrow = error.rfind(" -> ", end);
  if (arrow != std::string::npos && arrow > begin) end = arrow;
  end = error.rfind(')', end);
  if (line == std::string::npos || begin == std::string::npos || end == std::string::npos || end <= begin) return "";
  std::string text = error.substr(begin + 1, end - begin - 1);
  if (text.rfind("self: ", 0) == 0) text = text.find(", ") == std::string::npos ? "" : text.substr(text.find(", ") + 2);
  text = replaced(text, " | typing.SupportsIndex", "");
  text = replaced(replaced(text, "typing.SupportsInt", "int"), "typing.SupportsFloat", "float");
  return replaced(replaced(text, "deepnet._core.", ""), ": object", "");
}

std::vector<Expected> arguments_in(const std::string& signature) {
  std::vector<Expected> list;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= signature.size(); ++i) {
    const char c = i < signature.size() ? signature[i] : ',';
    depth += (c == '(' || c == '[') - (c == ')' || c == ']');
    if (c != ',' || depth != 0) continue;
    const std::string one = signature.substr(begin, i - begin);
    const std::size_t equals = one.find(" = "), colon = one.find(": ");
    const std::size_t name_end = std::min(colon, equals);
    const std::string type = colon < equals ? one.substr(colon + 2, equals - colon - 2) : "";
    if (!one.empty()) list.push_back({one.substr(0, name_end), type});
    begin = i + 2;
  }
  return list;
}

bool fits(py::handle value, const std::string& type) {
  const bool array = py::isinstance<py::array>(value);  // which has the slots of a number
  if (type == "int") return !array && PyIndex_Check(value.ptr());
  if (type == "float") return !array && PyNumber_Check(value.ptr());
  if (type == "bool") return !array && (value.is_none() || PyNumber_Check(value.ptr()));
  return type != "str" || PyUnicode_Check(value.ptr());
}

std::string shown(py::handle value) {
  if (py::isinstance<py::array>(value)) return "an array of shape " + std::string(py::str(value.attr("shape")));
  constexpr std::size_t longest = 80;
  const std::string text = py::str(py::repr(value));
  return text.size() <= longest ? text : "a " + std::string(py::str(py::type::of(value).attr("__name__")));
}

std::string refusal(const std::string& what, const std::string& error, const py::args& args, const py::kwargs& keywords,
                    std::size_t first) {
  const std::string signature = signature_in(error), start = "[" + what + "] expected ";
  const std::vector<Expected> expected = arguments_in(signature);
  std::string got;
  const auto look = [&](const Expected* argument, py::handle value) -> std::string {
    got += (got.empty() ? "" : ", ") + shown(value);
    if (argument == nullptr) return "";
    const std::string begin = start + argument->name + " to be ";
    if (!fits(value, argument->type)) {
      return begin + (argument->type == "int" ? "an " : "a ") + argument->type + ", got " + shown(value);
    }
    int overflow = 0;
    if (argument->type == "int" && PyLong_Check(value.ptr())) PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    return overflow == 0 ? "" : begin + "an int of 64 bits, got " + shown(value);
  };
  for (std::size_t i = first; i < args.size(); ++i) {
    const std::string text = look(i - first < expected.size() ? &expected[i - first] : nullptr, args[i]);
    if (!text.empty()) return text;
  }
  for (const auto& [key, value] : keywords) {
    const std::string name = py::str(key);
    const auto found = std::find_if(expected.begin(), expected.end(), [&](const auto& e) { return e.name == name; });
    got += (got.empty() ? "" : ", ") + name + "=";
    const std::string text = look(found == expected.end() ? nullptr : &*found, value);
    if (!text.empty()) return text;
  }
  return start + "arguments (" + signature + "), got (" + replaced(got, "=, ", "=") + ")";
}

// `call` with errors of its own. `first` is 1 where self comes before the arguments.
py::object checked(const py::object& call, const std::string& what, std::size_t first, const py::args& args,
                   const py::kwargs& keywords) {
  try {
    return call(*args, **keywords);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    const std::string text = py::str(error.value());
    if (text.find("(): incompatible ") == std::string::npos) throw;
    throw TypeError(refusal(what, text, args, keywords, first));
  }
}

// `extra` puts it on a class or module.
template <class Extra>
py::object checked_function(const py::object& call, const std::string& name, const std::string& what, std::size_t first,
                            const Extra& extra) {
  const py::object doc = py::getattr(call, "__doc__", py::none());
  const std::string text = doc.is_none() ? "" : std::string(py::str(doc));
  return py::cpp_function(
      [call, what, first](const py::args& args, const py::kwargs& keywords) {
        return checked(call, what, first, args, keywords);
      },
      py::name(name.c_str()), py::doc(text.c_str()), extra);
}

void check_class(const py::object& type) {
  const std::string kind = py::str(type.attr("__name__"));
  const auto method_name = [&](const std::string& name) {
    return name == "__init__" ? kind : kind + "." + (name[0] == '_' && name[1] != '_' ? name.substr(1) : name);
  };
  // What is called all the time takes any type.
  const std::vector<std::string> left_out = {"__call__", "backward", "predict", "step", "_step_rows"};
  auto* const property = reinterpret_cast<PyObject*>(&PyProperty_Type);
  const py::dict attributes = type.attr("__dict__").attr("copy")();
  for (const auto& [key, value] : attributes) {
    const std::string name = py::str(key);
    const auto object = py::reinterpret_borrow<py::object>(value);
    if (std::find(left_out.begin(), left_out.end(), name) != left_out.end()) continue;
    if (PyInstanceMethod_Check(value.ptr())) {
      // Under its own name a constructor would have to be one of pybind11's.
      type.attr(name.c_str()) =
          checked_function(object, name == "__init__" ? "init" : name, method_name(name), 1, py::is_method(type));
    } else if (py::type::handle_of(value).ptr() == property && !object.attr("fset").is_none()) {
      const py::object set = checked_function(object.attr("fset"), name, method_name(name), 1, py::is_method(type));
      type.attr(name.c_str()) = py::handle(property)(object.attr("fget"), set, py::none(), object.attr("__doc__"));
    }
  }
}

}  // namespace

void check_arguments(py::module_& m) {
  py::options options;
  options.disable_function_signatures();  // the documentation that is handed on has them
  const py::dict attributes = m.attr("__dict__").attr("copy")();
  for (const auto& [key, value] : attributes) {
    const std::string name = py::str(key);
    const auto object = py::reinterpret_borrow<py::object>(value);
    if (PyType_Check(value.ptr()) && py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(value.ptr()))) {
      check_class(object);
    } else if (PyCFunction_Check(value.ptr())) {
      m.attr(name.c_str()) = checked_function(object, name, name, 0, py::scope(m));
    }
  }
}

}  // namespace deepnet::python
