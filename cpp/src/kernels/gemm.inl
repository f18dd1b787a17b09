// C (m x n) = A (m x k) B (k x n), after Goto and van de Geijn (2008) and BLIS (Van Zee and van de Geijn 2015):
// micro-tiles of R x V vectors of C stay in registers while k runs; A is packed so that a micro-tile's column of
// A is contiguous, B so that its row is. No argument aliases C.
//
// Rows are dealt evenly: m = 64 with R <= 14 makes tiles of 13, 13, 13, 13, 12 rows, not four of 14 and one of 8,
// because a thin tile has too few sums in flight to hide the latency of a multiply-add.
namespace {

constexpr int GEMM_NR = GEMM_NV * W;

inline int64_t tile_count(int64_t m) { return (m + GEMM_MR - 1) / GEMM_MR; }
inline int64_t tile_start(int64_t m, int64_t tiles, int64_t tile) {
  const int64_t base = m / tiles, longer = m % tiles;
  return tile * base + (tile < longer ? tile : longer);
}

// dst = or += W x W floats of src transposed.
inline void transpose_block(const float* src, int64_t src_stride, float* dst, int64_t dst_stride, int accumulate) {
  vf block[W];
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r) block[r] = load(src + r * src_stride);
  transpose_square(block);
#pragma GCC unroll 16
  for (int c = 0; c < W; ++c) {
    float* out = dst + c * dst_stride;
    store(out, accumulate ? block[c] + load(out) : block[c]);
  }
}

// Columns of A that are contiguous: a few at a time, tile by tile, so that they are read along their cache lines.
inline void pack_a_columns(const float* src, int64_t k_stride, int64_t m, int64_t k, float* packed) {
  constexpr int64_t at_once = 8;
  const int64_t tiles = tile_count(m);
  for (int64_t j0 = 0; j0 < k; j0 += at_once) {
    const int64_t j1 = j0 + at_once < k ? j0 + at_once : k;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile_start(m, tiles, tile), rows = tile_start(m, tiles, tile + 1) - first;
      float* out = packed + first * k;
      for (int64_t j = j0; j < j1; ++j)
        for (int64_t i = 0; i < rows; i += W)
          put_first(out + j * rows + i, rows - i, load_first(src + first + j * k_stride + i, rows - i));
    }
  }
}

// R rows of A that are contiguous along k.
template <int R>
void pack_a_rows(const float* src, int64_t row_stride, int64_t k, float* out) {
  for (int64_t j = 0; j < k; j += W) {
    vf block[(R + W - 1) / W * W] = {};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) block[r] = load_first(src + r * row_stride + j, k - j);
    const int64_t here = k - j < W ? k - j : W;
#pragma GCC unroll 4
    for (int i = 0; i < R; i += W) {
      transpose_square(block + i);
      if (here == W) {
#pragma GCC unroll 16
        for (int c = 0; c < W; ++c) put_first(out + (j + c) * R + i, R - i, block[i + c]);
      } else {
        for (int64_t c = 0; c < here; ++c) put_first(out + (j + c) * R + i, R - i, block[i + c]);
      }
    }
  }
}

typedef void PackRows(const float* src, int64_t row_stride, int64_t k, float* out);

template <int R>
inline PackRows* pack_a_rows_of(int64_t rows) {
  return rows == R ? pack_a_rows<R> : pack_a_rows_of<(R > 1 ? R - 1 : 1)>(rows);
}

void pack_a(const float* src, int64_t row_stride, int64_t k_stride, int64_t m, int64_t k, float* packed) {
  if (row_stride == 1) return pack_a_columns(src, k_stride, m, k, packed);
  const int64_t tiles = tile_count(m);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(m, tiles, tile);
    const int64_t rows = tile_start(m, tiles, tile + 1) - first;
    const float* in = src + first * row_stride;
    float* out = packed + first * k;
    if (k_stride == 1) {
      pack_a_rows_of<GEMM_MR>(rows)(in, row_stride, k, out);
      continue;
    }
    for (int64_t j = 0; j < k; ++j)
      for (int64_t i = 0; i < rows; ++i) out[j * rows + i] = in[i * row_stride + j * k_stride];
  }
}

// One vector of columns of a panel from a matrix whose columns are contiguous along k.
inline void pack_b_transposed(const float* src, int64_t col_stride, int64_t k, int64_t columns, float* out) {
  const auto pack = [&](int here) {
    int64_t j = 0;
    for (; j + 4 <= k; j += 4) {
      vf row[4];
      load_columns(src + j, col_stride, here, row);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + (j + i) * GEMM_NR, row[i]);
    }
    for (; j < k; ++j) {
      store(out + j * GEMM_NR, vf{});
      for (int c = 0; c < here; ++c) out[j * GEMM_NR + c] = src[c * col_stride + j];
    }
  };
  if (columns == W) return pack(W);  // without a look at every quad
  pack((int)columns);
}

// A panel of whole rows, all its vectors at once: a row is then read line after line.
inline void pack_b_rows(const float* src, int64_t k_stride, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i)
    for (int v = 0; v < GEMM_NV; ++v) store(out + i * GEMM_NR + v * W, load(src + i * k_stride + v * W));
}

void pack_b(const float* src, int64_t k_stride, int64_t col_stride, int64_t k, int64_t n, int64_t depth,
            float* packed) {
  int64_t j = 0;
  if (col_stride == 1)
    for (; j + GEMM_NR <= n; j += GEMM_NR) pack_b_rows(src + j, k_stride, k, packed + j * depth);
  const int64_t padded = (n + GEMM_NR - 1) / GEMM_NR * GEMM_NR;
  for (; j < padded; j += W) {
    float* out = packed + j / GEMM_NR * GEMM_NR * depth + j % GEMM_NR;
    const float* in = src + j * col_stride;
    const int64_t columns = n - j < 0 ? 0 : n - j < W ? n - j : W;
    if (columns == 0) {
      for (int64_t i = 0; i < k; ++i) store(out + i * GEMM_NR, vf{});
    } else if (col_stride == 1) {
      for (int64_t i = 0; i < k; ++i) store(out + i * GEMM_NR, load_first(in + i * k_stride, columns));
    } else if (k_stride == 1) {
      pack_b_transposed(in, col_stride, k, columns, out);
    } else {
      for (int64_t i = 0; i < k; ++i)
        for (int64_t c = 0; c < W; ++c) out[i * GEMM_NR + c] = c < columns ? in[i * k_stride + c * col_stride] : 0.0f;
    }
  }
}

// Where a micro-tile's sums go.
struct TileOut {
  float* c;
  int64_t ldc;
  int64_t columns;  // of which those past `columns` are dropped
  const float* bias_row;
  const float* bias_col;
  int accumulate, relu;
};

// What the options make of a vector of sums, row i of C, `here` columns from column j.
inline vf finished(const TileOut& to, const float* c, int64_t i, int64_t j, int64_t here, vf sum) {
  if (to.accumulate) sum += load_first(c, here);
  if (to.bias_row) sum += broadcast(to.bias_row[i]);
  if (to.bias_col) sum += load_first(to.bias_col + j, here);
  return to.relu ? select(sum < vf{}, vf{}, sum) : sum;  // NaN stays
}

// A tile that C's last column cuts.
void store_part(const TileOut& to, int rows, int vectors, const vf* sum) {
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v, ++sum) {
      float* c = to.c + i * to.ldc + v * W;
      const int64_t here = to.columns - v * W;
      put_first(c, here, finished(to, c, i, v * W, here, *sum));
    }
  }
}

// change(row, vector) for all of a tile.
template <int R, int V, class Change>
inline void for_tile(Change change) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) change(i, v);
}

// Each option is asked for once a tile: asked for at every vector, behind stores that might have changed it, they took
// as long as a sixth of 128 steps of k.
template <int R, int V>
__attribute__((always_inline)) inline void store_tile(const TileOut& out, vf (&sum)[R][V]) {
  const TileOut to = out;
  if (to.columns < V * W) {
    vf copy[R][V];  // so that the sums themselves have no address
    for_tile<R, V>([&](int i, int v) { copy[i][v] = sum[i][v]; });
    return store_part(out, R, V, copy[0]);
  }
  const auto at = [&](int i, int v) { return to.c + i * to.ldc + v * W; };
  if (to.accumulate) for_tile<R, V>([&](int i, int v) { sum[i][v] += load(at(i, v)); });
  if (to.bias_row) for_tile<R, V>([&](int i, int v) { sum[i][v] += broadcast(to.bias_row[i]); });
  if (to.bias_col) for_tile<R, V>([&](int i, int v) { sum[i][v] += load(to.bias_col + v * W); });
  if (to.relu) for_tile<R, V>([&](int i, int v) { sum[i][v] = select(sum[i][v] < vf{}, vf{}, sum[i][v]); });
  for_tile<R, V>([&](int i, int v) { store(at(i, v), sum[i][v]); });
}

// The same to C^T: element (i, j) at c[j * ldc + i].
template <int R, int V>
inline void store_tile_transposed(const TileOut& out, const vf (&sum)[R][V]) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    for (int first = 0; first < R; first += W) {
      vf block[W] = {};
      for (int i = 0; i < W && first + i < R; ++i) block[i] = sum[first + i][v];
      transpose_square(block);
      const vf bias = out.bias_row ? load_first(out.bias_row + first, R - first) : vf{};
      const int64_t columns = out.columns - v * W < W ? out.columns - v * W : W;
      float* c = out.c + v * W * out.ldc + first;
      for (int64_t j = 0; j < columns; ++j, c += out.ldc) {
        vf value = block[j] + bias;
        if (out.accumulate) value += load_first(c, R - first);
        if (out.relu) value = select(value < vf{}, vf{}, value);  // NaN stays
        put_first(c, R - first, value);
      }
    }
  }
}

// How A lies: packed by pack_a, in rows kRowRunStride apart, or in columns (each one k) `step` apart.
enum class LeftOperand { packed, row_runs, columns };

// How B lies: packed by pack_b, or in rows `step` apart.
enum class RightOperand { packed, rows };

// R x V vectors of C. Element (i, k) of A is a[i * row + k * a_step]; row is a constant, and a_step, too, unless A lies
// in columns. `step` is that of the operand that has one.
template <int R, int V, LeftOperand left_operand, RightOperand right_operand>
void micro_tile(int64_t k, const float* __restrict a, int64_t step, const float* __restrict b, const TileOut& out) {
  constexpr bool packed = left_operand == LeftOperand::packed, columns = left_operand == LeftOperand::columns;
  constexpr int64_t row = left_operand == LeftOperand::row_runs ? kRowRunStride : 1;
  constexpr bool b_packed = right_operand == RightOperand::packed;
  static_assert(b_packed || !columns, "one step, of one operand");
  const int64_t a_step = columns ? step : packed ? R : 1, b_step = b_packed ? GEMM_NR : step;
  vf sum[R][V] = {};
  // C is wanted when the sums are done: it comes from memory meanwhile.
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) __builtin_prefetch(out.c + i * out.ldc + v * W, 1);
  for (int64_t j = 0; j < k; ++j) {
    if (packed) __builtin_prefetch(a + R * k, 0, 2);  // the next tile of A, to the second-level cache
    for (int v = 0; v < V * W; v += 16) {
      if (b_packed)
        __builtin_prefetch(b + 8 * GEMM_NR + v, 0, 3);
      else
        __builtin_prefetch(b + GEMM_NR + v, 0, 2);  // the columns of the next tile
    }
    vf column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load(b + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf left = broadcast(a[i * row]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = fma(left, column[v], sum[i][v]);
    }
    a += a_step;
    b += b_step;
  }
  store_tile<R, V>(out, sum);
}

typedef void MicroTile(int64_t k, const float* a, int64_t step, const float* b, const TileOut& out);

// micro_tile<rows, vectors, left, right> for rows 1 ... GEMM_MR and vectors 1 ... GEMM_NV, chosen at run time.
template <int R, LeftOperand left, RightOperand right>
inline MicroTile* micro_tile_of(int64_t rows, int64_t vectors) {
  if (rows < R) return micro_tile_of<(R > 1 ? R - 1 : 1), left, right>(rows, vectors);
  if (vectors == 1) return micro_tile<R, 1, left, right>;
  if (vectors == 2) return micro_tile<R, (GEMM_NV < 2 ? GEMM_NV : 2), left, right>;
  return micro_tile<R, GEMM_NV, left, right>;
}

// Asks for lines of what will be read next, a few from one tile to the next: asked for at once they would have to wait
// for each other, and the tiles for them. Where the ISA has it so (asks_ahead).
class AskAhead {
 public:
  AskAhead(const CacheLines& lines, int64_t tiles)
      : it(lines), a_tile((lines.rows * lines.lines + tiles - 1) / tiles) {}
  void ask() {
    for (int64_t i = 0; i < a_tile && row < it.rows; ++i) {
      __builtin_prefetch(it.from + row * it.stride + line * kCacheLine, 0, 2);
      if (++line == it.lines) line = 0, ++row;
    }
  }

 private:
  const CacheLines& it;
  int64_t a_tile, row = 0, line = 0;
};

// A tile of A stays in the first-level cache while B's panels come from the second: 5 to 10 % faster than the other
// way.
template <LeftOperand left, RightOperand right = RightOperand::packed>
inline void gemm_tiles(const GemmBlock& g, int64_t step) {
  constexpr int64_t run = kRowRunStride;
  const int64_t tiles = tile_count(g.m), all = tiles * ((g.n + GEMM_NR - 1) / GEMM_NR);
  AskAhead ahead[] = {{g.ahead[0], all}, {g.ahead[1], all}};
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(g.m, tiles, tile);
    const int64_t rows = tile_start(g.m, tiles, tile + 1) - first;
    const float* a = g.a + first * (left == LeftOperand::packed ? g.k : left == LeftOperand::row_runs ? run : 1);
    for (int64_t j = 0; j < g.n; j += GEMM_NR) {
      const int64_t columns = g.n - j < GEMM_NR ? g.n - j : GEMM_NR;
      if constexpr (asks_ahead)
        for (AskAhead& lines : ahead) lines.ask();
      const TileOut out = {g.c + first * g.ldc + j,
                           g.ldc,
                           columns,
                           g.bias_row ? g.bias_row + first : nullptr,
                           g.bias_col ? g.bias_col + j : nullptr,
                           g.accumulate,
                           g.relu};
      const float* b = g.b + (right == RightOperand::packed ? j * g.k : j);
      micro_tile_of<GEMM_MR, left, right>(rows, (columns + W - 1) / W)(g.k, a, step, b, out);
    }
  }
}

void gemm_packed(const GemmBlock* block) { gemm_tiles<LeftOperand::packed>(*block, 0); }

void gemm_columns(const GemmBlock* block, int64_t lda) { gemm_tiles<LeftOperand::columns>(*block, lda); }

void gemm_b_rows(const GemmBlock* block, int64_t ldb) {
  gemm_tiles<LeftOperand::packed, RightOperand::rows>(*block, ldb);
}

void gemm_row_runs(const GemmBlock* block) { gemm_tiles<LeftOperand::row_runs>(*block, 0); }

// Adds up W rows by halves, as a transposition whose stages add instead of keeping both: lane r becomes row r's sum.
template <int D>
inline void fold_stage(vf* row) {
#pragma GCC unroll 8
  for (int i = 0; i < W; i += 2 * D) {
    swap_blocks<D>(row[i], row[i + D], AllLanes());
    row[i] += row[i + D];
  }
}
inline vf fold_rows(vf* row) {
  fold_stage<1>(row);
  fold_stage<2>(row);
  if (W > 4) fold_stage<(W > 4 ? 4 : 1)>(row);
  if (W > 8) fold_stage<(W > 8 ? 8 : 1)>(row);
  return row[0];
}

// M x N dot products: vectors run along k.
template <int M, int N>
inline void dot_tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, const float* bias, float* c,
                     int64_t ldc, int accumulate) {
  vf sum[M][N] = {};
  const auto add = [&](int64_t i, int64_t n) {
    vf row[N];
    for (int j = 0; j < N; ++j) row[j] = load_first(b + j * ldb + i, n);
    for (int r = 0; r < M; ++r) {
      const vf left = load_first(a + r * lda + i, n);
      for (int j = 0; j < N; ++j) sum[r][j] = fma(left, row[j], sum[r][j]);
    }
  };
  int64_t i = 0;
  for (; i + W <= k; i += W) add(i, W);
  if (i < k) add(i, k - i);
  constexpr int padded = (M * N + W - 1) / W * W;
  vf all[padded] = {};
  for (int r = 0; r < M; ++r)
    for (int j = 0; j < N; ++j) all[r * N + j] = sum[r][j];
  float total[padded];
  for (int r = 0; r < padded; r += W) store(total + r, fold_rows(all + r));
  for (int r = 0; r < M; ++r) {
    for (int j = 0; j < N; ++j) {
      float* out = c + r * ldc + j;
      *out = (accumulate ? *out + total[r * N + j] : total[r * N + j]) + (bias ? bias[j] : 0.0f);
    }
  }
}

template <int M>
inline void dot_rows(int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, const float* bias,
                     float* c, int64_t ldc, int accumulate) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4)
    dot_tile<M, 4>(k, a, lda, b + j * ldb, ldb, bias ? bias + j : nullptr, c + j, ldc, accumulate);
  for (; j < n; ++j) dot_tile<M, 1>(k, a, lda, b + j * ldb, ldb, bias ? bias + j : nullptr, c + j, ldc, accumulate);
}

template <int count>
struct Rows {
  constexpr int operator()() const { return count; }
};

// The rows of B that are read for all rows of A before the next ones.
void gemm_dots(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
               const float* bias, float* c, int64_t ldc, int accumulate) {
  for (int64_t j = 0; j < n; j += 16) {
    const int64_t columns = n - j < 16 ? n - j : 16;
    const float* more = bias ? bias + j : nullptr;
    const auto rows = [&](auto count, int64_t i) {
      dot_rows<count()>(columns, k, a + i * lda, lda, b + j * ldb, ldb, more, c + i * ldc + j, ldc, accumulate);
    };
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) rows(Rows<4>(), i);
    if (m - i == 3) rows(Rows<3>(), i);
    if (m - i == 2) rows(Rows<2>(), i);
    if (m - i == 1) rows(Rows<1>(), i);
  }
}

// R x V vectors of C where A is not packed: its rows lie lda apart, three to a pointer, so that their addresses fit the
// registers. V may span several panels of B, `panel` floats apart. Of each element's products, every U-th goes to the
// same running sum.
template <int R, int V, int U = 1, bool transposed = false>
void row_tile(int64_t k, const float* __restrict a, int64_t lda, const float* __restrict b, int64_t panel,
              const TileOut& out) {
  constexpr int panels = (V + GEMM_NV - 1) / GEMM_NV, groups = (R + 2) / 3;
  const float* from[panels];
  for (int p = 0; p < panels; ++p) from[p] = b + p * panel;
  const float* row[groups];
  for (int g = 0; g < groups; ++g) row[g] = a + 3 * g * lda;
  vf sum[U][R][V] = {};
  const auto add = [&](int64_t j, vf(&to)[R][V]) {
    vf column[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) column[v] = load(from[v / GEMM_NV] + j * GEMM_NR + v % GEMM_NV * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf left = broadcast(row[i / 3][i % 3 * lda + j]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) to[i][v] = fma(left, column[v], to[i][v]);
    }
  };
  int64_t j = 0;
  for (; j + U <= k; j += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) add(j + u, sum[u]);
  }
  for (; j < k; ++j) add(j, sum[0]);
#pragma GCC unroll 4
  for (int half = U / 2; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int u = 0; u < half; ++u)
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[u][i][v] += sum[u + half][i][v];
  if (transposed) return store_tile_transposed<R, V>(out, sum[0]);
  store_tile<R, V>(out, sum[0]);
}

// R rows of A, as they lie, times one vector of columns of B, of a panel that is GEMM_NR wide.
template <int R>
inline void small_tile(const GemmBlock& g, int64_t lda, const float* panel, int64_t i, int64_t j) {
  constexpr int groups = (R + 2) / 3;
  const float* row[groups];  // three rows to a pointer, as in row_tile
  for (int p = 0; p < groups; ++p) row[p] = g.a + (i + 3 * p) * lda;
  vf sum[R][1] = {};
  for (int64_t k = 0; k < g.k; ++k) {
    const vf column = load(panel + k * GEMM_NR);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][0] = fma(broadcast(row[r / 3][r % 3 * lda + k]), column, sum[r][0]);
  }
  store_tile<R, 1>(
      {g.c + i * g.ldc + j, g.ldc, g.n - j, nullptr, g.bias_col ? g.bias_col + j : nullptr, g.accumulate, g.relu}, sum);
}

// Rows [i, m): R at once as long as there are so many.
template <int R>
inline void small_rows(const GemmBlock& g, int64_t lda, const float* panel, int64_t i, int64_t j) {
  for (; i + R <= g.m; i += R) small_tile<R>(g, lda, panel, i, j);
  if (R > 1 && i < g.m) small_rows<(R > 1 ? R / 2 : 1)>(g, lda, panel, i, j);
}

void gemm_small(const GemmBlock* block, int64_t lda, int64_t ldb) {
  float panel[kSmallDepth * GEMM_NR];
  for (int64_t j = 0; j < block->n; j += W) {
    pack_b_transposed(block->b + j * ldb, ldb, block->k, block->n - j < W ? block->n - j : W, panel);
    small_rows<8>(*block, lda, panel, 0, j);
  }
}

typedef void RowTile(int64_t k, const float* a, int64_t lda, const float* b, int64_t panel, const TileOut& out);

// Panels that a tile of so many rows spans: enough sums in flight to hide the latency of a multiply-add.
constexpr int panels_at_once(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <int R>
inline RowTile* row_tile_of(int64_t rows, int64_t vectors) {
  if (rows < R) return row_tile_of<(R > 1 ? R - 1 : 1)>(rows, vectors);
  constexpr int most = panels_at_once(R) * GEMM_NV;
  if (vectors == 1) return row_tile<R, 1>;
  if (vectors <= GEMM_NV) return row_tile<R, GEMM_NV>;
  if (vectors <= 2 * GEMM_NV) return row_tile<R, (most < 2 * GEMM_NV ? most : 2 * GEMM_NV)>;
  return row_tile<R, most>;
}

// Of k, so much at a time that a panel of B stays in the first-level cache from one tile of rows to the next. A single
// tile runs through all of k: a sum that goes to C and comes back costs 3 to 4 % of 1024 x 1024 x 1024.
constexpr int64_t row_tile_depth = 256;

void gemm_rows(const GemmBlock* block, int64_t lda) {
  const GemmBlock& g = *block;
  const int64_t tiles = tile_count(g.m);
  const int64_t at_once = tiles == 1 ? panels_at_once(g.m) : 1;
  int64_t k0 = 0, depth;
  do {
    depth = tiles == 1 || g.k - k0 < row_tile_depth ? g.k - k0 : row_tile_depth;
    const bool last = k0 + depth == g.k;
    for (int64_t j = 0, panels; j < g.n; j += panels * GEMM_NR) {
      const int64_t left = (g.n - j + GEMM_NR - 1) / GEMM_NR;
      panels = left >= at_once ? at_once : left >= 2 && at_once > 2 ? 2 : 1;
      const int64_t columns = g.n - j < panels * GEMM_NR ? g.n - j : panels * GEMM_NR;
      const int64_t vectors = panels == 1 ? (columns + W - 1) / W : panels * GEMM_NV;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile_start(g.m, tiles, tile);
        const int64_t rows = tile_start(g.m, tiles, tile + 1) - first;
        const TileOut out = {g.c + first * g.ldc + j,
                             g.ldc,
                             columns,
                             last && g.bias_row ? g.bias_row + first : nullptr,
                             last && g.bias_col ? g.bias_col + j : nullptr,
                             k0 > 0 || g.accumulate,
                             last && g.relu};
        row_tile_of<GEMM_MR>(rows, vectors)(depth, g.a + first * lda + k0, lda, g.b + j * g.k + k0 * GEMM_NR,
                                            g.k * GEMM_NR, out);
      }
    }
    k0 += depth;
  } while (k0 < g.k);
}

template <int R>
inline RowTile* transposed_tile_of(int64_t rows, int64_t vectors) {
  if (rows < R) return transposed_tile_of<(R > 1 ? R - 1 : 1)>(rows, vectors);
  return vectors == 1 ? row_tile<R, 1, 1, true> : row_tile<R, GEMM_NV, 1, true>;
}

void gemm_rows_transposed(const GemmBlock* block, int64_t lda) {
  const GemmBlock& g = *block;
  const int64_t tiles = tile_count(g.m);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(g.m, tiles, tile);
    const int64_t rows = tile_start(g.m, tiles, tile + 1) - first;
    for (int64_t j = 0; j < g.n; j += GEMM_NR) {
      const int64_t columns = g.n - j < GEMM_NR ? g.n - j : GEMM_NR;
      const TileOut out = {g.c + j * g.ldc + first,
                           g.ldc,
                           columns,
                           g.bias_row ? g.bias_row + first : nullptr,
                           nullptr,
                           g.accumulate,
                           g.relu};
      transposed_tile_of<GEMM_MR>(rows, (columns + W - 1) / W)(g.k, g.a + first * lda, lda, g.b + j * g.k, 0, out);
    }
  }
}

// One or two panels' columns are too few sums in flight for one row: a multiply-add's latency would count, not its
// throughput.
constexpr int STEP_CHAINS = GEMM_MR > 6 && GEMM_NV == 2 ? 4 : 2, STEP_ROWS = 3;

template <int R>
inline RowTile* step_tile_of(int64_t rows, int64_t vectors) {
  if (rows < R) return step_tile_of<(R > 1 ? R - 1 : 1)>(rows, vectors);
  return vectors == 1 ? row_tile<R, 1, STEP_CHAINS> : row_tile<R, GEMM_NV, STEP_CHAINS>;
}

void gemm_step(const GemmBlock* block, int64_t lda) {
  const GemmBlock& g = *block;
  if (g.n > 2 * GEMM_NR) return gemm_rows(block, lda);
  const int64_t panel = g.k * GEMM_NR;
  for (int64_t i = 0; i < g.m; i += STEP_ROWS) {
    const bool at_once = g.m - i == 1 && g.n > GEMM_NR;
    for (int64_t j = 0; j < g.n; j += at_once ? g.n : GEMM_NR) {
      const TileOut out = {g.c + i * g.ldc + j, g.ldc, g.n - j, nullptr, g.bias_col ? g.bias_col + j : nullptr,
                           g.accumulate,        g.relu};
      RowTile* tile =
          at_once ? row_tile<1, 2 * GEMM_NV, STEP_CHAINS> : step_tile_of<STEP_ROWS>(g.m - i, (g.n - j + W - 1) / W);
      tile(g.k, g.a + i * lda, lda, g.b + j * g.k, panel, out);
    }
  }
}

// Few rows of B at a time, so that they come in nearly one stream: 16 at a time took a quarter longer. Rows past the
// last one are the last one again.
constexpr int GEMV_ROWS = 4;

void gemv_rows(const GemvTerm* terms, int count, int64_t n, float* c) {
  for (int64_t j = 0; j < n; j += W) {
    vf sum[W] = {}, bias = {};
#pragma GCC unroll 4
    for (int first = 0; first < W; first += GEMV_ROWS) {
      vf* to = sum + first;
      for (int t = 0; t < count; ++t) {
        const GemvTerm& it = terms[t];
        const float* row[GEMV_ROWS];
        for (int r = 0; r < GEMV_ROWS; ++r) row[r] = it.b + (j + first + r < n ? j + first + r : n - 1) * it.ldb;
        int64_t i = 0;
        for (; i + W <= it.k; i += W) {
          const vf left = load(it.a + i);
#pragma GCC unroll 4
          for (int r = 0; r < GEMV_ROWS; ++r) to[r] = fma(left, load(row[r] + i), to[r]);
        }
        if (i < it.k) {
          const vf left = load_first(it.a + i, it.k - i);
#pragma GCC unroll 4
          for (int r = 0; r < GEMV_ROWS; ++r) to[r] = fma(left, load_first(row[r] + i, it.k - i), to[r]);
        }
      }
    }
    for (int t = 0; t < count; ++t)
      if (terms[t].bias) bias += load_first(terms[t].bias + j, n - j);
    put_first(c + j, n - j, fold_rows(sum) + bias);
  }
}

// R rows of A times V vectors of columns of B, both as they are.
template <int R, int V>
inline void few_rows_tile(const GemmBlock& g, int64_t row_stride, int64_t k_stride, int64_t ldb) {
  vf sum[R][V] = {};
  const float *a = g.a, *b = g.b;
  for (int64_t j = 0; j < g.k; ++j, a += k_stride, b += ldb) {
    vf column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = load_first(b + v * W, g.n - v * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf left = broadcast(a[i * row_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i][v] = fma(left, column[v], sum[i][v]);
    }
  }
  store_tile<R, V>({g.c, g.ldc, g.n, nullptr, g.bias_col, g.accumulate, 0}, sum);
}

// As many vectors as registers allow: with one row, eight sums are in flight.
template <int R>
inline void few_rows(GemmBlock g, int64_t row_stride, int64_t k_stride, int64_t ldb) {
  if (R > 1 && g.m < R) return few_rows<(R > 1 ? R - 1 : 1)>(g, row_stride, k_stride, ldb);
  constexpr int V = R == 1 && GEMM_MR > 6 ? 8 : R <= 3 ? 4 : 2;
  const int64_t n = g.n;
  for (int64_t j = 0; j < n; j += V * W, g.b += V * W, g.c += V * W) {
    g.n = n - j;
    few_rows_tile<R, V>(g, row_stride, k_stride, ldb);
    if (g.bias_col) g.bias_col += V * W;
  }
}

void gemm_few_rows(int64_t m, int64_t n, int64_t k, const float* a, int64_t row_stride, int64_t k_stride,
                   const float* b, int64_t ldb, const float* bias, float* c, int64_t ldc, int accumulate) {
  GemmBlock block = {};
  block.m = m;
  block.n = n;
  block.k = k;
  block.a = a;
  block.b = b;
  block.c = c;
  block.ldc = ldc;
  block.bias_col = bias;
  block.accumulate = accumulate;
  few_rows<GEMM_MR>(block, row_stride, k_stride, ldb);
}

void transpose(const float* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst, int64_t dst_stride,
               int accumulate) {
  for (int64_t i = 0; i < rows; i += W) {
    const int64_t rows_here = rows - i < W ? rows - i : W;
    for (int64_t j = 0; j < cols; j += W) {
      const float* from = src + i * src_stride + j;
      if (rows_here == W && j + W <= cols) {
        transpose_block(from, src_stride, dst + j * dst_stride + i, dst_stride, accumulate);
        continue;
      }
      vf block[W] = {};
      for (int64_t r = 0; r < rows_here; ++r) block[r] = load_first(from + r * src_stride, cols - j);
      transpose_square(block);
      for (int64_t c = 0; c < W && j + c < cols; ++c) {
        float* out = dst + (j + c) * dst_stride + i;
        put_first(out, rows_here, accumulate ? block[c] + load_first(out, rows_here) : block[c]);
      }
    }
  }
}

}  // namespace
