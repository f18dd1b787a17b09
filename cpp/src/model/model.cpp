#include <deepnet/model.hpp>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "../parallel.hpp"
#include "execution.hpp"
#include "mask.hpp"
#include "tiling.hpp"

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

  // A network cut in two: its first layers take a batch in tiles, the rest, if there is one, all of it.
  struct Parts {
    Index tile_rows;
    Model first, rest;

    Tensor forward(const Tensor& x) const {
      Tensor y = first.runs_->in_pieces(first.layer_, x, tile_rows, Tensor());
      return rest.layer() ? rest.runs_->in_pieces(rest.layer_, y, y.shape()[0], Tensor()) : y;
    }
  };

  explicit Runs(Graph g)
      : graph(std::move(g)),
        stateful(any([](const Contract& contract) { return contract.stateful; })),
        makes_outputs(any([](const Contract& contract) { return contract.makes_output; })) {}

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

  // With optional inputs where there are more.
  Graph graph_for(const LayerPtr& layer, std::size_t inputs) const {
    return inputs == graph.inputs.size() ? graph : graph_of(layer, static_cast<int>(inputs));
  }

  PlanRequest request_for(std::vector<Shape> inputs, bool backward) const {
    PlanRequest request;
    request.inputs = std::move(inputs);
    request.backward = request.input_gradient = backward;
    request.tile = takes_tiles;
    return request;
  }

  // One at rest, with or without a backward to all inputs, that fits(its inputs' shapes); null where there is none.
  template <class Fits>
  std::unique_ptr<Execution> take_resting(bool backward, Fits fits) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto it = idle.begin(); it != idle.end(); ++it) {
      if ((*it)->request().backward == backward && fits((*it)->request().inputs)) {
        std::unique_ptr<Execution> found = std::move(*it);
        idle.erase(it);
        return found;
      }
    }
    return nullptr;
  }

  // One for inputs of these shapes, at rest or new.
  std::unique_ptr<Execution> take(const LayerPtr& layer, const Tensor* inputs, std::size_t count, bool backward,
                                  Phase phase, const Tensor& mask) {
    auto resting = take_resting(backward, [&](const std::vector<Shape>& shapes) {
      return std::equal(inputs, inputs + count, shapes.begin(), shapes.end(),
                        [](const Tensor& x, const Shape& shape) { return x.shape() == shape; });
    });
    if (resting != nullptr) return resting;
    const std::vector<Tensor> all(inputs, inputs + count);
    std::vector<Shape> shapes;
    for (const Tensor& x : all) shapes.push_back(x.shape());
    return make_execution(graph_for(layer, count), request_for(std::move(shapes), backward), all, phase, mask);
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

  // The output, in evaluation mode, made of pieces of at most so many rows.
  Tensor in_pieces(const LayerPtr& layer, const Tensor& x, Index rows_at_once, const Tensor& mask) {
    const Index rows = x.shape()[0];
    Tensor y;
    std::unique_ptr<Execution> execution;
    Index done = 0;
    do {
      const Index n = std::min(rows_at_once, rows - done);
      const Tensor piece = x.rows(done, done + n), piece_mask = mask.defined() ? mask.rows(done, done + n) : mask;
      const bool packed = execution != nullptr && n == rows_at_once;
      if (!packed) {
        give_back(std::move(execution));
        execution = take(layer, &piece, 1, /*backward=*/false, Phase::evaluation, piece_mask);
      }
      if (!y.defined()) y = Tensor(of_all_rows(execution->output_shape(), n, rows));
      Tensor out = n < rows ? y.rows(done, done + n) : y;
      execution->forward(&piece, out.data(), Phase::evaluation, piece_mask, packed);
      done += n;
    } while (done < rows);
    give_back(std::move(execution));
    return y;
  }

  // The network in parts, where that pays for batches of so many images of this shape; null where it does not.
  std::shared_ptr<const Parts> parts_for(const Shape& input, Index batch_size) {
    if (input.rank() != 4 || takes_tiles) return nullptr;
    Shape row = input;
    row[0] = 1;
    std::shared_ptr<const Parts> parts, oldest;  // outlive the lock
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = std::find_if(in_parts.begin(), in_parts.end(), [&](const auto& it) { return it.first == row; });
    if (known != in_parts.end()) {
      parts = known->second;
    } else {
      parts = make_parts(row);
      if (in_parts.size() == most_kept) {
        oldest = std::move(in_parts.front().second);
        in_parts.erase(in_parts.begin());
      }
      in_parts.emplace_back(row, parts);
    }
    if (parts == nullptr || batch_size < 2 * parts->tile_rows) return nullptr;
    recent = input;
    recent[0] = batch_size;
    return parts;
  }

  // The shape of the output for all rows, where that of n rows is `shape`.
  static Shape of_all_rows(Shape shape, Index n, Index rows) {
    if (n == rows) return shape;
    if (shape.rank() < 1 || shape[0] != n) {
      throw ShapeError("[predict] expected an output of " + std::to_string(n) + " rows, one an input row, got " +
                       shape.str() + ": call the layer on all rows at once");
    }
    shape[0] = rows;
    return shape;
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
  const bool makes_outputs;   // any layer does, instead of writing them where the plan says
  bool takes_tiles = false;   // of a batch, as the first part of another network
  std::vector<Stage> stages;  // for step(), made at its first call
  std::once_flag stages_made;
  std::mutex mutex;
  std::vector<std::unique_ptr<Execution>> idle;  // the last used first
  Last last;
  bool in_backward = false;
  Traces last_traces;  // of the last run, also while it is in backward
  Shape recent;        // of an input
  std::vector<std::pair<Shape, std::shared_ptr<const Parts>>> in_parts;  // by the shape of a row; null: in one

 private:
  template <class Is>
  bool any(Is is) const {
    return std::any_of(graph.nodes.begin(), graph.nodes.end(),
                       [&](const Node& node) { return is(node.layer->contract()); });
  }

  std::shared_ptr<const Parts> make_parts(const Shape& row) const {
    Tiling tiling;
    try {
      tiling = tiling_of(graph, row);
    } catch (const ShapeError&) {  // which the plan will throw, with the batch's shape
    }
    if (tiling.nodes == 0) return nullptr;
    const auto model_of = [&](std::size_t begin, std::size_t end) {
      std::vector<LayerPtr> layers;
      for (std::size_t i = begin; i < end; ++i) layers.push_back(graph.nodes[i].layer);
      return Model(std::make_shared<Sequential>(std::move(layers)));
    };
    Parts parts = {tiling.rows, model_of(0, tiling.nodes), Model()};
    parts.first.runs_->takes_tiles = true;
    if (tiling.nodes < graph.nodes.size()) parts.rest = model_of(tiling.nodes, graph.nodes.size());
    return std::make_shared<const Parts>(std::move(parts));
  }
};

namespace {

void check_input_count(const Layer& layer, std::size_t count) {
  if (layer.takes_inputs(static_cast<int>(count))) return;
  throw ShapeError("[" + layer.kind() + "] expected " + std::to_string(layer.input_count()) + " input(s), got " +
                   std::to_string(count));
}

void check_batch_axis(const Layer& layer, const Shape& input) {
  if (input.rank() > 0) return;
  throw ShapeError("[" + layer.kind() + "] expected an input with a batch axis, got shape ()");
}

void check_inputs(const Layer& layer, const Tensor* inputs, std::size_t count) {
  check_input_count(layer, count);
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
  check_batch_axis(*layer_, x.shape());
  if (mask.defined()) check_mask(layer_->kind(), x.shape(), mask);
  FlushDenormals flush;
  const Index rows = x.shape()[0];
  if (runs_->stateful) batch_size = rows;
  batch_size = std::clamp<Index>(batch_size, 1, std::max<Index>(rows, 1));
  const auto parts = mask.defined() ? nullptr : runs_->parts_for(x.shape(), batch_size);
  if (!parts) return runs_->in_pieces(layer_, x, batch_size, mask);
  Tensor y;
  for (Index done = 0; done < rows; done += batch_size) {
    const Index n = std::min(batch_size, rows - done);
    const Tensor out = parts->forward(x.rows(done, done + n));
    if (n == rows) return out;
    if (!y.defined()) y = Tensor(Runs::of_all_rows(out.shape(), n, rows));
    std::memcpy(y.rows(done, done + n).raw(), out.raw(), out.bytes());
  }
  return y;
}

std::optional<Prediction> Model::prediction(const Shape& input) const {
  check_input_count(own_layer(), 1);
  check_batch_axis(*layer_, input);
  if (runs_->makes_outputs) return std::nullopt;
  auto execution = runs_->take_resting(
      /*backward=*/false, [&](const std::vector<Shape>& shapes) { return shapes.size() == 1 && shapes[0] == input; });
  if (execution == nullptr) {
    const PlanRequest request = runs_->request_for({input}, /*backward=*/false);
    execution = std::make_unique<Execution>(runs_->graph_for(layer_, 1), request);
  }
  return Prediction(runs_, std::move(execution));
}

Prediction::Prediction(std::shared_ptr<Model::Runs> runs, std::unique_ptr<Execution> execution)
    : runs_(std::move(runs)), execution_(std::move(execution)) {}

Prediction::Prediction(Prediction&&) noexcept = default;
Prediction& Prediction::operator=(Prediction&& other) noexcept {
  runs_.swap(other.runs_);
  execution_.swap(other.execution_);
  return *this;
}

Prediction::~Prediction() {
  if (runs_) runs_->give_back(std::move(execution_));
}

const Shape& Prediction::output_shape() const { return execution_->output_shape(); }

bool Prediction::brief() const { return execution_->brief(); }

void Prediction::run(const float* x, float* y) {
  if ((x == nullptr || y == nullptr) && output_shape().size() > 0)
    throw ValueError("[Prediction] expected an input and memory for the output, got a null pointer");
  FlushDenormals flush;
  execution_->forward(x, y);
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
