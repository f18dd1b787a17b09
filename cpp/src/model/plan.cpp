#include "plan.hpp"

#include <algorithm>
#include <numeric>
#include <set>

namespace deepnet {
namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Builds a Plan. Time runs 0 ... n-1 over forward steps, n for the loss, then step i's backward at 2n - i.
class Planner {
 public:
  Planner(const Graph& graph, const PlanRequest& request, Plan& plan) : graph_(graph), request_(request), plan_(plan) {
    for (const Node& node : graph.nodes) contracts_.push_back(node.layer->contract());
    check_states();
    infer_shapes();
    count_uses();
    make_steps();
    choose_layouts();
    if (request.backward && !request.loss) remake_output();
    if (request.backward) move_derivatives();
    place_values();
    if (request.backward) place_gradients();
    place_step_memory();
    assign_offsets();
  }

 private:
  int loss_time() const { return static_cast<int>(plan_.steps.size()); }
  int backward_time(int step) const { return 2 * loss_time() - step; }
  const Node& node(int index) const { return graph_.nodes[static_cast<std::size_t>(index)]; }
  const Contract& contract(int index) const { return contracts_[static_cast<std::size_t>(index)]; }
  PlanValue& value(int index) { return plan_.values[static_cast<std::size_t>(index)]; }
  PlanBuffer& buffer(int index) { return plan_.buffers[static_cast<std::size_t>(index)]; }
  static std::size_t float_bytes(const Shape& shape) { return static_cast<std::size_t>(shape.size()) * sizeof(float); }
  static std::size_t float_bytes(const PlanValue& v) { return float_bytes(v.stored()); }

  int add_buffer(PlanBuffer::Place place, std::size_t bytes, int first, int last, int index = 0) {
    PlanBuffer b;
    b.place = place;
    b.index = index;
    b.bytes = bytes;
    b.first = first;
    b.last = last;
    plan_.buffers.push_back(b);
    return static_cast<int>(plan_.buffers.size()) - 1;
  }

  void use(int buffer_index, int time) {
    if (buffer_index != no_buffer) buffer(buffer_index).last = std::max(buffer(buffer_index).last, time);
  }

  std::vector<Shape> input_shapes(const Node& n) const {
    std::vector<Shape> shapes;
    for (int v : n.inputs) shapes.push_back(plan_.values[static_cast<std::size_t>(v)].shape);
    return shapes;
  }

  void check_states() const {
    for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i)
      if (contract(i).stateful) check_only_place(graph_, node(i));
  }

  void infer_shapes() {
    plan_.values.resize(static_cast<std::size_t>(graph_.value_count));
    for (std::size_t i = 0; i < graph_.inputs.size(); ++i) value(graph_.inputs[i]).shape = request_.inputs[i];
    for (const Node& n : graph_.nodes) value(n.output).shape = n.layer->output_shape(input_shapes(n));
  }

  void count_uses() {
    uses_.assign(plan_.values.size(), 0);
    for (const Node& n : graph_.nodes)
      for (int v : n.inputs) ++uses_[static_cast<std::size_t>(v)];
    for (int v : graph_.outputs) ++uses_[static_cast<std::size_t>(v)];
  }

  // The node whose activation `index` can apply as it writes: the next reader, the only one, and one whose
  // derivative can be had from its output if a backward follows.
  int fusable(int index) const {
    const Node& n = node(index);
    if (!contract(index).accepts_activation || uses_[static_cast<std::size_t>(n.output)] != 1) return -1;
    for (std::size_t i = static_cast<std::size_t>(index) + 1; i < graph_.nodes.size(); ++i) {
      const auto& inputs = graph_.nodes[i].inputs;
      if (std::find(inputs.begin(), inputs.end(), n.output) == inputs.end()) continue;
      const Contract& c = contracts_[i];
      if (c.activation.kind == ActivationKind::none) return -1;
      return request_.backward && c.backward_needs_input ? -1 : static_cast<int>(i);
    }
    return -1;
  }

  void make_steps() {
    std::set<int> done;
    for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
      if (done.count(i)) continue;
      PlanStep step;
      step.node = i;
      step.fused = fusable(i);
      step.output = node(step.fused < 0 ? i : step.fused).output;
      if (step.fused >= 0) {
        step.activation = step.derivative = contract(step.fused).activation;
        done.insert(step.fused);
      }
      const std::size_t inputs = node(i).inputs.size();
      step.d_extra.assign(inputs, no_buffer);
      step.turned.assign(inputs, no_buffer);
      step.d_turned.assign(inputs, no_buffer);
      plan_.steps.push_back(step);
    }
    std::set<const Parameter*> seen;
    for (auto step = plan_.steps.rbegin(); step != plan_.steps.rend(); ++step) {
      const NamedParameters parameters = node(step->node).layer->parameters();
      const auto is_new = [&](const auto& named) { return seen.count(named.second.get()) == 0; };
      step->shares_parameters = !std::all_of(parameters.begin(), parameters.end(), is_new);
      for (const auto& named : parameters)
        if (step->shares_parameters && is_new(named)) step->unshared.push_back(named.second);
      for (const auto& named : parameters) seen.insert(named.second.get());
    }
  }

  // The output is the caller's, who may write to it before backward: where the last step can make it again from its
  // input, no copy need be kept.
  void remake_output() {
    for (PlanStep& step : plan_.steps) {
      Contract& c = contracts_[static_cast<std::size_t>(step.node)];
      if (step.output != graph_.outputs[0] || step.fused >= 0 || !c.remakes_output) continue;
      step.remakes_output = c.backward_needs_input = true;
      c.backward_needs_output = false;
    }
  }

  // Layers that prefer images in lanes get them so, and hand images on so to those that follow, as far as there is one
  // reader: they are turned at the beginning and the end of such a chain alone. The graph's output is not in lanes.
  void choose_layouts() {
    const auto& outputs = graph_.outputs;
    for (PlanStep& step : plan_.steps) {
      const Contract::Lanes wish = contract(step.node).lanes;
      if (wish == Contract::Lanes::no || node(step.node).inputs.size() != 1) continue;
      const PlanValue &in = value(node(step.node).inputs[0]), &out = value(step.output);
      const bool is_output = std::find(outputs.begin(), outputs.end(), step.output) != outputs.end();
      const bool makes_images = out.shape.rank() == 4;
      if (makes_images && (is_output || uses_[static_cast<std::size_t>(step.output)] != 1)) continue;
      if (in.shape.rank() != 4) continue;
      // A tile needs no second group of images for a second core.
      const bool fills = fills_lanes(in.shape[0]) || (request_.tile && in.shape[0] % lanes() == 0);
      step.lanes = in.lanes || (wish == Contract::Lanes::prefers && fills);
      value(step.output).lanes = step.lanes && makes_images;
    }
  }

  // f'(y) dE/dy, where only a few of y's elements are selected behind it (max pooling): multiplied where they are few,
  // y need not be kept.
  void move_derivatives() {
    std::vector<PlanStep*> reader(plan_.values.size(), nullptr);
    for (PlanStep& step : plan_.steps)
      for (int v : node(step.node).inputs) reader[static_cast<std::size_t>(v)] = &step;
    for (PlanStep& step : plan_.steps) {
      PlanStep* next = reader[static_cast<std::size_t>(step.output)];
      const bool only_reader = next != nullptr && uses_[static_cast<std::size_t>(step.output)] == 1;
      if (step.fused < 0 || !only_reader || next->fused >= 0 || !selects(*next)) continue;
      next->derivative = step.derivative;
      step.derivative = {};
    }
  }

  bool selects(const PlanStep& step) const { return contract(step.node).selects && node(step.node).inputs.size() == 1; }

  // The last time a value is read, its aliases not counted.
  int last_read(int v) const {
    int last = -1;
    for (int s = 0; s < static_cast<int>(plan_.steps.size()); ++s) {
      const PlanStep& step = plan_.steps[static_cast<std::size_t>(s)];
      const auto& inputs = node(step.node).inputs;
      if (std::find(inputs.begin(), inputs.end(), v) != inputs.end()) {
        const bool keeps = request_.backward && contract(step.node).backward_needs_input && step.lanes == layout_of(v);
        last = std::max(last, keeps ? backward_time(s) : s);
      }
      if (step.output == v && request_.backward && needs_output(step)) last = std::max(last, backward_time(s));
    }
    if (std::find(graph_.outputs.begin(), graph_.outputs.end(), v) != graph_.outputs.end()) {
      last = std::max(last, loss_time());
    }
    return last;
  }

  bool layout_of(int v) const { return plan_.values[static_cast<std::size_t>(v)].lanes; }
  static bool derives(const PlanStep& step) { return step.derivative.kind != ActivationKind::none; }
  bool needs_output(const PlanStep& step) const { return derives(step) || contract(step.node).backward_needs_output; }

  void place_values() {
    for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
      const int v = graph_.inputs[i];
      value(v).buffer =
          add_buffer(PlanBuffer::Place::input, float_bytes(value(v)), 0, last_read(v), static_cast<int>(i));
    }
    for (int s = 0; s < static_cast<int>(plan_.steps.size()); ++s) {
      PlanStep& step = plan_.steps[static_cast<std::size_t>(s)];
      const Contract& c = contract(step.node);
      PlanValue& out = value(step.output);
      turn_inputs(step, s);
      const int in = node(step.node).inputs.empty() ? -1 : node(step.node).inputs[0];
      const int from = in < 0 ? no_buffer : step.turned[0] != no_buffer ? step.turned[0] : value(in).buffer;
      const PlanBuffer::Place in_place = in < 0 ? PlanBuffer::Place::arena : buffer(from).place;
      const bool in_arena = in >= 0 && in_place == PlanBuffer::Place::arena;
      if (c.view && (in_arena || in_place == PlanBuffer::Place::input)) {
        out.buffer = from;
      } else if (c.in_place && in_arena && step.fused < 0 && last_read(in) == s && lives_until(from, s)) {
        out.buffer = from;
      } else {
        const auto place = c.makes_output ? PlanBuffer::Place::layer : PlanBuffer::Place::arena;
        out.buffer = add_buffer(place, float_bytes(out), s, s);
      }
      use(out.buffer, std::max(s, last_read(step.output)));
    }
    place_output();
  }

  // Memory for the inputs that have the other layout.
  void turn_inputs(PlanStep& step, int s) {
    const std::vector<int>& inputs = node(step.node).inputs;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const PlanValue& in = value(inputs[i]);
      if (in.lanes == step.lanes) continue;
      const bool keeps = request_.backward && contract(step.node).backward_needs_input;
      step.turned[i] = add_buffer(PlanBuffer::Place::arena, float_bytes(stored_shape(in.shape, step.lanes)), s,
                                  keeps ? backward_time(s) : s);
    }
  }

  // Whether no value that shares the buffer is read after `time`.
  bool lives_until(int buffer_index, int time) { return buffer(buffer_index).last <= time; }

  // Without a loss the output goes straight to the caller's array, unless backward will read it again.
  void place_output() {
    if (request_.loss) return;
    PlanBuffer& b = buffer(value(graph_.outputs[0]).buffer);
    if (b.place == PlanBuffer::Place::arena && b.last <= loss_time()) {
      b.place = PlanBuffer::Place::output;
    } else {
      plan_.copy_output = true;
    }
  }

  // From the output back to the inputs: dE/dValue's memory is made by the first step of backward that writes it.
  void place_gradients() {
    find_wanted();
    const int out = graph_.outputs[0];
    const auto place = request_.loss ? PlanBuffer::Place::arena : PlanBuffer::Place::d_output;
    value(out).d_buffer = add_buffer(place, float_bytes(value(out)), loss_time(), loss_time());
    for (int s = static_cast<int>(plan_.steps.size()) - 1; s >= 0; --s) {
      PlanStep& step = plan_.steps[static_cast<std::size_t>(s)];
      const int time = backward_time(s);
      int d_out = value(step.output).d_buffer;
      if (d_out == no_buffer) continue;  // nothing below the output depends on it
      use(d_out, time);
      if (derives(step)) {
        const bool may_overwrite = buffer(d_out).place == PlanBuffer::Place::arena;
        step.d_activated =
            may_overwrite ? d_out : add_buffer(PlanBuffer::Place::arena, buffer(d_out).bytes, time, time);
        d_out = step.d_activated;
      }
      for (std::size_t i = 0; i < node(step.node).inputs.size(); ++i) place_input_gradient(step, s, i, d_out);
    }
  }

  void place_input_gradient(PlanStep& step, int s, std::size_t i, int d_out) {
    const int v = node(step.node).inputs[i], time = backward_time(s);
    if (!wanted_[static_cast<std::size_t>(v)]) return;
    PlanValue& in = value(v);
    Contract c = contract(step.node);
    if (in.lanes != step.lanes) {  // made in the step's layout, then turned
      const bool same_memory = c.view && i == 0 && buffer(d_out).place == PlanBuffer::Place::arena;
      step.d_turned[i] = same_memory ? d_out
                                     : add_buffer(PlanBuffer::Place::arena,
                                                  float_bytes(stored_shape(in.shape, step.lanes)), time, time);
      c = {};
    }
    if (in.d_buffer != no_buffer) {  // a further consumer: its share is added to what is there
      step.d_extra[i] =
          add_buffer(c.makes_output ? PlanBuffer::Place::layer : PlanBuffer::Place::arena, float_bytes(in), time, time);
      use(in.d_buffer, time);
      return;
    }
    const auto input = std::find(graph_.inputs.begin(), graph_.inputs.end(), v);
    const bool shared_later = uses_[static_cast<std::size_t>(v)] > 1;
    const bool overwritable = buffer(d_out).place == PlanBuffer::Place::arena && i == 0;
    if (input != graph_.inputs.end() && !(c.makes_output && shared_later)) {
      in.d_buffer = add_buffer(PlanBuffer::Place::d_input, float_bytes(in), time, time,
                               static_cast<int>(input - graph_.inputs.begin()));
    } else if ((c.view || c.in_place) && overwritable) {
      in.d_buffer = d_out;
    } else {
      const bool layers_own = c.makes_output && !shared_later;
      in.d_buffer =
          add_buffer(layers_own ? PlanBuffer::Place::layer : PlanBuffer::Place::arena, float_bytes(in), time, time);
    }
    use(in.d_buffer, time);
  }

  // dE/dValue is wanted where a parameter, or an input whose gradient is asked for, lies at or before it.
  void find_wanted() {
    wanted_.assign(plan_.values.size(), false);
    for (int v : graph_.inputs) wanted_[static_cast<std::size_t>(v)] = request_.input_gradient;
    for (const Node& n : graph_.nodes) {
      bool wanted = !n.layer->parameters().empty();
      for (int v : n.inputs) wanted = wanted || wanted_[static_cast<std::size_t>(v)];
      wanted_[static_cast<std::size_t>(n.output)] = wanted;
    }
  }

  void place_step_memory() {
    for (int s = 0; s < static_cast<int>(plan_.steps.size()); ++s) {
      PlanStep& step = plan_.steps[static_cast<std::size_t>(s)];
      std::vector<Shape> shapes = input_shapes(node(step.node));
      for (Shape& shape : shapes) shape = stored_shape(shape, step.lanes);
      const Memory memory = node(step.node).layer->memory(shapes, request_.backward);
      const int time = backward_time(s);
      step.packed_bytes = memory.packed;
      step.packed_offset = plan_.packed_bytes;
      plan_.packed_bytes += aligned(memory.packed);
      if (memory.forward_workspace > 0) {
        step.forward_workspace = add_buffer(PlanBuffer::Place::arena, memory.forward_workspace, s, s);
      }
      if (!request_.backward) continue;
      if (memory.cache > 0) {
        const int last = contract(step.node).inspectable ? backward_time(0) : time;
        step.cache = add_buffer(PlanBuffer::Place::arena, memory.cache, s, last);
      }
      if (memory.backward_workspace > 0) {
        step.backward_workspace = add_buffer(PlanBuffer::Place::arena, memory.backward_workspace, time, time);
      }
    }
  }

  // Greedy by size (Pisarchyk and Lee 2020, sec. 5.2): the largest first, each at the lowest place that is free for
  // all of its life. What runs of backward after backward must not lose is kept by make_repeatable().
  void assign_offsets() {
    if (request_.backward && !request_.loss) make_repeatable();
    std::vector<int> order;
    for (int b = 0; b < static_cast<int>(plan_.buffers.size()); ++b) {
      if (buffer(b).place == PlanBuffer::Place::arena) order.push_back(b);
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return buffer(a).bytes > buffer(b).bytes; });
    std::vector<int> placed;  // by offset
    for (int index : order) {
      PlanBuffer& b = buffer(index);
      b.bytes = aligned(b.bytes);
      std::size_t offset = 0;
      for (int other : placed) {
        const PlanBuffer& o = buffer(other);
        if (o.last < b.first || b.last < o.first) continue;
        if (offset + b.bytes <= o.offset) break;
        offset = std::max(offset, o.offset + o.bytes);
      }
      b.offset = offset;
      plan_.arena_bytes = std::max(plan_.arena_bytes, offset + b.bytes);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), index,
                                     [&](int a, int c) { return buffer(a).offset < buffer(c).offset; }),
                    index);
    }
  }

  // A user may call backward many times after one forward: what forward left for it lives to the very end, so that
  // no gradient is put in its place.
  void make_repeatable() {
    const int end = backward_time(0);
    for (PlanBuffer& b : plan_.buffers) {
      if (b.first < loss_time() && b.last > loss_time()) b.last = end;
    }
  }

  const Graph& graph_;
  const PlanRequest& request_;
  Plan& plan_;
  std::vector<Contract> contracts_;
  std::vector<int> uses_;
  std::vector<bool> wanted_;
};

}  // namespace

Plan::Plan(const Graph& graph, const PlanRequest& request) { Planner(graph, request, *this); }

}  // namespace deepnet
