// Recurrent: a cell unrolled over a sequence (N, T, F). With one shared layer at every step,
//   state(t) = cell(x(t), state(t-1)),  y(t) = the first H columns of state(t)
//   dE/dstate(t-1) = the cell's dE/dstate for dE/dstate(t) + [dE/dy(t) 0],  dE/dW = sum over t of the cell's dE/dW
// (backpropagation through time: Rumelhart, Hinton and Williams 1986; Werbos 1990). Where a sequence's mask is 0 its
// state and dE/dstate pass the step unchanged, y and dE/dx are 0.
//
// What backward needs of each step lies in this layer's cache: x(t), state(t) and the cell's own cache.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <deepnet/cells.hpp>

#include "../config.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

const std::shared_ptr<RecurrentCell>& checked(const std::shared_ptr<RecurrentCell>& cell, const UnrollOptions& o) {
  if (cell == nullptr) throw TypeError("[Recurrent] expected a cell, got nothing");
  if (o.truncate < 0) {
    throw ValueError("[Recurrent] expected truncate >= 1, or 0 for whole sequences, got " + std::to_string(o.truncate));
  }
  return cell;
}

std::vector<Index> checked_sizes(const RecurrentCell& cell) {
  const std::vector<Index> sizes = cell.state_sizes();
  if (sizes.empty() || *std::min_element(sizes.begin(), sizes.end()) < 1) {
    throw ValueError("[" + cell.kind() + "] expected a state_size >= 1, got " + Shape(sizes).str());
  }
  return sizes;
}

// Columns of (N, from_width) to columns of (N, to_width).
void copy_columns(Index rows, Index columns, const float* from, Index from_width, float* to, Index to_width) {
  for (Index n = 0; n < rows; ++n) {
    std::memcpy(to + n * to_width, from + n * from_width, static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// What the cell may have put into memory of its own.
void settle(const Tensor& made, float* memory) {
  if (made.raw() != memory && made.bytes() > 0) std::memcpy(memory, made.raw(), made.bytes());
}

}  // namespace

// --- memory ------------------------------------------------------------------------------------------------------

// Where the steps' arrays lie, offsets in bytes. Without a cache there is one x, and states take two places by turns.
struct Recurrent::Layout {
  Layout(const Recurrent& layer, const Shape& input, bool keep)
      : batch(input[0]), steps(input[1]), features(input[2]), width(layer.width_), keep(keep) {
    const Memory cell = layer.cell->memory(layer.cell_inputs(input), keep);
    cell_bytes = aligned(cell.cache);
    norms = 0;
    final = norms + floats(steps);
    x = final + floats(batch * width);
    states = x + (keep ? steps : 1) * x_bytes();
    cells = states + (keep ? steps + 1 : 2) * state_bytes();
    bytes = cells + (keep ? steps * cell_bytes : 0);
  }

  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
  static std::size_t floats(Index n) { return aligned(static_cast<std::size_t>(n) * sizeof(float)); }
  std::size_t x_bytes() const { return floats(batch * features); }
  std::size_t state_bytes() const { return floats(batch * width); }

  const Index batch, steps, features, width;
  const bool keep;
  std::size_t cell_bytes, norms, final, x, states, cells, bytes;
};

// The steps of one run, numbered i in the order in which they are read.
struct Recurrent::Steps {
  float* at(std::size_t offset) const { return reinterpret_cast<float*>(memory + offset); }
  Tensor x(Index i) const {
    return Tensor::borrow(at(layout.x + (layout.keep ? i : 0) * layout.x_bytes()), {layout.batch, layout.features});
  }
  /// Before step i; after the last one, state(T).
  Tensor state(Index i) const {
    return Tensor::borrow(at(layout.states + (layout.keep ? i : i % 2) * layout.state_bytes()),
                          {layout.batch, layout.width});
  }
  void* cache(Index i) const { return layout.keep ? memory + layout.cells + i * layout.cell_bytes : nullptr; }
  Index time(Index i) const { return reverse ? layout.steps - 1 - i : i; }
  bool is_padding(Index n, Index t) const { return mask && mask[n * layout.steps + t] == 0.0f; }
  std::uint64_t random_key(Index i) const { return key + static_cast<std::uint64_t>(i + 1) * 0xd1342543de82ef95u; }

  ForwardCall forward_call(Index i, const Tensor* inputs, Tensor* output) const {
    ForwardCall call;
    call.inputs = inputs;
    call.input_count = 2;
    call.output = output;
    call.packed = packed;
    call.cache = cache(i);
    call.workspace = cell_workspace;
    call.training = training;
    call.random_key = random_key(i);
    return call;
  }

  const Layout& layout;
  char* memory;        // laid out so
  const void* packed;  // the cell's
  void* cell_workspace;
  const float* mask;
  bool reverse, training;
  std::uint64_t key;
};

std::vector<Shape> Recurrent::cell_inputs(const Shape& input) const {
  return {{input[0], input[2]}, {input[0], width_}};
}

Memory Recurrent::memory(const std::vector<Shape>& inputs, bool training) const {
  const Layout layout(*this, inputs[0], training);
  const Memory inside = cell->memory(cell_inputs(inputs[0]), training);
  Memory m;
  m.packed = inside.packed;
  m.cache = training ? layout.bytes : 0;
  m.forward_workspace = (training ? 0 : layout.bytes) + inside.forward_workspace;
  // dE/dstate after and before a step, the one that passes padding, dE/dx(t); then the cell's, forward or backward.
  m.backward_workspace =
      3 * layout.state_bytes() + layout.x_bytes() + std::max(inside.forward_workspace, inside.backward_workspace);
  return m;
}

// --- construction and checks -------------------------------------------------------------------------------------

Recurrent::Recurrent(std::shared_ptr<RecurrentCell> the_cell, const UnrollOptions& options)
    : cell(checked(the_cell, options)), options(options), parts_(checked_sizes(*cell)), width_(cell->state_size()) {}

LayerPtr Recurrent::from_parts(const Config& config, const std::vector<LayerPtr>& layers) {
  const auto cell = layers.size() == 1 ? std::dynamic_pointer_cast<RecurrentCell>(layers[0]) : nullptr;
  if (cell == nullptr) throw ValueError("[Recurrent] expected one cell inside, got other layers");
  UnrollOptions o;
  o.return_sequences = config_bool(config, "Recurrent", "return_sequences");
  o.stateful = config_bool(config, "Recurrent", "stateful");
  o.truncate = config_int(config, "Recurrent", "truncate");
  o.reverse = config_bool(config, "Recurrent", "reverse");
  return std::make_shared<Recurrent>(cell, o);
}

Config Recurrent::config() const {
  return {{"return_sequences", options.return_sequences},
          {"stateful", options.stateful},
          {"truncate", options.truncate},
          {"reverse", options.reverse}};
}

NamedParameters Recurrent::parameters() const {
  NamedParameters list = cell->parameters();
  for (auto& named : list) named.first = "cell." + named.first;
  return list;
}

Contract Recurrent::contract() const {
  Contract c;
  c.stateful = options.stateful;
  c.backward_needs_input = false;
  c.inspectable = true;
  return c;
}

Shape Recurrent::output_shape(const std::vector<Shape>& inputs) const {
  const std::string expected = "[Recurrent] expected ";
  if (!takes_inputs(static_cast<int>(inputs.size()))) {
    throw ShapeError(expected + "a sequence and perhaps a state of " + std::to_string(parts_.size()) +
                     " array(s), got " + std::to_string(inputs.size()) + " inputs");
  }
  const Shape& x = inputs[0];
  const Index features = cell->input_size();
  if (x.rank() != 3 || (features != 0 && x[2] != features)) {
    throw ShapeError(expected + "input of shape (N, T, " + (features ? std::to_string(features) : "F") + "), got " +
                     x.str());
  }
  if (x[1] < 1) throw ShapeError(expected + "sequences of at least 1 step, got input of shape " + x.str());
  for (std::size_t k = 1; k < inputs.size(); ++k) {
    const Shape state = {1, x[0], parts_[k - 1]};
    if (inputs[k] != state) {
      throw ShapeError(expected + "an initial state of shape " + state.str() + ", got " + inputs[k].str());
    }
  }
  Shape({x[0], x[1] + 1, width_}).size();  // throws where memory() would overflow
  return options.return_sequences ? Shape{x[0], x[1], parts_[0]} : Shape{x[0], parts_[0]};
}

// --- states ------------------------------------------------------------------------------------------------------

// Between the state as users see it, parts of (1, N, S), and its parts side by side, (N, width_).
void Recurrent::join_state(const Tensor* parts, Tensor& state) const {
  Index column = 0;
  for (std::size_t k = 0; k < parts_.size(); column += parts_[k++])
    copy_columns(state.shape()[0], parts_[k], parts[k].data(), parts_[k], state.data() + column, width_);
}

void Recurrent::split_state(const Tensor& state, std::vector<Tensor>& parts) const {
  Index column = 0;
  for (std::size_t k = 0; k < parts_.size(); column += parts_[k++])
    copy_columns(state.shape()[0], parts_[k], state.data() + column, width_, parts[k].data(), parts_[k]);
}

void Recurrent::reset_state() {
  RecurrentLayer::reset_state();
  cell->reset_state();
}

void Recurrent::load_state(const ForwardCall& call, Tensor& state) const {
  if (call.input_count > 1) return join_state(call.inputs + 1, state);
  const auto before = options.stateful ? carried(state.shape()[0]) : std::vector<Tensor>();
  if (before.empty()) {
    state.fill(0.0f);
  } else {
    join_state(before.data(), state);
  }
}

std::vector<Tensor> Recurrent::final_state(void* cache, const Shape& input) const {
  float* part = reinterpret_cast<float*>(static_cast<char*>(cache) + Layout(*this, input, true).final);
  std::vector<Tensor> states;
  for (Index size : parts_) {
    states.push_back(Tensor::borrow(part, {1, input[0], size}));
    part += input[0] * size;
  }
  return states;
}

Tensor Recurrent::state_gradient_norms(void* cache, const Shape& input) const {
  return Tensor::borrow(static_cast<char*>(cache) + Layout(*this, input, true).norms, {1, input[1]});
}

Tensor Recurrent::step(const Tensor& x_t) {
  const std::string expected = "[Recurrent.step] expected ";
  if (options.reverse) throw ValueError(expected + "a layer that reads forwards, got reverse=True");
  if (x_t.dtype() != DType::float32) throw TypeError(expected + "input of type float32, got int64");
  const Shape& shape = x_t.shape();
  const Index features = cell->input_size();
  if (shape.rank() != 2 || (features != 0 && shape[1] != features)) {
    throw ShapeError(expected + "input of shape (N, " + (features ? std::to_string(features) : "F") + "), got " +
                     shape.str());
  }
  FlushDenormals flush;
  const Index batch = shape[0];
  const std::vector<Tensor> before = carried(batch);
  Tensor inputs[2] = {x_t, Tensor::zeros({batch, width_})}, next({batch, width_}), output = next;
  if (!before.empty()) join_state(before.data(), inputs[1]);
  const std::vector<Shape> shapes = {shape, inputs[1].shape()};
  const Memory memory = cell->memory(shapes, false);
  const auto room = [](std::size_t bytes) { return Tensor({static_cast<Index>(bytes / sizeof(float)) + 1}); };
  Tensor workspace = room(memory.forward_workspace), packed = room(memory.packed);
  if (memory.packed > 0) cell->pack(shapes, packed.raw());
  ForwardCall call;
  call.inputs = inputs;
  call.input_count = 2;
  call.output = &output;
  call.packed = packed.raw();
  call.workspace = workspace.raw();
  cell->forward(call);
  settle(output, next.data());
  std::vector<Tensor> after;
  for (Index size : parts_) after.emplace_back(Shape{1, batch, size});
  split_state(next, after);
  const Tensor y = Tensor::borrow(after[0].data(), {batch, parts_[0]}).clone();
  carried_.set(std::move(after));
  return y;
}

// --- forward -----------------------------------------------------------------------------------------------------

void Recurrent::pack(const std::vector<Shape>& inputs, void* packed) const {
  cell->pack(cell_inputs(inputs[0]), packed);
}

void Recurrent::forward(const ForwardCall& call) const {
  const Shape& shape = call.inputs[0].shape();
  const Layout layout(*this, shape, call.cache != nullptr);
  char* memory = static_cast<char*>(layout.keep ? call.cache : call.workspace);
  void* rest = static_cast<char*>(call.workspace) + (layout.keep ? 0 : layout.bytes);
  const Steps steps = {layout,          memory,        call.packed,    rest, mask_of(*this, shape, call.mask),
                       options.reverse, call.training, call.random_key};
  Tensor first = steps.state(0);
  load_state(call, first);
  for (Index i = 0; i < layout.steps; ++i) forward_step(steps, i, call);

  const Tensor last = steps.state(layout.steps);
  std::vector<Tensor> parts = final_state(memory, shape);
  split_state(last, parts);
  if (!options.return_sequences) {
    copy_columns(layout.batch, parts_[0], last.data(), width_, call.output->data(), parts_[0]);
  }
  *steps.at(layout.norms) = -1.0f;  // no backward yet
  leave_state(call, options.stateful, [&] {
    for (Tensor& part : parts) part = part.clone();
    return parts;
  });
}

void Recurrent::forward_step(const Steps& steps, Index i, const ForwardCall& call) const {
  const Layout& s = steps.layout;
  const Index t = steps.time(i), outputs = parts_[0];
  Tensor inputs[2] = {steps.x(i), steps.state(i)}, output = steps.state(i + 1);
  float *x = inputs[0].data(), *next = output.data();
  for (Index n = 0; n < s.batch; ++n) {  // zeros at padding, whatever stands there
    const float* from = call.inputs[0].data() + (n * s.steps + t) * s.features;
    if (steps.is_padding(n, t)) {
      std::fill_n(x + n * s.features, s.features, 0.0f);
    } else {
      std::copy_n(from, s.features, x + n * s.features);
    }
  }
  cell->forward(steps.forward_call(i, inputs, &output));
  settle(output, next);
  for (Index n = 0; n < s.batch; ++n) {
    const bool padding = steps.is_padding(n, t);
    if (padding) std::copy_n(inputs[1].data() + n * width_, width_, next + n * width_);
    if (!options.return_sequences) continue;
    float* y = call.output->data() + (n * s.steps + t) * outputs;
    if (padding) {
      std::fill_n(y, outputs, 0.0f);
    } else {
      std::copy_n(next + n * width_, outputs, y);
    }
  }
}

// --- backward ----------------------------------------------------------------------------------------------------

// The state's gradient is cut between steps t - 1 and t.
bool Recurrent::is_cut(Index t, Index steps) const {
  return options.truncate > 0 && t > 0 && t < steps && t % options.truncate == 0;
}

struct Recurrent::Gradients {
  float *after, *before;  // dE/dstate after and before a step
  float* passing;         // dE/dstate of sequences for which this step is padding
  float* d_x;
};

void Recurrent::backward(const BackwardCall& call) {
  const Shape& shape = call.d_inputs[0].shape();
  const Layout layout(*this, shape, true);
  char* workspace = static_cast<char*>(call.workspace);
  const auto take = [&](std::size_t bytes) {
    float* taken = reinterpret_cast<float*>(workspace);
    workspace += bytes;
    return taken;
  };
  Gradients d;
  d.after = take(layout.state_bytes());
  d.before = take(layout.state_bytes());
  d.passing = take(layout.state_bytes());
  d.d_x = take(layout.x_bytes());
  const Steps steps = {layout,
                       static_cast<char*>(call.cache),
                       call.packed,
                       workspace,
                       mask_of(*this, shape, call.mask),
                       options.reverse,
                       call.training,
                       call.random_key};
  std::fill_n(d.after, layout.batch * width_, 0.0f);
  if (!options.return_sequences) {
    copy_columns(layout.batch, parts_[0], call.d_output->data(), parts_[0], d.after, width_);
  }
  for (Index i = layout.steps; i-- > 0; std::swap(d.after, d.before)) backward_step(steps, i, call, d);

  Index column = 0;
  for (int k = 1; k < call.input_count; ++k) {
    const Index size = parts_[static_cast<std::size_t>(k - 1)];
    if (call.d_inputs[k].defined()) {
      copy_columns(layout.batch, size, d.after + column, width_, call.d_inputs[k].data(), size);
    }
    column += size;
  }
}

void Recurrent::backward_step(const Steps& steps, Index i, const BackwardCall& call, const Gradients& d) {
  const Layout& s = steps.layout;
  const Index t = steps.time(i), outputs = parts_[0];
  double squares = 0.0;
  for (Index n = 0; n < s.batch; ++n) {
    float* after = d.after + n * width_;
    if (steps.is_padding(n, t)) {
      std::copy_n(after, width_, d.passing + n * width_);
      std::fill_n(after, width_, 0.0f);
      continue;
    }
    const float* dy = options.return_sequences ? call.d_output->data() + (n * s.steps + t) * outputs : nullptr;
    for (Index j = 0; j < outputs; ++j) {
      if (dy) after[j] += dy[j];
      squares += static_cast<double>(after[j]) * static_cast<double>(after[j]);
    }
  }
  steps.at(s.norms)[t] = static_cast<float>(std::sqrt(squares));

  cell_backward(steps, i, call, d);
  if (is_cut(options.reverse ? t + 1 : t, s.steps)) {
    std::fill_n(d.before, s.batch * width_, 0.0f);
  } else {
    for (Index n = 0; n < s.batch; ++n)
      if (steps.is_padding(n, t)) std::copy_n(d.passing + n * width_, width_, d.before + n * width_);
  }
  if (!call.d_inputs[0].defined()) return;
  for (Index n = 0; n < s.batch; ++n) {
    float* dx = call.d_inputs[0].data() + (n * s.steps + t) * s.features;
    if (steps.is_padding(n, t)) {
      std::fill_n(dx, s.features, 0.0f);
    } else {
      std::copy_n(d.d_x + n * s.features, s.features, dx);
    }
  }
}

// d.after -> d.before and d.d_x
void Recurrent::cell_backward(const Steps& steps, Index i, const BackwardCall& call, const Gradients& d) {
  const Tensor inputs[2] = {steps.x(i), steps.state(i)}, output = steps.state(i + 1);
  const Shape &x_shape = inputs[0].shape(), &state_shape = inputs[1].shape();
  if (cell->contract().remembers) {  // of a later step by now: remind it of this one
    Tensor again = Tensor::borrow(d.before, state_shape);
    cell->forward(steps.forward_call(i, inputs, &again));
  }
  const Tensor d_output = Tensor::borrow(d.after, state_shape);
  float* d_x = call.d_inputs[0].defined() ? d.d_x : nullptr;
  Tensor d_inputs[2] = {Tensor::borrow(d_x, x_shape), Tensor::borrow(d.before, state_shape)};
  BackwardCall c;
  c.inputs = inputs;
  c.input_count = 2;
  c.output = &output;
  c.d_output = &d_output;
  c.d_inputs = d_inputs;
  c.cache = steps.cache(i);
  c.workspace = steps.cell_workspace;
  c.training = call.training;
  c.accumulate = call.accumulate || i + 1 < steps.layout.steps;
  c.random_key = steps.random_key(i);
  cell->backward(c);
  if (d_x) settle(d_inputs[0], d_x);
  settle(d_inputs[1], d.before);
}

}  // namespace deepnet
