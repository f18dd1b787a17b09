#include <deepnet/model.hpp>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "../parallel.hpp"
#include "execution.hpp"
#include "mask.hpp"

namespace deepnet {

// Executions at rest, by what they were planned for, and the last one that run() kept for backward. An execution in use
// is out of here, so any number of threads may run at once, each with memory of its own. The mutex is held for moments
// only, and nothing is destroyed under it: an input's owner may wait for a lock of its own, as Python's does.
struct Model::Runs {
  static constexpr std::size_t most_kept = 8;

  // A part of a network that step() runs: one recurrent layer, or layers between two of them.
  struct Stage {
    std::shared_ptr<RecurrentLayer> recurrent;
    Model others;
  };

  explicit Runs(Graph g)
      : graph(std::move(g)), stateful(std::any_of(graph.nodes.begin(), graph.nodes.end(), [](const Node& node) {
          return node.layer->contract().stateful;
        })) {}

  // Of a chain, as all networks are.
  void make_stages() {
    std::vector<LayerPtr> others;
    const auto finish = [&] {
      if (!others.empty()) stages.push_back({nullptr, Model(std::make_shared<Sequential>(others))});
      others.clear();
    };
    for (const Node& node : graph.nodes) {
      if (auto recurrent = std::dynamic_pointer_cast<RecurrentLayer>(node.layer)) {
        check_only_place(graph, node);
        finish();
        stages.push_back({std::move(recurrent), Model()});
      } else {
        others.push_back(node.layer);
      }
    }
    finish();
  }

  // One for inputs of these shapes, with or without a backward to all of them.
  std::unique_ptr<Execution> take(const LayerPtr& layer, const Tensor* inputs, std::size_t count, bool backward,
                                  Phase phase, const Tensor& mask) {
    const auto fits = [&](const PlanRequest& r) {
      return r.backward == backward && r.inputs.size() == count &&
             std::equal(inputs, inputs + count, r.inputs.begin(),
                        [](const Tensor& x, const Shape& shape) { return x.shape() == shape; });
    };
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (auto it = idle.begin(); it != idle.end(); ++it) {
        if (fits((*it)->request())) {
          std::unique_ptr<Execution> found = std::move(*it);
          idle.erase(it);
          return found;
        }
      }
    }
    PlanRequest request;
    for (std::size_t i = 0; i < count; ++i) request.inputs.push_back(inputs[i].shape());
    request.backward = request.input_gradient = backward;
    const std::vector<Tensor> all(inputs, inputs + count);
    if (count == graph.inputs.size()) return make_execution(graph, request, all, phase, mask);
    return make_execution(graph_of(layer, static_cast<int>(count)), request, all, phase, mask);
  }

  void give_back(std::unique_ptr<Execution> execution) {
    if (execution == nullptr) return;
    std::unique_ptr<Execution> oldest;  // outlives the lock
    std::lock_guard<std::mutex> lock(mutex);
    recent = execution->request().inputs[0];
    idle.insert(idle.begin(), std::move(execution));
    if (idle.size() <= most_kept) return;
    oldest = std::move(idle.back());
    idle.pop_back();
  }

  // What run() keeps for backward.
  struct Last {
    std::unique_ptr<Execution> execution;
    std::vector<Tensor> inputs;  // kept alive
  };

  void keep(Last run) {
    Traces traces = run.execution->traces();
    {
      std::lock_guard<std::mutex> lock(mutex);
      recent = run.execution->request().inputs[0];
      std::swap(last, run);
      last_traces.swap(traces);
    }
    give_back(std::move(run.execution));
  }

  // The last run for the time of its backward.
  class Backward {
   public:
    Backward(Runs& runs, const Layer& layer) : runs_(runs) {
      std::lock_guard<std::mutex> lock(runs.mutex);
      if (runs.in_backward) {
        throw StateError("[" + layer.kind() + "] expected one backward at a time, got another inside or beside it");
      }
      if (runs.last.execution == nullptr) {
        throw StateError("[" + layer.kind() + "] backward came before forward: call the layer on an input first");
      }
      run_ = std::move(runs.last);
      runs.in_backward = true;
    }
    ~Backward() {
      {
        std::lock_guard<std::mutex> lock(runs_.mutex);
        runs_.in_backward = false;
        if (runs_.last.execution == nullptr) std::swap(runs_.last, run_);
      }
      runs_.give_back(std::move(run_.execution));  // of a run that another has followed
    }
    Backward(const Backward&) = delete;
    Backward& operator=(const Backward&) = delete;

    Execution& execution() { return *run_.execution; }

   private:
    Runs& runs_;
    Last run_;
  };

  const Graph graph;
  const bool stateful;        // any layer is: its rows go on with those of the run before
  std::vector<Stage> stages;  // for step(), made at its first call
  std::once_flag stages_made;
  std::mutex mutex;
  std::vector<std::unique_ptr<Execution>> idle;  // the last used first
  Last last;
  bool in_backward = false;
  Traces last_traces;  // of the last run, also while it is in backward
  Shape recent;        // of an input
};

namespace {

void check_inputs(const Layer& layer, const Tensor* inputs, std::size_t count) {
  if (!layer.takes_inputs(static_cast<int>(count))) {
    throw ShapeError("[" + layer.kind() + "] expected " + std::to_string(layer.input_count()) + " input(s), got " +
                     std::to_string(count));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const Tensor& x = inputs[i];
    if (x.dtype() != DType::float32) {
      throw TypeError("[" + layer.kind() + "] expected input of type float32, got " + std::string(name_of(x.dtype())));
    }
    check_memory(layer.kind(), "an input", x);
  }
}

}  // namespace

Model::Model(LayerPtr layer) : layer_(std::move(layer)) {
  if (layer_ == nullptr) throw ValueError("[Model] expected a layer, got nothing");
  runs_ = std::make_shared<Runs>(graph_of(layer_));
}

Layer& Model::own_layer() const {
  if (layer_ == nullptr) throw StateError("[Model] has no layer yet: assign a Model that has one");
  return *layer_;
}

Tensor Model::forward(const Tensor& x, const Tensor& mask) const {
  return predict(x, x.shape().rank() > 0 ? x.shape()[0] : 1, mask);
}

Tensor Model::predict(const Tensor& x, Index batch_size, const Tensor& mask) const {
  check_inputs(own_layer(), &x, 1);
  if (x.shape().rank() < 1)
    throw ShapeError("[" + layer_->kind() + "] expected an input with a batch axis, got shape ()");
  if (mask.defined()) check_mask(layer_->kind(), x.shape(), mask);
  FlushDenormals flush;
  const Index rows = x.shape()[0];
  if (runs_->stateful) batch_size = rows;
  if (batch_size < 1) batch_size = 1;
  Tensor y;
  Index done = 0;
  do {
    const Index n = rows - done < batch_size ? rows - done : batch_size;
    const Tensor part = x.rows(done, done + n), part_mask = mask.defined() ? mask.rows(done, done + n) : mask;
    auto execution = runs_->take(layer_, &part, 1, /*backward=*/false, Phase::evaluation, part_mask);
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
  own_layer();
  std::call_once(runs_->stages_made, [this] { runs_->make_stages(); });
  Tensor x = x_t;
  for (Runs::Stage& stage : runs_->stages) x = stage.recurrent ? stage.recurrent->step(x) : stage.others.forward(x);
  return x;
}

Tensor Model::run(const std::vector<Tensor>& inputs, const Tensor& mask) {
  check_inputs(own_layer(), inputs.data(), inputs.size());
  if (mask.defined()) check_mask(layer_->kind(), inputs[0].shape(), mask);
  FlushDenormals flush;
  auto execution = runs_->take(layer_, inputs.data(), inputs.size(), /*backward=*/true, Phase::own, mask);
  Tensor y(execution->output_shape());
  execution->forward(inputs.data(), y.data(), Phase::own, mask);
  runs_->keep({std::move(execution), inputs});
  return y;
}

std::vector<Tensor> Model::backward(const Tensor& d_output) {
  Runs::Backward backward(*runs_, own_layer());
  Execution& last = backward.execution();
  if (d_output.shape() != last.output_shape()) {
    throw ShapeError("[" + layer_->kind() + "] expected dE/dOutput of shape " + last.output_shape().str() + ", got " +
                     d_output.shape().str());
  }
  if (d_output.dtype() != DType::float32) {
    throw TypeError("[" + layer_->kind() + "] expected dE/dOutput of type float32, got " + name_of(d_output.dtype()));
  }
  check_memory(layer_->kind(), "dE/dOutput", d_output);
  FlushDenormals flush;
  std::vector<Tensor> d_inputs;
  for (const Shape& shape : last.request().inputs) d_inputs.emplace_back(shape);
  last.backward(d_output, d_inputs.data(), /*accumulate=*/true);
  return d_inputs;
}

Shape Model::recent_input_shape() const {
  own_layer();
  std::lock_guard<std::mutex> lock(runs_->mutex);
  return runs_->recent;
}

Traces Model::traces() const {
  own_layer();
  std::lock_guard<std::mutex> lock(runs_->mutex);
  return runs_->last_traces;
}

}  // namespace deepnet
