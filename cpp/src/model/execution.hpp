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
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  const PlanRequest& request() const { return request_; }
  const Shape& output_shape() const;
  /// See Prediction.
  bool brief() const { return brief_; }

  /// The key that the next forward's random numbers come from; drawn afresh where it is not set.
  void set_random_key(std::uint64_t key) { next_key_ = key; }

  /// Says that the run is one for shapes or a diagnosis: layers carry no state on from it.
  void set_rehearsal() { rehearsal_ = true; }

  /// Runs forward; `inputs` are borrowed until the last backward. Without a loss the output is written to `output`,
  /// which must have output_shape(). An undefined mask is none. Parameters are packed anew, unless `packed`: then they
  /// are as they were at the last forward.
  void forward(const Tensor* inputs, float* output, Phase phase, const Tensor& mask = Tensor(), bool packed = false);
  /// The same, in evaluation mode, of an input that layers may keep no view of.
  void forward(const float* x, float* output);
  /// Runs backward from dE/dOutput (with a loss: undefined, loss_gradient() has it) and writes dE/dInputs where the
  /// plan wants them.
  void backward(const Tensor& d_output, Tensor* d_inputs, bool accumulate);

  /// With a loss: the graph's output and dE/dOutput in the arena.
  const Tensor& output() const;
  Tensor& loss_gradient() { return d_values_[static_cast<std::size_t>(graph_.outputs[0])]; }

  /// What runs leave to look at.
  const Traces& traces() const { return traces_; }

 private:
  struct Step {
    Layer* layer;
    const PlanStep* plan;
    std::vector<Tensor> inputs, d_inputs;
    std::vector<Shape> packed_for;  // the inputs' shapes, where the layer packs
    void* packed = nullptr;
    Tensor output, activated;  // activated: dE/d(input of the fused activation)
    bool training = false;
    bool hands_out = false;  // the layer may keep views of its arrays: they carry their owners
    bool skip_backward = false;
  };

  void* arena_at(int buffer) const;
  void bind_external(PlanBuffer::Place place, int index, void* data, const std::shared_ptr<void>& owner);
  void run_forward(float* output, Phase phase, bool packed);
  void run_forward(Step& step, Phase phase, bool packed);
  void run_backward(Step& step, bool accumulate);
  void make_traces();

  const Graph graph_;
  const PlanRequest request_;
  const Plan plan_;
  std::shared_ptr<void> arena_, packed_;
  std::vector<Tensor> values_, d_values_;
  std::vector<Step> steps_;
  Traces traces_;
  Tensor mask_;             // of the last forward
  bool hands_out_ = false;  // any step does
  bool brief_ = true;
  bool rehearsal_ = false;
  std::optional<std::uint64_t> next_key_;
  std::uint64_t random_key_ = 0;
};

/// ValueError, opening with `who`, where a tensor has elements but no memory.
void check_memory(const std::string& who, const char* what, const Tensor& tensor);

/// Makes an Execution, running layers whose output shape only a run can tell (Layer::discover_output) on the inputs.
std::unique_ptr<Execution> make_execution(const Graph& graph, const PlanRequest& request,
                                          const std::vector<Tensor>& inputs, Phase phase,
                                          const Tensor& mask = Tensor());

/// Runs the node alone, in a rehearsal, on values that were made before.
Tensor rehearse(const Node& node, const std::vector<Tensor>& inputs, Phase phase, std::uint64_t random_key,
                const Tensor& mask);

}  // namespace deepnet
