// One recurrent layer, in one or two directions, over all steps of a batch of sequences.
//
// What is sequential in t is not so in n: the batch is cut into blocks of sequences, each thread takes a block through
// all steps, and blocks never wait for each other. A block goes in chunks of steps. The products that do not depend on
// the state are one matrix product a chunk (after Appleyard, Kocisky and Blunsom 2016, sec. 3, who take all steps at
// once): W_ih x before the chunk's steps, dE/dW_ih, dE/dW_hh and dE/dx behind them, while the chunk's gates are still
// in the second-level cache. Over all steps at once, reading and writing the gates took a quarter of a training step
// (LSTM, 32 sequences, 128 wide). Where there are too few blocks for the cores, another core takes these products, some
// chunks ahead of the walk through the steps or behind it. W_hh is packed once.
//
// A layer's input, states and gradients are laid out block by block, each (T + 2, sequences, width): slot t + 1 belongs
// to step t. Of the states (width D H, the directions side by side) slot 0 holds the forward direction's initial state,
// slot T + 1 the reverse direction's. So the states before a chunk's steps are one matrix, and the states are the next
// layer's input as they lie.
#pragma once

#include <deepnet/recurrent.hpp>

namespace deepnet {

struct RecurrentShape {
  CellKind cell;
  ActivationKind nonlinearity;  ///< of CellKind::rnn
  Index steps, batch, inputs, hidden;
  int directions;

  Index width() const { return directions * hidden; }
  Index slots() const { return batch * (steps + 2); }
  Index state_size() const { return batch * hidden; }
  /// Rows of W_ih and W_hh.
  Index sums() const { return (cell == CellKind::rnn ? 1 : cell == CellKind::lstm ? 4 : 3) * hidden; }
  /// Columns of the gates: of a GRU b, r, z, n, see kernels/recurrent.inl. W_ih's share begins at input_column(),
  /// W_hh's at 0: sums() columns each.
  Index gate_columns() const { return cell == CellKind::gru ? 4 * hidden : sums(); }
  Index input_column() const { return gate_columns() - sums(); }
};

/// How the batch and the steps are cut: by shape alone, and alike in all layers of a stack.
struct RecurrentBlocks {
  explicit RecurrentBlocks(const RecurrentShape& shape);

  static constexpr Index most_units = 16;

  Index rows, count;  ///< sequences of a block, blocks
  Index units;        ///< tasks a direction; each goes through some blocks and adds up their weight gradients
  Index chunk;        ///< steps
  Index in_flight;    ///< chunks; above 1, each unit has a companion for the products that do not wait for the state

  /// Where chunk i of a walk lies among the rows of the chunks in flight.
  Index slot(Index i) const { return i % in_flight * chunk * rows; }
};

/// Of one direction, in PyTorch's layout and order; biases may be null.
struct RecurrentWeights {
  const float *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};
struct RecurrentGradients {
  float *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};

/// The layer's input is dropped out; p = 0: it is not.
struct InputDropout {
  double p;
  std::uint64_t key;
};

struct RecurrentForward {
  RecurrentShape shape;
  RecurrentWeights weights[2];
  InputDropout dropout;
  const float* x;   ///< slots() rows of `inputs`
  float* h;         ///< slots() rows of width()
  float* c[2];      ///< an LSTM's: slots() rows of H, or, where no backward follows, batch rows
  float* gates[2];  ///< batch T rows of gate_columns(); null where no backward needs them
  bool backward_follows;
  const float* initial[2][2];  ///< [direction][h, c]: (N, H), or null: zeros
  float* final[2][2];
  float* y;           ///< (N, T, D H), or null
  const float* mask;  ///< (N, T), or null
  float* workspace;   ///< recurrent_forward_workspace floats
};

struct RecurrentBackward {
  RecurrentShape shape;
  RecurrentWeights weights[2];
  RecurrentGradients gradients[2];
  InputDropout dropout;
  const float *x, *h, *c[2], *gates[2], *mask;  ///< forward's; gates may be null for CellKind::rnn
  const float* dy;                              ///< (N, T, D H); or null
  const float* dy_slots;                        ///< or, of a layer below, slots() rows of width(); or null
  float* d_state[2][2];  ///< [direction][h, c]: (N, H), dE/d(final state) in, dE/d(initial state) out
  float* norms[2];       ///< out: (T), |dE/dh(t)| over batch and features
  float* dx[2];          ///< slots() rows of `inputs`, each direction's share, or null
  Index truncate;        ///< dE/dh is cut between steps of different multiples of it; 0: nowhere
  bool accumulate;       ///< add to the gradients
  float* workspace;      ///< recurrent_backward_workspace floats
};

std::size_t recurrent_forward_workspace(const RecurrentShape& shape);
std::size_t recurrent_backward_workspace(const RecurrentShape& shape);

void recurrent_forward(const RecurrentForward& run);
void recurrent_backward(const RecurrentBackward& run);

/// (N, T, features) to and from slots; what stands at steps of padding becomes 0, whatever it was. Back, the sum of two
/// arrays of slots if `second` is not null.
void to_slots(const RecurrentShape& shape, Index features, const float* x, const float* mask, float* slots);
void from_slots(const RecurrentShape& shape, Index features, const float* slots, const float* second, float* x);

/// h (N, H) and an LSTM's c.
template <class Float>
struct RecurrentState {
  Float *h, *c;
};

/// One step from weights as they are, not packed: x (N, inputs).
std::size_t recurrent_step_workspace(const RecurrentShape& shape);
void recurrent_step(const RecurrentShape& shape, const RecurrentWeights& weights, const float* x,
                    RecurrentState<const float> before, RecurrentState<float> after, float* workspace);

}  // namespace deepnet
