// One recurrent layer, in one or two directions, over all steps of a batch of sequences.
//
// Inside everything is time-major, (T, N, width), so that one step of all sequences is one matrix and so are all steps.
// The products that do not depend on the state are one matrix product over all steps: W_ih x before, dE/dW_ih, dE/dW_hh
// and dE/dx behind the recurrence (Appleyard, Kocisky and Blunsom 2016, sec. 3). What remains is sequential in t but
// not in n: each thread takes some sequences through all steps, and threads never wait for each other.
//
// h of both directions lies side by side, (T + 2, N, D H): slot t + 1 holds the state after step t, slot 0 the forward
// direction's initial state, slot T + 1 the reverse direction's. So the states before all steps are one matrix too, and
// slots 1 ... T are the next layer's input.
#pragma once

#include <deepnet/recurrent.hpp>

namespace deepnet {

struct RecurrentShape {
  CellKind cell;
  ActivationKind nonlinearity;  ///< of CellKind::rnn
  Index steps, batch, inputs, hidden;
  int directions;

  Index rows() const { return steps * batch; }
  Index width() const { return directions * hidden; }
  /// Rows of W_ih and W_hh.
  Index sums() const { return (cell == CellKind::rnn ? 1 : cell == CellKind::lstm ? 4 : 3) * hidden; }
  /// Columns of `gates`: of the GRU b, r, z, n, as kernels/recurrent.inl says; W_ih's share begins at input_column().
  Index gate_columns() const { return cell == CellKind::gru ? 4 * hidden : sums(); }
  Index input_column() const { return gate_columns() - sums(); }
  Index state_size() const { return batch * hidden; }
  /// The slots of h (and of an LSTM's c) before and after step t.
  static Index slot_before(int direction, Index t) { return direction == 0 ? t : t + 2; }
};

/// Of one direction, in PyTorch's layout and order; biases may be null.
struct RecurrentWeights {
  const float *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};
struct RecurrentGradients {
  float *weight_ih, *weight_hh, *bias_ih, *bias_hh;
};

struct RecurrentForward {
  RecurrentShape shape;
  RecurrentWeights weights[2];
  const float* x;     ///< (T, N, inputs)
  float* gates[2];    ///< (T, N, gate_columns)
  float* h;           ///< (T + 2, N, D H); the initial states in their slots
  float* c[2];        ///< (T + 2, N, H) of an LSTM
  bool keeps_c;       ///< false: all slots of c are one, where no backward follows
  float* y;           ///< (N, T, D H), or null
  const float* mask;  ///< (N, T), or null
  float* workspace;   ///< recurrent_forward_workspace floats
};

struct RecurrentBackward {
  RecurrentShape shape;
  RecurrentWeights weights[2];
  RecurrentGradients gradients[2];
  const float *x, *gates[2], *h, *c[2], *mask;  ///< forward's
  const float* dy;                              ///< of direction 0, step 0, sequence 0; or null
  Index dy_step, dy_stride;                     ///< floats from one step, and one sequence, to the next
  float* d_state[2][2];  ///< [direction][h, c]: (N, H), dE/d(final state) in, dE/d(initial state) out
  float* norms[2];       ///< out: (T), |dE/dh(t)| over batch and features
  float* d_gates[2];     ///< (T, N, gate_columns), overwritten
  float* dx;             ///< (T, N, inputs), or null; may be dy, where that is no other's
  Index truncate;        ///< dE/dh is cut between steps of different multiples of it; 0: nowhere
  bool accumulate;
  float* workspace;  ///< recurrent_backward_workspace floats
};

std::size_t recurrent_forward_workspace(const RecurrentShape& shape);
std::size_t recurrent_backward_workspace(const RecurrentShape& shape);

void recurrent_forward(const RecurrentForward& run);
void recurrent_backward(const RecurrentBackward& run);

/// One step from weights as they are, not packed: h (N, H) and c become the new state. For CellKind::gru and the others
/// alike; x is (N, inputs), workspace recurrent_step_workspace floats.
std::size_t recurrent_step_workspace(const RecurrentShape& shape);
void recurrent_step(const RecurrentShape& shape, const RecurrentWeights& weights, const float* x, float* h, float* c,
                    float* workspace);

}  // namespace deepnet
