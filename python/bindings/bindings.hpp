// One registration function for each header of the core (two for layers.hpp); module.cpp calls them in order.
#pragma once

#include "numpy_view.hpp"

namespace deepnet::python {

void bind_errors(py::module_& m);
void bind_runtime(py::module_& m);
void bind_layer(py::module_& m);
void bind_layers(py::module_& m);
void bind_activations(py::module_& m);
void bind_init(py::module_& m);
void bind_loss(py::module_& m);
void bind_optimizer(py::module_& m);
void bind_trainer(py::module_& m);
void bind_image(py::module_& m);
void bind_io(py::module_& m);

/// The Python class of a layer that derives from Layer alone.
template <class L>
py::class_<L, Layer, py::smart_holder> bind_layer_class(py::module_& m, const char* name, const char* doc) {
  return py::class_<L, Layer, py::smart_holder>(m, name, doc);
}

/// The Model, with its plans, that is attached to a layer; made at the first call.
Model& model_of(Layer& layer);

}  // namespace deepnet::python
