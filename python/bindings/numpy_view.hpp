// The one copy policy between NumPy and Tensor.
//   In:  float32, C-contiguous, aligned arrays are borrowed; other real ones are converted once; complex, object, text:
//   TypeError. Out: a new array over the Tensor's own memory, or a copy of a small result.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include <deepnet/deepnet.hpp>

#include "gil.hpp"

namespace deepnet::python {

namespace py = pybind11;

/// `what` opens error messages: "Conv2d", "Trainer". The Tensor keeps the array alive.
Tensor as_float(py::handle object, const std::string& what);
/// `count` of them, in a tuple, a list or along an array's first axis; `name` says in errors what they are.
std::vector<Tensor> as_floats(py::handle object, std::size_t count, const std::string& what, const std::string& name);
/// Any integer dtype, as int64.
Tensor as_labels(py::handle object, const std::string& what);
/// Integers as labels where the loss takes labels; everything else as float32.
Tensor as_target(py::handle object, const Loss& loss);
/// Labels in memory of their own: they are checked once and then address memory, so no other thread may change them in
/// between. Real numbers as they are.
Tensor own_labels(const Tensor& target);

/// The numbers of a NumPy array that can be borrowed as it is, and its shape; null for every other object. For no
/// longer than the caller keeps the array.
const float* borrowed_floats(py::handle object, Shape& shape, const std::string& what);

/// A new array of float32, in NumPy's own memory, not initialised.
py::array new_array(const Shape& shape);
/// An array over the Tensor's memory, which it keeps alive.
py::array as_array(const Tensor& tensor);
/// An array of a result that nobody else has. A small one is copied into NumPy's own memory, sooner than an owner of
/// the Tensor's is made.
py::array as_new_array(const Tensor& tensor);
/// An array over memory that `owner` keeps alive.
py::array as_view(const Tensor& tensor, py::handle owner);

/// UTF-8, or the bytes of a path that is none: as Python's file system names have them.
py::str as_text(const std::string& text);
py::tuple as_tuple(const Shape& shape);
/// An int, of Python or NumPy; TypeError where it is none, a bool, or wider than 64 bits.
Index as_index(py::handle object, const std::string& what, const char* argument);
/// An int for both, or a pair.
Size2 as_size2(py::handle object, const char* layer, const char* argument);

}  // namespace deepnet::python
