// What every optimizer shares. What one keeps for a parameter (momentum, ...) lies in a slot found by the parameter's
// address; the slot also holds a weak reference, so that a new parameter at a freed address starts afresh.
#include <deepnet/optimizer.hpp>

#include <algorithm>

#include "parallel.hpp"

namespace deepnet {
namespace {

const char step_name[] = "step";  // PyTorch's name and type for the count of updates: float32

// As comparing the pointers, but true only if they were made together; cheaper than weak_ptr::lock.
bool same_owner(const std::weak_ptr<Parameter>& a, const ParameterPtr& b) {
  return !a.owner_before(b) && !b.owner_before(a);
}

void check_names(const std::string& kind, const std::vector<std::string>& expected, const Optimizer::Buffers& got) {
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

Optimizer::Slots Optimizer::copy_slots() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Slots copy = slots_;
  for (auto& [parameter, slot] : copy) {
    for (auto& [name, buffer] : slot.buffers) buffer = buffer.clone();
  }
  return copy;
}

Optimizer::Optimizer(const Optimizer& other) : slots_(other.copy_slots()) {}

Optimizer& Optimizer::operator=(const Optimizer& other) {
  Slots copy = other.copy_slots();
  const std::lock_guard<std::mutex> lock(mutex_);
  slots_ = std::move(copy);
  return *this;
}

void Optimizer::step(const NamedParameters& parameters) {
  check();  // schedules write to the public members
  const FlushDenormals flush;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = parameters.begin(); it != parameters.end(); ++it) {
    const ParameterPtr& parameter = it->second;
    const auto same = [&](const auto& other) { return other.second == parameter; };
    const bool shared = std::any_of(parameters.begin(), it, same);  // a layer in two places: one update
    if (shared || !parameter->has_grad()) continue;
    Slot& s = slot(parameter);
    for (const std::string& name : buffers()) {  // each time: settings may have changed
      if (s.buffers.count(name) == 0) s.buffers.emplace(name, Tensor::zeros(parameter->data.shape()));
    }
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
  return slots_[parameter.get()] = std::move(fresh);
}

Optimizer::Buffers Optimizer::state(const Parameter& parameter) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Buffers result;
  const auto found = slots_.find(&parameter);
  if (found == slots_.end() || found->second.parameter.expired()) return result;
  const Slot& s = found->second;
  for (const std::string& name : buffers()) {
    if (const auto buffer = s.buffers.find(name); buffer != s.buffers.end()) result[name] = buffer->second.clone();
  }
  if (!result.empty()) result[step_name] = Tensor::full({1}, static_cast<float>(s.step));
  return result;
}

bool Optimizer::belongs_elsewhere(const NamedParameters& parameters) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto has_slot = [&](const auto& named) {
    const auto found = slots_.find(named.second.get());
    return found != slots_.end() && same_owner(found->second.parameter, named.second);
  };
  const auto is_alive = [](const auto& slot) { return !slot.second.parameter.expired(); };
  return !parameters.empty() && std::any_of(slots_.begin(), slots_.end(), is_alive) &&
         std::none_of(parameters.begin(), parameters.end(), has_slot);
}

void Optimizer::load_state(const ParameterPtr& parameter, const Buffers& loaded) {
  std::vector<std::string> names = buffers();
  if (needs_step()) names.push_back(step_name);
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
  for (const std::string& name : buffers()) fresh.buffers[name] = loaded.at(name).clone();
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

}  // namespace deepnet
