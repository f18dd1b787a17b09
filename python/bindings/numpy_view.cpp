#include "numpy_view.hpp"

#include <cmath>
#include <cstring>

namespace deepnet::python {
namespace {

Shape shape_of(const py::array& array, const std::string& what) {
  if (array.ndim() > Shape::max_rank) {
    throw ShapeError("[" + what + "] expected at most " + std::to_string(Shape::max_rank) + " axes, got " +
                     std::to_string(array.ndim()));
  }
  Shape shape;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
  return shape;
}

// The reference is dropped wherever the last Tensor dies, perhaps without the GIL.
std::shared_ptr<void> keep_alive(const py::object& object) {
  return {object.inc_ref().ptr(), [](void* p) {
            GilHeld gil;
            Py_DECREF(static_cast<PyObject*>(p));
          }};
}

constexpr int borrowed_flags = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int converted_flags = borrowed_flags | py::array::forcecast;

bool borrowable(const py::array& array, const py::dtype& type, char kind, py::ssize_t size) {
  return type.kind() == kind && type.itemsize() == size && (type.byteorder() == '=' || type.byteorder() == '|') &&
         (array.flags() & borrowed_flags) == borrowed_flags;
}

py::array to_array(py::handle object, const std::string& what) {
  if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
  try {
    return py::array(py::reinterpret_borrow<py::object>(object));
  } catch (const py::error_already_set& error) {  // others, KeyboardInterrupt for one, are the object's own
    if (!error.matches(PyExc_ValueError) && !error.matches(PyExc_TypeError)) throw;
    throw TypeError("[" + what + "] expected an array, got a " +
                    std::string(py::str(py::type::of(object).attr("__name__"))) +
                    ", of which NumPy says: " + std::string(py::str(error.value())));
  }
}

[[noreturn]] void too_large(const std::string& what, const py::array& array) {
  throw ValueError("[" + what + "] expected numbers that float32 can hold, up to 3.4e38, got larger ones of dtype " +
                   std::string(py::str(array.dtype())));
}

// NumPy would warn of an overflow, without a word about where, and go on with infinities.
py::array narrowed(const py::array& array, const std::string& what) {
  const py::array_t<double, converted_flags> from(array);
  py::array_t<float> to(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
  const double* wide = from.data();
  float* narrow = to.mutable_data();
  bool fits = true;
  for (py::ssize_t i = 0; i < from.size(); ++i) {
    narrow[i] = static_cast<float>(wide[i]);
    fits &= !std::isinf(narrow[i]) || std::isinf(wide[i]);
  }
  if (!fits) too_large(what, array);
  return to;
}

// The same of types that only NumPy knows: a long double.
py::array narrowed_by_numpy(const py::array& array, const std::string& what) {
  const py::object guard = py::module_::import("numpy").attr("errstate")(py::arg("over") = "raise");
  guard.attr("__enter__")();
  try {
    const py::array_t<float, converted_flags> converted(array);
    guard.attr("__exit__")(py::none(), py::none(), py::none());
    return converted;
  } catch (const py::error_already_set& error) {
    guard.attr("__exit__")(py::none(), py::none(), py::none());
    if (!error.matches(PyExc_FloatingPointError)) throw;
    too_large(what, array);
  }
}

Tensor borrow(const py::array& array, DType type, const std::string& what) {
  return Tensor::borrow(const_cast<void*>(array.data()), shape_of(array, what), type, keep_alive(array));
}

[[noreturn]] void wrong_dtype(const std::string& what, const char* expected, const py::dtype& type) {
  throw TypeError("[" + what + "] expected " + expected + ", got dtype " + std::string(py::str(type)));
}

Tensor float_of(const py::array& array, const std::string& what) {
  const py::dtype type = array.dtype();
  if (borrowable(array, type, 'f', 4)) return borrow(array, DType::float32, what);
  if (std::string("biuf").find(type.kind()) == std::string::npos) wrong_dtype(what, "an array of real numbers", type);
  const py::ssize_t size = type.kind() == 'f' ? type.itemsize() : 0;
  return borrow(size == 8  ? narrowed(array, what)
                : size > 8 ? narrowed_by_numpy(array, what)
                           : py::array_t<float, converted_flags>(array),
                DType::float32, what);
}

Tensor labels_of(const py::array& array, const std::string& what) {
  const py::dtype type = array.dtype();
  if (borrowable(array, type, 'i', 8)) return borrow(array, DType::int64, what);
  if (type.kind() != 'i' && type.kind() != 'u') wrong_dtype(what, "integers", type);
  return borrow(py::array_t<std::int64_t, converted_flags>(array), DType::int64, what);
}

// `number` is `object`, or part of it.
Index integer(py::handle number, const std::string& what, const char* argument, const char* expected,
              py::handle object) {
  const auto refuse = [&](const char* width) {
    PyErr_Clear();
    throw TypeError("[" + what + "] expected " + argument + " to be " + expected + width + ", got " +
                    std::string(py::str(py::repr(object))));
  };
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(number.ptr()));
  if (!index || PyBool_Check(number.ptr())) refuse("");
  const long long value = PyLong_AsLongLong(index.ptr());
  if (value == -1 && PyErr_Occurred()) refuse(" of 64 bits");
  return value;
}

}  // namespace

const float* borrowed_floats(py::handle object, Shape& shape, const std::string& what) {
  if (!py::isinstance<py::array>(object)) return nullptr;
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!borrowable(array, array.dtype(), 'f', 4)) return nullptr;
  shape = shape_of(array, what);
  return static_cast<const float*>(array.data());
}

Tensor as_float(py::handle object, const std::string& what) { return float_of(to_array(object, what), what); }

std::vector<Tensor> as_floats(py::handle object, std::size_t count, const std::string& what, const std::string& name) {
  const bool sequence = PySequence_Check(object.ptr()) && !py::isinstance<py::str>(object);
  const Py_ssize_t length = sequence ? PySequence_Size(object.ptr()) : -1;
  if (length < 0) PyErr_Clear();  // an array without axes has no length
  if (length != static_cast<Py_ssize_t>(count)) {
    throw TypeError("[" + what + "] expected " + name + " to be " + std::to_string(count) + " arrays, got " +
                    (length < 0 ? "a " + std::string(py::str(py::type::of(object).attr("__name__")))
                                : std::to_string(length) + " of them"));
  }
  std::vector<Tensor> tensors;
  for (py::handle item : object) tensors.push_back(as_float(item, what));
  return tensors;
}

Tensor as_labels(py::handle object, const std::string& what) { return labels_of(to_array(object, what), what); }

Tensor as_target(py::handle object, const Loss& loss) {
  const std::string what = loss.kind();
  const py::array array = to_array(object, what);
  const char kind = array.dtype().kind();
  return loss.takes_labels() && (kind == 'i' || kind == 'u') ? labels_of(array, what) : float_of(array, what);
}

Tensor own_labels(const Tensor& target) { return target.dtype() == DType::int64 ? target.clone() : target; }

py::array as_view(const Tensor& tensor, py::handle owner) {
  const std::vector<py::ssize_t> shape(tensor.shape().begin(), tensor.shape().end());
  if (tensor.dtype() == DType::int64) return py::array_t<std::int64_t>(shape, tensor.labels(), owner);
  return py::array_t<float>(shape, tensor.data(), owner);
}

py::array as_array(const Tensor& tensor) {
  auto* owner = new std::shared_ptr<void>(tensor.owner());
  const py::capsule capsule(owner, [](void* p) { delete static_cast<std::shared_ptr<void>*>(p); });
  return as_view(tensor, capsule);
}

py::array new_array(const Shape& shape) {
  static_assert(sizeof(Index) == sizeof(Py_intptr_t), "a Shape's sizes are NumPy's");
  const auto& numpy = py::detail::npy_api::get();
  PyObject* type = numpy.PyArray_DescrFromType_(py::detail::npy_api::NPY_FLOAT_);
  auto array = py::reinterpret_steal<py::array>(
      numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, type, shape.rank(),
                                  reinterpret_cast<const Py_intptr_t*>(shape.begin()), nullptr, nullptr, 0, nullptr));
  if (!array) throw py::error_already_set();
  return array;
}

py::array as_new_array(const Tensor& tensor) {
  constexpr std::size_t small = 4096;
  if (tensor.bytes() > small || tensor.dtype() != DType::float32) return as_array(tensor);
  py::array array = new_array(tensor.shape());
  std::memcpy(array.mutable_data(), tensor.raw(), tensor.bytes());
  return array;
}

py::str as_text(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
}

py::tuple as_tuple(const Shape& shape) {
  py::tuple tuple(static_cast<std::size_t>(shape.rank()));
  for (int i = 0; i < shape.rank(); ++i) tuple[static_cast<std::size_t>(i)] = shape[i];
  return tuple;
}

Index as_index(py::handle object, const std::string& what, const char* argument) {
  return integer(object, what, argument, "an int", object);
}

Size2 as_size2(py::handle object, const char* layer, const char* argument) {
  const auto whole = [&](py::handle number) {
    return integer(number, layer, argument, "an int or a pair of ints", object);
  };
  if (py::isinstance<py::sequence>(object) && !py::isinstance<py::str>(object)) {
    const auto pair = py::reinterpret_borrow<py::sequence>(object);
    if (pair.size() != 2) {
      throw ValueError("[" + std::string(layer) + "] expected " + argument + " to be an int or a pair of ints, got " +
                       std::to_string(pair.size()) + " of them");
    }
    return {whole(pair[0]), whole(pair[1])};
  }
  return {whole(object)};
}

}  // namespace deepnet::python
