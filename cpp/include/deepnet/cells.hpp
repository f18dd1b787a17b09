// Cells: one step of a recurrent layer, x(t) = f(x(t-1), a(t)), and Recurrent, which unrolls any of them over a
// sequence.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <deepnet/recurrent.hpp>

namespace deepnet {

/// One step: inputs (a(t), state), (N, F) and (N, S), -> the new state, (N, S). Its first output_size() columns are the
/// step's output. A cell of your own implements input_size, state_sizes, forward and backward, as any layer does.
class RecurrentCell : public Layer {
 public:
  /// F; 0: any.
  virtual Index input_size() const { return 0; }
  /// The widths of the arrays that make up the state, side by side in its S columns: {H}, or {H, H} for h and c.
  virtual std::vector<Index> state_sizes() const = 0;
  Index state_size() const;
  Index output_size() const { return state_sizes()[0]; }

  int input_count() const override { return 2; }
  Shape output_shape(const std::vector<Shape>& inputs) const override;
};

/// Base of the cells with weights as PyTorch's: a = W_ih x + b_ih and b = W_hh h + b_hh, (N, G H) each, for G sums a
/// unit; what becomes of them is each cell's own. weight_ih (G H, F), weight_hh (G H, H), bias_ih and bias_hh (G H),
/// all uniform in +-1/sqrt(H) at first.
class GatedCell : public RecurrentCell {
 public:
  Index input_size() const override { return input_size_; }
  Config config() const override;
  Contract contract() const override;
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  NamedParameters parameters() const override;

  Index hidden_size() const { return hidden_size_; }

  const ParameterPtr weight_ih, weight_hh, bias_ih, bias_hh;  ///< biases are null where there are none

 protected:
  GatedCell(const char* kind, Index gates, Index kept, Index input_size, Index hidden_size, bool bias);

  /// Pointers to row n of the arrays of one step.
  struct Row {
    const float *a, *b;  ///< G H sums from the input and from the state
    const float* state;  ///< before the step
    float* kept;         ///< kept_ H numbers that backward needs
    float* next;         ///< the state after the step
  };
  struct RowBackward {
    const float *kept, *state, *next;
    const float* d_next;  ///< dE/d(state after the step)
    float *d_a, *d_b;
    float* d_state;  ///< dE/d(state before the step), but for what comes through b
  };
  virtual void forward_row(const Row& row) const = 0;
  virtual void backward_row(const RowBackward& row) const = 0;

  const Index input_size_, hidden_size_;

 private:
  struct Workspace;
  Index sums() const { return gates_ * hidden_size_; }

  const Index gates_, kept_;
};

/// h' = f(W_ih x + b_ih + W_hh h + b_hh), f = tanh, relu, sigmoid or softplus.
class RNNCell : public GatedCell {
 public:
  RNNCell(Index input_size, Index hidden_size, bool bias = true, const std::string& nonlinearity = "tanh");
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "RNNCell"; }
  Config config() const override;
  std::vector<Index> state_sizes() const override { return {hidden_size_}; }

  const std::string nonlinearity;

 private:
  void forward_row(const Row& row) const override;
  void backward_row(const RowBackward& row) const override;
  const ActivationKind activation_;
};

/// The sums of the gates i, f, g, o being W_ih x + b_ih + W_hh h + b_hh:
///   c' = sigmoid(f) c + sigmoid(i) tanh(g),  h' = sigmoid(o) tanh(c');  the state is [h c]
class LSTMCell : public GatedCell {
 public:
  LSTMCell(Index input_size, Index hidden_size, bool bias = true);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "LSTMCell"; }
  std::vector<Index> state_sizes() const override { return {hidden_size_, hidden_size_}; }

 private:
  void forward_row(const Row& row) const override;
  void backward_row(const RowBackward& row) const override;
};

/// r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh),  n = tanh(W_in x + b_in + r (W_hn h + b_hn)),  h' = (1 - z) n + z h
class GRUCell : public GatedCell {
 public:
  GRUCell(Index input_size, Index hidden_size, bool bias = true);
  static LayerPtr from_config(const Config& config);

  std::string kind() const override { return "GRUCell"; }
  std::vector<Index> state_sizes() const override { return {hidden_size_}; }

 private:
  void forward_row(const Row& row) const override;
  void backward_row(const RowBackward& row) const override;
};

struct UnrollOptions {
  bool return_sequences = true;  ///< false: only the output of the last step
  bool stateful = false;         ///< the final state is the next call's initial state
  Index truncate = 0;            ///< the state's gradient is cut every so many steps; 0: nowhere
  bool reverse = false;          ///< reads each sequence from its end to its beginning
};

/// Any cell unrolled over a sequence: (N, T, F) -> (N, T, H), or (N, H) without return_sequences. Unrolled, the network
/// is the same shared layer T times, its deltas added up. Parameters: the cell's, "cell.weight_ih". States: (1, N, S).
class Recurrent : public RecurrentLayer {
 public:
  explicit Recurrent(std::shared_ptr<RecurrentCell> cell, const UnrollOptions& options = {});
  static LayerPtr from_parts(const Config& config, const std::vector<LayerPtr>& layers);

  std::string kind() const override { return "Recurrent"; }
  Config config() const override;
  Contract contract() const override;
  Shape output_shape(const std::vector<Shape>& inputs) const override;
  Memory memory(const std::vector<Shape>& inputs, bool training) const override;
  void pack(const std::vector<Shape>& inputs, void* packed) const override;
  void forward(const ForwardCall& call) const override;
  void backward(const BackwardCall& call) override;
  NamedParameters parameters() const override;
  std::vector<LayerPtr> children() const override { return {cell}; }

  int state_count() const override { return static_cast<int>(parts_.size()); }
  std::vector<Tensor> final_state(void* cache, const Shape& input) const override;
  Tensor state_gradient_norms(void* cache, const Shape& input) const override;
  Tensor step(const Tensor& x_t) override;
  void reset_state() override;

  const std::shared_ptr<RecurrentCell> cell;
  const UnrollOptions options;

 private:
  struct Layout;
  struct Steps;
  struct Gradients;
  std::vector<Shape> cell_inputs(const Shape& input) const;
  void join_state(const Tensor* parts, Tensor& state) const;
  void split_state(const Tensor& state, std::vector<Tensor>& parts) const;
  void load_state(const ForwardCall& call, Tensor& state) const;
  void forward_step(const Steps& steps, Index i, const ForwardCall& call) const;
  bool is_cut(Index t, Index steps) const;
  void backward_step(const Steps& steps, Index i, const BackwardCall& call, const Gradients& d);
  void cell_backward(const Steps& steps, Index i, const BackwardCall& call, const Gradients& d);

  const std::vector<Index> parts_;  // the cell's state_sizes
  const Index width_;               // their sum
};

}  // namespace deepnet
