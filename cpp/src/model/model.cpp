#include <deepnet/model.hpp>

#include <cstring>
#include <mutex>

#include "../parallel.hpp"
#include "execution.hpp"
#include "mask.hpp"

namespace deepnet {

// Executions at rest, by what they were planned for, and the last one that run() kept for backward. An execution in use
// is out of the pool, so any number of threads may run at once, each with memory of its own.
struct Model::Runs {
  static constexpr std::size_t most_kept = 8;

  // A part of a network that step() runs: one recurrent layer, or layers between two of them.
  struct Stage {
    std::shared_ptr<RecurrentLayer> recurrent;
    Model others;
  };

  explicit Runs(Graph g) : graph(std::move(g)) {}

  // Of a chain, as all networks are.
  void make_stages() {
    std::vector<LayerPtr> others;
    const auto finish = [&] {
      if (!others.empty()) stages.push_back({nullptr, Model(std::make_shared<Sequential>(others))});
      others.clear();
    };
    for (const Node& node : graph.nodes) {
      if (auto recurrent = std::dynamic_pointer_cast<RecurrentLayer>(node.layer)) {
        finish();
        stages.push_back({std::move(recurrent), Model()});
      } else {
        others.push_back(node.layer);
      }
    }
    finish();
  }

  std::unique_ptr<Execution> take(const LayerPtr& layer, const PlanRequest& request, const std::vector<Tensor>& inputs,
                                  Phase phase, const Tensor& mask) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (auto it = idle.begin(); it != idle.end(); ++it) {
        if ((*it)->request() == request) {
          std::unique_ptr<Execution> found = std::move(*it);
          idle.erase(it);
          return found;
        }
      }
    }
    if (inputs.size() == graph.inputs.size()) return make_execution(graph, request, inputs, phase, mask);
    return make_execution(graph_of(layer, static_cast<int>(inputs.size())), request, inputs, phase, mask);
  }

  void give_back(std::unique_ptr<Execution> execution) {
    if (execution == nullptr) return;
    std::lock_guard<std::mutex> lock(mutex);
    idle.insert(idle.begin(), std::move(execution));
    if (idle.size() > most_kept) idle.pop_back();
  }

  const Graph graph;
  std::vector<Stage> stages;  // for step(), made at its first call
  std::once_flag stages_made;
  std::mutex mutex;
  std::vector<std::unique_ptr<Execution>> idle;  // the last used first
  std::mutex last_mutex;                         // held while backward runs
  std::unique_ptr<Execution> last;
  std::vector<Tensor> last_inputs;  // kept alive for backward
};

namespace {

void check_inputs(const Layer& layer, const std::vector<Tensor>& inputs) {
  if (!layer.takes_inputs(static_cast<int>(inputs.size()))) {
    throw ShapeError("[" + layer.kind() + "] expected " + std::to_string(layer.input_count()) + " input(s), got " +
                     std::to_string(inputs.size()));
  }
  for (const Tensor& x : inputs) {
    if (x.dtype() != DType::float32) {
      throw TypeError("[" + layer.kind() + "] expected input of type float32, got " + std::string(name_of(x.dtype())));
    }
  }
}

}  // namespace

Model::Model(LayerPtr layer) : layer_(std::move(layer)) {
  if (layer_ == nullptr) throw ValueError("[Model] expected a layer, got nothing");
  runs_ = std::make_shared<Runs>(graph_of(layer_));
}

Tensor Model::forward(const Tensor& x, const Tensor& mask) const {
  return predict(x, x.shape().rank() > 0 ? x.shape()[0] : 1, mask);
}

Tensor Model::predict(const Tensor& x, Index batch_size, const Tensor& mask) const {
  check_inputs(*layer_, {x});
  if (x.shape().rank() < 1)
    throw ShapeError("[" + layer_->kind() + "] expected an input with a batch axis, got shape ()");
  if (mask.defined()) check_mask(layer_->kind(), x.shape(), mask);
  FlushDenormals flush;
  const Index rows = x.shape()[0];
  if (batch_size < 1) batch_size = 1;
  Tensor y;
  Index done = 0;
  do {
    const Index n = rows - done < batch_size ? rows - done : batch_size;
    const Tensor part = x.rows(done, done + n), part_mask = mask.defined() ? mask.rows(done, done + n) : mask;
    PlanRequest request;
    request.inputs = {part.shape()};
    auto execution = runs_->take(layer_, request, {part}, Phase::evaluation, part_mask);
    if (!y.defined()) {
      Shape shape = execution->output_shape();
      if (n < rows) {
        if (shape.rank() < 1 || shape[0] != n) {
          throw ShapeError("[predict] expected an output of " + std::to_string(n) + " rows, one an input row, got " +
                           shape.str() + ": call the layer on all rows at once");
        }
        shape[0] = rows;
      }
      y = Tensor(shape);
    }
    Tensor out = n < rows ? y.rows(done, done + n) : y;
    execution->forward(&part, out.data(), Phase::evaluation, part_mask);
    runs_->give_back(std::move(execution));
    done += n;
  } while (done < rows);
  return y;
}

Tensor Model::step(const Tensor& x_t) {
  std::call_once(runs_->stages_made, [this] { runs_->make_stages(); });
  Tensor x = x_t;
  for (Runs::Stage& stage : runs_->stages) x = stage.recurrent ? stage.recurrent->step(x) : stage.others.forward(x);
  return x;
}

Tensor Model::run(const std::vector<Tensor>& inputs, const Tensor& mask) {
  check_inputs(*layer_, inputs);
  if (mask.defined()) check_mask(layer_->kind(), inputs[0].shape(), mask);
  FlushDenormals flush;
  PlanRequest request;
  for (const Tensor& x : inputs) request.inputs.push_back(x.shape());
  request.backward = request.input_gradient = true;
  auto execution = runs_->take(layer_, request, inputs, Phase::own, mask);
  Tensor y(execution->output_shape());
  execution->forward(inputs.data(), y.data(), Phase::own, mask);
  std::lock_guard<std::mutex> lock(runs_->last_mutex);
  runs_->last.swap(execution);
  runs_->last_inputs = inputs;
  runs_->give_back(std::move(execution));
  return y;
}

std::vector<Tensor> Model::backward(const Tensor& d_output) {
  std::lock_guard<std::mutex> lock(runs_->last_mutex);
  if (runs_->last == nullptr) {
    throw StateError("[" + layer_->kind() + "] backward came before forward: call the layer on an input first");
  }
  Execution& last = *runs_->last;
  if (d_output.shape() != last.output_shape()) {
    throw ShapeError("[" + layer_->kind() + "] expected dE/dOutput of shape " + last.output_shape().str() + ", got " +
                     d_output.shape().str());
  }
  FlushDenormals flush;
  std::vector<Tensor> d_inputs;
  for (const Shape& shape : last.request().inputs) d_inputs.emplace_back(shape);
  last.backward(d_output, d_inputs.data(), /*accumulate=*/true);
  return d_inputs;
}

Shape Model::recent_input_shape() const {
  std::lock_guard<std::mutex> last_lock(runs_->last_mutex);
  if (runs_->last != nullptr) return runs_->last->request().inputs[0];
  std::lock_guard<std::mutex> lock(runs_->mutex);
  return runs_->idle.empty() ? Shape() : runs_->idle.front()->request().inputs[0];
}

Traces Model::traces() const {
  std::lock_guard<std::mutex> lock(runs_->last_mutex);
  return runs_->last == nullptr ? Traces() : runs_->last->traces();
}

}  // namespace deepnet
