#include "recurrent.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "gemm.hpp"

namespace deepnet {
namespace {

Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// Sequences that one task takes through all steps. Every task reads W_hh once a step, from the second-level cache as a
// rule: that is paid for by many rows. By shape alone, see parallel.hpp.
Index sequences_per_task(const RecurrentShape& s) {
  constexpr Index most = 16;
  const double work = static_cast<double>(s.steps) * s.gate_columns() * (static_cast<double>(s.hidden) / 16 + 4);
  return std::min(std::min(even_piece(s.batch, most), s.batch), std::max<Index>(grain_for(work), 1));
}

Index tasks_per_direction(const RecurrentShape& s) {
  const Index rows = sequences_per_task(s);
  return rows == 0 ? 0 : (s.batch + rows - 1) / rows;
}

// run(direction, first sequence, sequences, task of that direction)
template <class Run>
void for_each_task(const RecurrentShape& s, Run run) {
  const Index tasks = tasks_per_direction(s), rows = sequences_per_task(s);
  parallel_for(s.directions * tasks, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const Index task = i % tasks, first = task * rows;
      run(static_cast<int>(i / tasks), first, std::min(rows, s.batch - first), task);
    }
  });
}

Index packed_floats(Index k, Index n) { return k * round_up(n, kernels().gemm_nr); }

// --- forward -----------------------------------------------------------------------------------------------------

// Columns of the gates that a product with h makes, and the panels of W_hh^T for it.
struct Product {
  Index column, columns;
  bool accumulate;
  const float* bias;
  const float* packed;
};

// The GRU's b stands alone: it is not added to W_ih x.
struct Products {
  Product product[2];
  int count;
};

Index packed_forward(const RecurrentShape& s) {
  if (s.cell != CellKind::gru) return packed_floats(s.hidden, s.sums());
  return packed_floats(s.hidden, s.hidden) + packed_floats(s.hidden, 2 * s.hidden);
}

Products pack_forward(const RecurrentShape& s, const RecurrentWeights& w, float* packed) {
  const Index hidden = s.hidden;
  const auto pack = [&](Index row, Index rows, float* to) {
    kernels().pack_b(w.weight_hh + row * hidden, 1, hidden, hidden, rows, hidden, to);
  };
  if (s.cell != CellKind::gru) {
    pack(0, s.sums(), packed);
    return {{{0, s.sums(), true, nullptr, packed}, {}}, 1};
  }
  float* rest = packed + packed_floats(hidden, hidden);
  pack(2 * hidden, hidden, packed);
  pack(0, 2 * hidden, rest);
  const float* bias = w.bias_hh ? w.bias_hh + 2 * hidden : nullptr;
  return {{{0, hidden, false, bias, packed}, {hidden, 2 * hidden, true, nullptr, rest}}, 2};
}

// What is added to W_ih x: both biases, but for the GRU's b_hn.
void add_biases(const RecurrentShape& s, const RecurrentWeights& w, float* bias) {
  std::memcpy(bias, w.bias_ih, static_cast<std::size_t>(s.sums()) * sizeof(float));
  kernels().add(s.cell == CellKind::gru ? 2 * s.hidden : s.sums(), w.bias_hh, bias);
}

void project_inputs(const RecurrentForward& run, int d, float* bias, float* workspace) {
  const RecurrentShape& s = run.shape;
  const RecurrentWeights& w = run.weights[d];
  GemmEpilogue epilogue;
  if (w.bias_ih) {
    add_biases(s, w, bias);
    epilogue.bias_col = bias;
  }
  gemm(s.rows(), s.sums(), s.inputs, {run.x, s.inputs, 1}, {w.weight_ih, 1, s.inputs}, run.gates[d] + s.input_column(),
       s.gate_columns(), epilogue, workspace);
}

void cell_forward(const RecurrentShape& s, const CellForward& step) {
  const KernelTable& kernel = kernels();
  switch (s.cell) {
    case CellKind::rnn:
      return kernel.rnn_forward(static_cast<int>(s.nonlinearity), &step);
    case CellKind::lstm:
      return kernel.lstm_forward(&step);
    case CellKind::gru:
      return kernel.gru_forward(&step);
  }
}

// Sequences [first, first + count) from the first step to the last.
void run_forward(const RecurrentForward& run, const Products& products, int d, Index first, Index count) {
  const RecurrentShape& s = run.shape;
  const Index columns = s.gate_columns(), width = s.width(), hidden = s.hidden;
  const Index c_slot = run.keeps_c ? s.state_size() : 0;
  for (Index i = 0; i < s.steps; ++i) {
    const Index t = d == 0 ? i : s.steps - 1 - i, before = s.slot_before(d, t);
    float* gates = run.gates[d] + (t * s.batch + first) * columns;
    CellForward step = {};
    step.rows = count;
    step.width = hidden;
    step.gates = gates;
    step.gate_stride = columns;
    step.h_before = run.h + (before * s.batch + first) * width + d * hidden;
    step.h = run.h + ((t + 1) * s.batch + first) * width + d * hidden;
    step.h_stride = width;
    if (run.c[d]) {
      step.c_before = run.c[d] + before * c_slot + first * hidden;
      step.c = run.c[d] + (t + 1) * c_slot + first * hidden;
    }
    if (run.y) step.y = run.y + (first * s.steps + t) * width + d * hidden;
    step.y_stride = s.steps * width;
    if (run.mask) step.mask = run.mask + first * s.steps + t;
    step.mask_stride = s.steps;
    for (int p = 0; p < products.count; ++p) {
      const Product& it = products.product[p];
      GemmBlock block = {};
      block.m = count;
      block.n = it.columns;
      block.k = hidden;
      block.a = step.h_before;
      block.b = it.packed;
      block.c = gates + it.column;
      block.ldc = columns;
      block.bias_col = it.bias;
      block.accumulate = it.accumulate;
      kernels().gemm_rows(&block, width);
    }
    cell_forward(s, step);
  }
}

// --- backward ----------------------------------------------------------------------------------------------------

// W_hh as the right-hand side of dE/d(sums) W_hh, its rows in the order of the gates.
void pack_backward(const RecurrentShape& s, const float* weight_hh, float* packed) {
  const Index hidden = s.hidden, depth = s.sums();
  const auto pack = [&](Index from, Index rows, Index to) {
    kernels().pack_b(weight_hh + from * hidden, hidden, 1, rows, hidden, depth, packed + to * kernels().gemm_nr);
  };
  if (s.cell != CellKind::gru) return pack(0, depth, 0);
  pack(2 * hidden, hidden, 0);
  pack(0, 2 * hidden, hidden);
}

float cell_backward(const RecurrentShape& s, const CellBackward& step) {
  const KernelTable& kernel = kernels();
  if (s.cell == CellKind::rnn) return kernel.rnn_backward(static_cast<int>(s.nonlinearity), &step);
  return s.cell == CellKind::lstm ? kernel.lstm_backward(&step) : kernel.gru_backward(&step);
}

// Whether the gradient of the state is cut between steps t and t - 1.
bool is_cut(const RecurrentBackward& run, Index t) {
  return run.truncate > 0 && t > 0 && t < run.shape.steps && t % run.truncate == 0;
}

// Sequences [first, first + count) from the last step to the first. squares: (T), the task's share of |dE/dh(t)|^2.
void run_backward(const RecurrentBackward& run, const float* packed, int d, Index first, Index count, float* squares) {
  const RecurrentShape& s = run.shape;
  const Index columns = s.gate_columns(), width = s.width(), hidden = s.hidden;
  const std::size_t state_bytes = static_cast<std::size_t>(count * hidden) * sizeof(float);
  CellBackward step = {};
  step.rows = count;
  step.width = hidden;
  step.gate_stride = columns;
  step.h_stride = width;
  step.dy_stride = run.dy_stride;
  step.mask_stride = s.steps;
  step.dh = run.d_state[d][0] + first * hidden;
  if (s.cell == CellKind::lstm) step.dc = run.d_state[d][1] + first * hidden;
  for (Index i = 0; i < s.steps; ++i) {
    const Index t = d == 0 ? s.steps - 1 - i : i, before = s.slot_before(d, t);
    step.gates = run.gates[d] + (t * s.batch + first) * columns;
    step.h_before = run.h + (before * s.batch + first) * width + d * hidden;
    step.h = run.h + ((t + 1) * s.batch + first) * width + d * hidden;
    if (run.c[d]) {
      step.c_before = run.c[d] + (before * s.batch + first) * hidden;
      step.c = run.c[d] + ((t + 1) * s.batch + first) * hidden;
    }
    if (run.dy) step.dy = run.dy + t * run.dy_step + first * run.dy_stride + d * hidden;
    if (run.mask) step.mask = run.mask + first * s.steps + t;
    step.d_gates = run.d_gates[d] + (t * s.batch + first) * columns;
    squares[t] = cell_backward(s, step);
    if (is_cut(run, d == 0 ? t : t + 1)) {
      std::memset(step.dh, 0, state_bytes);
      if (step.dc) std::memset(step.dc, 0, state_bytes);
      continue;
    }
    GemmBlock block = {};
    block.m = count;
    block.n = hidden;
    block.k = s.sums();
    block.a = step.d_gates;
    block.b = packed;
    block.c = step.dh;
    block.ldc = hidden;
    block.accumulate = 1;
    kernels().gemm_rows(&block, columns);
  }
}

void sum_columns(Index rows, Index columns, const float* x, Index stride, float* out, bool accumulate) {
  parallel_for(columns, grain_for(static_cast<double>(rows), 64), [&](Index begin, Index end) {
    kernels().sum_rows(rows, end - begin, x + begin, stride, out + begin, accumulate);
  });
}

// dE/dW and dE/db of one direction, each from all steps at once.
void weight_gradients(const RecurrentBackward& run, int d, float* workspace) {
  const RecurrentShape& s = run.shape;
  const RecurrentGradients& g = run.gradients[d];
  const Index columns = s.gate_columns(), hidden = s.hidden, rows = s.rows();
  const float* d_gates = run.d_gates[d];
  const float* d_inputs = d_gates + s.input_column();
  const MatrixView h_before = {run.h + s.slot_before(d, 0) * s.batch * s.width() + d * hidden, s.width(), 1};
  GemmEpilogue epilogue;
  epilogue.accumulate = run.accumulate;
  gemm(s.sums(), s.inputs, rows, {d_inputs, 1, columns}, {run.x, s.inputs, 1}, g.weight_ih, s.inputs, epilogue,
       workspace);
  const auto recurrent = [&](Index column, Index count, Index row) {
    gemm(count, hidden, rows, {d_gates + column, 1, columns}, h_before, g.weight_hh + row * hidden, hidden, epilogue,
         workspace);
    if (g.bias_hh) sum_columns(rows, count, d_gates + column, columns, g.bias_hh + row, run.accumulate);
  };
  if (s.cell == CellKind::gru) {
    recurrent(0, hidden, 2 * hidden);
    recurrent(hidden, 2 * hidden, 0);
  } else {
    recurrent(0, s.sums(), 0);
  }
  if (g.bias_ih) sum_columns(rows, s.sums(), d_inputs, columns, g.bias_ih, run.accumulate);
}

// The tasks' shares added in their order.
void finish_norms(const RecurrentBackward& run, const float* squares) {
  const RecurrentShape& s = run.shape;
  const Index tasks = tasks_per_direction(s);
  for (int d = 0; d < s.directions; ++d) {
    for (Index t = 0; t < s.steps; ++t) {
      double sum = 0.0;
      for (Index task = 0; task < tasks; ++task) sum += static_cast<double>(squares[(d * tasks + task) * s.steps + t]);
      run.norms[d][t] = static_cast<float>(std::sqrt(sum));
    }
  }
}

}  // namespace

std::size_t recurrent_forward_workspace(const RecurrentShape& s) {
  const Index direction = round_up(packed_forward(s) + s.sums(), 16);
  return static_cast<std::size_t>(s.directions * direction) + gemm_workspace(s.rows(), s.sums(), s.inputs);
}

void recurrent_forward(const RecurrentForward& run) {
  const RecurrentShape& s = run.shape;
  const Index direction = round_up(packed_forward(s) + s.sums(), 16);
  Products products[2] = {};
  for (int d = 0; d < s.directions; ++d) {
    float* packed = run.workspace + d * direction;
    products[d] = pack_forward(s, run.weights[d], packed);
    project_inputs(run, d, packed + packed_forward(s), run.workspace + s.directions * direction);
  }
  for_each_task(s, [&](int d, Index first, Index count, Index) { run_forward(run, products[d], d, first, count); });
}

namespace {

struct BackwardWorkspace {
  Index packed, squares, gemm, total;
};

BackwardWorkspace backward_workspace(const RecurrentShape& s) {
  BackwardWorkspace w;
  w.packed = round_up(packed_floats(s.sums(), s.hidden), 16);
  w.squares = s.directions * w.packed;
  w.gemm = w.squares + round_up(s.directions * tasks_per_direction(s) * s.steps, 16);
  const std::size_t products =
      std::max(gemm_workspace(s.sums(), s.inputs, s.rows()), gemm_workspace(s.rows(), s.inputs, s.sums()));
  w.total = w.gemm + static_cast<Index>(products);
  return w;
}

}  // namespace

std::size_t recurrent_backward_workspace(const RecurrentShape& s) {
  return static_cast<std::size_t>(backward_workspace(s).total);
}

void recurrent_backward(const RecurrentBackward& run) {
  const RecurrentShape& s = run.shape;
  const BackwardWorkspace w = backward_workspace(s);
  const Index tasks = tasks_per_direction(s);
  float* squares = run.workspace + w.squares;
  for (int d = 0; d < s.directions; ++d) pack_backward(s, run.weights[d].weight_hh, run.workspace + d * w.packed);
  for_each_task(s, [&](int d, Index first, Index count, Index task) {
    run_backward(run, run.workspace + d * w.packed, d, first, count, squares + (d * tasks + task) * s.steps);
  });
  finish_norms(run, squares);
  for (int d = 0; d < s.directions; ++d) {
    weight_gradients(run, d, run.workspace + w.gemm);
    if (run.dx == nullptr) continue;
    GemmEpilogue epilogue;
    epilogue.accumulate = d > 0;
    gemm(s.rows(), s.inputs, s.sums(), {run.d_gates[d] + s.input_column(), s.gate_columns(), 1},
         {run.weights[d].weight_ih, s.inputs, 1}, run.dx, s.inputs, epilogue, run.workspace + w.gemm);
  }
}

// --- one step ----------------------------------------------------------------------------------------------------

std::size_t recurrent_step_workspace(const RecurrentShape& s) {
  const Index products = s.batch * (s.gate_columns() + s.sums());
  const std::size_t gemms =
      std::max(gemm_workspace(s.batch, s.sums(), s.inputs), gemm_workspace(s.batch, s.sums(), s.hidden));
  return static_cast<std::size_t>(products) + gemms;
}

namespace {

// y (N x out, rows y_stride apart) = x (N x in) W^T + bias; few rows are bound by reading W, which packing would
// double.
void product(Index n, Index in, Index out, const float* x, const float* w, const float* bias, float* y, Index y_stride,
             float* workspace) {
  constexpr Index few = 4;
  if (n > few) {
    GemmEpilogue epilogue;
    epilogue.bias_col = bias;
    return gemm(n, out, in, {x, in, 1}, {w, 1, in}, y, y_stride, epilogue, workspace);
  }
  parallel_for(out, grain_for(static_cast<double>(n * in) / 4, 16), [&](Index begin, Index end) {
    for (Index i = 0; i < n; ++i) {
      kernels().gemv_rows(x + i * in, w + begin * in, in, end - begin, in, bias ? bias + begin : nullptr,
                          y + i * y_stride + begin);
    }
  });
}

}  // namespace

void recurrent_step(const RecurrentShape& s, const RecurrentWeights& w, const float* x, float* h, float* c,
                    float* workspace) {
  const Index columns = s.gate_columns(), sums = s.sums(), hidden = s.hidden;
  float *gates = workspace, *recurrent = gates + s.batch * columns, *rest = recurrent + s.batch * sums;
  product(s.batch, s.inputs, sums, x, w.weight_ih, w.bias_ih, gates + s.input_column(), columns, rest);
  product(s.batch, hidden, sums, h, w.weight_hh, w.bias_hh, recurrent, sums, rest);
  for (Index n = 0; n < s.batch; ++n) {
    const float* from = recurrent + n * sums;
    float* to = gates + n * columns;
    if (s.cell == CellKind::gru) {
      std::memcpy(to, from + 2 * hidden, static_cast<std::size_t>(hidden) * sizeof(float));
      kernels().add(2 * hidden, from, to + hidden);
    } else {
      kernels().add(sums, from, to);
    }
  }
  CellForward step = {};
  step.rows = s.batch;
  step.width = hidden;
  step.gates = gates;
  step.gate_stride = columns;
  step.h_before = step.h = h;
  step.h_stride = hidden;
  step.c_before = step.c = c;
  cell_forward(s, step);
}

}  // namespace deepnet
