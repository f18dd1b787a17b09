// One registration function for each header of the core; module.cpp calls them in order.
#pragma once

#include "numpy_view.hpp"

namespace deepnet::python {

void bind_errors(py::module_& m);
void bind_runtime(py::module_& m);
void bind_layer(py::module_& m);
void bind_layers(py::module_& m);
void bind_recurrent_stack(py::module_& m);
void bind_init(py::module_& m);
void bind_loss(py::module_& m);
void bind_optimizer(py::module_& m);
void bind_trainer(py::module_& m);
void bind_image(py::module_& m);
void bind_io(py::module_& m);

/// The Model, with its plans, that is attached to a layer; made at the first call.
Model& model_of(Layer& layer);

}  // namespace deepnet::python
