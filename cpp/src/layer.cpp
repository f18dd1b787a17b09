#include <deepnet/layer.hpp>

#include <cstring>
#include <set>

namespace deepnet {

Tensor& Parameter::grad() {
  if (!grad_.defined()) grad_ = Tensor::zeros(data.shape());
  return grad_;
}

void Layer::forward(const ForwardCall&) const {
  throw StateError("[" + kind() + "] has no forward of its own: run it through a Model");
}

void Layer::backward(const BackwardCall&) {
  throw StateError("[" + kind() + "] has no backward of its own: run it through a Model");
}

Tensor Layer::discover_output(const std::vector<Tensor>&, bool) {
  throw StateError("[" + kind() + "] tells its output's shape without a run");
}

void Layer::train(bool on) {
  training_ = on;
  for (const LayerPtr& child : children()) child->train(on);
}

void Layer::zero_grad() {
  for (auto& [name, parameter] : parameters()) {
    if (parameter->has_grad()) std::memset(parameter->grad().data(), 0, parameter->grad().bytes());
  }
}

void Layer::reset_state() {
  for (const LayerPtr& child : children()) child->reset_state();
}

NamedParameters unique_parameters(const Layer& layer) {
  NamedParameters list;
  std::set<const Parameter*> seen;
  for (auto& named : layer.parameters())
    if (seen.insert(named.second.get()).second) list.push_back(named);
  return list;
}

}  // namespace deepnet
