// Forward and backward of a layer on arrays, alone.
#pragma once

#include "bindings.hpp"

namespace deepnet::python {

py::object call(Layer& layer, const py::args& args, py::handle state, py::handle lengths, py::handle mask);
py::object backward(Layer& layer, py::handle dy);
constexpr Index default_batch_size = 256;  // of predict

/// predict(x) of a class whose `predict` is the function below, sooner for small networks: not by pybind11, which takes
/// longer than they do, and without leaving the GIL.
void shorten_predict(py::handle layer_class);
py::array predict(Layer& layer, py::handle x, py::handle batch_size, py::handle lengths, py::handle mask);

}  // namespace deepnet::python
