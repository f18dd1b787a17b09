// In training y = x m / (1 - p), m = 0 with probability p, else 1; in evaluation y = x. dE/dx = dE/dy m / (1 - p).
// The mask is not stored: the same key and position make it again. y may be x, dE/dx may be dE/dy.
#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../ops/dropout.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

double checked(double p) {
  if (!(p >= 0.0 && p <= 1.0)) {
    throw ValueError("[Dropout] expected a probability p in [0, 1], got " + std::to_string(p));
  }
  return p;
}

}  // namespace

Dropout::Dropout(double p) : p(checked(p)) {}

LayerPtr Dropout::from_config(const Config& config) {
  return std::make_shared<Dropout>(config_double(config, "Dropout", "p"));
}

Config Dropout::config() const { return {{"p", p}}; }

Contract Dropout::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.in_place = true;
  c.lanes = Contract::Lanes::follows;  // which elements are dropped goes by their order in memory
  c.row_by_row = true;
  return c;
}

Shape Dropout::output_shape(const std::vector<Shape>& inputs) const { return one_input(*this, inputs); }

void Dropout::forward(const ForwardCall& call) const {
  apply_dropout(call.training ? p : 0.0, call.random_key, 0, call.output->size(), call.inputs[0].data(),
                call.output->data());
}

void Dropout::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  apply_dropout(call.training ? p : 0.0, call.random_key, 0, call.d_output->size(), call.d_output->data(),
                call.d_inputs[0].data());
}

}  // namespace deepnet
