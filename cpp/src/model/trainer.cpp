#include <deepnet/trainer.hpp>

#include <cmath>
#include <cstring>
#include <mutex>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "execution.hpp"

namespace deepnet {
namespace {

// A planned step for one batch shape, and the rows that step_rows gathers for it.
struct Batch {
  std::unique_ptr<Execution> execution;
  Tensor x, target;
};

void gather_rows(const Tensor& from, const Index* order, Index begin, Index end, Tensor& to) {
  const std::size_t row = from.shape()[0] == 0 ? 0 : from.bytes() / static_cast<std::size_t>(from.shape()[0]);
  const char* source = static_cast<const char*>(from.raw());
  char* out = static_cast<char*>(to.raw());
  parallel_for(end - begin, grain_for(static_cast<double>(row) / 4), [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      std::memcpy(out + static_cast<std::size_t>(i) * row, source + static_cast<std::size_t>(order[begin + i]) * row,
                  row);
    }
  });
}

Shape with_rows(Shape shape, Index rows) {
  shape[0] = rows;
  return shape;
}

bool all_finite(const Tensor& t) { return kernels().find_nonfinite(t.size(), t.data()) == t.size(); }

}  // namespace

struct Trainer::State {
  Model model;
  std::shared_ptr<Loss> loss;
  std::shared_ptr<Optimizer> optimizer;
  Graph graph;
  NamedParameters parameters;
  std::mutex mutex;
  std::vector<std::unique_ptr<Batch>> batches;  // the oldest first
  Index last_correct = -1;

  Batch* find(const Shape& x_shape) {
    for (auto& batch : batches)
      if (batch->execution->request().inputs[0] == x_shape) return batch.get();
    return nullptr;
  }

  // The plan for batches of x's shape; x itself is looked at only by layers that must run to tell their output's shape.
  Batch& batch_for(const Tensor& x) {
    if (Batch* known = find(x.shape())) return *known;
    PlanRequest request;
    request.inputs = {x.shape()};
    request.backward = request.loss = true;
    auto batch = std::make_unique<Batch>();
    batch->execution = make_execution(graph, request, {x}, Phase::training);
    constexpr std::size_t most_kept = 4;
    if (batches.size() == most_kept) batches.erase(batches.begin());
    batches.push_back(std::move(batch));
    return *batches.back();
  }

  float step(Batch& batch, const Tensor& x, const Tensor& target) {
    Execution& execution = *batch.execution;
    loss->check(execution.output(), target);
    execution.forward(&x, nullptr, Phase::training);
    const double e = loss->evaluate(execution.output(), target, &execution.loss_gradient());
    if (!std::isfinite(e)) throw NonFiniteError(explain(e, x, target));
    last_correct = target.dtype() == DType::int64 ? count_correct(execution.output(), target) : -1;
    execution.backward(Tensor(), nullptr, /*accumulate=*/false);
    optimizer->step(parameters);
    return static_cast<float>(e);
  }

  // Which tensor is the first, on the way from the input to the loss, that is not finite.
  std::string explain(double e, const Tensor& x, const Tensor& target) const {
    const std::string what = "[Trainer] the loss is " + std::to_string(e) + ": ";
    if (!all_finite(x)) return what + "the input has values that are not finite";
    if (target.dtype() == DType::float32 && !all_finite(target))
      return what + "the target has values that are not finite";
    for (const auto& [name, parameter] : parameters) {
      if (!all_finite(parameter->data))
        return what + "parameter " + name + " has values that are not finite; try a smaller lr";
    }
    std::vector<Tensor> values(static_cast<std::size_t>(graph.value_count));
    values[static_cast<std::size_t>(graph.inputs[0])] = x;
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      const Node& node = graph.nodes[i];
      std::vector<Tensor> in;
      PlanRequest request;
      for (int v : node.inputs) {
        in.push_back(values[static_cast<std::size_t>(v)]);
        request.inputs.push_back(in.back().shape());
      }
      const auto alone = make_execution(graph_of(node.layer), request, in, Phase::evaluation);
      Tensor out(alone->output_shape());
      alone->forward(in.data(), out.data(), Phase::evaluation);
      if (!all_finite(out)) {
        return what + "the output of layer " + (node.name.empty() ? "" : node.name + " ") + "(" + node.layer->kind() +
               ") is the first that is not finite";
      }
      values[static_cast<std::size_t>(node.output)] = out;
    }
    return what + "the output of the network is finite, the loss of it is not";
  }
};

Trainer::Trainer(Model model, std::shared_ptr<Loss> loss, std::shared_ptr<Optimizer> optimizer)
    : state_(std::make_shared<State>()) {
  if (loss == nullptr || optimizer == nullptr)
    throw ValueError("[Trainer] expected a loss and an optimizer, got nothing");
  state_->graph = graph_of(model.layer());
  if (state_->graph.inputs.size() != 1) throw ValueError("[Trainer] expected a network of one input");
  state_->parameters = unique_parameters(*model.layer());
  state_->model = std::move(model);
  state_->loss = std::move(loss);
  state_->optimizer = std::move(optimizer);
}

float Trainer::step(const Tensor& x, const Tensor& target) {
  if (x.dtype() != DType::float32) throw TypeError("[Trainer] expected x of type float32, got int64");
  if (x.shape().rank() < 1) throw ShapeError("[Trainer] expected x with a batch axis, got shape ()");
  std::lock_guard<std::mutex> lock(state_->mutex);
  FlushDenormals flush;
  return state_->step(state_->batch_for(x), x, target);
}

float Trainer::step_rows(const Tensor& x, const Tensor& target, const Tensor& order, Index begin, Index end) {
  if (x.dtype() != DType::float32) throw TypeError("[Trainer] expected x of type float32, got int64");
  if (x.shape().rank() < 1 || target.shape().rank() < 1 || x.shape()[0] != target.shape()[0]) {
    throw ShapeError("[Trainer] expected x and target with the same number of rows, got " + x.shape().str() + " and " +
                     target.shape().str());
  }
  if (order.dtype() != DType::int64 || begin < 0 || end < begin || end > order.size()) {
    throw ShapeError("[Trainer] expected int64 row numbers with 0 <= begin <= end <= their count");
  }
  for (Index i = begin; i < end; ++i) {
    const Index row = order.labels()[i];
    if (row < 0 || row >= x.shape()[0]) {
      throw ValueError("[Trainer] expected row numbers in [0, " + std::to_string(x.shape()[0]) + "), got " +
                       std::to_string(row));
    }
  }
  std::lock_guard<std::mutex> lock(state_->mutex);
  FlushDenormals flush;
  const Shape x_shape = with_rows(x.shape(), end - begin), target_shape = with_rows(target.shape(), end - begin);
  Batch* batch = state_->find(x_shape);
  Tensor rows = batch != nullptr && batch->x.defined() ? batch->x : Tensor(x_shape);
  gather_rows(x, order.labels(), begin, end, rows);
  if (batch == nullptr) batch = &state_->batch_for(rows);
  batch->x = rows;
  if (!batch->target.defined() || batch->target.shape() != target_shape || batch->target.dtype() != target.dtype()) {
    batch->target = Tensor(target_shape, target.dtype());
  }
  gather_rows(target, order.labels(), begin, end, batch->target);
  return state_->step(*batch, batch->x, batch->target);
}

Index Trainer::last_correct() const { return state_->last_correct; }
const Model& Trainer::model() const { return state_->model; }
const std::shared_ptr<Loss>& Trainer::loss() const { return state_->loss; }
const std::shared_ptr<Optimizer>& Trainer::optimizer() const { return state_->optimizer; }

}  // namespace deepnet
