// Most products are made strip by strip, see Strips. Other large ones in the loop order of Goto and van de Geijn
// (2008): A is packed once, whole; each task then owns a block of C, takes its columns of B block by block of k and
// lets the kernel run over the packed tiles.
#include "gemm.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "activation.hpp"

namespace deepnet {
namespace {

// Block of C that is one task: by shape alone. A block of A (rows x block_depth), its columns of B and the block of C
// stay in the second-level cache together while k runs: 504 x 512 was 8 % slower on 2048 x 2048 x 2048. Small enough
// blocks keep every core busy, while one under 2^19 multiply-adds is not worth a thread.
struct Blocks {
  Index rows, columns;
};
constexpr Index block_depth = 512;  // 384 was 3 % slower where k is 512, otherwise as fast

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

// Pieces that the rows of B are cut into where A has few, by shape alone; and each piece's rows. The passes over a
// layer's weights, of which this is the one backward, so keep to the same rows in every thread.
struct DepthPieces {
  Index rows, count;

  DepthPieces(Index m, Index n, Index k)
      : rows(paired_piece(k, grain_for(static_cast<double>(m + 4) * static_cast<double>(n) / 8, 4), 4)),
        count(ceil_div(k, rows)) {
    if (count <= 1 || 4 * count * m > k) rows = std::max<Index>(k, 1), count = 1;  // adding up would cost too much
  }
};

// A few rows of A times B, a piece of B's rows after the other, whose products are added up.
void multiply_few_rows(const DepthPieces& pieces, Index m, Index n, Index k, MatrixView a, MatrixView b, float* c,
                       Index ldc, const GemmEpilogue& epilogue, float* products) {
  const KernelTable& kernel = kernels();
  parallel_for(k, pieces.rows, [&](Index begin, Index end) {
    kernel.gemm_few_rows(m, n, end - begin, a.data + begin * a.col_stride, a.row_stride, a.col_stride,
                         b.data + begin * b.row_stride, b.row_stride, nullptr, products + begin / pieces.rows * m * n,
                         n, 0);
  });
  for (Index i = 0; i < m; ++i, c += ldc, products += n) {
    kernel.sum_rows(pieces.count, n, products, m * n, c, epilogue.accumulate);
    if (epilogue.bias_col) kernel.add(n, epilogue.bias_col, c);
    apply(epilogue.activation, 1, n, c, ldc);
  }
}

// Where one operand is read once or twice, packing it would take longer than the product.
bool without_packing(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc,
                     const GemmEpilogue& epilogue, float* workspace) {
  const KernelTable& kernel = kernels();
  constexpr Index few = 12;
  const Index fewest = std::min(m, n), most_dots = 4 * fewest <= 3 * kernel.gemm_nr ? 2048 : 1024;
  const bool dots = a.col_stride == 1 && b.row_stride == 1 &&
                    ((fewest <= few && (k >= 128 || m <= 4)) || (m * n <= most_dots && k >= 512));
  const bool few_rows = b.col_stride == 1 && m <= kernel.gemm_mr;
  if (!dots && !few_rows) return false;
  if (const DepthPieces pieces(m, n, k); few_rows && pieces.count > 1 && pieces.rows <= chain) {
    multiply_few_rows(pieces, m, n, k, a, b, c, ldc, epilogue, workspace);
    return true;
  }
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
  const auto piece = [&](Index n, Index others, Index multiple) {
    const double work = static_cast<double>(others + 4) * static_cast<double>(k) / 8;
    return paired_piece(n, grain_for(work, multiple), multiple);
  };
  if (m > n && !few_rows) {
    parallel_for(m, piece(m, n, 4), [&](Index begin, Index end) { multiply(begin, end - begin, 0, n); });
  } else {
    parallel_for(n, piece(n, m, few_rows ? 64 : 4),
                 [&](Index begin, Index end) { multiply(0, m, begin, end - begin); });
  }
  return true;
}

// A product of which one operand is packed, strip by strip, so that a strip stays in the second-level cache, and the
// other read as it lies: B is packed, and rows of A read or, of little depth, columns. Where both lie along k, A may be
// packed instead; what is made then is C^T.
struct Strips {
  bool applies, packs_a;
  bool in_columns;         // A lies along its columns
  Index packed, unpacked;  // rows of each, which B's columns are
  Index strip;             // rows that are packed at once

  Strips(Index m, Index n, Index k, MatrixView a, MatrixView b) {
    constexpr Index most_floats = 1 << 18, least_strip = 160, least_depth = 128, most_columns = 128;
    const bool both_along_k = a.col_stride == 1 && b.row_stride == 1;
    // Turning C takes as long as some 20 steps of k.
    packs_a = both_along_k && m < n && m * k <= most_floats && k >= least_depth;
    in_columns = a.col_stride != 1;
    packed = packs_a ? m : n;
    unpacked = packs_a ? n : m;
    const Index nr = kernels().gemm_nr;
    const Index floats = both_along_k || in_columns ? most_floats : most_floats / 2;
    Index most = std::max(floats / std::max<Index>(k, 1) / nr * nr, nr);
    // An even number of strips, unless threads had better share out the other rows.
    if (packed >= 2 * least_strip && 2 * packed > unpacked)
      most = std::min(most, round_up(ceil_div(packed, 2 * ceil_div(packed, 2 * most)), nr));
    strip = packed <= most ? packed : round_up(even_piece(packed, most), nr);
    // Where registers hold few rows, large products are better packed on both sides.
    const bool many_rows = kernels().gemm_mr > 8, clashing = stride(a, b) % clashing_stride == 0;
    const bool a_lies_well = !in_columns || (a.row_stride == 1 && k <= most_columns && !clashing);
    applies = a_lies_well && (b.row_stride == 1 || b.col_stride == 1) &&
              (!both_along_k || strip >= std::min(packed, least_strip)) &&
              (many_rows || packed <= (clashing ? 64 : 256));
    // Where the other rows are too few to be shared out, strips are: every thread then packs its own.
    const Index panels = ceil_div(packed, nr);
    if (unpacked < 2 * least_rows && 2 * packed >= 3 * nr && static_cast<double>(packed) * unpacked * k >= least_work)
      strip = std::min(strip, panels % 2 == 1 && panels < 8 ? nr : ceil_div(panels, 2) * nr);
  }

  // Of the operand that is not packed: from row to row, or from column to column.
  Index stride(MatrixView a, MatrixView b) const {
    return packs_a ? b.col_stride : in_columns ? a.col_stride : a.row_stride;
  }

  // Rows of the other operand that are one task: few tasks, but an even number in all, one strip's after the other's.
  Index rows_a_task(Index k) const {
    constexpr Index most_rows = 160;
    const Index strips = ceil_div(packed, strip), pairs = ceil_div(unpacked, 2 * most_rows);
    if (unpacked < 2 * least_rows) {
      const bool halves = strips % 2 == 1 && static_cast<double>(packed) * unpacked * k >= least_work;
      return halves ? ceil_div(unpacked, 2) : unpacked;
    }
    Index rows = std::max(least_rows, ceil_div(unpacked, 2 * pairs));
    while (rows >= 2 * least_rows && strips * ceil_div(unpacked, rows) < 12) rows = ceil_div(rows, 2);
    const double row_work = static_cast<double>(round_up(strip, kernels().vector_width)) * k / 16;
    return even_piece(unpacked, std::max(rows, grain_for(row_work)));
  }

 private:
  static constexpr Index least_rows = 64;
};

void multiply_strips(const Strips& strips, Index k, MatrixView a, MatrixView b, float* c, Index ldc,
                     const GemmEpilogue& epilogue) {
  const KernelTable& kernel = kernels();
  // Deep blocks: panels come from the second-level cache anyway, and C, often transposed, is written once a block.
  const Index nr = kernel.gemm_nr, depth = even_piece(k, chain), panel_columns = round_up(strips.strip, nr);
  const MatrixView packed = strips.packs_a ? a.transposed() : b;
  const float* unpacked = strips.packs_a ? b.data : a.data;
  const Index stride = strips.stride(a, b);
  const Index at_once = stride % clashing_stride == 0 ? 8 : kernel.gemm_mr;
  const Index count = ceil_div(strips.packed, strips.strip), rows_a_task = strips.rows_a_task(k);
  const Index tasks = ceil_div(strips.unpacked, rows_a_task);
  // Every thread packs for itself, once for all tasks of a strip that it takes: sooner done than fetched from another
  // core's cache.
  static std::atomic<std::uint64_t> packings{0};
  const std::uint64_t this_call = packings.fetch_add(static_cast<std::uint64_t>(count)) + 1;
  const auto multiply = [&](Index strip, Index begin, Index end) {
    const Index first = strip * strips.strip, columns = std::min(strips.strip, strips.packed - first);
    float* panels = thread_scratch(Scratch::pack, static_cast<std::size_t>(panel_columns * k));
    thread_local std::uint64_t packed_last = 0;
    if (const std::uint64_t this_packing = this_call + static_cast<std::uint64_t>(strip); packed_last != this_packing) {
      for (Index k0 = 0; k0 < k; k0 += depth) {
        const Index here = std::min(depth, k - k0);
        kernel.pack_b(packed.data + first * packed.col_stride + k0 * packed.row_stride, packed.row_stride,
                      packed.col_stride, here, columns, here, panels + panel_columns * k0);
      }
      packed_last = this_packing;
    }
    for (Index k0 = 0; k0 < k || k0 == 0; k0 += depth) {
      const bool last = k0 + depth >= k;
      GemmBlock g = {};
      g.n = columns;
      g.k = std::min(depth, k - k0);
      g.b = panels + panel_columns * k0;
      g.ldc = ldc;
      g.accumulate = k0 > 0 || epilogue.accumulate;
      g.relu = last && is_fused(epilogue.activation);
      const float* bias = last ? epilogue.bias_col : nullptr;
      const Index step = even_piece(end - begin, at_once);
      for (Index row = begin; row < end; row += step) {
        g.m = std::min(step, end - row);
        g.a = strips.in_columns ? unpacked + row + k0 * stride : unpacked + row * stride + k0;
        if (strips.packs_a) {
          g.c = c + first * ldc + row;
          g.bias_row = bias ? bias + row : nullptr;
          kernel.gemm_rows_transposed(&g, stride);
        } else {
          g.c = c + row * ldc + first;
          g.bias_col = bias ? bias + first : nullptr;
          (strips.in_columns ? kernel.gemm_columns : kernel.gemm_rows)(&g, stride);
        }
      }
    }
    if (strips.packs_a) {
      apply_unfused(epilogue.activation, columns, end - begin, c + first * ldc + begin, ldc);
    } else {
      apply_unfused(epilogue.activation, end - begin, columns, c + begin * ldc + first, ldc);
    }
  };
  parallel_for(count * tasks, 1, [&](Index first, Index last) {
    for (Index task = first; task < last; ++task) {
      const Index begin = task % tasks * rows_a_task;
      multiply(task / tasks, begin, std::min(begin + rows_a_task, strips.unpacked));
    }
  });
}

// That product where it pays, k in parts where rows are long.
bool multiply_by_strips(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc,
                        const GemmEpilogue& epilogue) {
  constexpr Index most_depth = 1600, part_depth = 1024;
  const Index part = k <= most_depth ? k : even_piece(k, part_depth);
  const Strips strips(m, n, part, a, b);
  if (!strips.applies) return false;
  for (Index k0 = 0; k0 < k || k0 == 0; k0 += part) {
    GemmEpilogue here = epilogue;
    here.accumulate = epilogue.accumulate || k0 > 0;
    if (k0 + part < k) here.bias_col = nullptr, here.activation = {};
    MatrixView left = a, right = b;
    left.data += k0 * a.col_stride;
    right.data += k0 * b.row_stride;
    multiply_strips(strips, std::min(part, k - k0), left, right, c, ldc, here);
  }
  return true;
}

// A product of rows with rows that is made sooner than it is planned.
bool multiply_small(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc,
                    const GemmEpilogue& epilogue) {
  constexpr Index least_rows = 5, most_work = 1 << 16;  // fewer rows: dot products
  if (m < least_rows || k > kSmallDepth || m * n * k > most_work || a.col_stride != 1 || b.row_stride != 1)
    return false;
  GemmBlock g = {};
  g.m = m;
  g.n = n;
  g.k = k;
  g.a = a.data;
  g.b = b.data;
  g.c = c;
  g.ldc = ldc;
  g.bias_col = epilogue.bias_col;
  g.accumulate = epilogue.accumulate;
  g.relu = is_fused(epilogue.activation);
  kernels().gemm_small(&g, a.row_stride, b.col_stride);
  apply_unfused(epilogue.activation, m, n, c, ldc);
  return true;
}

}  // namespace

std::size_t gemm_workspace(Index m, Index n, Index k) {
  const Index nr = kernels().gemm_nr, columns = m > choose_blocks(m, n, k).rows ? round_up(n, nr) + nr : 0;
  const Index products = m <= kernels().gemm_mr ? DepthPieces(m, n, k).count * m * n : 0;
  return static_cast<std::size_t>(std::max((m + columns) * k, products));
}

void gemm(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc, const GemmEpilogue& epilogue,
          float* workspace) {
  if (m == 0 || n == 0) return;
  if (multiply_small(m, n, k, a, b, c, ldc, epilogue)) return;
  if (without_packing(m, n, k, a, b, c, ldc, epilogue, workspace)) return;
  if (multiply_by_strips(m, n, k, a, b, c, ldc, epilogue)) return;
  const KernelTable& kernel = kernels();
  const Blocks block = choose_blocks(m, n, k);
  const Index depth = even_piece(k, block_depth);
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
  parallel_for(row_blocks, grain_for(static_cast<double>(block.rows) * k), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) pack_rows_of_a(i);
  });
  if (whole_b) {
    parallel_for(column_blocks, grain_for(static_cast<double>(block.columns) * k), [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) pack_columns_of_b(i);
    });
  }

  // Blocks that are next to each other along the longer side, as neighbouring pieces are one thread's: what it packed
  // itself is in its cache, and the other operand is the smaller one.
  const bool along_rows = m > n;
  parallel_for(row_blocks * column_blocks, 1, [&](Index begin, Index end) {
    float* strip = whole_b ? nullptr : thread_scratch(Scratch::pack, static_cast<std::size_t>(block.columns * depth));
    for (Index task = begin; task < end; ++task) {
      const Index row = (along_rows ? task / column_blocks : task % row_blocks) * block.rows;
      const Index column = (along_rows ? task % column_blocks : task / row_blocks) * block.columns;
      const Index rows = std::min(block.rows, m - row), columns = std::min(block.columns, n - column);
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
