// Forward and backward of a stack of recurrent layers: memory, the way in and out, states. What one layer computes is
// in ops/recurrent.hpp.
#include <deepnet/recurrent.hpp>

#include <algorithm>
#include <cstring>

#include "../ops/recurrent_blocks.hpp"

namespace deepnet {
namespace {

// to += from, of a layer's inputs; what lies in slots of no step is added too.
void add_slots(const RecurrentShape& s, const float* from, float* to) {
  parallel_for(s.slots() * s.inputs, grain_for(1.0, 64),
               [&](Index begin, Index end) { kernels().add(end - begin, from + begin, to + begin); });
}

// Copies `rows` rows of `width` floats that lie from_stride and to_stride apart.
void copy_rows(Index rows, Index width, const float* from, Index from_stride, float* to, Index to_stride) {
  for (Index i = 0; i < rows; ++i)
    std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<std::size_t>(width) * sizeof(float));
}

}  // namespace

// --- memory ------------------------------------------------------------------------------------------------------

// Offsets, in floats. What forward leaves is in the cache; where no backward follows it begins the workspace, and
// layers share what only backward would want of each. All layers are alike but for the first one's input.
struct RecurrentStack::Layout {
  Layout(const RecurrentStack& layer, const Shape& input, bool keep);

  Index h_of(Index l) const { return h + (keep ? l : l % 2) * h_floats; }
  Index c_of(Index l, int d) const { return c + ((keep ? l * directions : 0) + d) * c_floats; }
  Index gates_of(Index l, int d) const { return gates + (l * directions + d) * gate_floats; }

  const bool keep, keep_gates;
  const int directions;
  Pieces kept, forward_scratch, backward_scratch;
  Index state_floats, state[2], norms, x;
  Index h, h_floats, c, c_floats, gates, gate_floats;
  Index forward_ops, d_state, d_state_floats, dx, dx_floats, backward_ops;
};

RecurrentStack::Layout::Layout(const RecurrentStack& layer, const Shape& input, bool keep)
    : keep(keep), keep_gates(keep && layer.cell_ != CellKind::rnn), directions(layer.directions()) {
  const RecurrentShape first = layer.shape_of(input, 0), other = layer.shape_of(input, 1);
  const Index layers = layer.options.num_layers;
  const bool lstm = layer.cell_ == CellKind::lstm;
  const auto aligned = [](Index n) { return round_up(n, 16); };

  state_floats = layer.state_rows() * first.state_size();
  for (int i = 0; i < 2; ++i) state[i] = kept.take(i == 0 || lstm ? state_floats : 0);
  norms = kept.take(layer.state_rows() * first.steps);
  x = kept.take(first.slots() * first.inputs);
  h_floats = aligned(first.slots() * first.width());
  h = kept.take((keep ? layers : std::min<Index>(layers, 2)) * h_floats);
  c_floats = lstm ? aligned((keep ? first.slots() : first.batch) * first.hidden) : 0;
  c = kept.take((keep ? layers : 1) * directions * c_floats);
  gate_floats = aligned(first.batch * first.steps * first.gate_columns());
  gates = kept.take(keep_gates ? layers * directions * gate_floats : 0);

  const auto larger = [&](std::size_t (*floats)(const RecurrentShape&)) {
    return static_cast<Index>(std::max(floats(first), layers > 1 ? floats(other) : 0));
  };
  forward_ops = forward_scratch.take(larger(recurrent_forward_workspace));
  d_state_floats = aligned(first.state_size());
  d_state = backward_scratch.take(layer.state_count() * directions * d_state_floats);
  dx_floats = aligned(first.slots() * std::max(first.inputs, layers > 1 ? other.inputs : 0));
  dx = backward_scratch.take(2 * directions * dx_floats);
  backward_ops = backward_scratch.take(larger(recurrent_backward_workspace));
}

// What the parts of a forward or backward share.
struct RecurrentStack::Run {
  const Layout& layout;
  const Shape& input;
  std::vector<Tensor> initial;  // states; none: zeros
  const float* mask;
  float* memory;   // the layout's kept part
  float* scratch;  // the direction's
};

Memory RecurrentStack::memory(const std::vector<Shape>& inputs, bool training) const {
  const Layout layout(*this, inputs[0], training);
  const auto bytes = [](Index floats) { return static_cast<std::size_t>(floats) * sizeof(float); };
  Memory m;
  m.cache = bytes(training ? layout.kept.floats : 0);
  m.forward_workspace = bytes(layout.forward_scratch.floats + (training ? 0 : layout.kept.floats));
  m.backward_workspace = bytes(layout.backward_scratch.floats);
  return m;
}

// --- states ------------------------------------------------------------------------------------------------------

std::vector<Tensor> RecurrentStack::copy_of_state(const Run& run) const {
  std::vector<Tensor> state;
  for (int i = 0; i < state_count(); ++i) {
    state.push_back(
        Tensor::borrow(run.memory + run.layout.state[i], {state_rows(), run.input[0], hidden_size}).clone());
  }
  return state;
}

std::vector<Tensor> RecurrentStack::final_state(void* cache, const Shape& input) const {
  const Layout layout(*this, input, true);
  std::vector<Tensor> state;
  for (int i = 0; i < state_count(); ++i) {
    state.push_back(
        Tensor::borrow(static_cast<float*>(cache) + layout.state[i], {state_rows(), input[0], hidden_size}));
  }
  return state;
}

Tensor RecurrentStack::state_gradient_norms(void* cache, const Shape& input) const {
  return Tensor::borrow(static_cast<float*>(cache) + Layout(*this, input, true).norms, {state_rows(), input[1]});
}

// --- forward and backward ----------------------------------------------------------------------------------------

InputDropout RecurrentStack::dropout_of(bool training, std::uint64_t key, Index layer) const {
  if (layer == 0 || !training) return {0.0, 0};
  return {options.dropout, key + static_cast<std::uint64_t>(layer) * 0xd1342543de82ef95u};
}

void RecurrentStack::forward_layer(const Run& run, Index layer, const InputDropout& dropout, float* y) const {
  const Layout& layout = run.layout;
  RecurrentForward f = {};
  f.shape = shape_of(run.input, layer);
  f.dropout = dropout;
  f.x = run.memory + (layer == 0 ? layout.x : layout.h_of(layer - 1));
  f.h = run.memory + layout.h_of(layer);
  f.backward_follows = layout.keep;
  f.y = y;
  f.mask = run.mask;
  f.workspace = run.scratch + layout.forward_ops;
  for (int d = 0; d < directions(); ++d) {
    f.weights[d] = weights(layer, d).data();
    if (layout.keep_gates) f.gates[d] = run.memory + layout.gates_of(layer, d);
    if (cell_ == CellKind::lstm) f.c[d] = run.memory + layout.c_of(layer, d);
    const Index row = (layer * directions() + d) * f.shape.state_size();
    for (int i = 0; i < state_count(); ++i) {
      f.initial[d][i] = run.initial.empty() ? nullptr : run.initial[static_cast<std::size_t>(i)].data() + row;
      f.final[d][i] = run.memory + layout.state[i] + row;
    }
  }
  recurrent_forward(f);
}

void RecurrentStack::forward(const ForwardCall& call) const {
  const Shape& input = call.inputs[0].shape();
  const Layout layout(*this, input, call.cache != nullptr);
  check_mask(call);
  Run run = {layout, input, initial_state(call), call.mask ? call.mask->data() : nullptr, nullptr, nullptr};
  run.memory = static_cast<float*>(layout.keep ? call.cache : call.workspace);
  run.scratch = static_cast<float*>(call.workspace) + (layout.keep ? 0 : layout.kept.floats);
  const Index batch = input[0], width = directions() * hidden_size, last = options.num_layers - 1;

  to_slots(shape_of(input, 0), input_size, call.inputs[0].data(), run.mask, run.memory + layout.x);
  for (Index l = 0; l <= last; ++l) {
    forward_layer(run, l, dropout_of(call.training, call.random_key, l),
                  l == last && options.return_sequences ? call.output->data() : nullptr);
  }
  if (!options.return_sequences) {
    for (int d = 0; d < directions(); ++d) {
      const float* state = run.memory + layout.state[0] + (last * directions() + d) * batch * hidden_size;
      copy_rows(batch, hidden_size, state, hidden_size, call.output->data() + d * hidden_size, width);
    }
  }
  run.memory[layout.norms] = -1.0f;
  leave_state(call, options.stateful, [&] { return copy_of_state(run); });
}

// dx: each direction's share, or null.
void RecurrentStack::backward_layer(const Run& run, const BackwardCall& call, Index layer, const float* dy_slots,
                                    float* const* dx) {
  const Layout& layout = run.layout;
  const bool last = layer == options.num_layers - 1;
  RecurrentBackward b = {};
  b.shape = shape_of(run.input, layer);
  b.dropout = dropout_of(call.training, call.random_key, layer);
  b.x = run.memory + (layer == 0 ? layout.x : layout.h_of(layer - 1));
  b.h = run.memory + layout.h_of(layer);
  b.mask = run.mask;
  b.dy = last && options.return_sequences ? call.d_output->data() : nullptr;
  b.dy_slots = dy_slots;
  b.truncate = options.truncate;
  b.accumulate = call.accumulate;
  b.workspace = run.scratch + layout.backward_ops;
  const std::size_t state_bytes = static_cast<std::size_t>(b.shape.state_size()) * sizeof(float);
  for (int d = 0; d < directions(); ++d) {
    b.weights[d] = weights(layer, d).data();
    b.gradients[d] = weights(layer, d).gradients();
    if (layout.keep_gates) b.gates[d] = run.memory + layout.gates_of(layer, d);
    b.norms[d] = run.memory + layout.norms + (layer * directions() + d) * b.shape.steps;
    b.dx[d] = dx[d];
    if (cell_ == CellKind::lstm) b.c[d] = run.memory + layout.c_of(layer, d);
    for (int i = 0; i < state_count(); ++i) {
      b.d_state[d][i] = run.scratch + layout.d_state + (d * state_count() + i) * layout.d_state_floats;
      std::memset(b.d_state[d][i], 0, state_bytes);
    }
    if (last && !options.return_sequences) {
      copy_rows(b.shape.batch, hidden_size, call.d_output->data() + d * hidden_size, b.shape.width(), b.d_state[d][0],
                hidden_size);
    }
  }
  recurrent_backward(b);
  for (int i = 0; i + 1 < call.input_count; ++i) {
    Tensor& d_initial = call.d_inputs[i + 1];
    if (!d_initial.defined()) continue;
    for (int d = 0; d < directions(); ++d) {
      std::memcpy(d_initial.data() + (layer * directions() + d) * b.shape.state_size(), b.d_state[d][i], state_bytes);
    }
  }
}

void RecurrentStack::backward(const BackwardCall& call) {
  const Shape& input = call.d_inputs[0].shape();
  const Layout layout(*this, input, true);
  Run run = {layout, input, {}, call.mask ? call.mask->data() : nullptr, nullptr, nullptr};
  run.memory = static_cast<float*>(call.cache);
  run.scratch = static_cast<float*>(call.workspace);
  const bool wanted = call.d_inputs[0].defined();

  const float* dy = nullptr;
  for (Index l = options.num_layers; l-- > 0;) {
    // Two sets, because a layer reads that of the layer above while it writes its own.
    float* dx[2] = {nullptr, nullptr};
    for (int d = 0; d < directions(); ++d)
      if (l > 0 || wanted) dx[d] = run.scratch + layout.dx + (l % 2 * directions() + d) * layout.dx_floats;
    backward_layer(run, call, l, dy, dx);
    if (l > 0 && dx[1]) add_slots(shape_of(input, l), dx[1], dx[0]);
    if (l == 0 && wanted) from_slots(shape_of(input, 0), input_size, dx[0], dx[1], call.d_inputs[0].data());
    dy = dx[0];
  }
}

}  // namespace deepnet
