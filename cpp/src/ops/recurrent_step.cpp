// One step of streaming inference.
#include <algorithm>
#include <cstring>

#include "gemm.hpp"
#include "recurrent_blocks.hpp"

namespace deepnet {

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
