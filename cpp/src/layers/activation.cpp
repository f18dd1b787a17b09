// Element-wise nonlinearities y = f(x), any shape; dE/dx = f'(x) dE/dy. The functions are in kernels/activation.inl.
//
// Backward works from y where y determines f'(x); then the layer before may apply f as it writes its own output, and x
// is never stored. Where y is the caller's, it is made again from x instead. y may be x, dE/dx may be dE/dy.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

// GELU and SiLU fall and rise again, and so do LeakyReLU and ELU with a negative parameter: one y, two x.
bool saves_input(Activation a) {
  switch (a.kind) {
    case ActivationKind::gelu:
    case ActivationKind::silu:
      return true;
    case ActivationKind::leaky_relu:
    case ActivationKind::elu:
      return a.parameter < 0.0f;
    default:
      return false;
  }
}

// Moved elements that one element's arithmetic is worth (measured with AVX-512).
double cost(ActivationKind kind) {
  return kind == ActivationKind::relu || kind == ActivationKind::leaky_relu ? 1.0 : 5.0;
}

// The shortest text that reads back as this float: 0.01, not 0.00999999977.
std::string text_of(float parameter) {
  char text[32];
  for (int digits = 6; digits <= 9; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(parameter));
    if (std::strtof(text, nullptr) == parameter) break;
  }
  return text;
}

double as_written(float parameter) { return std::strtod(text_of(parameter).c_str(), nullptr); }

// `divided`: kernels divide by it, so that its inverse must be finite too.
Activation checked(const char* layer, const char* name, ActivationKind kind, double value, bool divided = false) {
  const float parameter = static_cast<float>(value);
  if (divided && std::isfinite(parameter) && parameter > 0.0f && !std::isfinite(1.0f / parameter)) {
    throw ValueError("[" + std::string(layer) + "] expected " + name + " with a finite 1 / " + name + ", got " +
                     text_of(parameter));
  }
  if (!std::isfinite(parameter) || (divided && !(parameter > 0.0f))) {
    throw ValueError("[" + std::string(layer) + "] expected a finite " + name + (divided ? " > 0" : "") + ", got " +
                     std::to_string(value));
  }
  return {kind, parameter};
}

}  // namespace

Contract ActivationLayer::contract() const {
  Contract c;
  c.backward_needs_input = saves_input(activation_);
  c.backward_needs_output = !c.backward_needs_input;
  c.in_place = true;
  c.remakes_output = c.backward_needs_output;
  c.lanes = Contract::Lanes::follows;
  c.activation = activation_;
  c.row_by_row = true;
  return c;
}

Shape ActivationLayer::output_shape(const std::vector<Shape>& inputs) const { return one_input(*this, inputs); }

void ActivationLayer::forward(const ForwardCall& call) const {
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  parallel_for(call.output->size(), grain_for(cost(activation_.kind), 64), [&](Index begin, Index end) {
    kernels().activation_forward(static_cast<int>(activation_.kind), activation_.parameter, end - begin, x + begin,
                                 y + begin);
  });
}

void ActivationLayer::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const bool remakes = call.output == nullptr;
  const float* saved = remakes || saves_input(activation_) ? call.inputs[0].data() : call.output->data();
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  const auto derive = [&](Index begin, Index n, const float* y_or_x) {
    kernels().activation_backward(static_cast<int>(activation_.kind), activation_.parameter, n, y_or_x, dy + begin,
                                  dx + begin);
  };
  parallel_for(call.d_output->size(), grain_for(cost(activation_.kind), 64), [&](Index begin, Index end) {
    if (!remakes) return derive(begin, end - begin, saved + begin);
    constexpr Index at_once = 2048;  // elements of y, in the first-level cache
    float* y = thread_scratch(Scratch::tile, at_once);
    for (Index i = begin; i < end; i += at_once) {
      const Index n = std::min(at_once, end - i);
      kernels().activation_forward(static_cast<int>(activation_.kind), activation_.parameter, n, saved + i, y);
      derive(i, n, y);
    }
  });
}

Softplus::Softplus(double beta) : ActivationLayer(checked("Softplus", "beta", ActivationKind::softplus, beta, true)) {}

LeakyReLU::LeakyReLU(double negative_slope)
    : ActivationLayer(checked("LeakyReLU", "negative_slope", ActivationKind::leaky_relu, negative_slope)) {}

ELU::ELU(double alpha) : ActivationLayer(checked("ELU", "alpha", ActivationKind::elu, alpha)) {}

Config Softplus::config() const { return {{"beta", as_written(activation_.parameter)}}; }
Config LeakyReLU::config() const { return {{"negative_slope", as_written(activation_.parameter)}}; }
Config ELU::config() const { return {{"alpha", as_written(activation_.parameter)}}; }

LayerPtr ReLU::from_config(const Config&) { return std::make_shared<ReLU>(); }
LayerPtr Sigmoid::from_config(const Config&) { return std::make_shared<Sigmoid>(); }
LayerPtr Tanh::from_config(const Config&) { return std::make_shared<Tanh>(); }
LayerPtr GELU::from_config(const Config&) { return std::make_shared<GELU>(); }
LayerPtr SiLU::from_config(const Config&) { return std::make_shared<SiLU>(); }

LayerPtr Softplus::from_config(const Config& config) {
  return std::make_shared<Softplus>(config_double(config, "Softplus", "beta"));
}
LayerPtr LeakyReLU::from_config(const Config& config) {
  return std::make_shared<LeakyReLU>(config_double(config, "LeakyReLU", "negative_slope"));
}
LayerPtr ELU::from_config(const Config& config) { return std::make_shared<ELU>(config_double(config, "ELU", "alpha")); }

}  // namespace deepnet
