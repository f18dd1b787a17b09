#include <deepnet/layer.hpp>

#include <algorithm>
#include <cstring>
#include <set>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace deepnet {

Tensor& Parameter::grad() {
  make_grad(Factors(*this));
  return grad_;
}

bool Parameter::has_grad() const {
  const Factors factors(*this);
  return grad_.defined() || factors.known();
}

void Parameter::make_grad(const Factors& factors) {
  const FlushDenormals flush;  // as the step that left the factors
  if (!grad_.defined()) grad_ = Tensor::zeros(data.shape());
  if (!factors.known()) return;
  const Index rows = data.shape()[0], columns = data.shape()[1];
  parallel_for(rows, grain_for(static_cast<double>(columns)), [&](Index begin, Index end) {
    factors.multiply(begin, end - begin, 0, columns, grad_.data() + begin * columns);
  });
  factors_.clear();
}

void Parameter::set_grad(Index n, const float* a, const float* b) {
  const Factors factors(*this);
  factors_.assign(a, a + n * data.shape()[0]);
  factors_.insert(factors_.end(), b, b + n * data.shape()[1]);
  if (grad_.defined()) make_grad(factors);
}

void Parameter::Factors::multiply(Index row, Index rows, Index column, Index columns, float* product) const {
  const std::vector<float>& factors = parameter_.factors_;
  const Shape& shape = parameter_.data.shape();
  const Index m = shape[0], k = shape[1], n = static_cast<Index>(factors.size()) / (m + k);
  const KernelTable& kernel = kernels();
  const float *a = factors.data() + row, *b = factors.data() + n * m + column;
  for (Index i = 0; i < rows; i += kernel.gemm_mr) {
    const Index here = std::min<Index>(kernel.gemm_mr, rows - i);
    kernel.gemm_few_rows(here, columns, n, a + i, 1, m, b, k, nullptr, product + i * columns, columns, 0);
  }
}

void Layer::forward(const ForwardCall&) const {
  throw StateError("[" + kind() + "] has no forward of its own: a leaf overrides it, a composite is run by a Model");
}

void Layer::backward(const BackwardCall&) {
  throw StateError("[" + kind() + "] has no backward of its own: a leaf overrides it, a composite is run by a Model");
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
