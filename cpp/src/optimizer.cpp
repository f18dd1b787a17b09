// Optimizers. What one keeps for a parameter (momentum, ...) lies in a slot found by the parameter's address; the slot
// also holds a weak reference, so that a new parameter at a freed address starts afresh.
#include <deepnet/optimizer.hpp>

#include <algorithm>
#include <cmath>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace deepnet {
namespace {

const char step_name[] = "step";  // PyTorch's name and type for the count of updates: float32

// As comparing the pointers, but true only if they were made together; cheaper than weak_ptr::lock.
bool same_owner(const std::weak_ptr<Parameter>& a, const ParameterPtr& b) {
  return !a.owner_before(b) && !b.owner_before(a);
}

void check_names(const std::string& kind, const std::vector<std::string>& expected,
                 const std::map<std::string, Tensor>& got) {
  std::string text;
  for (const std::string& name : expected) text += (text.empty() ? "" : ", ") + name;
  for (const auto& [name, tensor] : got) {
    if (name != step_name && std::find(expected.begin(), expected.end(), name) == expected.end()) {
      throw ValueError("[" + kind + "] expected buffers (" + text + "), got " + name);
    }
  }
  for (const std::string& name : expected) {
    if (got.count(name) == 0)
      throw ValueError("[" + kind + "] expected buffers (" + text + "), got none named " + name);
  }
}

}  // namespace

void Optimizer::step(const NamedParameters& parameters) {
  const std::lock_guard<std::mutex> lock(mutex_);
  FlushDenormals flush;
  for (auto it = parameters.begin(); it != parameters.end(); ++it) {
    const ParameterPtr& parameter = it->second;
    const auto same = [&](const auto& other) { return other.second == parameter; };
    const bool shared = std::any_of(parameters.begin(), it, same);  // a layer in two places: one update
    if (shared || !parameter->has_grad()) continue;
    Slot& s = slot(parameter);
    ++s.step;
    update(*parameter, s.buffers, s.step);
  }
}

Optimizer::Slot& Optimizer::slot(const ParameterPtr& parameter) {
  const auto found = slots_.find(parameter.get());
  if (found != slots_.end() && same_owner(found->second.parameter, parameter)) return found->second;
  for (auto it = slots_.begin(); it != slots_.end();) it = it->second.parameter.expired() ? slots_.erase(it) : ++it;
  Slot fresh;
  fresh.parameter = parameter;
  for (std::size_t i = buffers().size(); i > 0; --i) fresh.buffers.push_back(Tensor::zeros(parameter->data.shape()));
  return slots_[parameter.get()] = std::move(fresh);
}

std::map<std::string, Tensor> Optimizer::state(const Parameter& parameter) const {
  std::map<std::string, Tensor> result;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = slots_.find(&parameter);
  if (found == slots_.end() || found->second.parameter.expired()) return result;
  const Slot& s = found->second;
  const std::vector<std::string> names = buffers();
  for (std::size_t i = 0; i < std::min(names.size(), s.buffers.size()); ++i) result[names[i]] = s.buffers[i];
  if (!result.empty()) result[step_name] = Tensor::full({1}, static_cast<float>(s.step));
  return result;
}

void Optimizer::load_state(const ParameterPtr& parameter, const std::map<std::string, Tensor>& loaded) {
  const std::vector<std::string> names = buffers();
  check_names(kind(), names, loaded);
  const Shape& shape = parameter->data.shape();
  Slot fresh;
  fresh.parameter = parameter;
  fresh.step = 1;  // buffers that exist have been written at least once
  for (const auto& [name, tensor] : loaded) {
    const Shape& expected = name == step_name ? Shape{1} : shape;
    if (tensor.shape() != expected || tensor.dtype() != DType::float32) {
      throw ShapeError("[" + kind() + "] expected buffer " + name + " of shape " + expected.str() +
                       " and type float32, " + "got " + tensor.shape().str() + " and " + name_of(tensor.dtype()));
    }
  }
  for (const std::string& name : names) fresh.buffers.push_back(loaded.at(name).clone());
  if (const auto it = loaded.find(step_name); it != loaded.end()) {
    const float step = it->second.data()[0];
    if (!(step >= 1.0f && step <= 1e15f)) {
      throw ValueError("[" + kind() + "] expected a step of 1 or more, got " + std::to_string(step));
    }
    fresh.step = static_cast<Index>(step);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  slots_[parameter.get()] = std::move(fresh);
}

// --- SGD -----------------------------------------------------------------------------------------------------------
namespace {

void check_at_least_0(const char* name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError("[SGD] expected a finite " + std::string(name) + " >= 0, got " + std::to_string(value));
}

void check(const SGD& sgd) {
  check_at_least_0("lr", sgd.lr);
  check_at_least_0("momentum", sgd.momentum);
  check_at_least_0("weight_decay", sgd.weight_decay);
  if (sgd.nesterov && sgd.momentum == 0.0) throw ValueError("[SGD] expected momentum > 0 with nesterov, got 0");
}

}  // namespace

SGD::SGD(double lr, double momentum, double weight_decay, bool nesterov)
    : lr(lr), momentum(momentum), weight_decay(weight_decay), nesterov(nesterov) {
  check(*this);
}

Config SGD::config() const {
  return {{"lr", lr}, {"momentum", momentum}, {"weight_decay", weight_decay}, {"nesterov", nesterov}};
}

std::vector<std::string> SGD::buffers() const {
  if (momentum == 0.0) return {};
  return {"momentum_buffer"};
}

void SGD::update(Parameter& parameter, std::vector<Tensor>& buffers, Index step) const {
  check(*this);  // schedules write to the public members
  const bool with_momentum = momentum != 0.0;
  const bool late = with_momentum && buffers.empty();  // momentum was 0 when the slot was made
  if (late) buffers.push_back(Tensor(parameter.data.shape()));
  const SgdStep numbers{static_cast<float>(lr), static_cast<float>(momentum), static_cast<float>(weight_decay),
                        nesterov};
  float* weight = parameter.data.data();
  const float* grad = parameter.grad().data();
  float* velocity = with_momentum ? buffers[0].data() : nullptr;
  const int first = late || step == 1;
  parallel_for(parameter.data.size(), grain_for(4.0, 16), [&](Index begin, Index end) {
    kernels().sgd(&numbers, end - begin, weight + begin, grad + begin, velocity ? velocity + begin : nullptr, first);
  });
}

}  // namespace deepnet
