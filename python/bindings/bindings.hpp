// One registration function for each header of the core (two for layers.hpp); module.cpp calls them in order.
#pragma once

#include "numpy_view.hpp"

namespace deepnet::python {

void bind_errors(py::module_& m);
void bind_runtime(py::module_& m);
void bind_layer(py::module_& m);
void bind_layers(py::module_& m);
void bind_activations(py::module_& m);
void bind_recurrent(py::module_& m);
void bind_recurrent_stack(py::module_& m);
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

/// f(), without the GIL: for whatever works long or locks a mutex of the core, whose holder may wait for the GIL.
template <class F>
auto without_gil(const F& f) {
  GilLeft release;
  return f();
}

/// Makes everything that the module has by now refuse arguments of a wrong type in the library's own words.
void check_arguments(py::module_& m);

/// Makes subclasses in Python of the native classes below `base` bring none of these methods: native code would not
/// call them. `instead` tells what to do.
void refuse_overrides(py::handle base, std::vector<std::string> methods, const char* instead);

/// The Model, with its plans, that is attached to a layer; made at the first call.
Model& model_of(Layer& layer);

/// Tells the layers where a run, alone or as part of a network, has left what they can show.
void note(const Traces& traces);
/// Where the layer's last run has left it; null before any.
std::shared_ptr<const Trace> trace_of(Layer& layer);

/// The mask (N, T) of a call for inputs of shape x: from the mask or the lengths that were given, not both; undefined
/// where neither was. Errors open with `what`.
Tensor as_mask(const std::string& what, const Shape& x, py::handle lengths, py::handle mask);

}  // namespace deepnet::python
