// Recurrent layers: x(t) = f(x(t-1), a(t)), one shared layer at every step of a sequence.
#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

struct RecurrentShape;
struct RecurrentWeights;
struct RecurrentGradients;
struct InputDropout;

/// What a recurrent layer carries on from call to call: the arrays of its state, or none, and whether they are newer
/// than the state that its last run left to look at. Any thread may ask; arrays that were set are not written again.
class CarriedState {
 public:
  CarriedState() = default;
  CarriedState(const CarriedState& other) : arrays_(other.get()) {}

  std::vector<Tensor> get() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return arrays_;
  }
  void set(std::vector<Tensor> arrays) {
    std::lock_guard<std::mutex> lock(mutex_);
    newest_ = !arrays.empty();
    arrays_.swap(arrays);  // the old ones go after the lock: their owner may wait for one of its own
  }
  /// The arrays if they are the newest state, or none.
  std::vector<Tensor> newest() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return newest_ ? arrays_ : std::vector<Tensor>();
  }
  /// Says that a run has left a newer state.
  void supersede() {
    std::lock_guard<std::mutex> lock(mutex_);
    newest_ = false;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Tensor> arrays_;
  bool newest_ = false;
};

/// What every recurrent layer can be asked beyond Layer: its state, at the end of a run and from step to step.
///
/// Inputs: the sequence (N, T, F) and, optionally, the initial state, one or more arrays (rows, N, S), where a row is
/// one direction of one layer of a stack. Where a call has a mask, a masked step carries the state through and outputs
/// 0.
class RecurrentLayer : public Layer {
 public:
  /// The arrays that the state consists of: 1, or 2 for an LSTM (h and c).
  virtual int state_count() const { return 1; }
  bool takes_inputs(int count) const override { return count == 1 || count == 1 + state_count(); }

  /// The final state, (rows, N, S) each, as views of the cache that forward filled for an input of this shape.
  virtual std::vector<Tensor> final_state(void* cache, const Shape& input) const = 0;
  /// |dE/dh(t)| over batch and features, (rows, T), as a view of that cache; the first number is -1 before a backward.
  virtual Tensor state_gradient_norms(void* cache, const Shape& input) const = 0;

  /// One step of streaming inference: x_t (N, F) -> (N, S). The state stays in the layer until the next step.
  virtual Tensor step(const Tensor& x_t) = 0;
  /// The state that step() and stateful runs carry on, as final_state's arrays; none: zeros.
  std::vector<Tensor> carried_state() const { return carried_.get(); }
  /// Sets it; the arrays are kept, not copied.
  void carry_state(std::vector<Tensor> state) { carried_.set(std::move(state)); }
  /// The same where it is newer than the last run's final_state; else none.
  std::vector<Tensor> newest_carried_state() const { return carried_.newest(); }
  /// Forgets it.
  void reset_state() override { carried_.set({}); }

 protected:
  /// carried_state(), for a batch of that size.
  std::vector<Tensor> carried(Index batch) const;
  /// At the end of a forward: a stateful layer carries the final state on, copy_of_state(); any other has left one in
  /// the cache that is newer than what it carries. A rehearsal leaves nothing.
  template <class Copy>
  void leave_state(const ForwardCall& call, bool stateful, Copy copy_of_state) const {
    if (call.rehearsal) return;
    if (stateful) {
      carried_.set(copy_of_state());
    } else if (call.cache) {
      carried_.supersede();
    }
  }

  mutable CarriedState carried_;
};

struct RecurrentOptions {
  Index num_layers = 1;
  bool bidirectional = false;    ///< a second set of weights reads each sequence from its end
  bool return_sequences = true;  ///< false: only the forward direction's last state and the reverse direction's
  bool bias = true;
  double dropout = 0.0;   ///< in training, of every layer's output but the last one's
  bool stateful = false;  ///< the final state is the next call's initial state
  Index truncate = 0;     ///< the state's gradient is cut every so many steps; 0: nowhere
};

enum class CellKind : std::uint8_t { rnn, lstm, gru };

/// Base of RNN, LSTM and GRU: a stack of num_layers layers, each of D = 1 or 2 directions, over (N, T, F).
///
/// Output (N, T, D H), or (N, D H) without return_sequences. Parameters, as in PyTorch, for layer l (and again with
/// "_reverse" behind): weight_ih_l<l> (G H, F or D H), weight_hh_l<l> (G H, H), bias_ih_l<l> and bias_hh_l<l> (G H), G
/// = 1, 4 (i, f, g, o) or 3 (r, z, n). The rows of a state are (layer 0 forward, layer 0 reverse, layer 1 forward,
/// ...).
class RecurrentStack : public RecurrentLayer {
 public:
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  NamedParameters parameters() const override;

  int state_count() const override { return cell_ == CellKind::lstm ? 2 : 1; }
  std::vector<Tensor> final_state(void* cache, const Shape& input) const override;
  Tensor state_gradient_norms(void* cache, const Shape& input) const override;
  /// Reads and writes the same carried state as stateful runs, so that a stateful layer may read a beginning at once
  /// and go on step by step. Evaluation mode.
  Tensor step(const Tensor& x_t) override;

  const Index input_size, hidden_size;
  const RecurrentOptions options;

 protected:
  RecurrentStack(CellKind cell, const char* kind, Index input_size, Index hidden_size, const RecurrentOptions& options,
                 ActivationKind nonlinearity = ActivationKind::tanh);

 private:
  struct Layout;
  struct Run;
  struct Weights {
    ParameterPtr weight_ih, weight_hh, bias_ih, bias_hh;
    RecurrentWeights data() const;
    RecurrentGradients gradients() const;
  };
  int directions() const { return options.bidirectional ? 2 : 1; }
  Index state_rows() const { return options.num_layers * directions(); }
  RecurrentShape shape_of(const Shape& input, Index layer) const;
  const Weights& weights(Index layer, int direction) const;
  void check_mask(const ForwardCall& call) const;
  void check_step(const Tensor& x_t) const;
  std::vector<Tensor> initial_state(const ForwardCall& call) const;
  std::vector<Tensor> copy_of_state(const Run& run) const;
  InputDropout dropout_of(bool training, std::uint64_t key, Index layer) const;
  void forward_layer(const Run& run, Index layer, const InputDropout& dropout, float* y) const;
  void backward_layer(const Run& run, const BackwardCall& call, Index layer, const float* dy_slots, float* const* dx);

  const CellKind cell_;
  const ActivationKind nonlinearity_;
  std::vector<Weights> weights_;  // of layer l, direction d at l D + d
};

/// h(t) = f(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh), f = tanh, relu, sigmoid or softplus (Elman 1990).
class RNN : public RecurrentStack {
 public:
  RNN(Index input_size, Index hidden_size, const RecurrentOptions& options = {},
      const std::string& nonlinearity = "tanh");
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "RNN"; }
  Config config() const override;

  const std::string nonlinearity;
};

/// Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000):
///   i, f, o = sigmoid(...), g = tanh(...) of W_ih x(t) + b_ih + W_hh h(t-1) + b_hh, in the order i, f, g, o
///   c(t) = f c(t-1) + i g,  h(t) = o tanh(c(t))
class LSTM : public RecurrentStack {
 public:
  LSTM(Index input_size, Index hidden_size, const RecurrentOptions& options = {});
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "LSTM"; }
};

/// Gated recurrent unit (Cho et al. 2014), in PyTorch's form:
///   r, z = sigmoid(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh)
///   n = tanh(W_in x(t) + b_in + r (W_hn h(t-1) + b_hn)),  h(t) = (1 - z) n + z h(t-1)
class GRU : public RecurrentStack {
 public:
  GRU(Index input_size, Index hidden_size, const RecurrentOptions& options = {});
  static LayerPtr from_config(const Config& config);
  std::string kind() const override { return "GRU"; }
};

}  // namespace deepnet
