// Loop order of Goto and van de Geijn (2008): A is packed once, whole; each task then owns a block of C, packs its
// columns of B block by block of k and lets the kernel run over the packed tiles.
#include "gemm.hpp"

#include <algorithm>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace deepnet {
namespace {

// Block of C that is one task: by shape alone. A block of A (rows x gemm_depth) should stay in the second-level
// cache; small enough pieces keep every core busy, while a piece under 2^20 multiply-adds is not worth a thread.
struct Blocks {
  Index rows, columns;
};

Blocks choose_blocks(Index m, Index n, Index k) {
  const Index nr = kernels().gemm_nr;
  Index rows = even_piece(m, 504), columns = round_up(even_piece(n, 512), nr);
  const double least_work = 1 << 20;
  const auto tasks = [&] { return ((m + rows - 1) / rows) * ((n + columns - 1) / columns); };
  const auto work = [&] { return static_cast<double>(rows) * columns * k; };
  while (tasks() < 16 && work() >= 2 * least_work && (columns > 2 * nr || rows > 64)) {
    if (columns > 2 * nr && (columns >= rows || rows <= 64)) {
      columns = round_up(columns / 2, nr);
    } else {
      rows = (rows + 1) / 2;
    }
  }
  if (static_cast<double>(m) * n * k < 2 * least_work)
    return {std::max<Index>(m, 1), round_up(std::max<Index>(n, 1), nr)};
  return {rows, columns};
}

}  // namespace

std::size_t gemm_workspace(Index m, Index, Index k) {
  return static_cast<std::size_t>(m) * static_cast<std::size_t>(k);
}

void gemm(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc, const GemmEpilogue& epilogue,
          float* workspace) {
  const KernelTable& kernel = kernels();
  const Blocks block = choose_blocks(m, n, k);
  const Index depth = even_piece(k, gemm_depth);
  const Index row_blocks = (m + block.rows - 1) / block.rows, column_blocks = (n + block.columns - 1) / block.columns;

  parallel_for(row_blocks, grain_for(static_cast<double>(block.rows) * k), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const Index row = i * block.rows, rows = std::min(block.rows, m - row);
      for (Index k0 = 0; k0 < k; k0 += depth) {
        kernel.pack_a(a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride, a.col_stride, rows,
                      std::min(depth, k - k0), workspace + row * k + rows * k0);
      }
    }
  });

  parallel_for(row_blocks * column_blocks, 1, [&](Index begin, Index end) {
    float* packed_b = thread_scratch(Scratch::pack, static_cast<std::size_t>(block.columns * depth));
    for (Index task = begin; task < end; ++task) {
      const Index row = task % row_blocks * block.rows, rows = std::min(block.rows, m - row);
      const Index column = task / row_blocks * block.columns, columns = std::min(block.columns, n - column);
      GemmBlock g = {};
      g.m = rows;
      g.n = columns;
      g.c = c + row * ldc + column;
      g.ldc = ldc;
      for (Index k0 = 0; k0 < k || k0 == 0; k0 += depth) {
        g.k = std::min(depth, k - k0);
        kernel.pack_b(b.data + k0 * b.row_stride + column * b.col_stride, b.row_stride, b.col_stride, g.k, columns, g.k,
                      packed_b);
        const bool last = k0 + depth >= k;
        g.a = workspace + row * k + rows * k0;
        g.b = packed_b;
        g.bias_col = last && epilogue.bias_col ? epilogue.bias_col + column : nullptr;
        g.accumulate = k0 > 0 || epilogue.accumulate;
        g.relu = last && epilogue.activation.kind == ActivationKind::relu;
        kernel.gemm_packed(&g);
      }
      if (epilogue.activation.kind != ActivationKind::none && epilogue.activation.kind != ActivationKind::relu) {
        for (Index i = 0; i < rows; ++i) {
          kernel.activation_forward(static_cast<int>(epilogue.activation.kind), epilogue.activation.parameter, columns,
                                    g.c + i * ldc, g.c + i * ldc);
        }
      }
    }
  });
}

}  // namespace deepnet
