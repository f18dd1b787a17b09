// Stochastic gradient descent with momentum: Rumelhart, Hinton and Williams 1986, equations 8 and 9; Nesterov's form
// after Sutskever, Martens, Dahl and Hinton 2013, equations 3 and 4. PyTorch's velocity has no lr in it.
#include "common.hpp"
#include "dispatch.hpp"

namespace deepnet {
namespace {

const char velocity_name[] = "momentum_buffer";

}  // namespace

SGD::SGD(double lr, double momentum, double weight_decay, bool nesterov)
    : lr(lr), momentum(momentum), weight_decay(weight_decay), nesterov(nesterov) {
  SGD::check();
}

void SGD::check() const {
  check_at_least_0(*this, "lr", lr);
  check_at_least_0(*this, "momentum", momentum);
  check_at_least_0(*this, "weight_decay", weight_decay);
  if (nesterov && momentum == 0.0) throw ValueError("[SGD] expected momentum > 0 with nesterov, got 0");
}

Config SGD::config() const {
  return {{"lr", lr}, {"momentum", momentum}, {"weight_decay", weight_decay}, {"nesterov", nesterov}};
}

std::vector<std::string> SGD::buffers() const {
  if (momentum == 0.0) return {};
  return {velocity_name};
}

// PyTorch's velocity begins as the first g: so does one of zeros.
void SGD::update(Parameter& parameter, Buffers& buffers, Index) const {
  const SgdStep numbers{static_cast<float>(lr), static_cast<float>(momentum), static_cast<float>(weight_decay),
                        nesterov};
  float* weight = parameter.data.data();
  float* velocity = elements_of(buffers, velocity_name, momentum != 0.0);
  for_gradient(parameter, 1.0, [&](Index begin, Index end, const float* grad) {
    kernels().sgd(&numbers, end - begin, weight + begin, grad, velocity ? velocity + begin : nullptr);
  });
}

}  // namespace deepnet
