#include <cmath>
#include <cstring>

#include "dropout.hpp"
#include "recurrent_blocks.hpp"

namespace deepnet {
namespace {

// Columns of dE/d(sums) that make the same rows of dE/dW_hh and of dE/dW_ih, where they make any: of a GRU b makes
// W_hn's rows, n makes W_in's.
struct Part {
  Index column, columns;
  Index row_hh, row_ih;  // or none
};
constexpr Index none = -1;

struct Parts {
  Part part[3];
  int count;
};

Parts parts_of(const RecurrentShape& s) {
  const Index h = s.hidden;
  if (s.cell == CellKind::gru) return {{{0, h, 2 * h, none}, {h, 2 * h, 0, 0}, {3 * h, h, none, 2 * h}}, 3};
  return {{{0, s.sums(), 0, 0}, {}, {}}, 1};
}

// Offsets into what a unit adds up of the weights' gradients: weight_ih, weight_hh, column sums of dE/d(sums).
struct UnitGradients {
  Pieces pieces;
  Index weight_ih, weight_hh, columns;

  explicit UnitGradients(const RecurrentShape& s) {
    weight_ih = pieces.take(s.sums() * s.inputs);
    weight_hh = pieces.take(s.sums() * s.hidden);
    columns = pieces.take(s.gate_columns());
  }
};

// From a sequence's dE/d(sums) to the next one's. A product reads them along columns: an odd number of cache lines
// apart, they fall into all sets of the first-level cache.
Index d_gate_stride(const RecurrentShape& s) { return round_up(s.gate_columns(), 32) + 16; }

struct BackwardWorkspace : UnitWorkspace {
  Index weight_hh, weight_ih, norms;                      // of a direction
  Index gradients, d_gates, packed_h, packed_x, dropped;  // of a unit

  BackwardWorkspace(const RecurrentShape& s, const RecurrentBlocks& blocks) : UnitWorkspace(s, blocks) {
    const Index rows = blocks.chunk * blocks.rows;
    weight_hh = direction.take(packed_floats(s.sums(), s.hidden));
    weight_ih = direction.take(packed_floats(s.sums(), s.inputs));
    norms = direction.take(blocks.count * s.steps);
    gradients = unit.take(UnitGradients(s).pieces.floats);
    d_gates = unit.take(blocks.in_flight * rows * d_gate_stride(s));
    packed_h = unit.take(packed_floats(rows, s.hidden));
    packed_x = unit.take(packed_floats(rows, s.inputs));
    dropped = unit.take(rows * s.inputs);
  }
};

// Unit 0 makes its gradients where they are wanted, unless they are to be added to what stands there.
bool is_in_place(const RecurrentBackward& run, Index unit) { return unit == 0 && !run.accumulate; }

// A direction's blocks share packed weights; a unit has its memory.
struct Unit {
  const RecurrentBackward& run;
  const BackwardWorkspace& layout;
  int d;
  float* shared;
  float* memory;
  float *weight_ih, *weight_hh, *columns;  // what it adds up

  Unit(const RecurrentBackward& run, const BackwardWorkspace& layout, int d, Index number)
      : run(run),
        layout(layout),
        d(d),
        shared(layout.of_direction(run.workspace, d)),
        memory(layout.of_unit(run.workspace, d, number)) {
    const UnitGradients at(run.shape);
    float* own = memory + layout.gradients;
    weight_ih = is_in_place(run, number) ? run.gradients[d].weight_ih : own + at.weight_ih;
    weight_hh = is_in_place(run, number) ? run.gradients[d].weight_hh : own + at.weight_hh;
    columns = own + at.columns;
  }
};

// W as the right-hand side of dE/d(sums) W. W_hh's rows come in the order of the gates' columns.
void pack_weights(const RecurrentBackward& run, const BackwardWorkspace& layout, int d, float* memory) {
  const RecurrentShape& s = run.shape;
  const auto pack = [&](const float* weight, Index columns, Index from, Index rows, Index to, Index at) {
    kernels().pack_b(weight + from * columns, columns, 1, rows, columns, s.sums(),
                     memory + at + to * kernels().gemm_nr);
  };
  const float* w = run.weights[d].weight_hh;
  if (s.cell == CellKind::gru) {
    pack(w, s.hidden, 2 * s.hidden, s.hidden, 0, layout.weight_hh);
    pack(w, s.hidden, 0, 2 * s.hidden, s.hidden, layout.weight_hh);
  } else {
    pack(w, s.hidden, 0, s.sums(), 0, layout.weight_hh);
  }
  if (run.dx[d]) pack(run.weights[d].weight_ih, s.inputs, 0, s.sums(), 0, layout.weight_ih);
}

double cell_backward(const RecurrentShape& s, const CellBackward& step) {
  const KernelTable& kernel = kernels();
  if (s.cell == CellKind::rnn) return kernel.rnn_backward(static_cast<int>(s.nonlinearity), &step);
  return s.cell == CellKind::lstm ? kernel.lstm_backward(&step) : kernel.gru_backward(&step);
}

// Whether the gradient of the state is cut between steps t and t - 1.
bool is_cut(const RecurrentBackward& run, Index t) {
  return run.truncate > 0 && t > 0 && t < run.shape.steps && t % run.truncate == 0;
}

// dE/dx of a chunk of steps.
void input_gradient(const Unit& unit, const SequenceBlock& block, Steps steps, const float* d_gates) {
  const RecurrentBackward& run = unit.run;
  const RecurrentShape& s = run.shape;
  const Index at = block.slot(s, slot_after(steps.begin), s.inputs);
  GemmBlock product = {};
  product.m = steps.count() * block.count;
  product.n = s.inputs;
  product.k = s.sums();
  product.a = d_gates + s.input_column();
  product.b = unit.shared + unit.layout.weight_ih;
  product.c = run.dx[unit.d] + at;
  product.ldc = s.inputs;
  kernels().gemm_rows(&product, d_gate_stride(s));
  if (run.dropout.p > 0.0)
    apply_dropout(run.dropout.p, run.dropout.key, at, product.m * s.inputs, product.c, product.c);
}

// Adds a chunk's share of dE/dW_ih, dE/dW_hh and the column sums; the first chunk's overwrites.
void weight_gradients(const Unit& unit, const SequenceBlock& block, Steps steps, const float* d_gates, bool first) {
  const RecurrentBackward& run = unit.run;
  const RecurrentShape& s = run.shape;
  const BackwardWorkspace& layout = unit.layout;
  const KernelTable& kernel = kernels();
  const Index rows = steps.count() * block.count, columns = s.gate_columns(), stride = d_gate_stride(s),
              width = s.width();
  float *packed_h = unit.memory + layout.packed_h, *packed_x = unit.memory + layout.packed_x;

  const Index x_at = block.slot(s, slot_after(steps.begin), s.inputs);
  const float* x = run.x + x_at;
  if (run.dropout.p > 0.0) {
    float* dropped = unit.memory + layout.dropped;
    apply_dropout(run.dropout.p, run.dropout.key, x_at, rows * s.inputs, x, dropped);
    x = dropped;
  }
  const float* h = run.h + block.slot(s, slot_before(unit.d, steps.begin), width) + unit.d * s.hidden;
  kernel.pack_b(h, width, 1, rows, s.hidden, rows, packed_h);
  kernel.pack_b(x, s.inputs, 1, rows, s.inputs, rows, packed_x);
  kernel.sum_rows(rows, columns, d_gates, stride, unit.columns, !first);
  const Parts parts = parts_of(s);
  for (int i = 0; i < parts.count; ++i) {
    const Part& part = parts.part[i];
    GemmBlock product = {};
    product.m = part.columns;
    product.k = rows;
    product.a = d_gates + part.column;
    product.accumulate = !first;
    if (part.row_hh != none) {
      product.n = product.ldc = s.hidden;
      product.b = packed_h;
      product.c = unit.weight_hh + part.row_hh * s.hidden;
      kernel.gemm_columns(&product, stride);
    }
    if (part.row_ih != none) {
      product.n = product.ldc = s.inputs;
      product.b = packed_x;
      product.c = unit.weight_ih + part.row_ih * s.inputs;
      kernel.gemm_columns(&product, stride);
    }
  }
}

// Chunk i of a unit's walk.
struct BackwardChunk {
  SequenceBlock block;
  Steps steps;
  float* d_gates;

  BackwardChunk(const Unit& unit, const RecurrentBlocks& blocks, const RecurrentUnit& walk, Index i)
      : block(block_of(unit.run.shape, blocks, walk.block(i))),
        steps(chunk_of(unit.run.shape, blocks, walk.chunk(i), unit.d == 1)),
        d_gates(unit.memory + unit.layout.d_gates + blocks.slot(i) * d_gate_stride(unit.run.shape)) {}
};

// Step t's nonlinear part.
CellBackward cell_of_step(const Unit& unit, const SequenceBlock& block, Index t, float* d_gates) {
  const RecurrentBackward& run = unit.run;
  const RecurrentShape& s = run.shape;
  const int d = unit.d;
  const Index before = slot_before(d, t), after = slot_after(t), width = s.width(), columns = s.gate_columns();
  CellBackward step = {};
  step.rows = block.count;
  step.width = s.hidden;
  if (run.gates[d]) step.gates = run.gates[d] + block.step(s, t, columns);
  step.gate_stride = columns;
  step.h_before = run.h + block.slot(s, before, width) + d * s.hidden;
  step.h = run.h + block.slot(s, after, width) + d * s.hidden;
  step.h_stride = width;
  if (run.c[d]) step.c_before = run.c[d] + block.slot(s, before, s.hidden);
  if (run.dy) {
    step.dy = run.dy + (block.first * s.steps + t) * width + d * s.hidden;
    step.dy_stride = s.steps * width;
  } else if (run.dy_slots) {
    step.dy = run.dy_slots + block.slot(s, after, width) + d * s.hidden;
    step.dy_stride = width;
  }
  if (run.mask) step.mask = run.mask + block.first * s.steps + t;
  step.mask_stride = s.steps;
  step.dh = run.d_state[d][0] + block.first * s.hidden;
  if (run.c[d]) step.dc = run.d_state[d][1] + block.first * s.hidden;
  step.d_gates = d_gates;
  step.d_gate_stride = d_gate_stride(s);
  return step;
}

// From step t to step t + way.
void advance(const RecurrentBackward& run, Index way, CellBackward& step) {
  const RecurrentShape& s = run.shape;
  const Index rows = way * step.rows;
  if (step.gates) step.gates += rows * s.gate_columns();
  step.h_before += rows * s.width();
  step.h += rows * s.width();
  if (step.c_before) step.c_before += rows * s.hidden;
  if (step.dy) step.dy += (run.dy ? way : rows) * s.width();
  if (step.mask) step.mask += way;
  step.d_gates += rows * d_gate_stride(s);
}

// From dE/dh(t) to dE/d(sums) and dE/dh before, step by step; notes |dE/dh(t)|.
void backward_steps(const Unit& unit, const BackwardChunk& chunk) {
  const RecurrentBackward& run = unit.run;
  const RecurrentShape& s = run.shape;
  const Index rows = chunk.block.count, count = chunk.steps.count(), way = unit.d == 1 ? 1 : -1;
  const Index first = unit.d == 1 ? 0 : count - 1;
  CellBackward step =
      cell_of_step(unit, chunk.block, chunk.steps.begin + first, chunk.d_gates + first * rows * d_gate_stride(s));
  GemmBlock product = {};
  product.m = rows;
  product.n = product.ldc = s.hidden;
  product.k = s.sums();
  product.b = unit.shared + unit.layout.weight_hh;
  product.c = step.dh;
  product.accumulate = 1;
  float* norms = unit.shared + unit.layout.norms + chunk.block.number * s.steps;
  for (Index j = 0, t = chunk.steps.begin + first; j < count; ++j, t += way) {
    if (j > 0) advance(run, way, step);
    norms[t] = static_cast<float>(std::sqrt(cell_backward(s, step)));
    if (is_cut(run, unit.d == 0 ? t : t + 1)) {
      const std::size_t bytes = static_cast<std::size_t>(rows * s.hidden) * sizeof(float);
      std::memset(step.dh, 0, bytes);
      if (step.dc) std::memset(step.dc, 0, bytes);
    } else {
      product.a = step.d_gates;
      kernels().gemm_step(&product, d_gate_stride(s));
    }
  }
}

void gradients_of_chunk(const Unit& unit, const BackwardChunk& chunk, bool first) {
  if (unit.run.dx[unit.d]) input_gradient(unit, chunk.block, chunk.steps, chunk.d_gates);
  weight_gradients(unit, chunk.block, chunk.steps, chunk.d_gates, first);
}

// out += the arrays of units [first, count), added in their order.
void add_units(Index n, const float* units, Index first, Index count, Index stride, float* out) {
  if (first == count) return;
  parallel_for(n, grain_for(static_cast<double>(count - first), 64), [&](Index begin, Index end) {
    for (Index i = first; i < count; ++i) kernels().add(end - begin, units + i * stride + begin, out + begin);
  });
}

void finish_gradients(const RecurrentBackward& run, const BackwardWorkspace& layout, int d) {
  const RecurrentShape& s = run.shape;
  const RecurrentGradients& out = run.gradients[d];
  const UnitGradients at(s);
  const float* units = layout.of_unit(run.workspace, d, 0) + layout.gradients;
  const Index first = is_in_place(run, 0) ? 1 : 0, count = layout.units, stride = layout.unit.floats;
  add_units(s.sums() * s.inputs, units + at.weight_ih, first, count, stride, out.weight_ih);
  add_units(s.sums() * s.hidden, units + at.weight_hh, first, count, stride, out.weight_hh);
  if (out.bias_ih == nullptr) return;
  const auto add = [&](Index from, Index n, float* to) {
    if (!run.accumulate) std::memset(to, 0, static_cast<std::size_t>(n) * sizeof(float));
    add_units(n, units + from, 0, count, stride, to);
  };
  const Parts parts = parts_of(s);
  for (int i = 0; i < parts.count; ++i) {
    const Part& part = parts.part[i];
    if (part.row_hh != none) add(at.columns + part.column, part.columns, out.bias_hh + part.row_hh);
    if (part.row_ih != none) add(at.columns + part.column, part.columns, out.bias_ih + part.row_ih);
  }
}

// The blocks' shares added in their order.
void finish_norms(const RecurrentBackward& run, const RecurrentBlocks& blocks, const float* norms, int d) {
  for (Index t = 0; t < run.shape.steps; ++t) {
    double sum = 0.0;
    for (Index b = 0; b < blocks.count; ++b) {
      const double norm = norms[b * run.shape.steps + t];
      sum += norm * norm;
    }
    run.norms[d][t] = static_cast<float>(std::sqrt(sum));
  }
}

}  // namespace

std::size_t recurrent_backward_workspace(const RecurrentShape& s) {
  return BackwardWorkspace(s, RecurrentBlocks(s)).total();
}

void recurrent_backward(const RecurrentBackward& run) {
  const RecurrentShape& s = run.shape;
  const RecurrentBlocks blocks(s);
  const BackwardWorkspace layout(s, blocks);
  for (int d = 0; d < s.directions; ++d) pack_weights(run, layout, d, layout.of_direction(run.workspace, d));
  const auto unit_of = [&](const RecurrentUnit& walk) { return Unit(run, layout, walk.direction, walk.number); };
  const auto gradients_of = [&](const RecurrentUnit& walk) {
    return [&](Index i) {
      const Unit unit = unit_of(walk);
      gradients_of_chunk(unit, BackwardChunk(unit, blocks, walk, i), i == 0);
    };
  };
  for_each_unit(
      s, blocks,
      [&](const RecurrentUnit& walk, SideJobs& jobs) {
        const Unit unit = unit_of(walk);
        for (Index i = 0; i < walk.length(); ++i) {
          jobs.finish(i + 1 - blocks.in_flight, gradients_of(walk));  // which frees the chunk's memory
          backward_steps(unit, BackwardChunk(unit, blocks, walk, i));
          jobs.allow(i + 1);
        }
        jobs.finish(walk.length(), gradients_of(walk));
      },
      [&](const RecurrentUnit& walk, SideJobs& jobs) { jobs.help(walk.length(), gradients_of(walk)); });
  for (int d = 0; d < s.directions; ++d) {
    finish_gradients(run, layout, d);
    finish_norms(run, blocks, layout.of_direction(run.workspace, d) + layout.norms, d);
  }
}

}  // namespace deepnet
