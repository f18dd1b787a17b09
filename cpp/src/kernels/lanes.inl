// Convolution of W images at once, one in each lane: a plane is (height, width, W), the CHWN layout of Krizhevsky's
// cuda-convnet (2012) for W images. A cell of any tap is then a whole vector where it lies; there are no columns to
// pack, whatever stride and kernel; forward and dE/dx leave out what lies outside the image.
namespace {

// R planes of outputs times V groups of images, at output column j: sum over the taps inside and the input's planes.
template <int R, int V>
void lane_tile(const LaneProduct& p, const float* __restrict weight, int64_t j, const float* bias, float* out) {
  vf sum[R][V] = {};
  const float* cells = p.cells + j * p.step;
  const int64_t first = p.inside[2 * j], last = p.inside[2 * j + 1];
  const bool whole_rows = first == 0 && last == p.taps_w;
  for (int64_t r = p.first_row; r < p.last_row; ++r) {
    const int64_t begin = (r * p.taps_w + first) * p.planes;
    if (whole_rows) r = p.last_row - 1;
    const int64_t end = (r * p.taps_w + last) * p.planes;
    for (int64_t k = begin; k < end; ++k) {
      const float* at = cells + p.offset[k];
      vf cell[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) cell[v] = load(at + v * p.cells_group);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const vf left = broadcast(weight[k * R + i]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[i][v] = fma(left, cell[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      vf value = sum[i][v];
      if (bias) value += broadcast(bias[i]);
      if (p.relu) value = select(value < vf{}, vf{}, value);  // NaN stays
      store(out + i * p.out_plane + v * p.out_group, value);
    }
  }
}

typedef void LaneTile(const LaneProduct& p, const float* weight, int64_t j, const float* bias, float* out);

template <int R>
inline LaneTile* lane_tile_of(int64_t rows, int64_t groups) {
  if (rows < R) return lane_tile_of<(R > 1 ? R - 1 : 1)>(rows, groups);
  return groups == 1 ? lane_tile<R, 1> : lane_tile<R, 2>;
}

void lane_product(const LaneProduct* product) {
  const LaneProduct& p = *product;
  const int64_t tiles = tile_count(p.rows);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(p.rows, tiles, tile), rows = tile_start(p.rows, tiles, tile + 1) - first;
    LaneTile* run = lane_tile_of<GEMM_MR>(rows, p.groups);
    const float* bias = p.bias ? p.bias + first : nullptr;
    for (int64_t j = 0; j < p.width; ++j)
      run(p, p.weight + first * p.depth, j, bias, p.out + first * p.out_plane + j * p.out_step);
  }
}

// --- dE/dW: M filters times N weights, each a dot product over outputs and images --------------------------------

// As many sums as registers hold; a row of them in one vector.
constexpr int LANE_M = GEMM_MR > 6 ? 4 : 3, LANE_N = GEMM_MR <= 6 ? 3 : W < 6 ? 4 : 6;

template <int M, int N>
void lane_dots(const LaneWeights& w, const float* errors, const int32_t* offset, float* sums) {
  static_assert(N <= W, "a row of sums is stored as one vector");
  constexpr int padded = (M * N + W - 1) / W * W;
  vf sum[padded] = {};
  vf part[M][N] = {};
  for (int64_t p = 0; p < w.height; ++p) {
    const float* e = errors + p * w.width * W;
    const float* cells[N];
    for (int n = 0; n < N; ++n) cells[n] = w.cells + p * w.row_step + offset[n];
    for (int64_t q = 0, at = 0; q < w.width; ++q, at += w.step) {
      vf error[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) error[m] = load(e + q * W + m * w.error_plane);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const vf cell = load(cells[n] + at);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) part[m][n] = fma(error[m], cell, part[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sum[m * N + n] = part[m][n];
  float total[padded + W];  // and what a whole vector reads behind the last
  for (int i = 0; i < M * N; i += W) store(total + i, fold_rows(sum + i));
  for (int m = 0; m < M; ++m) {
    float* to = sums + m * w.columns;
    const vf row = load(total + m * N);
    store_first(to, N, w.accumulate ? row + load_first(to, N) : row);
  }
}

typedef void LaneDots(const LaneWeights& w, const float* errors, const int32_t* offset, float* sums);

template <int M, int N>
inline LaneDots* lane_dots_of(int64_t rows, int64_t columns) {
  if (rows < M) return lane_dots_of<(M > 1 ? M - 1 : 1), N>(rows, columns);
  if (columns < N) return lane_dots_of<M, (N > 1 ? N - 1 : 1)>(rows, columns);
  return lane_dots<M, N>;
}

void lane_weights(const LaneWeights* weights) {
  const LaneWeights& w = *weights;
  const int64_t across = (w.columns + LANE_N - 1) / LANE_N, down = (w.rows + LANE_M - 1) / LANE_M;
  for (int64_t i = 0; i < down; ++i) {
    const int64_t row = tile_start(w.rows, down, i), rows = tile_start(w.rows, down, i + 1) - row;
    for (int64_t j = 0; j < across; ++j) {
      const int64_t column = tile_start(w.columns, across, j);
      const int64_t columns = tile_start(w.columns, across, j + 1) - column;
      lane_dots_of<LANE_M, LANE_N>(rows, columns)(w, w.errors + row * w.error_plane, w.offset + column,
                                                  w.sums + row * w.columns + column);
    }
  }
}

}  // namespace
