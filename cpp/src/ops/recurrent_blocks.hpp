// What forward and backward of ops/recurrent.hpp share: where things lie, and how work is dealt out.
#pragma once

#include <algorithm>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "blocking.hpp"
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

/// Steps [begin, end), next to each other.
struct Steps {
  Index begin, end;
  Index count() const { return end - begin; }
};

/// Chunk i of a walk through all steps, from the first one up or from the last one down.
inline Steps chunk_of(const RecurrentShape& s, const RecurrentBlocks& blocks, Index i, bool up) {
  const Index chunks = ceil_div(s.steps, blocks.chunk), number = up ? i : chunks - 1 - i;
  return {number * blocks.chunk, std::min((number + 1) * blocks.chunk, s.steps)};
}

/// What one task goes through: blocks [begin, end) in one direction, chunk after chunk.
struct RecurrentUnit {
  int direction;
  Index number, begin, end;
  Index chunks;  ///< of a block

  Index length() const { return (end - begin) * chunks; }
  Index block(Index i) const { return begin + i / chunks; }  ///< of chunk i of the walk
  Index chunk(Index i) const { return i % chunks; }
};

/// walk(unit, jobs) and, where the blocks say so, companion(unit, jobs) for all units, in any order.
template <class Walk, class Companion>
void for_each_unit(const RecurrentShape& s, const RecurrentBlocks& blocks, Walk walk, Companion companion) {
  const Index units = s.directions * blocks.units, tasks = blocks.in_flight > 1 ? 2 : 1;
  SideJobs jobs[2 * RecurrentBlocks::most_units];
  parallel_for(tasks * units, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const Index number = i / tasks % blocks.units, direction = i / tasks / blocks.units;
      const RecurrentUnit unit = {static_cast<int>(direction), number, number * blocks.count / blocks.units,
                                  (number + 1) * blocks.count / blocks.units, ceil_div(s.steps, blocks.chunk)};
      if (i % tasks == 0) {
        walk(unit, jobs[i / tasks]);
      } else {
        companion(unit, jobs[i / tasks]);
      }
    }
  });
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

/// A workspace with a part for each direction and, behind these, one for each direction's units.
struct UnitWorkspace {
  UnitWorkspace(const RecurrentShape& s, const RecurrentBlocks& blocks)
      : directions(s.directions), units(blocks.units) {}

  float* of_direction(float* memory, int d) const { return memory + d * direction.floats; }
  float* of_unit(float* memory, int d, Index number) const {
    return memory + directions * direction.floats + (d * units + number) * unit.floats;
  }
  std::size_t total() const { return static_cast<std::size_t>(directions * (direction.floats + units * unit.floats)); }

  const Index directions, units;
  Pieces direction, unit;
};

}  // namespace deepnet
