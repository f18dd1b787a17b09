// RNNCell, LSTMCell, GRUCell: one step of a recurrent layer, (x (N, F), state (N, S)) -> new state (N, S). With
//   a = W_ih x + b_ih,  b = W_hh h + b_hh        (N, G H), h the first H columns of the state
// each cell makes its new state from a, b and the state, row by row. Backward: each cell makes dE/da and dE/db; then
//   dE/dx = dE/da W_ih    dE/dW_ih = dE/da^T x    dE/db_ih = sum over n of dE/da      and likewise dE/dh += dE/db W_hh
//   ...
// These are the equations, plainly; RNN, LSTM and GRU do the same work over whole sequences at once. Nothing aliases.
#include <algorithm>
#include <cstring>

#include <deepnet/cells.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../ops/gemm.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

// The sums of all gates, as many as the weights have rows.
Index checked_sums(const char* kind, Index gates, Index input_size, Index hidden_size) {
  if (input_size < 1 || hidden_size < 1) {
    throw ValueError("[" + std::string(kind) + "] expected input_size and hidden_size >= 1, got " +
                     std::to_string(input_size) + " and " + std::to_string(hidden_size));
  }
  Shape({gates, hidden_size, input_size}).size();  // throws where the weights would be too many to count
  Shape({gates, hidden_size, hidden_size}).size();
  return gates * hidden_size;
}

ActivationKind activation_of(const std::string& nonlinearity) {
  if (nonlinearity == "tanh") return ActivationKind::tanh;
  if (nonlinearity == "relu") return ActivationKind::relu;
  if (nonlinearity == "sigmoid") return ActivationKind::sigmoid;
  if (nonlinearity == "softplus") return ActivationKind::softplus;
  throw ValueError("[RNNCell] expected a nonlinearity of tanh, relu, sigmoid, softplus, got \"" + nonlinearity + "\"");
}

constexpr float softplus_beta = 1.0f;

void apply(ActivationKind kind, Index n, const float* x, float* y) {
  kernels().activation_forward(static_cast<int>(kind), softplus_beta, n, x, y);
}

}  // namespace

// --- RecurrentCell -----------------------------------------------------------------------------------------------

Index RecurrentCell::state_size() const {
  Index sum = 0;
  for (Index size : state_sizes()) sum += size;
  return sum;
}

Shape RecurrentCell::output_shape(const std::vector<Shape>& inputs) const {
  const std::string expected = "[" + kind() + "] expected ";
  if (inputs.size() != 2) throw ShapeError(expected + "an input and a state, got " + std::to_string(inputs.size()));
  const Shape &x = inputs[0], &state = inputs[1];
  if (x.rank() != 2 || (input_size() != 0 && x[1] != input_size())) {
    throw ShapeError(expected + "input of shape (N, " + (input_size() ? std::to_string(input_size()) : "F") +
                     "), got " + x.str());
  }
  if (state != Shape{x[0], state_size()}) {
    throw ShapeError(expected + "a state of shape " + Shape{x[0], state_size()}.str() + ", got " + state.str());
  }
  return state;
}

// --- GatedCell ---------------------------------------------------------------------------------------------------

GatedCell::GatedCell(const char* kind, Index gates, Index kept, Index input_size, Index hidden_size, bool bias)
    : weight_ih(default_parameter({checked_sums(kind, gates, input_size, hidden_size), input_size}, hidden_size)),
      weight_hh(default_parameter({gates * hidden_size, hidden_size}, hidden_size)),
      bias_ih(bias ? default_parameter({gates * hidden_size}, hidden_size) : nullptr),
      bias_hh(bias ? default_parameter({gates * hidden_size}, hidden_size) : nullptr),
      input_size_(input_size),
      hidden_size_(hidden_size),
      gates_(gates),
      kept_(kept) {}

Config GatedCell::config() const {
  return {{"input_size", input_size_}, {"hidden_size", hidden_size_}, {"bias", bias_ih != nullptr}};
}

Contract GatedCell::contract() const {
  Contract c;
  c.backward_needs_output = true;
  return c;
}

NamedParameters GatedCell::parameters() const {
  NamedParameters list = {{"weight_ih", weight_ih}, {"weight_hh", weight_hh}};
  if (bias_ih) list.emplace_back("bias_ih", bias_ih);
  if (bias_hh) list.emplace_back("bias_hh", bias_hh);
  return list;
}

// In floats: the two sums (or their gradients), what a cache would keep, an unwanted dE/dstate, the products' own.
struct GatedCell::Workspace {
  Workspace(const GatedCell& cell, Index batch)
      : b(batch * cell.sums()),
        kept(2 * b),
        d_state(kept + batch * cell.kept_ * cell.hidden_size_),
        gemm(d_state + batch * cell.state_size()) {
    const auto larger = [&](Index m, Index n, Index k) {
      size = std::max(size, static_cast<std::size_t>(gemm) + gemm_workspace(m, n, k));
    };
    for (Index width : {cell.input_size_, cell.hidden_size_}) {
      larger(batch, cell.sums(), width);
      larger(batch, width, cell.sums());
      larger(cell.sums(), width, batch);
    }
  }
  const Index b, kept, d_state, gemm;
  std::size_t size = 0;
};

Memory GatedCell::memory(const std::vector<Shape>& inputs, bool) const {
  const Index batch = inputs[0][0];
  Memory m;
  m.cache = static_cast<std::size_t>(batch * kept_ * hidden_size_) * sizeof(float);
  m.forward_workspace = m.backward_workspace = Workspace(*this, batch).size * sizeof(float);
  return m;
}

void GatedCell::forward(const ForwardCall& call) const {
  const Index batch = call.inputs[0].shape()[0], width = call.inputs[1].shape()[1], hidden = hidden_size_;
  const Workspace offsets(*this, batch);
  float* workspace = static_cast<float*>(call.workspace);
  float *a = workspace, *b = workspace + offsets.b;
  float* kept = call.cache ? static_cast<float*>(call.cache) : workspace + offsets.kept;
  const float* state = call.inputs[1].data();
  GemmEpilogue epilogue;
  epilogue.bias_col = bias_ih ? bias_ih->data.data() : nullptr;
  gemm(batch, sums(), input_size_, {call.inputs[0].data(), input_size_, 1}, {weight_ih->data.data(), 1, input_size_}, a,
       sums(), epilogue, workspace + offsets.gemm);
  epilogue.bias_col = bias_hh ? bias_hh->data.data() : nullptr;
  gemm(batch, sums(), hidden, {state, width, 1}, {weight_hh->data.data(), 1, hidden}, b, sums(), epilogue,
       workspace + offsets.gemm);
  float* next = call.output->data();
  for (Index n = 0; n < batch; ++n) {
    forward_row({a + n * sums(), b + n * sums(), state + n * width, kept + n * kept_ * hidden, next + n * width});
  }
}

void GatedCell::backward(const BackwardCall& call) {
  const Index batch = call.inputs[0].shape()[0], width = call.inputs[1].shape()[1], hidden = hidden_size_;
  const Workspace offsets(*this, batch);
  float* workspace = static_cast<float*>(call.workspace);
  float *d_a = workspace, *d_b = workspace + offsets.b, *rest = workspace + offsets.gemm;
  const float *kept = static_cast<const float*>(call.cache), *state = call.inputs[1].data();
  float* d_state = call.d_inputs[1].defined() ? call.d_inputs[1].data() : workspace + offsets.d_state;
  for (Index n = 0; n < batch; ++n) {
    backward_row({kept + n * kept_ * hidden, state + n * width, call.output->data() + n * width,
                  call.d_output->data() + n * width, d_a + n * sums(), d_b + n * sums(), d_state + n * width});
  }
  GemmEpilogue epilogue;
  if (call.d_inputs[0].defined()) {
    gemm(batch, input_size_, sums(), {d_a, sums(), 1}, {weight_ih->data.data(), input_size_, 1},
         call.d_inputs[0].data(), input_size_, epilogue, rest);
  }
  epilogue.accumulate = true;
  gemm(batch, hidden, sums(), {d_b, sums(), 1}, {weight_hh->data.data(), hidden, 1}, d_state, width, epilogue, rest);
  epilogue.accumulate = call.accumulate;
  gemm(sums(), input_size_, batch, {d_a, 1, sums()}, {call.inputs[0].data(), input_size_, 1}, weight_ih->grad().data(),
       input_size_, epilogue, rest);
  gemm(sums(), hidden, batch, {d_b, 1, sums()}, {state, width, 1}, weight_hh->grad().data(), hidden, epilogue, rest);
  if (bias_ih) kernels().sum_rows(batch, sums(), d_a, sums(), bias_ih->grad().data(), call.accumulate);
  if (bias_hh) kernels().sum_rows(batch, sums(), d_b, sums(), bias_hh->grad().data(), call.accumulate);
}

// --- RNNCell -----------------------------------------------------------------------------------------------------

RNNCell::RNNCell(Index input_size, Index hidden_size, bool bias, const std::string& name)
    : GatedCell("RNNCell", 1, 0, input_size, hidden_size, bias), nonlinearity(name), activation_(activation_of(name)) {}

LayerPtr RNNCell::from_config(const Config& config) {
  return std::make_shared<RNNCell>(config_int(config, "RNNCell", "input_size"),
                                   config_int(config, "RNNCell", "hidden_size"), config_bool(config, "RNNCell", "bias"),
                                   config_string(config, "RNNCell", "nonlinearity"));
}

Config RNNCell::config() const {
  Config config = GatedCell::config();
  config["nonlinearity"] = nonlinearity;
  return config;
}

void RNNCell::forward_row(const Row& row) const {
  for (Index j = 0; j < hidden_size_; ++j) row.next[j] = row.a[j] + row.b[j];
  apply(activation_, hidden_size_, row.next, row.next);
}

void RNNCell::backward_row(const RowBackward& row) const {
  kernels().activation_backward(static_cast<int>(activation_), softplus_beta, hidden_size_, row.next, row.d_next,
                                row.d_a);
  std::copy_n(row.d_a, hidden_size_, row.d_b);
  std::fill_n(row.d_state, hidden_size_, 0.0f);
}

// --- LSTMCell: keeps sigmoid(i), sigmoid(f), tanh(g), sigmoid(o), tanh(c') -------------------------------------------

LSTMCell::LSTMCell(Index input_size, Index hidden_size, bool bias)
    : GatedCell("LSTMCell", 4, 5, input_size, hidden_size, bias) {}

LayerPtr LSTMCell::from_config(const Config& config) {
  return std::make_shared<LSTMCell>(config_int(config, "LSTMCell", "input_size"),
                                    config_int(config, "LSTMCell", "hidden_size"),
                                    config_bool(config, "LSTMCell", "bias"));
}

void LSTMCell::forward_row(const Row& row) const {
  const Index hidden = hidden_size_;
  float *i = row.kept, *f = i + hidden, *g = f + hidden, *o = g + hidden, *tanh_c = o + hidden;
  for (Index j = 0; j < 4 * hidden; ++j) row.kept[j] = row.a[j] + row.b[j];
  apply(ActivationKind::sigmoid, 2 * hidden, i, i);
  apply(ActivationKind::tanh, hidden, g, g);
  apply(ActivationKind::sigmoid, hidden, o, o);
  const float* c = row.state + hidden;
  float *h_next = row.next, *c_next = row.next + hidden;
  for (Index j = 0; j < hidden; ++j) c_next[j] = f[j] * c[j] + i[j] * g[j];
  apply(ActivationKind::tanh, hidden, c_next, tanh_c);
  for (Index j = 0; j < hidden; ++j) h_next[j] = o[j] * tanh_c[j];
}

void LSTMCell::backward_row(const RowBackward& row) const {
  const Index hidden = hidden_size_;
  const float *i = row.kept, *f = i + hidden, *g = f + hidden, *o = g + hidden, *tanh_c = o + hidden;
  const float *c = row.state + hidden, *dh = row.d_next, *dc_next = row.d_next + hidden;
  float *d_h = row.d_state, *d_c = row.d_state + hidden;
  for (Index j = 0; j < hidden; ++j) {
    const float dc = dc_next[j] + dh[j] * o[j] * (1.0f - tanh_c[j] * tanh_c[j]);
    row.d_a[j] = dc * g[j] * i[j] * (1.0f - i[j]);
    row.d_a[hidden + j] = dc * c[j] * f[j] * (1.0f - f[j]);
    row.d_a[2 * hidden + j] = dc * i[j] * (1.0f - g[j] * g[j]);
    row.d_a[3 * hidden + j] = dh[j] * tanh_c[j] * o[j] * (1.0f - o[j]);
    d_c[j] = dc * f[j];
    d_h[j] = 0.0f;
  }
  std::copy_n(row.d_a, 4 * hidden, row.d_b);
}

// --- GRUCell: keeps r, z, n, b_n ---------------------------------------------------------------------------------

GRUCell::GRUCell(Index input_size, Index hidden_size, bool bias)
    : GatedCell("GRUCell", 3, 4, input_size, hidden_size, bias) {}

LayerPtr GRUCell::from_config(const Config& config) {
  return std::make_shared<GRUCell>(config_int(config, "GRUCell", "input_size"),
                                   config_int(config, "GRUCell", "hidden_size"),
                                   config_bool(config, "GRUCell", "bias"));
}

void GRUCell::forward_row(const Row& row) const {
  const Index hidden = hidden_size_;
  float *r = row.kept, *z = r + hidden, *n = z + hidden, *b_n = n + hidden;
  for (Index j = 0; j < 2 * hidden; ++j) row.kept[j] = row.a[j] + row.b[j];
  apply(ActivationKind::sigmoid, 2 * hidden, r, r);
  std::copy_n(row.b + 2 * hidden, hidden, b_n);
  for (Index j = 0; j < hidden; ++j) n[j] = row.a[2 * hidden + j] + r[j] * b_n[j];
  apply(ActivationKind::tanh, hidden, n, n);
  for (Index j = 0; j < hidden; ++j) row.next[j] = (1.0f - z[j]) * n[j] + z[j] * row.state[j];
}

void GRUCell::backward_row(const RowBackward& row) const {
  const Index hidden = hidden_size_;
  const float *r = row.kept, *z = r + hidden, *n = z + hidden, *b_n = n + hidden;
  for (Index j = 0; j < hidden; ++j) {
    const float d = row.d_next[j];
    const float d_n = d * (1.0f - z[j]) * (1.0f - n[j] * n[j]);
    const float d_r = d_n * b_n[j] * r[j] * (1.0f - r[j]);
    const float d_z = d * (row.state[j] - n[j]) * z[j] * (1.0f - z[j]);
    row.d_a[j] = row.d_b[j] = d_r;
    row.d_a[hidden + j] = row.d_b[hidden + j] = d_z;
    row.d_a[2 * hidden + j] = d_n;
    row.d_b[2 * hidden + j] = d_n * r[j];
    row.d_state[j] = d * z[j];
  }
}

}  // namespace deepnet
