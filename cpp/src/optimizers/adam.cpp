// Adam: Kingma and Ba 2015, algorithm 1, eps beside the corrected root as there; AdamW: Loshchilov and Hutter 2019,
// algorithm 2, with PyTorch's lr in the decay; AMSGrad: Reddi, Kale and Kumar 2018, algorithm 2, on the uncorrected v.
#include "common.hpp"
#include "dispatch.hpp"

namespace deepnet {
namespace {

// PyTorch's names.
const char mean_name[] = "exp_avg", square_name[] = "exp_avg_sq", largest_name[] = "max_exp_avg_sq";

// In double: 1 - beta2 and 1 - beta2^t are small differences.
AdamStep numbers_of(const Adam& adam, bool decoupled, Index step) {
  const auto [beta1, beta2] = adam.betas;
  const double t = static_cast<double>(step);
  AdamStep numbers{};
  numbers.keep = decoupled ? static_cast<float>(1.0 - adam.lr * adam.weight_decay) : 1.0f;
  numbers.weight_decay = decoupled ? 0.0f : static_cast<float>(adam.weight_decay);
  numbers.mean_share = static_cast<float>(1.0 - beta1);
  numbers.beta2 = static_cast<float>(beta2);
  numbers.square_share = static_cast<float>(1.0 - beta2);
  numbers.step_size = static_cast<float>(adam.lr / (1.0 - std::pow(beta1, t)));
  numbers.root_scale = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, t)));
  numbers.eps = static_cast<float>(adam.eps);
  return numbers;
}

}  // namespace

Adam::Adam(double lr, std::pair<double, double> betas, double eps, double weight_decay, bool amsgrad)
    : Adam("Adam", false, lr, betas, eps, weight_decay, amsgrad) {}

AdamW::AdamW(double lr, std::pair<double, double> betas, double eps, double weight_decay, bool amsgrad)
    : Adam("AdamW", true, lr, betas, eps, weight_decay, amsgrad) {}

Adam::Adam(std::string kind, bool decoupled_decay, double lr, std::pair<double, double> betas, double eps,
           double weight_decay, bool amsgrad)
    : lr(lr),
      betas(betas),
      eps(eps),
      weight_decay(weight_decay),
      amsgrad(amsgrad),
      kind_(std::move(kind)),
      decoupled_decay_(decoupled_decay) {
  Adam::check();
}

void Adam::check() const {
  check_at_least_0(*this, "lr", lr);
  check_below_1(*this, "betas[0]", betas.first);
  check_below_1(*this, "betas[1]", betas.second);
  check_at_least_0(*this, "eps", eps);
  check_at_least_0(*this, "weight_decay", weight_decay);
}

Config Adam::config() const {
  return {{"lr", lr},   {"beta1", betas.first},         {"beta2", betas.second},
          {"eps", eps}, {"weight_decay", weight_decay}, {"amsgrad", amsgrad}};
}

std::vector<std::string> Adam::buffers() const {
  if (amsgrad) return {mean_name, square_name, largest_name};
  return {mean_name, square_name};
}

void Adam::update(Parameter& parameter, Buffers& buffers, Index step) const {
  const AdamStep numbers = numbers_of(*this, decoupled_decay_, step);
  float* weight = parameter.data.data();
  float* mean = elements_of(buffers, mean_name, true);
  float* square = elements_of(buffers, square_name, true);
  float* largest = elements_of(buffers, largest_name, amsgrad);
  for_gradient(parameter, 2.5, [&](Index begin, Index end, const float* grad) {
    kernels().adam(&numbers, end - begin, weight + begin, grad, mean + begin, square + begin,
                   largest ? largest + begin : nullptr);
  });
}

}  // namespace deepnet
