// RNN, LSTM and GRU: x (N, T, F) -> (N, T, D H), or the last states (N, D H). What one layer of the stack computes is
// in ops/recurrent.hpp; here the stack: checks, memory, the way in and out of time-major order, dropout, states.
#include <deepnet/recurrent.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../ops/recurrent.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

Index checked(const char* kind, Index input_size, Index hidden_size, const RecurrentOptions& o) {
  const std::string name = "[" + std::string(kind) + "] expected ";
  if (input_size < 1 || hidden_size < 1 || o.num_layers < 1) {
    throw ValueError(name + "input_size, hidden_size and num_layers >= 1, got " + std::to_string(input_size) + ", " +
                     std::to_string(hidden_size) + " and " + std::to_string(o.num_layers));
  }
  if (!(o.dropout >= 0.0 && o.dropout <= 1.0))
    throw ValueError(name + "a dropout in [0, 1], got " + std::to_string(o.dropout));
  if (o.truncate < 0)
    throw ValueError(name + "truncate >= 1, or 0 for whole sequences, got " + std::to_string(o.truncate));
  Shape({8, input_size, hidden_size}).size();  // throws where the weights would be too many to count
  Shape({8, hidden_size, hidden_size}).size();
  return input_size;
}

ActivationKind nonlinearity_of(const std::string& name) {
  if (name == "tanh") return ActivationKind::tanh;
  if (name == "relu") return ActivationKind::relu;
  if (name == "sigmoid") return ActivationKind::sigmoid;
  if (name == "softplus") return ActivationKind::softplus;
  throw ValueError("[RNN] expected a nonlinearity of tanh, relu, sigmoid, softplus, got '" + name + "'");
}

RecurrentOptions options_of(const Config& config, const char* kind) {
  RecurrentOptions o;
  o.num_layers = config_int(config, kind, "num_layers");
  o.bidirectional = config_bool(config, kind, "bidirectional");
  o.return_sequences = config_bool(config, kind, "return_sequences");
  o.bias = config_bool(config, kind, "bias");
  o.dropout = config_double(config, kind, "dropout");
  o.stateful = config_bool(config, kind, "stateful");
  o.truncate = config_int(config, kind, "truncate");
  return o;
}

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
  // A piece of memory dealt out from its beginning.
  struct Region {
    Index floats = 0;
    Index take(Index n) {
      const Index at = floats;
      floats += (n + 15) / 16 * 16;
      return at;
    }
  };

  Layout(const RecurrentStack& layer, const Shape& input, bool keep);

  Index h_of(Index l) const { return h + (keep ? l : l % 2) * h_floats; }
  Index c_of(Index l, int d) const { return c + ((keep ? l * directions : 0) + d) * c_floats; }
  Index gates_of(Index l, int d) const { return gates + (l * directions + d) * gate_floats; }

  const bool keep, keep_gates;
  const int directions;
  Region kept, forward_scratch, backward_scratch;
  Index state_floats, state[2], norms, x;
  Index h, h_floats, c, c_floats, gates, gate_floats;
  Index forward_ops, d_state, d_state_floats, dx, dx_floats, backward_ops;
};

RecurrentStack::Layout::Layout(const RecurrentStack& layer, const Shape& input, bool keep)
    : keep(keep), keep_gates(keep && layer.cell_ != CellKind::rnn), directions(layer.directions()) {
  const RecurrentShape first = layer.shape_of(input, 0), other = layer.shape_of(input, 1);
  const Index layers = layer.options.num_layers;
  const bool lstm = layer.cell_ == CellKind::lstm;
  const auto aligned = [](Index n) { return (n + 15) / 16 * 16; };

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

RecurrentShape RecurrentStack::shape_of(const Shape& input, Index layer) const {
  RecurrentShape s;
  s.cell = cell_;
  s.nonlinearity = nonlinearity_;
  s.steps = input[1];
  s.batch = input[0];
  s.inputs = layer == 0 ? input_size : directions() * hidden_size;
  s.hidden = hidden_size;
  s.directions = directions();
  return s;
}

Memory RecurrentStack::memory(const std::vector<Shape>& inputs, bool training) const {
  const Layout layout(*this, inputs[0], training);
  const auto bytes = [](Index floats) { return static_cast<std::size_t>(floats) * sizeof(float); };
  Memory m;
  m.cache = bytes(training ? layout.kept.floats : 0);
  m.forward_workspace = bytes(layout.forward_scratch.floats + (training ? 0 : layout.kept.floats));
  m.backward_workspace = bytes(layout.backward_scratch.floats);
  return m;
}

// --- construction and checks ---------------------------------------------------------------------------------------

RecurrentStack::RecurrentStack(CellKind cell, const char* kind, Index input_size, Index hidden_size,
                               const RecurrentOptions& options, ActivationKind nonlinearity)
    : input_size(checked(kind, input_size, hidden_size, options)),
      hidden_size(hidden_size),
      options(options),
      cell_(cell),
      nonlinearity_(nonlinearity) {
  for (Index l = 0; l < options.num_layers; ++l) {
    const RecurrentShape s = shape_of({1, 1, input_size}, l);
    for (int d = 0; d < directions(); ++d) {
      Weights w;
      w.weight_ih = default_parameter({s.sums(), s.inputs}, hidden_size);
      w.weight_hh = default_parameter({s.sums(), hidden_size}, hidden_size);
      if (options.bias) w.bias_ih = default_parameter({s.sums()}, hidden_size);
      if (options.bias) w.bias_hh = default_parameter({s.sums()}, hidden_size);
      weights_.push_back(std::move(w));
    }
  }
}

Config RecurrentStack::config() const {
  return {{"input_size", input_size},
          {"hidden_size", hidden_size},
          {"num_layers", options.num_layers},
          {"bidirectional", options.bidirectional},
          {"return_sequences", options.return_sequences},
          {"bias", options.bias},
          {"dropout", options.dropout},
          {"stateful", options.stateful},
          {"truncate", options.truncate}};
}

NamedParameters RecurrentStack::parameters() const {
  NamedParameters list;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const std::size_t d = i % static_cast<std::size_t>(directions());
    const std::string end =
        "_l" + std::to_string(i / static_cast<std::size_t>(directions())) + (d == 1 ? "_reverse" : "");
    list.emplace_back("weight_ih" + end, weights_[i].weight_ih);
    list.emplace_back("weight_hh" + end, weights_[i].weight_hh);
    if (!options.bias) continue;
    list.emplace_back("bias_ih" + end, weights_[i].bias_ih);
    list.emplace_back("bias_hh" + end, weights_[i].bias_hh);
  }
  return list;
}

Contract RecurrentStack::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.inspectable = true;
  return c;
}

Shape RecurrentStack::output_shape(const std::vector<Shape>& inputs) const {
  const std::string name = "[" + kind() + "] expected ";
  const int count = static_cast<int>(inputs.size());
  if (!takes_inputs(count)) {
    throw ShapeError(name + "a sequence, or a sequence and " + (state_count() == 2 ? "h0, c0" : "h0") + ", got " +
                     std::to_string(count) + " inputs");
  }
  const Shape& x = inputs[0];
  if (x.rank() != 3 || x[2] != input_size) {
    throw ShapeError(name + "input of shape (N, T, " + std::to_string(input_size) + "), got " + x.str());
  }
  if (x[1] < 1) throw ShapeError(name + "sequences of at least 1 step, got input of shape " + x.str());
  const Shape state = {state_rows(), x[0], hidden_size};
  for (int i = 1; i < count; ++i) {
    const Shape& got = inputs[static_cast<std::size_t>(i)];
    if (got != state) {
      throw ShapeError(name + "an initial state of shape " + state.str() + " (layers x directions, N, H), got " +
                       got.str());
    }
  }
  const Index width = directions() * hidden_size;
  Shape({4, x[0], x[1] + 2, width, options.num_layers}).size();  // throws where memory() would overflow
  return options.return_sequences ? Shape{x[0], x[1], width} : Shape{x[0], width};
}

void RecurrentStack::check_mask(const ForwardCall& call) const {
  const Shape& x = call.inputs[0].shape();
  if (call.mask == nullptr || call.mask->shape() == Shape{x[0], x[1]}) return;
  throw ShapeError("[" + kind() + "] expected a mask of shape (N, T) for input of shape " + x.str() + ", got " +
                   call.mask->shape().str());
}

// --- states --------------------------------------------------------------------------------------------------------

// The arrays that the last call left for a batch of this size, or none.
std::vector<Tensor> RecurrentStack::carried(Index batch) const {
  std::vector<Tensor> state = carried_.get();
  if (state.empty() || state[0].shape()[1] == batch) return state;
  throw ShapeError("[" + kind() + "] expected a batch of " + std::to_string(state[0].shape()[1]) +
                   " sequences, whose state is carried on, got " + std::to_string(batch) +
                   ": call reset_state() to begin anew");
}

std::vector<Tensor> RecurrentStack::initial_state(const ForwardCall& call) const {
  if (call.input_count > 1) return std::vector<Tensor>(call.inputs + 1, call.inputs + call.input_count);
  return options.stateful ? carried(call.inputs[0].shape()[0]) : std::vector<Tensor>();
}

void RecurrentStack::carry(const Run& run) const {
  std::vector<Tensor> state;
  for (int i = 0; i < state_count(); ++i) {
    state.push_back(
        Tensor::borrow(run.memory + run.layout.state[i], {state_rows(), run.input[0], hidden_size}).clone());
  }
  carried_.set(std::move(state));
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

void RecurrentStack::reset_state() { carried_.set({}); }

Tensor RecurrentStack::step(const Tensor& x_t) {
  const std::string name = "[" + kind() + ".step] expected ";
  if (options.bidirectional) throw ValueError(name + "one direction: the other one begins with the last step");
  if (x_t.dtype() != DType::float32) throw TypeError(name + "input of type float32, got " + name_of(x_t.dtype()));
  const Shape& shape = x_t.shape();
  if (shape.rank() != 2 || shape[1] != input_size) {
    throw ShapeError(name + "input of shape (N, " + std::to_string(input_size) + "), got " + shape.str());
  }
  FlushDenormals flush;
  const Index batch = shape[0];
  std::vector<Tensor> state;
  for (const Tensor& before : carried(batch)) state.push_back(before.clone());
  while (static_cast<int>(state.size()) < state_count())
    state.push_back(Tensor::zeros({state_rows(), batch, hidden_size}));
  const float* x = x_t.data();
  for (Index l = 0; l < options.num_layers; ++l) {
    const RecurrentShape s = shape_of({batch, 1, input_size}, l);
    float* h = state[0].data() + l * s.state_size();
    float* c = state_count() == 2 ? state[1].data() + l * s.state_size() : nullptr;
    recurrent_step(s, weights(l, 0).data(), x, h, c, thread_scratch(Scratch::columns, recurrent_step_workspace(s)));
    x = h;
  }
  Tensor y = Tensor::borrow(const_cast<float*>(x), {batch, hidden_size}).clone();
  carried_.set(std::move(state));
  return y;
}

// --- forward and backward --------------------------------------------------------------------------------------------

const RecurrentStack::Weights& RecurrentStack::weights(Index layer, int direction) const {
  return weights_[static_cast<std::size_t>(layer * directions() + direction)];
}

RecurrentWeights RecurrentStack::Weights::data() const {
  return {weight_ih->data.data(), weight_hh->data.data(), bias_ih ? bias_ih->data.data() : nullptr,
          bias_hh ? bias_hh->data.data() : nullptr};
}

RecurrentGradients RecurrentStack::Weights::gradients() const {
  return {weight_ih->grad().data(), weight_hh->grad().data(), bias_ih ? bias_ih->grad().data() : nullptr,
          bias_hh ? bias_hh->grad().data() : nullptr};
}

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
  if (options.stateful && !call.rehearsal) carry(run);
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
    b.gates[d] = run.memory + layout.gates_of(layer, d);
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

// --- the three -------------------------------------------------------------------------------------------------------

RNN::RNN(Index input_size, Index hidden_size, const RecurrentOptions& options, const std::string& nonlinearity)
    : RecurrentStack(CellKind::rnn, "RNN", input_size, hidden_size, options, nonlinearity_of(nonlinearity)),
      nonlinearity(nonlinearity) {}

LSTM::LSTM(Index input_size, Index hidden_size, const RecurrentOptions& options)
    : RecurrentStack(CellKind::lstm, "LSTM", input_size, hidden_size, options) {}

GRU::GRU(Index input_size, Index hidden_size, const RecurrentOptions& options)
    : RecurrentStack(CellKind::gru, "GRU", input_size, hidden_size, options) {}

Config RNN::config() const {
  Config config = RecurrentStack::config();
  config["nonlinearity"] = nonlinearity;
  return config;
}

LayerPtr RNN::from_config(const Config& config) {
  return std::make_shared<RNN>(config_int(config, "RNN", "input_size"), config_int(config, "RNN", "hidden_size"),
                               options_of(config, "RNN"), config_string(config, "RNN", "nonlinearity"));
}

LayerPtr LSTM::from_config(const Config& config) {
  return std::make_shared<LSTM>(config_int(config, "LSTM", "input_size"), config_int(config, "LSTM", "hidden_size"),
                                options_of(config, "LSTM"));
}

LayerPtr GRU::from_config(const Config& config) {
  return std::make_shared<GRU>(config_int(config, "GRU", "input_size"), config_int(config, "GRU", "hidden_size"),
                               options_of(config, "GRU"));
}

}  // namespace deepnet
