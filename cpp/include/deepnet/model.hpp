// Model: a layer, or a network of them, ready to run.
//
// A network is a graph of nodes that is planned once per input shape: the order of work, one arena of memory
// shared out by lifetimes, activations fused into the layer before. A run is then one call without allocation.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <deepnet/layer.hpp>
#include <deepnet/layers.hpp>
#include <deepnet/trace.hpp>

namespace deepnet {

/// One layer in one place of a graph: reads the values `inputs`, makes the value `output`.
struct Node {
  LayerPtr layer;
  std::vector<int> inputs;  ///< numbers of values
  int output = 0;           ///< number of a value, which no other node makes
  std::string name;         ///< "0", "2.1": the prefix of its parameters' names
};

/// Nodes in topological order over numbered values; composites inside are already replaced by their nodes.
struct Graph {
  std::vector<Node> nodes;
  std::vector<int> inputs, outputs;  ///< the values that come from outside and that go there
  int value_count = 0;               ///< values are numbered from 0
};

/// The graph of any layer: a composite's own, or the layer as the only node, with optional inputs where there are more.
Graph graph_of(const LayerPtr& layer);
Graph graph_of(const LayerPtr& layer, int inputs);

/// The mask (N, T) of sequences of these lengths (int64, N of them, each 1 to T); errors open with `who`.
Tensor mask_of_lengths(const std::string& who, const Tensor& lengths, Index rows, Index steps);

class Execution;  // a plan and its memory; inside the library

class Prediction;

/// A layer ready to run, with the plans and memory of its runs. Copies share the layer and its weights.
/// Any number of threads may call forward at once. After fork(), a child should make Models and Trainers of its own:
/// of those that another thread was using, locks may be held by a thread that the child does not have.
///
/// Sequences (N, T, ...) of different lengths come with a mask (N, T) of float32, 0 at steps of padding, else 1; an
/// undefined Tensor means that there is no padding. It travels beside the data to every layer; recurrent ones obey it.
class Model {
 public:
  /// Nothing, until a Model is assigned to it: StateError from all but layer().
  Model() = default;
  /// Shares the layer, whose weights it may change.
  explicit Model(LayerPtr layer);
  /// Model net{Conv2d(1, 20, 5), ReLU(), MaxPool2d(2), Flatten(), Linear(2880, 10)}; with braces the layers are made,
  /// and their initial weights drawn, in this order whatever the compiler.
  template <class First, class... Rest, class = std::enable_if_t<std::is_base_of_v<Layer, std::decay_t<First>>>>
  explicit Model(First&& first, Rest&&... rest)
      : Model(std::make_shared<Sequential>(
            std::vector<LayerPtr>{std::make_shared<std::decay_t<First>>(std::forward<First>(first)),
                                  std::make_shared<std::decay_t<Rest>>(std::forward<Rest>(rest))...})) {}

  /// The layer that it runs.
  const LayerPtr& layer() const { return layer_; }
  /// The layer's, by name.
  NamedParameters parameters() const { return own_layer().parameters(); }
  /// The output's shape for an input of that shape, batch axis included; ShapeError where it does not fit.
  Shape output_shape(const Shape& input) const { return own_layer().output_shape({input}); }
  /// Sets the layer's mode, which run() follows.
  void train(bool on = true) { own_layer().train(on); }
  /// train(false).
  void eval() { own_layer().eval(); }

  /// The output for a batch, in evaluation mode; keeps nothing for a backward.
  Tensor forward(const Tensor& x, const Tensor& mask = Tensor()) const;
  /// forward() over x in batches of batch_size rows, but all at once where a layer is stateful; x may have 0 rows.
  Tensor predict(const Tensor& x, Index batch_size = 256, const Tensor& mask = Tensor()) const;

  /// What forward() takes, uses and gives back at every call, to be held for many calls: see Prediction. Nothing where
  /// a layer allocates its output itself, as those written in Python do.
  std::optional<Prediction> prediction(const Shape& input) const;

  /// One step of a sequence, in evaluation mode: x_t (N, ...) goes through recurrent layers as one step, their state
  /// kept in them until reset_state(), and through all others forward.
  Tensor step(const Tensor& x_t);

  /// Forward in the layer's own mode, keeping what a backward needs. The inputs are borrowed until the
  /// next run: they must not change before the last backward.
  Tensor run(const std::vector<Tensor>& inputs, const Tensor& mask = Tensor());
  /// dE/dInputs for dE/dOutput of the last run; adds dE/dW to the parameters' gradients. StateError
  /// before any run and while another backward of this model runs, ShapeError where d_output has not the output's
  /// shape.
  std::vector<Tensor> backward(const Tensor& d_output);
  /// The shape of an input that a recent run had; of rank 0 before any.
  Shape recent_input_shape() const;
  /// What the last run left to look at; empty for networks without such layers.
  Traces traces() const;

 private:
  struct Runs;
  Layer& own_layer() const;  // StateError where there is none
  LayerPtr layer_;
  std::shared_ptr<Runs> runs_;
  friend class Prediction;
};

/// Forward for inputs of one shape, (N, ...), in evaluation mode, with its plan and memory at hand: of the library's
/// own layers, runs after the first allocate nothing. For one thread at a time. Weights count as they are at each run.
///
///   Prediction prediction = model.prediction({1, 16}).value();
///   while (read(samples)) prediction.run(samples, scores);
class Prediction {
 public:
  Prediction(Prediction&&) noexcept;
  Prediction& operator=(Prediction&&) noexcept;
  ~Prediction();

  /// Of what run() writes.
  const Shape& output_shape() const;
  /// Whether a run takes some microseconds at most: fully connected layers with few weights, on few rows.
  bool brief() const;
  /// Writes to `y`, which is of output_shape(), the output for `x`, which is of the input's shape; they do not overlap.
  /// ValueError where one is null.
  void run(const float* x, float* y);

 private:
  friend class Model;
  Prediction(std::shared_ptr<Model::Runs> runs, std::unique_ptr<Execution> execution);
  std::shared_ptr<Model::Runs> runs_;
  std::unique_ptr<Execution> execution_;
};

}  // namespace deepnet
