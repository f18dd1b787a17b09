// Forward and backward of a layer on arrays, alone.
#pragma once

#include "bindings.hpp"

namespace deepnet::python {

py::object call(Layer& layer, const py::args& args, py::handle state, py::handle lengths, py::handle mask);
py::object backward(Layer& layer, py::handle dy);
py::array predict(Layer& layer, py::handle x, py::handle batch_size, py::handle lengths, py::handle mask);

}  // namespace deepnet::python
