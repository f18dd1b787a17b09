// RNN, LSTM and GRU: x (N, T, F) -> (N, T, D H), or the last states (N, D H). Here their construction, checks, weights
// and step by step inference; whole sequences are in recurrent_run.cpp.
#include <deepnet/recurrent.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../config.hpp"
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
  Shape({8, o.num_layers, hidden_size, hidden_size}).size();
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

}  // namespace

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
  c.stateful = options.stateful;
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

// --- states --------------------------------------------------------------------------------------------------------

std::vector<Tensor> RecurrentLayer::carried(Index batch) const {
  std::vector<Tensor> state = carried_.get();
  if (state.empty() || state[0].shape()[1] == batch) return state;
  throw ShapeError("[" + kind() + "] expected a batch of " + std::to_string(state[0].shape()[1]) +
                   " sequences, whose state is carried on, got " + std::to_string(batch) +
                   ": give batches of one size, or call reset_state() to begin anew");
}

std::vector<Tensor> RecurrentStack::initial_state(const ForwardCall& call) const {
  if (call.input_count > 1) return std::vector<Tensor>(call.inputs + 1, call.inputs + call.input_count);
  return options.stateful ? carried(call.inputs[0].shape()[0]) : std::vector<Tensor>();
}

void RecurrentStack::check_step(const Tensor& x_t) const {
  const Shape& shape = x_t.shape();
  const bool fits = shape.rank() == 2 && shape[1] == input_size;
  if (!options.bidirectional && x_t.dtype() == DType::float32 && fits) return;
  const std::string name = "[" + kind() + ".step] expected ";
  if (options.bidirectional) throw ValueError(name + "one direction: the other one begins with the last step");
  if (!fits) throw ShapeError(name + "input of shape (N, " + std::to_string(input_size) + "), got " + shape.str());
  throw TypeError(name + "input of type float32, got " + name_of(x_t.dtype()));
}

Tensor RecurrentStack::step(const Tensor& x_t) {
  check_step(x_t);
  FlushDenormals flush;
  const Index batch = x_t.shape()[0];
  const Shape rows = {state_rows(), batch, hidden_size};
  std::vector<Tensor> before = carried(batch), after;
  while (static_cast<int>(before.size()) < state_count()) before.push_back(Tensor::zeros(rows));
  while (static_cast<int>(after.size()) < state_count()) after.emplace_back(rows);
  const float* x = x_t.data();
  for (Index l = 0; l < options.num_layers; ++l) {
    const RecurrentShape s = shape_of({batch, 1, input_size}, l);
    const Index at = l * s.state_size();
    const bool lstm = state_count() == 2;
    const RecurrentState<const float> from = {before[0].data() + at, lstm ? before[1].data() + at : nullptr};
    const RecurrentState<float> to = {after[0].data() + at, lstm ? after[1].data() + at : nullptr};
    recurrent_step(s, weights(l, 0).data(), x, from, to, thread_scratch(Scratch::columns, recurrent_step_workspace(s)));
    x = to.h;
  }
  Tensor y = Tensor::borrow(const_cast<float*>(x), {batch, hidden_size}).clone();
  carried_.set(std::move(after));
  return y;
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
