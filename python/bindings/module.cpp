// The native module deepnet._core.
#include "bindings.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace deepnet::python;
  m.attr("__version__") = deepnet::version();
  bind_errors(m);
  bind_runtime(m);
  bind_layer(m);
  bind_layers(m);
  bind_activations(m);
  bind_recurrent(m);
  bind_recurrent_stack(m);
  bind_init(m);
  bind_loss(m);
  bind_optimizer(m);
  bind_trainer(m);
  bind_image(m);
  bind_io(m);
  check_arguments(m);
}
