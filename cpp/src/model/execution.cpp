#include "execution.hpp"

#include <algorithm>
#include <cstring>

#include <deepnet/runtime.hpp>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace deepnet {
namespace {

bool training_of(const Layer& layer, Phase phase) {
  return phase == Phase::training || (phase == Phase::own && layer.training());
}

std::uint64_t key_of(std::uint64_t run_key, std::size_t node) { return run_key + node * 0x9e3779b97f4a7c15u; }

// The owner comes along only where somebody may keep a view: it costs atomic counting.
void point_at(Tensor& tensor, const Tensor& other, bool with_owner) {
  if (with_owner) {
    tensor = other;
  } else {
    tensor.rebind(const_cast<void*>(other.raw()));
  }
}

// Copies images of this shape, (N, C, H, W), to lanes or from them.
void turn(const Shape& shape, bool into_lanes, const Tensor& from, EmptyLanes empty, Tensor& to) {
  if (into_lanes) {
    to_lanes(shape, from.data(), empty, to.data());
  } else {
    from_lanes(shape, from.data(), to.data());
  }
}

// Whether a layer takes a microsecond or so: as far as can be told of all layers alike, vectors and few products.
bool is_brief(const Layer& layer, const Shape& output) {
  constexpr Index most_products = 1 << 16;
  Index weights = 1;
  for (const auto& [name, parameter] : layer.parameters()) weights += parameter->data.size();
  return output.rank() == 2 && output[0] * std::max(weights, output[1]) <= most_products;
}

// Zeroed, so that no page is touched for the first time inside a step.
std::shared_ptr<void> block(std::size_t bytes) {
  return Tensor::zeros({static_cast<Index>(bytes / sizeof(float)) + 1}).owner();
}

}  // namespace

Execution::Execution(const Graph& graph, const PlanRequest& request)
    : graph_(graph), request_(request), plan_(graph_, request_) {
  arena_ = block(plan_.arena_bytes);
  if (plan_.packed_bytes > 0) packed_ = block(plan_.packed_bytes);
  for (const PlanValue& v : plan_.values) {
    values_.push_back(Tensor::borrow(arena_at(v.buffer), v.stored(), DType::float32, arena_));
    d_values_.push_back(Tensor::borrow(arena_at(v.d_buffer), v.stored(), DType::float32, arena_));
  }
  for (const PlanStep& p : plan_.steps) {
    const Node& node = graph_.nodes[static_cast<std::size_t>(p.node)];
    Step step;
    step.layer = node.layer.get();
    step.plan = &p;
    step.output = values_[static_cast<std::size_t>(p.output)];
    step.hands_out = node.layer->contract().makes_output;
    hands_out_ = hands_out_ || step.hands_out;
    brief_ = brief_ && is_brief(*node.layer, step.output.shape());
    bool any_gradient = !node.layer->parameters().empty();
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const std::size_t v = static_cast<std::size_t>(node.inputs[i]);
      const bool turned = p.turned[i] != no_buffer;
      const Shape shape = stored_shape(plan_.values[v].shape, p.lanes);
      step.inputs.push_back(turned ? Tensor::borrow(arena_at(p.turned[i]), shape, DType::float32, arena_) : values_[v]);
      step.d_inputs.push_back(turned ? Tensor::borrow(arena_at(p.d_turned[i]), shape, DType::float32, arena_)
                                     : d_values_[v]);
      any_gradient = any_gradient || plan_.values[v].d_buffer != no_buffer;
    }
    if (p.packed_bytes > 0) {
      for (const Tensor& x : step.inputs) step.packed_for.push_back(x.shape());
      step.packed = static_cast<char*>(packed_.get()) + p.packed_offset;
    }
    step.skip_backward = !any_gradient || plan_.values[static_cast<std::size_t>(p.output)].d_buffer == no_buffer;
    step.activated = Tensor::borrow(arena_at(p.d_activated), step.output.shape());
    steps_.push_back(std::move(step));
  }
  make_traces();
}

Execution::~Execution() {
  for (const auto& trace : traces_)
    if (trace.use_count() > 1) trace->detach();
}

void Execution::make_traces() {
  for (const PlanStep& p : plan_.steps) {
    const Node& node = graph_.nodes[static_cast<std::size_t>(p.node)];
    if (p.cache == no_buffer || !node.layer->contract().inspectable) continue;
    traces_.push_back(
        std::make_shared<Trace>(node.layer.get(), plan_.values[static_cast<std::size_t>(node.inputs[0])].shape,
                                plan_.values[static_cast<std::size_t>(node.output)].shape, arena_at(p.cache),
                                plan_.buffers[static_cast<std::size_t>(p.cache)].bytes, arena_, p.lanes));
  }
}

const Shape& Execution::output_shape() const { return plan_.values[static_cast<std::size_t>(graph_.outputs[0])].shape; }

const Tensor& Execution::output() const { return values_[static_cast<std::size_t>(graph_.outputs[0])]; }

void* Execution::arena_at(int buffer) const {
  if (buffer == no_buffer) return nullptr;
  const PlanBuffer& b = plan_.buffers[static_cast<std::size_t>(buffer)];
  return b.place == PlanBuffer::Place::arena ? static_cast<char*>(arena_.get()) + b.offset : nullptr;
}

// Points every value in the caller's or a layer's buffer at its memory of this run.
void Execution::bind_external(PlanBuffer::Place place, int index, void* data, const std::shared_ptr<void>& owner) {
  const auto matches = [&](int buffer) {
    if (buffer == no_buffer) return false;
    const PlanBuffer& b = plan_.buffers[static_cast<std::size_t>(buffer)];
    return b.place == place && b.index == index;
  };
  const auto point = [&](Tensor& tensor) {
    tensor.rebind(data);
    if (hands_out_) tensor = Tensor::borrow(data, tensor.shape(), DType::float32, owner);
  };
  for (std::size_t v = 0; v < values_.size(); ++v) {
    if (matches(plan_.values[v].buffer)) point(values_[v]);
    if (matches(plan_.values[v].d_buffer)) point(d_values_[v]);
  }
  if (place != PlanBuffer::Place::output) return;
  for (Step& step : steps_) {  // a view of an input that was turned
    for (std::size_t i = 0; i < step.inputs.size(); ++i)
      if (matches(step.plan->turned[i])) point(step.inputs[i]);
  }
}

void Execution::forward(const Tensor* inputs, float* output, Phase phase, const Tensor& mask, bool packed) {
  if (mask.defined() || mask_.defined()) mask_ = mask;
  if (phase != Phase::evaluation) random_key_ = next_key_ ? *next_key_ : next_random_key();
  next_key_.reset();
  for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
    bind_external(PlanBuffer::Place::input, static_cast<int>(i), const_cast<void*>(inputs[i].raw()), inputs[i].owner());
  }
  run_forward(output, phase, packed);
}

void Execution::forward(const float* x, float* output) {
  if (mask_.defined()) mask_ = Tensor();
  bind_external(PlanBuffer::Place::input, 0, const_cast<float*>(x), nullptr);
  run_forward(output, Phase::evaluation, /*packed=*/false);
}

void Execution::run_forward(float* output, Phase phase, bool packed) {
  bind_external(PlanBuffer::Place::output, 0, output, nullptr);
  for (Step& step : steps_) run_forward(step, phase, packed);
  if (plan_.copy_output) {
    const float* result = this->output().data();
    parallel_for(this->output().size(), grain_for(1.0, 64), [&](Index begin, Index end) {
      std::memcpy(output + begin, result + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
    });
  }
}

void Execution::run_forward(Step& step, Phase phase, bool packed) {
  const PlanStep& p = *step.plan;
  const std::vector<int>& inputs = graph_.nodes[static_cast<std::size_t>(p.node)].inputs;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::size_t v = static_cast<std::size_t>(inputs[i]);
    if (p.turned[i] == no_buffer) {
      point_at(step.inputs[i], values_[v], step.hands_out);
    } else {
      turn(plan_.values[v].shape, p.lanes, values_[v], EmptyLanes::last_image, step.inputs[i]);
    }
  }
  Tensor& value = values_[static_cast<std::size_t>(p.output)];
  step.output.rebind(value.raw());
  step.training = training_of(*step.layer, phase);
  if (step.packed && !packed) step.layer->pack(step.packed_for, step.packed);
  ForwardCall call;
  call.inputs = step.inputs.data();
  call.input_count = static_cast<int>(inputs.size());
  call.output = &step.output;
  call.packed = step.packed;
  call.cache = request_.backward ? arena_at(p.cache) : nullptr;
  call.workspace = arena_at(p.forward_workspace);
  call.activation = p.activation;
  call.mask = mask_.defined() ? &mask_ : nullptr;
  call.training = step.training;
  call.rehearsal = rehearsal_;
  call.random_key = key_of(random_key_, static_cast<std::size_t>(p.node));
  step.layer->forward(call);
  point_at(value, step.output, step.hands_out);
}

void Execution::backward(const Tensor& d_output, Tensor* d_inputs, bool accumulate) {
  bind_external(PlanBuffer::Place::d_output, 0, const_cast<float*>(d_output.data()), d_output.owner());
  for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
    bind_external(PlanBuffer::Place::d_input, static_cast<int>(i),
                  request_.input_gradient ? d_inputs[i].raw() : nullptr, nullptr);
  }
  for (std::size_t s = steps_.size(); s-- > 0;) {
    if (!steps_[s].skip_backward) run_backward(steps_[s], accumulate);
  }
  if (!request_.input_gradient) return;
  for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {  // gradients that could not be written in place
    const Tensor& d = d_values_[static_cast<std::size_t>(graph_.inputs[i])];
    if (!d.defined()) {
      std::memset(d_inputs[i].raw(), 0, d_inputs[i].bytes());
    } else if (d.raw() != d_inputs[i].raw()) {
      std::memcpy(d_inputs[i].raw(), d.raw(), d.bytes());
    }
  }
}

void Execution::run_backward(Step& step, bool accumulate) {
  const PlanStep& p = *step.plan;
  const std::vector<int>& inputs = graph_.nodes[static_cast<std::size_t>(p.node)].inputs;
  const Tensor* d_output = &d_values_[static_cast<std::size_t>(p.output)];
  if (p.derivative.kind != ActivationKind::none) {
    const float *y = step.output.data(), *dy = d_output->data();
    float* dx = step.activated.data();
    parallel_for(step.activated.size(), grain_for(1.0, 64), [&](Index begin, Index end) {
      kernels().activation_backward(static_cast<int>(p.derivative.kind), p.derivative.parameter, end - begin, y + begin,
                                    dy + begin, dx + begin);
    });
    d_output = &step.activated;
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (p.d_turned[i] != no_buffer) continue;
    Tensor& d_value = d_values_[static_cast<std::size_t>(inputs[i])];
    step.d_inputs[i].rebind(p.d_extra[i] == no_buffer ? d_value.raw() : arena_at(p.d_extra[i]));
  }
  BackwardCall call;
  call.inputs = step.inputs.data();
  call.input_count = static_cast<int>(inputs.size());
  call.output = p.remakes_output ? nullptr : &step.output;
  call.d_output = d_output;
  call.d_inputs = step.d_inputs.data();
  call.packed = step.packed;
  call.cache = arena_at(p.cache);
  call.workspace = arena_at(p.backward_workspace);
  call.mask = mask_.defined() ? &mask_ : nullptr;
  call.training = step.training;
  call.accumulate = accumulate || p.shares_parameters;
  call.random_key = key_of(random_key_, static_cast<std::size_t>(p.node));
  if (!accumulate) {
    for (const ParameterPtr& w : p.unshared)
      if (w->has_grad()) std::memset(w->grad().raw(), 0, w->grad().bytes());
  }
  step.layer->backward(call);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::size_t v = static_cast<std::size_t>(inputs[i]);
    Tensor& d_value = d_values_[v];
    const bool added = p.d_extra[i] != no_buffer, turned = p.d_turned[i] != no_buffer;
    Tensor made;  // what was turned to the layout of the value
    if (turned) {
      made = Tensor::borrow(added ? arena_at(p.d_extra[i]) : d_value.raw(), d_value.shape());
      turn(plan_.values[v].shape, !p.lanes, step.d_inputs[i], EmptyLanes::zero, made);
    }
    if (!added) {
      if (!turned) point_at(d_value, step.d_inputs[i], step.hands_out);
    } else {
      float* sum = d_value.data();
      const float* share = turned ? made.data() : step.d_inputs[i].data();
      parallel_for(d_value.size(), grain_for(1.0, 64),
                   [&](Index begin, Index end) { kernels().add(end - begin, share + begin, sum + begin); });
    }
  }
}

Tensor rehearse(const Node& node, const std::vector<Tensor>& inputs, Phase phase, std::uint64_t random_key,
                const Tensor& mask) {
  PlanRequest request;
  for (const Tensor& x : inputs) request.inputs.push_back(x.shape());
  try {
    Tensor out(node.layer->output_shape(request.inputs));
    Execution alone(graph_of(node.layer, static_cast<int>(inputs.size())), request);
    alone.set_random_key(random_key);
    alone.set_rehearsal();
    alone.forward(inputs.data(), out.data(), phase, mask);
    return out;
  } catch (const ShapeUnknown&) {
    return node.layer->discover_output(inputs, training_of(*node.layer, phase));
  }
}

namespace {

// One layer after the other, each with memory of its own, so that layers that must run to tell their output's shape
// can.
void discover_shapes(const Graph& graph, const std::vector<Tensor>& inputs, Phase phase, std::uint64_t key,
                     const Tensor& mask) {
  std::vector<Tensor> values(static_cast<std::size_t>(graph.value_count));
  for (std::size_t i = 0; i < inputs.size(); ++i) values[static_cast<std::size_t>(graph.inputs[i])] = inputs[i];
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    std::vector<Tensor> in;
    for (int v : node.inputs) in.push_back(values[static_cast<std::size_t>(v)]);
    values[static_cast<std::size_t>(node.output)] = rehearse(node, in, phase, key_of(key, i), mask);
  }
}

}  // namespace

void check_memory(const std::string& who, const char* what, const Tensor& tensor) {
  if (tensor.raw() != nullptr || tensor.size() == 0) return;
  throw ValueError("[" + who + "] expected " + what + " with memory, got a Tensor of shape " + tensor.shape().str() +
                   " without");
}

std::unique_ptr<Execution> make_execution(const Graph& graph, const PlanRequest& request,
                                          const std::vector<Tensor>& inputs, Phase phase, const Tensor& mask) {
  try {
    return std::make_unique<Execution>(graph, request);
  } catch (const ShapeUnknown&) {
    // The same random numbers in both runs: a layer may then keep its output of the first for the second.
    const std::uint64_t key = next_random_key();
    discover_shapes(graph, inputs, phase, key, mask);
    auto execution = std::make_unique<Execution>(graph, request);
    execution->set_random_key(key);
    return execution;
  }
}

}  // namespace deepnet
