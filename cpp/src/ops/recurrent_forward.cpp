#include <algorithm>
#include <cstring>

#include "dropout.hpp"
#include "gemm.hpp"
#include "recurrent_blocks.hpp"

namespace deepnet {

// Every block reads W_hh once a step, from the second-level cache as a rule, which many rows pay for; few rows make
// more blocks, so that more cores have work: here at least four where that leaves eight rows to each (16 instead of 8
// rows are 2 to 4 % faster on two cores). A chunk's gates should stay in that cache beside W_hh, while its products
// should be deep enough to pay for going over the weights' gradients.
//
// One or two units leave cores idle: each then has a companion (one thread's time for LSTMs of 1 to 8 sequences: 1.2 to
// 1.6 times shorter on two cores), unless that computes for less than some 5 us, and chunks are shorter, so that it
// has work soon and is done soon.
RecurrentBlocks::RecurrentBlocks(const RecurrentShape& s) {
  constexpr Index chunk_rows = 256, chunk_floats = 1 << 17, few_units = 2, short_chunk_rows = 32;
  constexpr double worth_a_companion = 50000;
  const double work = static_cast<double>(s.steps) * s.gate_columns() * (static_cast<double>(s.hidden) / 16 + 4);
  const Index most_rows = std::clamp<Index>(s.batch / 4, 8, 16);
  rows = std::max<Index>(std::min(std::max(even_piece(s.batch, most_rows), grain_for(work)), s.batch), 1);
  count = (s.batch + rows - 1) / rows;
  units = std::min(count, most_units);
  const double products = static_cast<double>(rows * s.steps) * s.sums() * (s.inputs + s.hidden) / 16;
  const bool companions = s.directions * units <= few_units && products > worth_a_companion;
  in_flight = companions ? 4 : 1;
  const Index most = std::min(companions ? short_chunk_rows : chunk_rows, chunk_floats / s.gate_columns());
  chunk = even_piece(s.steps, std::max<Index>(most / rows, 1));
}

namespace {

// A product of h and panels of W_hh^T, and the gates' column where its result begins. A step adds the rows of h.
struct Product {
  Index column;
  GemmBlock block = {};
};

// What a direction's blocks share. The GRU's b stands alone: it is not added to W_ih x.
struct ForwardWeights {
  Product recurrent[2];
  int recurrent_count;
  const float* weight_ih;  // packed
  const float* bias;       // added to W_ih x: both biases, but for the GRU's b_hn; or null
};

struct ForwardWorkspace : UnitWorkspace {
  Index recurrent, rest, weight_ih, bias;  // of a direction
  Index gates, dropped;                    // of a unit

  ForwardWorkspace(const RecurrentShape& s, const RecurrentBlocks& blocks) : UnitWorkspace(s, blocks) {
    const bool gru = s.cell == CellKind::gru;
    recurrent = direction.take(packed_floats(s.hidden, gru ? s.hidden : s.sums()));
    rest = direction.take(gru ? packed_floats(s.hidden, 2 * s.hidden) : 0);
    weight_ih = direction.take(packed_floats(s.inputs, s.sums()));
    bias = direction.take(s.sums());
    gates = unit.take(blocks.in_flight * blocks.chunk * blocks.rows * s.gate_columns());
    dropped = unit.take(blocks.chunk * blocks.rows * s.inputs);
  }
};

ForwardWeights pack(const RecurrentShape& s, const RecurrentWeights& w, const ForwardWorkspace& layout, float* memory) {
  const Index hidden = s.hidden;
  const auto pack_rows = [&](Index row, Index rows, Index to) {
    kernels().pack_b(w.weight_hh + row * hidden, 1, hidden, hidden, rows, hidden, memory + to);
  };
  const auto product_of = [&](Index column, Index columns, const float* panels) {
    Product product = {column, {}};
    product.block.n = columns;
    product.block.k = hidden;
    product.block.b = panels;
    product.block.ldc = s.gate_columns();
    return product;
  };
  ForwardWeights packed = {};
  const float *recurrent = memory + layout.recurrent, *rest = memory + layout.rest;
  if (s.cell == CellKind::gru) {
    pack_rows(2 * hidden, hidden, layout.recurrent);
    pack_rows(0, 2 * hidden, layout.rest);
    packed.recurrent[0] = product_of(0, hidden, recurrent);
    packed.recurrent[0].block.bias_col = w.bias_hh ? w.bias_hh + 2 * hidden : nullptr;
    packed.recurrent[1] = product_of(hidden, 2 * hidden, rest);
    packed.recurrent[1].block.accumulate = 1;
    packed.recurrent_count = 2;
  } else {
    pack_rows(0, s.sums(), layout.recurrent);
    packed.recurrent[0] = product_of(0, s.sums(), recurrent);
    packed.recurrent[0].block.accumulate = 1;
    packed.recurrent_count = 1;
  }
  kernels().pack_b(w.weight_ih, 1, s.inputs, s.inputs, s.sums(), s.inputs, memory + layout.weight_ih);
  packed.weight_ih = memory + layout.weight_ih;
  if (w.bias_ih) {
    float* bias = memory + layout.bias;
    std::memcpy(bias, w.bias_ih, static_cast<std::size_t>(s.sums()) * sizeof(float));
    kernels().add(s.cell == CellKind::gru ? 2 * hidden : s.sums(), w.bias_hh, bias);
    packed.bias = bias;
  }
  return packed;
}

struct ForwardChunk {
  SequenceBlock block;
  Steps steps;
  float *gates, *dropped;
};

// gates = W_ih x + biases for a chunk of steps.
void project(const RecurrentForward& run, const ForwardWeights& weights, const ForwardChunk& chunk) {
  const RecurrentShape& s = run.shape;
  const SequenceBlock& block = chunk.block;
  const Steps& steps = chunk.steps;
  GemmBlock product = {};
  product.m = steps.count() * block.count;
  product.n = s.sums();
  product.k = s.inputs;
  product.a = run.x + block.slot(s, slot_after(steps.begin), s.inputs);
  if (run.dropout.p > 0.0) {
    const Index position = block.slot(s, slot_after(steps.begin), s.inputs);
    apply_dropout(run.dropout.p, run.dropout.key, position, product.m * s.inputs, product.a, chunk.dropped);
    product.a = chunk.dropped;
  }
  product.b = weights.weight_ih;
  product.c = chunk.gates + s.input_column();
  product.ldc = s.gate_columns();
  product.bias_col = weights.bias;
  kernels().gemm_rows(&product, s.inputs);
}

// Step t's nonlinear part.
CellForward cell_of_step(const RecurrentForward& run, int d, const SequenceBlock& block, Index t, float* gates) {
  const RecurrentShape& s = run.shape;
  const Index before = slot_before(d, t), after = slot_after(t), width = s.width();
  CellForward step = {};
  step.rows = block.count;
  step.width = s.hidden;
  step.gates = gates;
  step.gate_stride = s.gate_columns();
  step.h_before = run.h + block.slot(s, before, width) + d * s.hidden;
  step.h = run.h + block.slot(s, after, width) + d * s.hidden;
  step.h_stride = width;
  if (run.c[d]) {
    step.c_before = run.c[d] + (run.backward_follows ? block.slot(s, before, s.hidden) : block.first * s.hidden);
    step.c = run.c[d] + (run.backward_follows ? block.slot(s, after, s.hidden) : block.first * s.hidden);
  }
  if (run.y) step.y = run.y + (block.first * s.steps + t) * width + d * s.hidden;
  step.y_stride = s.steps * width;
  if (run.mask) step.mask = run.mask + block.first * s.steps + t;
  step.mask_stride = s.steps;
  return step;
}

// From step t to step t + way: some additions instead of all those products.
void advance(const RecurrentForward& run, Index way, CellForward& step) {
  const RecurrentShape& s = run.shape;
  const Index rows = way * step.rows;
  step.gates += rows * s.gate_columns();
  step.h_before += rows * s.width();
  step.h += rows * s.width();
  if (step.c && run.backward_follows) {
    step.c_before += rows * s.hidden;
    step.c += rows * s.hidden;
  }
  if (step.y) step.y += way * s.width();
  if (step.mask) step.mask += way;
}

void forward_steps(const RecurrentForward& run, const ForwardWeights& weights, int d, const ForwardChunk& chunk) {
  const RecurrentShape& s = run.shape;
  const Index rows = chunk.block.count, way = d == 0 ? 1 : -1;
  const Index first = d == 0 ? 0 : chunk.steps.count() - 1;
  CellForward step =
      cell_of_step(run, d, chunk.block, chunk.steps.begin + first, chunk.gates + first * rows * s.gate_columns());
  Product product[2] = {weights.recurrent[0], weights.recurrent[1]};
  for (Product& it : product) it.block.m = rows;
  for (Index j = 0; j < chunk.steps.count(); ++j) {
    if (j > 0) advance(run, way, step);
    for (int i = 0; i < weights.recurrent_count; ++i) {
      product[i].block.a = step.h_before;
      product[i].block.c = step.gates + product[i].column;
      kernels().gemm_step(&product[i].block, s.width());
    }
    cell_forward(s, step);
  }
}

void copy_rows(Index rows, Index columns, const float* from, Index from_stride, float* to, Index to_stride) {
  for (Index i = 0; i < rows; ++i) {
    float* row = to + i * to_stride;
    if (from) {
      std::memcpy(row, from + i * from_stride, static_cast<std::size_t>(columns) * sizeof(float));
    } else {
      std::memset(row, 0, static_cast<std::size_t>(columns) * sizeof(float));
    }
  }
}

// Puts a block's initial states into their slots, or copies the final ones out of theirs.
void copy_states(const RecurrentForward& run, int d, const SequenceBlock& block, bool final) {
  const RecurrentShape& s = run.shape;
  const Index first = d == 0 ? 0 : s.steps + 1, last = d == 0 ? s.steps : 1, slot = final ? last : first;
  const Index at = block.first * s.hidden;
  for (int i = 0; i < (run.c[d] ? 2 : 1); ++i) {
    const Index stride = i == 0 ? s.width() : s.hidden;
    float* here = i == 0 ? run.h + block.slot(s, slot, stride) + d * s.hidden
                         : run.c[d] + (run.backward_follows ? block.slot(s, slot, stride) : at);
    if (final) {
      copy_rows(block.count, s.hidden, here, stride, run.final[d][i] + at, s.hidden);
    } else {
      const float* from = run.initial[d][i];
      copy_rows(block.count, s.hidden, from ? from + at : nullptr, s.hidden, here, stride);
    }
  }
}

}  // namespace

std::size_t recurrent_forward_workspace(const RecurrentShape& s) {
  return ForwardWorkspace(s, RecurrentBlocks(s)).total();
}

void recurrent_forward(const RecurrentForward& run) {
  const RecurrentShape& s = run.shape;
  const RecurrentBlocks blocks(s);
  const ForwardWorkspace layout(s, blocks);
  ForwardWeights weights[2];
  for (int d = 0; d < s.directions; ++d)
    weights[d] = pack(s, run.weights[d], layout, layout.of_direction(run.workspace, d));
  const auto chunk_at = [&](const RecurrentUnit& walk, Index i) {
    const int d = walk.direction;
    ForwardChunk it = {block_of(s, blocks, walk.block(i)), chunk_of(s, blocks, walk.chunk(i), d == 0), nullptr,
                       nullptr};
    float* scratch = layout.of_unit(run.workspace, d, walk.number);
    it.gates = run.gates[d] ? run.gates[d] + it.block.step(s, it.steps.begin, s.gate_columns())
                            : scratch + layout.gates + blocks.slot(i) * s.gate_columns();
    it.dropped = scratch + layout.dropped;
    return it;
  };
  const auto projection_of = [&](const RecurrentUnit& walk) {
    return [&](Index i) { project(run, weights[walk.direction], chunk_at(walk, i)); };
  };
  for_each_unit(
      s, blocks,
      [&](const RecurrentUnit& walk, SideJobs& jobs) {
        const int d = walk.direction;
        for (Index i = 0; i < walk.length(); ++i) {
          jobs.allow(std::min(i + blocks.in_flight, walk.length()));  // so many chunks have memory
          jobs.finish(i + 1, projection_of(walk));
          const ForwardChunk it = chunk_at(walk, i);
          if (walk.chunk(i) == 0) copy_states(run, d, it.block, false);
          forward_steps(run, weights[d], d, it);
          if (walk.chunk(i) == walk.chunks - 1) copy_states(run, d, it.block, true);
        }
      },
      [&](const RecurrentUnit& walk, SideJobs& jobs) { jobs.help(walk.length(), projection_of(walk)); });
}

// --- in and out of slots -------------------------------------------------------------------------------------------

void to_slots(const RecurrentShape& s, Index features, const float* x, const float* mask, float* slots) {
  const RecurrentBlocks blocks(s);
  const std::size_t bytes = static_cast<std::size_t>(features) * sizeof(float);
  const double work = static_cast<double>(blocks.rows * s.steps * features);
  parallel_for(blocks.count, grain_for(work), [&](Index begin, Index end) {
    for (Index number = begin; number < end; ++number) {
      const SequenceBlock block = block_of(s, blocks, number);
      for (Index t = 0; t < s.steps; ++t) {
        float* to = slots + block.slot(s, slot_after(t), features);
        for (Index i = 0; i < block.count; ++i, to += features) {
          const Index from = (block.first + i) * s.steps + t;
          if (mask && mask[from] == 0.0f) {
            std::memset(to, 0, bytes);
          } else {
            std::memcpy(to, x + from * features, bytes);
          }
        }
      }
    }
  });
}

void from_slots(const RecurrentShape& s, Index features, const float* slots, const float* second, float* x) {
  const RecurrentBlocks blocks(s);
  const double work = static_cast<double>(blocks.rows * s.steps * features);
  parallel_for(blocks.count, grain_for(work), [&](Index begin, Index end) {
    for (Index number = begin; number < end; ++number) {
      const SequenceBlock block = block_of(s, blocks, number);
      for (Index t = 0; t < s.steps; ++t) {
        const Index from = block.slot(s, slot_after(t), features);
        for (Index i = 0; i < block.count; ++i) {
          float* to = x + ((block.first + i) * s.steps + t) * features;
          std::memcpy(to, slots + from + i * features, static_cast<std::size_t>(features) * sizeof(float));
          if (second) kernels().add(features, second + from + i * features, to);
        }
      }
    }
  });
}

}  // namespace deepnet
