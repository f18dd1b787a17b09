// RMSprop: Tieleman and Hinton 2012, lecture 6.5; centered, and with momentum: Graves 2013, "Generating sequences with
// recurrent neural networks", equations 38 to 41, but for PyTorch's eps beside the root and lr outside the momentum.
#include "common.hpp"
#include "dispatch.hpp"

namespace deepnet {
namespace {

// PyTorch's names.
const char square_name[] = "square_avg", mean_name[] = "grad_avg", velocity_name[] = "momentum_buffer";

}  // namespace

RMSprop::RMSprop(double lr, double alpha, double eps, double weight_decay, double momentum, bool centered)
    : lr(lr), alpha(alpha), eps(eps), weight_decay(weight_decay), momentum(momentum), centered(centered) {
  RMSprop::check();
}

void RMSprop::check() const {
  check_at_least_0(*this, "lr", lr);
  check_below_1(*this, "alpha", alpha);
  check_at_least_0(*this, "eps", eps);
  check_at_least_0(*this, "weight_decay", weight_decay);
  check_at_least_0(*this, "momentum", momentum);
}

Config RMSprop::config() const {
  return {{"lr", lr},
          {"alpha", alpha},
          {"eps", eps},
          {"weight_decay", weight_decay},
          {"momentum", momentum},
          {"centered", centered}};
}

std::vector<std::string> RMSprop::buffers() const {
  std::vector<std::string> names = {square_name};
  if (centered) names.push_back(mean_name);
  if (momentum != 0.0) names.push_back(velocity_name);
  return names;
}

void RMSprop::update(Parameter& parameter, Buffers& buffers, Index) const {
  const RmspropStep numbers{static_cast<float>(lr),  static_cast<float>(alpha),        static_cast<float>(1.0 - alpha),
                            static_cast<float>(eps), static_cast<float>(weight_decay), static_cast<float>(momentum)};
  float* weight = parameter.data.data();
  float* square = elements_of(buffers, square_name, true);
  float* mean = elements_of(buffers, mean_name, centered);
  float* velocity = elements_of(buffers, velocity_name, momentum != 0.0);
  for_gradient(parameter, 2.5, [&](Index begin, Index end, const float* grad) {
    kernels().rmsprop(&numbers, end - begin, weight + begin, grad, square + begin, mean ? mean + begin : nullptr,
                      velocity ? velocity + begin : nullptr);
  });
}

}  // namespace deepnet
