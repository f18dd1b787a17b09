// What forward and backward of ops/recurrent.hpp share: where things lie, and how work is dealt out.
#pragma once

#include <algorithm>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "gemm.hpp"
#include "recurrent.hpp"

namespace deepnet {

struct SequenceBlock {
  Index number, first, count;  ///< of the blocks; sequences

  /// Where slot `slot` of an array of that width begins.
  Index slot(const RecurrentShape& s, Index slot, Index width) const {
    return (first * (s.steps + 2) + slot * count) * width;
  }
  /// Where step t begins in an array without slots between blocks.
  Index step(const RecurrentShape& s, Index t, Index width) const { return (first * s.steps + t * count) * width; }
};

inline SequenceBlock block_of(const RecurrentShape& s, const RecurrentBlocks& blocks, Index number) {
  const Index first = number * blocks.rows;
  return {number, first, std::min(blocks.rows, s.batch - first)};
}

/// run(direction, unit, first block, end block) for all units, in any order.
template <class Run>
void for_each_unit(const RecurrentShape& s, const RecurrentBlocks& blocks, Run run) {
  parallel_for(s.directions * blocks.units, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const Index unit = i % blocks.units;
      run(static_cast<int>(i / blocks.units), unit, unit * blocks.count / blocks.units,
          (unit + 1) * blocks.count / blocks.units);
    }
  });
}

/// Steps [begin, end), next to each other.
struct Steps {
  Index begin, end;
  Index count() const { return end - begin; }
};

/// Chunk i of a walk through all steps, from the first one up or from the last one down.
inline Steps chunk_of(const RecurrentShape& s, const RecurrentBlocks& blocks, Index i, bool up) {
  const Index chunks = (s.steps + blocks.chunk - 1) / blocks.chunk, number = up ? i : chunks - 1 - i;
  return {number * blocks.chunk, std::min((number + 1) * blocks.chunk, s.steps)};
}

/// The slots of the state before and after step t.
inline Index slot_before(int direction, Index t) { return direction == 0 ? t : t + 2; }
inline Index slot_after(Index t) { return t + 1; }

inline Index packed_floats(Index k, Index n) { return k * round_up(n, kernels().gemm_nr); }

inline void cell_forward(const RecurrentShape& s, const CellForward& step) {
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

/// Deals out pieces of a workspace, each on a cache line of its own.
struct Pieces {
  Index floats = 0;
  Index take(Index n) {
    const Index at = floats;
    floats += round_up(n, 16);
    return at;
  }
};

}  // namespace deepnet
