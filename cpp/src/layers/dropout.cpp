// In training y = x m / (1 - p), m = 0 with probability p, else 1; in evaluation y = x. dE/dx = dE/dy m / (1 - p).
// The mask is not stored: the same key and position make it again. y may be x, dE/dx may be dE/dy.
#include <cmath>
#include <cstring>

#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../parallel.hpp"
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

void apply_dropout(double p, std::uint64_t key, Index n, const float* x, float* y) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  const double threshold = std::round(p * 0x1p32);
  if (threshold == 0.0) {
    if (x != y) std::memcpy(y, x, bytes);
  } else if (threshold >= 0x1p32) {
    std::memset(y, 0, bytes);
  } else {
    constexpr double cost = 12.0;  // an element's random bits, in moved elements
    const float scale = static_cast<float>(1.0 / (1.0 - p));
    parallel_for(n, grain_for(cost, 64), [&](Index begin, Index end) {
      kernels().dropout(key, begin, end - begin, static_cast<std::uint32_t>(threshold), scale, x + begin, y + begin);
    });
  }
}

Dropout::Dropout(double p) : p(checked(p)) {}

LayerPtr Dropout::from_config(const Config& config) {
  return std::make_shared<Dropout>(config_double(config, "Dropout", "p"));
}

Config Dropout::config() const { return {{"p", p}}; }

Contract Dropout::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.in_place = true;
  return c;
}

Shape Dropout::output_shape(const std::vector<Shape>& inputs) const { return one_input(*this, inputs); }

void Dropout::forward(const ForwardCall& call) const {
  apply_dropout(call.training ? p : 0.0, call.random_key, call.output->size(), call.inputs[0].data(),
                call.output->data());
}

void Dropout::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  apply_dropout(call.training ? p : 0.0, call.random_key, call.d_output->size(), call.d_output->data(),
                call.d_inputs[0].data());
}

}  // namespace deepnet
