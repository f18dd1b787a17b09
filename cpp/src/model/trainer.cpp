#include <deepnet/trainer.hpp>

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "execution.hpp"
#include "mask.hpp"

namespace deepnet {
namespace {

// A planned step for one batch shape, the rows that step_rows gathers for it, and its labels: they are checked and then
// read again as positions in memory, and the caller's may change in between.
struct Batch {
  std::unique_ptr<Execution> execution;
  Tensor x, target, mask;

  Tensor& own_target(const Shape& shape, DType type) {
    if (!target.defined() || target.shape() != shape || target.dtype() != type) target = Tensor(shape, type);
    return target;
  }
};

void gather_rows(const Tensor& from, const std::vector<Index>& order, Tensor& to) {
  const std::size_t row = from.shape()[0] == 0 ? 0 : from.bytes() / static_cast<std::size_t>(from.shape()[0]);
  const char* source = static_cast<const char*>(from.raw());
  char* out = static_cast<char*>(to.raw());
  parallel_for(to.shape()[0], grain_for(static_cast<double>(row) / 4), [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) {
      std::memcpy(out + static_cast<std::size_t>(i) * row,
                  source + static_cast<std::size_t>(order[static_cast<std::size_t>(i)]) * row, row);
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
  std::mutex mutex;                             // held during a step
  std::atomic<std::thread::id> stepping{};      // the thread that holds it
  std::vector<std::unique_ptr<Batch>> batches;  // the oldest first
  std::vector<Index> row_numbers;               // of step_rows: checked and read again, so a copy
  std::mutex traces_mutex;                      // of the next: looking does not wait for a step
  Traces traces;                                // of the last step
  Index last_correct = -1, last_counted = -1;

  // One step's time. A layer written in Python, or a loss, may call back here: waiting would be for ever.
  class Turn {
   public:
    explicit Turn(State& state) : state_(state), lock_(state.mutex, std::defer_lock) {
      if (state.stepping == std::this_thread::get_id()) {
        throw StateError("[Trainer] expected one step at a time, got a step inside a step");
      }
      lock_.lock();
      state.stepping = std::this_thread::get_id();
    }
    ~Turn() { state_.stepping = std::thread::id(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    State& state_;
    std::unique_lock<std::mutex> lock_;
  };

  void show(const Traces& shown) {
    if (traces == shown) return;
    Traces fresh = shown;
    std::lock_guard<std::mutex> lock(traces_mutex);
    traces.swap(fresh);
  }

  Batch* find(const Shape& x_shape) {
    for (auto& batch : batches)
      if (batch->execution->request().inputs[0] == x_shape) return batch.get();
    return nullptr;
  }

  // The plan for batches of x's shape; x itself is looked at only by layers that must run to tell their output's shape.
  Batch& batch_for(const Tensor& x, const Tensor& mask) {
    if (Batch* known = find(x.shape())) return *known;
    PlanRequest request;
    request.inputs = {x.shape()};
    request.backward = request.loss = true;
    auto batch = std::make_unique<Batch>();
    batch->execution = make_execution(graph, request, {x}, Phase::training, mask);
    constexpr std::size_t most_kept = 4;
    if (batches.size() == most_kept) batches.erase(batches.begin());
    batches.push_back(std::move(batch));
    return *batches.back();
  }

  // `rows` are the numbers that the caller gives to the rows of x, or null.
  float step(Batch& batch, const Tensor& x, const Tensor& target, const Tensor& mask, const Index* rows = nullptr) {
    Execution& execution = *batch.execution;
    loss->check(execution.output(), target);
    show(execution.traces());
    execution.forward(&x, nullptr, Phase::training, mask);
    const double e = loss->evaluate(execution.output(), target, &execution.loss_gradient());
    if (!std::isfinite(e)) throw NonFiniteError(explain(e, x, target, mask, rows));
    const bool labelled = target.dtype() == DType::int64;
    last_correct = labelled ? count_correct(execution.output(), target, loss->label_options()) : -1;
    last_counted = labelled ? count_labels(target, loss->label_options()) : -1;
    execution.backward(Tensor(), nullptr, /*accumulate=*/false);
    optimizer->step(parameters);
    return static_cast<float>(e);
  }

  // Which tensor is the first, on the way from the input to the loss, that is not finite.
  std::string explain(double e, const Tensor& x, const Tensor& target, const Tensor& mask, const Index* rows) const {
    const std::string what = "[Trainer] the loss is " + std::to_string(e) + ": ";
    const auto place_text = [rows](const Place& place) {
      const std::string row = "x[" + std::to_string(rows ? rows[place.row] : place.row) + "]";
      return place.step < 0 ? row : row + " at step " + std::to_string(place.step);
    };
    if (const Place place = first_nonfinite(x, mask); place.row >= 0)
      return what + "the input has values that are not finite, the first in " + place_text(place);
    if (target.dtype() == DType::float32 && !all_finite(target))
      return what + "the target has values that are not finite";
    for (const auto& [name, parameter] : parameters) {
      if (!all_finite(parameter->data))
        return what + "parameter " + name +
               " has values that are not finite, from a step before: try a smaller lr, and look for nan in its input";
    }
    std::vector<Tensor> values(static_cast<std::size_t>(graph.value_count));
    values[static_cast<std::size_t>(graph.inputs[0])] = x;
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      const Node& node = graph.nodes[i];
      std::vector<Tensor> in;
      for (int v : node.inputs) in.push_back(values[static_cast<std::size_t>(v)]);
      const Tensor out = rehearse(node, in, Phase::evaluation, 0, mask);
      if (const Place place = first_nonfinite(out, mask); place.row >= 0) {
        return what + "the output of layer " + (node.name.empty() ? "" : node.name + " ") + "(" + node.layer->kind() +
               ") is the first that is not finite" +
               (place.step >= 0 && out.shape()[0] == x.shape()[0] ? ", beginning with " + place_text(place) : "");
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
  if (model.layer() == nullptr) throw StateError("[Trainer] expected a model with a layer, got one without");
  state_->graph = graph_of(model.layer());
  if (state_->graph.inputs.size() != 1) throw ValueError("[Trainer] expected a network of one input");
  state_->parameters = unique_parameters(*model.layer());
  state_->model = std::move(model);
  state_->loss = std::move(loss);
  state_->optimizer = std::move(optimizer);
}

float Trainer::step(const Tensor& x, const Tensor& target, const Tensor& mask) {
  if (x.dtype() != DType::float32) throw TypeError("[Trainer] expected x of type float32, got int64");
  if (x.shape().rank() < 1) throw ShapeError("[Trainer] expected x with a batch axis, got shape ()");
  check_memory("Trainer", "x", x);
  check_memory("Trainer", "target", target);
  if (mask.defined()) check_mask("Trainer", x.shape(), mask);
  const State::Turn turn(*state_);
  FlushDenormals flush;
  Batch& batch = state_->batch_for(x, mask);
  if (target.dtype() != DType::int64) return state_->step(batch, x, target, mask);
  Tensor& labels = batch.own_target(target.shape(), DType::int64);
  std::memcpy(labels.raw(), target.raw(), target.bytes());
  return state_->step(batch, x, labels, mask);
}

float Trainer::step_rows(const Tensor& x, const Tensor& target, const Tensor& order, Index begin, Index end,
                         const Tensor& mask) {
  if (x.dtype() != DType::float32) throw TypeError("[Trainer] expected x of type float32, got int64");
  if (x.shape().rank() < 1 || target.shape().rank() < 1 || x.shape()[0] != target.shape()[0]) {
    throw ShapeError("[Trainer] expected x and target with the same number of rows, got " + x.shape().str() + " and " +
                     target.shape().str());
  }
  check_memory("Trainer", "x", x);
  check_memory("Trainer", "target", target);
  check_memory("Trainer", "row numbers", order);
  if (order.dtype() != DType::int64 || begin < 0 || end < begin || end > order.size()) {
    throw ShapeError("[Trainer] expected int64 row numbers with 0 <= begin <= end <= their count");
  }
  if (mask.defined()) check_mask_shape("Trainer", x.shape(), mask);
  const State::Turn turn(*state_);
  std::vector<Index>& row_numbers = state_->row_numbers;
  row_numbers.assign(order.labels() + begin, order.labels() + end);
  for (const Index row : row_numbers) {
    if (row < 0 || row >= x.shape()[0]) {
      throw ValueError("[Trainer] expected row numbers in [0, " + std::to_string(x.shape()[0]) + "), got " +
                       std::to_string(row));
    }
  }
  FlushDenormals flush;
  const Index count = end - begin;
  const Shape x_shape = with_rows(x.shape(), count);
  Batch* batch = state_->find(x_shape);
  Tensor rows = batch != nullptr && batch->x.defined() ? batch->x : Tensor(x_shape);
  gather_rows(x, row_numbers, rows);
  Tensor mask_rows;
  if (mask.defined()) {
    mask_rows = batch != nullptr && batch->mask.defined() ? batch->mask : Tensor(with_rows(mask.shape(), count));
    gather_rows(mask, row_numbers, mask_rows);
    check_mask("Trainer", x_shape, mask_rows);
  }
  if (batch == nullptr) batch = &state_->batch_for(rows, mask_rows);
  batch->x = rows;
  if (mask.defined()) batch->mask = mask_rows;
  gather_rows(target, row_numbers, batch->own_target(with_rows(target.shape(), count), target.dtype()));
  return state_->step(*batch, batch->x, batch->target, mask_rows, row_numbers.data());
}

Index Trainer::last_correct() const { return state_->last_correct; }
Index Trainer::last_counted() const { return state_->last_counted; }
Traces Trainer::traces() const {
  std::lock_guard<std::mutex> lock(state_->traces_mutex);
  return state_->traces;
}
const Model& Trainer::model() const { return state_->model; }
const std::shared_ptr<Loss>& Trainer::loss() const { return state_->loss; }
const std::shared_ptr<Optimizer>& Trainer::optimizer() const { return state_->optimizer; }

}  // namespace deepnet
