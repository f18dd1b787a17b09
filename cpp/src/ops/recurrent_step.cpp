// One step of streaming inference, from weights as they are.
#include <algorithm>
#include <cstring>

#include "gemm.hpp"
#include "recurrent_blocks.hpp"

namespace deepnet {
namespace {

// Few rows are bound by reading the weights, which packing would double.
constexpr Index few = 4;

// gates of every sequence = W_ih x + b_ih + W_hh h + b_hh, the GRU's b and n apart.
void few_sums(const RecurrentShape& s, const RecurrentWeights& w, const float* x, const float* h, float* gates) {
  const Index hidden = s.hidden;
  const auto rows = [](const float* p, Index row) { return p ? p + row : nullptr; };
  parallel_for(s.sums(), grain_for(static_cast<double>(s.batch * (s.inputs + hidden)) / 4, 16),
               [&](Index begin, Index end) {
                 for (Index i = 0; i < s.batch; ++i) {
                   float* to = gates + i * s.gate_columns();
                   const auto sum = [&](Index first, Index last, bool both, Index column) {
                     const Index from = std::max(first, begin), n = std::min(last, end) - from;
                     if (n <= 0) return;
                     const GemvTerm terms[] = {
                         {h + i * hidden, w.weight_hh + from * hidden, hidden, hidden, rows(w.bias_hh, from)},
                         {x + i * s.inputs, w.weight_ih + from * s.inputs, s.inputs, s.inputs, rows(w.bias_ih, from)}};
                     kernels().gemv_rows(terms, both ? 2 : 1, n, to + column + (from - first));
                     if (!both) kernels().gemv_rows(terms + 1, 1, n, to + 3 * hidden + (from - first));
                   };
                   if (s.cell == CellKind::gru) {
                     sum(0, 2 * hidden, true, hidden);
                     sum(2 * hidden, 3 * hidden, false, 0);
                   } else {
                     sum(0, s.sums(), true, 0);
                   }
                 }
               });
}

// The same by matrix products; recurrent is room for W_hh h.
void many_sums(const RecurrentShape& s, const RecurrentWeights& w, const float* x, const float* h, float* gates,
               float* recurrent, float* workspace) {
  const Index columns = s.gate_columns(), sums = s.sums(), hidden = s.hidden;
  GemmEpilogue epilogue;
  epilogue.bias_col = w.bias_ih;
  gemm(s.batch, sums, s.inputs, {x, s.inputs, 1}, {w.weight_ih, 1, s.inputs}, gates + s.input_column(), columns,
       epilogue, workspace);
  epilogue.bias_col = w.bias_hh;
  gemm(s.batch, sums, hidden, {h, hidden, 1}, {w.weight_hh, 1, hidden}, recurrent, sums, epilogue, workspace);
  for (Index i = 0; i < s.batch; ++i) {
    const float* from = recurrent + i * sums;
    float* to = gates + i * columns;
    if (s.cell == CellKind::gru) {
      std::memcpy(to, from + 2 * hidden, static_cast<std::size_t>(hidden) * sizeof(float));
      kernels().add(2 * hidden, from, to + hidden);
    } else {
      kernels().add(sums, from, to);
    }
  }
}

}  // namespace

std::size_t recurrent_step_workspace(const RecurrentShape& s) {
  const Index products = s.batch * (s.gate_columns() + s.sums());
  const std::size_t gemms =
      std::max(gemm_workspace(s.batch, s.sums(), s.inputs), gemm_workspace(s.batch, s.sums(), s.hidden));
  return static_cast<std::size_t>(products) + gemms;
}

void recurrent_step(const RecurrentShape& s, const RecurrentWeights& w, const float* x,
                    RecurrentState<const float> before, RecurrentState<float> after, float* workspace) {
  float *gates = workspace, *recurrent = gates + s.batch * s.gate_columns();
  if (s.batch <= few) {
    few_sums(s, w, x, before.h, gates);
  } else {
    many_sums(s, w, x, before.h, gates, recurrent, recurrent + s.batch * s.sums());
  }
  CellForward step = {};
  step.rows = s.batch;
  step.width = s.hidden;
  step.gates = gates;
  step.gate_stride = s.gate_columns();
  step.h_before = before.h;
  step.h = after.h;
  step.h_stride = s.hidden;
  step.c_before = before.c;
  step.c = after.c;
  cell_forward(s, step);
}

}  // namespace deepnet
