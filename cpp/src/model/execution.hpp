// A plan with its memory: what runs a graph for one set of input shapes.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "plan.hpp"

namespace deepnet {

/// Which mode layers run in: evaluation, each layer's own, or training.
enum class Phase { evaluation, own, training };

class Execution {
 public:
  Execution(const Graph& graph, const PlanRequest& request);

  const PlanRequest& request() const { return request_; }
  const Shape& output_shape() const;

  /// The key that the next forward's random numbers come from; drawn afresh where it is not set.
  void set_random_key(std::uint64_t key) { next_key_ = key; }

  /// Runs forward; `inputs` are borrowed until the last backward. Without a loss the output is written to `output`,
  /// which must have output_shape().
  void forward(const Tensor* inputs, float* output, Phase phase);
  /// Runs backward from dE/dOutput (with a loss: undefined, loss_gradient() has it) and writes dE/dInputs where the
  /// plan wants them.
  void backward(const Tensor& d_output, Tensor* d_inputs, bool accumulate);

  /// With a loss: the graph's output and dE/dOutput in the arena.
  const Tensor& output() const;
  Tensor& loss_gradient() { return d_values_[static_cast<std::size_t>(graph_.outputs[0])]; }

  /// The cache that forward kept for a node: null where it has none.
  const void* cache(int node) const;
  const Shape& node_output_shape(int node) const;

 private:
  struct Step {
    Layer* layer;
    const PlanStep* plan;
    std::vector<Tensor> inputs, d_inputs;
    Tensor output, activated;  // activated: dE/d(input of the fused activation)
    bool training = false;
    bool hands_out = false;  // the layer may keep views of its arrays: they carry their owners
    bool skip_backward = false;
  };

  void* arena_at(int buffer) const;
  void bind_external(PlanBuffer::Place place, int index, void* data, const std::shared_ptr<void>& owner);
  void run_forward(Step& step, Phase phase);
  void run_backward(Step& step, bool accumulate);

  const Graph graph_;
  const PlanRequest request_;
  const Plan plan_;
  std::shared_ptr<void> arena_;
  std::vector<Tensor> values_, d_values_;
  std::vector<Step> steps_;
  bool hands_out_ = false;  // any step does
  std::optional<std::uint64_t> next_key_;
  std::uint64_t random_key_ = 0;
};

/// Makes an Execution, running layers whose output shape only a run can tell (Layer::discover_output) on the inputs.
std::unique_ptr<Execution> make_execution(const Graph& graph, const PlanRequest& request,
                                          const std::vector<Tensor>& inputs, Phase phase);

}  // namespace deepnet
