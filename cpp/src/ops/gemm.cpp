// Loop order of Goto and van de Geijn (2008): A is packed once, whole; each task then owns a block of C, takes its
// columns of B block by block of k and lets the kernel run over the packed tiles.
#include "gemm.hpp"

#include <algorithm>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "activation.hpp"

namespace deepnet {
namespace {

// Block of C that is one task: by shape alone. A block of A (rows x gemm_depth), its columns of B and the block of C
// stay in the second-level cache together while k runs: 504 x 512 was 8 % slower on 2048 x 2048 x 2048. Small enough
// blocks keep every core busy, while one under 2^20 multiply-adds is not worth a thread.
struct Blocks {
  Index rows, columns;
};

Blocks choose_blocks(Index m, Index n, Index k) {
  const Index nr = kernels().gemm_nr;
  if (static_cast<double>(m) * n * k < 2 * least_work)
    return {std::max<Index>(m, 1), round_up(std::max<Index>(n, 1), nr)};
  Index rows = even_piece(m, 252), columns = round_up(even_piece(n, 256), nr);
  const auto tasks = [&] { return ((m + rows - 1) / rows) * ((n + columns - 1) / columns); };
  const auto work = [&] { return static_cast<double>(rows) * columns * k; };
  while (tasks() < 16 && work() >= 2 * least_work && (columns > 2 * nr || rows > 64)) {
    if (columns > 2 * nr && (columns >= rows || rows <= 64)) {
      columns = round_up(columns / 2, nr);
    } else {
      rows = (rows + 1) / 2;
    }
  }
  return {rows, columns};
}

// Products that one running sum adds up: its rounding grows with their number, that of sums of sums hardly.
constexpr Index chain = 1024;

// Where one operand is read once or twice, packing it would take longer than the product.
bool without_packing(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc,
                     const GemmEpilogue& epilogue) {
  const KernelTable& kernel = kernels();
  constexpr Index few = 16;
  const bool dots = a.col_stride == 1 && b.row_stride == 1 && (m <= few || n <= few) && (k >= 128 || m <= 4);
  const bool few_rows = b.col_stride == 1 && m <= kernel.gemm_mr;
  if (!dots && !few_rows) return false;
  // Dots have a chain of sums in every lane, few rows one in all.
  const Index depth = even_piece(k, few_rows ? chain : chain * kernel.vector_width);
  const auto multiply = [&](Index row, Index rows, Index column, Index columns) {
    float* out = c + row * ldc + column;
    for (Index k0 = 0; k0 < k || k0 == 0; k0 += depth) {
      const Index length = std::min(depth, k - k0);
      const float* bias = k0 + depth >= k && epilogue.bias_col ? epilogue.bias_col + column : nullptr;
      const float* left = a.data + row * a.row_stride + k0 * a.col_stride;
      const float* right = b.data + k0 * b.row_stride + column * b.col_stride;
      const bool accumulate = k0 > 0 || epilogue.accumulate;
      if (few_rows) {
        kernel.gemm_few_rows(rows, columns, length, left, a.row_stride, a.col_stride, right, b.row_stride, bias, out,
                             ldc, accumulate);
      } else {
        kernel.gemm_dots(rows, columns, length, left, a.row_stride, right, b.col_stride, bias, out, ldc, accumulate);
      }
    }
    apply(epilogue.activation, rows, columns, out, ldc);
  };
  // A row of dots is read from memory: its work is what it moves.
  if (m > n && !few_rows) {
    parallel_for(m, grain_for(static_cast<double>(n + 4) * static_cast<double>(k) / 8, 4),
                 [&](Index begin, Index end) { multiply(begin, end - begin, 0, n); });
  } else {
    parallel_for(n, grain_for(static_cast<double>(m + 4) * static_cast<double>(k) / 8, 64),
                 [&](Index begin, Index end) { multiply(0, m, begin, end - begin); });
  }
  return true;
}

}  // namespace

std::size_t gemm_workspace(Index m, Index n, Index k) {
  const Index columns = m > choose_blocks(m, n, k).rows ? round_up(n, kernels().gemm_nr) + kernels().gemm_nr : 0;
  return static_cast<std::size_t>(m + columns) * static_cast<std::size_t>(k);
}

void gemm(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc, const GemmEpilogue& epilogue,
          float* workspace) {
  if (m == 0 || n == 0) return;
  if (without_packing(m, n, k, a, b, c, ldc, epilogue)) return;
  const KernelTable& kernel = kernels();
  const Blocks block = choose_blocks(m, n, k);
  const Index depth = even_piece(k, gemm_depth);
  const Index row_blocks = (m + block.rows - 1) / block.rows, column_blocks = (n + block.columns - 1) / block.columns;

  const auto pack_b = [&](Index column, Index columns, Index k0, float* packed) {
    kernel.pack_b(b.data + k0 * b.row_stride + column * b.col_stride, b.row_stride, b.col_stride,
                  std::min(depth, k - k0), columns, std::min(depth, k - k0), packed);
  };
  // B too is packed whole where several blocks of rows read it.
  float* whole_b = row_blocks > 1 ? workspace + m * k : nullptr;
  const auto block_of_b = [&](Index column, Index columns, Index k0) {
    return whole_b + column * k + round_up(columns, kernel.gemm_nr) * k0;
  };
  const auto pack_rows_of_a = [&](Index i) {
    const Index row = i * block.rows, rows = std::min(block.rows, m - row);
    for (Index k0 = 0; k0 < k; k0 += depth) {
      kernel.pack_a(a.data + row * a.row_stride + k0 * a.col_stride, a.row_stride, a.col_stride, rows,
                    std::min(depth, k - k0), workspace + row * k + rows * k0);
    }
  };
  const auto pack_columns_of_b = [&](Index i) {
    const Index column = i * block.columns, columns = std::min(block.columns, n - column);
    for (Index k0 = 0; k0 < k; k0 += depth) pack_b(column, columns, k0, block_of_b(column, columns, k0));
  };
  const double block_size = static_cast<double>(std::min(block.rows, block.columns)) * k;
  parallel_for(row_blocks + (whole_b ? column_blocks : 0), grain_for(block_size), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) i < row_blocks ? pack_rows_of_a(i) : pack_columns_of_b(i - row_blocks);
  });

  parallel_for(row_blocks * column_blocks, 1, [&](Index begin, Index end) {
    float* strip = whole_b ? nullptr : thread_scratch(Scratch::pack, static_cast<std::size_t>(block.columns * depth));
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
        if (!whole_b) pack_b(column, columns, k0, strip);
        const bool last = k0 + depth >= k;
        g.a = workspace + row * k + rows * k0;
        g.b = whole_b ? block_of_b(column, columns, k0) : strip;
        g.bias_col = last && epilogue.bias_col ? epilogue.bias_col + column : nullptr;
        g.accumulate = k0 > 0 || epilogue.accumulate;
        g.relu = last && is_fused(epilogue.activation);
        kernel.gemm_packed(&g);
      }
      apply_unfused(epilogue.activation, rows, columns, g.c, ldc);
    }
  });
}

}  // namespace deepnet
