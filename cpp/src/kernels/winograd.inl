// 3 x 3 convolution of stride 1 by 2 x 2 tiles of outputs: F(2x2, 3x3) of Winograd (1980) as Lavin and Gray (2016,
// sec. 4.1) use it. A tile costs 16 multiplications a channel and filter instead of 36, and is exact for small
// integers:
//   y = A^T [ (G g G^T) . (B^T d B) ] A       d the 4 x 4 input cells of a tile, g the 3 x 3 kernel, . element by
//   element dg = G^T [ (B^T d B) . (A e A^T) ] G      e the 2 x 2 errors dE/dy of a tile: the adjoint in g
//         | 1  0 -1  0 |         | 1   0   0  |
//   B^T = | 0  1  1  0 |     G = | 1/2 1/2 1/2|     A^T = | 1  1  1  0 |
//         | 0 -1  1  0 |         | 1/2-1/2 1/2|           | 0  1 -1 -1 |
//         | 0  1  0 -1 |         | 0   0   1  |
// Over channels and tiles the element-wise products are 16 matrix products, one an element of the 4 x 4 patch: operand
// number i lies at `patch_stride` times i. Tiles run along vectors, numbered as the columns of conv.inl, row by row and
// image by image; tile (p, q) starts at cell (2 p + tap_h[0], 2 q + tap_w[0]).
namespace {

constexpr int PATCH = 16;

// The S x S cells (S = 2 or 4) of n <= W tiles from tile j, channel after channel.
template <int S>
struct TileCells {
  RowRun run[W];
  CellPairs near[W], far[W];  // cells 0 and 1 of each tile, 2 and 3
  int runs;
  const ConvGather& g;

  TileCells(const ConvGather& gather, int64_t j, int64_t n) : g(gather) {
    runs = split_runs(g, j, n, run);
    for (int s = 0; s < runs; ++s) {
      run[s].h += g.tap_h[0];
      run[s].w += g.tap_w[0];
      near[s].set(run[s].w, 2 * run[s].lanes, g.width);
      far[s].set(run[s].w + 2, 2 * run[s].lanes, g.width);
    }
  }

  // Row r of a run's tiles.
  void load_row(int s, int64_t channel, int r, vf* cell) const {
    const int64_t h = run[s].h + r;
    if (h < 0 || h >= g.height) {
      for (int c = 0; c < S; ++c) cell[c] = vf{};
      return;
    }
    const float* row = run[s].image + channel * g.channel_stride + h * g.width + run[s].w;
    near[s].load(row, cell[0], cell[1]);
    if (S == 4) far[s].load(row + 2, cell[S - 2], cell[S - 1]);
  }

  void load(int64_t channel, vf* cell) const {
    if (runs == 1) {
      for (int r = 0; r < S; ++r) load_row(0, channel, r, cell + r * S);
      return;
    }
    float lanes[S * S][2 * W];  // a run writes a whole vector; the next one what is beyond its lanes
    for (int s = 0; s < runs; ++s) {
      for (int r = 0; r < S; ++r) {
        load_row(s, channel, r, cell);
        for (int c = 0; c < S; ++c) store(lanes[r * S + c] + run[s].at, cell[c]);
      }
    }
    for (int i = 0; i < S * S; ++i) cell[i] = ::load(lanes[i]);
  }
};

// The same of images in lanes: a vector of columns is one tile of W images.
template <int S>
struct LaneTileCells {
  const float* corner;
  int64_t h, w;
  bool inside;
  const ConvGather& g;

  LaneTileCells(const ConvGather& gather, int64_t j, int64_t) : g(gather) {
    const int64_t tile = j / W, row = tile / g.out_width;
    h = row % g.out_height * g.stride_h + g.tap_h[0];
    w = tile % g.out_width * g.stride_w + g.tap_w[0];
    corner = g.image + row / g.out_height * g.image_stride + (h * g.width + w) * g.cell_stride;
    inside = h >= 0 && w >= 0 && h + S <= g.height && w + S <= g.width;
  }

  void load(int64_t channel, vf* cell) const {
    const float* at = corner + channel * W;
    for (int r = 0; r < S; ++r) {
      for (int c = 0; c < S; ++c) {
        const bool here = inside || (h + r >= 0 && h + r < g.height && w + c >= 0 && w + c < g.width);
        cell[r * S + c] = here ? ::load(at + (r * g.width + c) * g.cell_stride) : vf{};
      }
    }
  }
};

// Along one axis, in place: x0, x1, x2, x3 of B^T x.
inline void input_axis(vf& x0, vf& x1, vf& x2, vf& x3) {
  const vf a = x0 - x2, b = x1 + x2, c = x2 - x1, d = x1 - x3;
  x0 = a, x1 = b, x2 = c, x3 = d;
}

// B^T d B of all channels and n <= W tiles from j; channel c's element i at out + i * patch_stride + c * out_stride.
template <class Cells>
inline void transform_tiles_of(const ConvGather& g, int64_t channels, int64_t j, int64_t n, float* out,
                               int64_t out_stride, int64_t patch_stride) {
  const Cells cells(g, j, n);
  for (int64_t channel = 0; channel < channels; ++channel, out += out_stride) {
    vf x[PATCH];
    cells.load(channel, x);
    for (int c = 0; c < 4; ++c) input_axis(x[c], x[4 + c], x[8 + c], x[12 + c]);
    for (int r = 0; r < 4; ++r) input_axis(x[4 * r], x[4 * r + 1], x[4 * r + 2], x[4 * r + 3]);
    for (int i = 0; i < PATCH; ++i) store(out + i * patch_stride, x[i]);
  }
}

inline void transform_tiles(const ConvGather& g, int64_t channels, int64_t j, int64_t n, float* out, int64_t out_stride,
                            int64_t patch_stride) {
  if (g.cell_stride) {
    transform_tiles_of<LaneTileCells<4>>(g, channels, j, n, out, out_stride, patch_stride);
  } else {
    transform_tiles_of<TileCells<4>>(g, channels, j, n, out, out_stride, patch_stride);
  }
}

void winograd_pack_input(const ConvGather* gather, int64_t channels, int64_t j0, int64_t n, float* packed,
                         int64_t patch_stride) {
  for (int64_t j = 0; j < n; j += W) {
    float* out = packed + j / GEMM_NR * GEMM_NR * channels + j % GEMM_NR;
    transform_tiles(*gather, channels, j0 + j, n - j < W ? n - j : W, out, GEMM_NR, patch_stride);
  }
}

void winograd_input_rows(const ConvGather* gather, int64_t channels, int64_t j0, int64_t n, float* rows,
                         int64_t patch_stride) {
  for (int64_t j = 0; j < n; j += W)
    transform_tiles(*gather, channels, j0 + j, n - j < W ? n - j : W, rows + j, kRowRunStride, patch_stride);
}

// G g along one axis: three taps to four.
inline void weight_axis(vf g0, vf g1, vf g2, vf* out, int step) {
  const vf outer = 0.5f * (g0 + g2), middle = 0.5f * g1;
  out[0] = g0;
  out[step] = outer + middle;
  out[2 * step] = outer - middle;
  out[3 * step] = g2;
}

void winograd_pack_weight(const float* weight, int64_t row_stride, int64_t k_stride, int mirrored, int64_t m, int64_t k,
                          int64_t k0, int64_t k1, float* packed, int64_t patch_stride) {
  const int64_t tiles = tile_count(m);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(m, tiles, tile), rows = tile_start(m, tiles, tile + 1) - first;
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t here = rows - i < W ? rows - i : W;
      for (int64_t j = k0; j < k1; ++j) {
        const float* in = weight + (first + i) * row_stride + j * k_stride;
        vf g[9], half[12], u[PATCH];
        for (int t = 0; t < 9; ++t)
          g[t] = gather_lanes(in + (mirrored ? 8 - t : t), (int32_t)row_stride, lane_range(0, (int)here));
        for (int c = 0; c < 3; ++c) weight_axis(g[c], g[3 + c], g[6 + c], half + c, 3);
        for (int r = 0; r < 4; ++r) weight_axis(half[3 * r], half[3 * r + 1], half[3 * r + 2], u + 4 * r, 1);
        float* out = packed + first * k + j * rows + i;
        for (int e = 0; e < PATCH; ++e) store_first(out + e * patch_stride, here, u[e]);
      }
    }
  }
}

// A^T m A of W tiles: the 2 x 2 pixels of each, row by row.
inline void transform_output(const float* m, int64_t patch_stride, vf bias, bool relu, vf* pixels) {
  vf x[PATCH], s[2][4];
  for (int i = 0; i < PATCH; ++i) x[i] = load(m + i * patch_stride);
  for (int c = 0; c < 4; ++c) {
    s[0][c] = x[c] + x[4 + c] + x[8 + c];
    s[1][c] = x[4 + c] - x[8 + c] - x[12 + c];
  }
  for (int r = 0; r < 2; ++r) {
    vf even = s[r][0] + s[r][1] + s[r][2] + bias, odd = s[r][1] - s[r][2] - s[r][3] + bias;
    if (relu) {
      even = select(even < vf{}, vf{}, even);  // NaN stays
      odd = select(odd < vf{}, vf{}, odd);
    }
    pixels[2 * r] = even;
    pixels[2 * r + 1] = odd;
  }
}

void winograd_lane_output(const ConvGather& g, int64_t rows, int64_t j0, int64_t n, const float* products, int64_t ld,
                          int64_t patch_stride, const float* bias, int relu, float* y) {
  for (int64_t j = 0; j < n; j += W) {
    const LaneTileCells<2> tile(g, j0 + j, W);
    float* corner = y + (tile.corner - g.image);
    for (int64_t k = 0; k < rows; ++k) {
      vf pixels[4];
      transform_output(products + k * ld + j, patch_stride, broadcast(bias ? bias[k] : 0.0f), relu, pixels);
      for (int i = 0; i < 4; ++i)
        if (tile.inside || (tile.h + i / 2 < g.height && tile.w + i % 2 < g.width))
          store(corner + (i / 2 * g.width + i % 2) * g.cell_stride + k * W, pixels[i]);
    }
  }
}

void winograd_output(const ConvGather* tiles, int64_t rows, int64_t j0, int64_t n, const float* products, int64_t ld,
                     int64_t patch_stride, const float* bias, int relu, float* y) {
  const ConvGather& g = *tiles;
  if (g.cell_stride) return winograd_lane_output(g, rows, j0, n, products, ld, patch_stride, bias, relu, y);
  for (int64_t j = 0; j < n; j += W) {
    RowRun run[W];
    const int runs = split_runs(g, j0 + j, n - j < W ? n - j : W, run);
    for (int64_t k = 0; k < rows; ++k) {
      vf tile[4], pixels[4];
      transform_output(products + k * ld + j, patch_stride, broadcast(bias ? bias[k] : 0.0f), relu, tile);
      for (int r = 0; r < 4; r += 2) interleave(tile[r], tile[r + 1], pixels + r, AllLanes());
      float lanes[2][4 * W];
      if (runs > 1)
        for (int i = 0; i < 4; ++i) store(lanes[i / 2] + i % 2 * W, pixels[i]);
      for (int s = 0; s < runs; ++s) {
        const RowRun& it = run[s];
        const int64_t width = 2 * it.lanes < g.width - it.w ? 2 * it.lanes : g.width - it.w;
        float* to = y + (it.image - g.image) + k * g.channel_stride + it.h * g.width + it.w;
        for (int r = 0; r < 2 && it.h + r < g.height; ++r, to += g.width) {
          store_first(to, width, runs > 1 ? load(lanes[r] + 2 * it.at) : pixels[2 * r]);
          if (width > W) store_first(to + W, width - W, runs > 1 ? load(lanes[r] + 2 * it.at + W) : pixels[2 * r + 1]);
        }
      }
    }
  }
}

// A e along one axis: two errors to four.
inline void error_axis(vf e0, vf e1, vf* out, int step) {
  out[0] = e0;
  out[step] = e0 + e1;
  out[2 * step] = e0 - e1;
  out[3 * step] = -e1;
}

template <class Cells>
inline void pack_errors_of(const ConvGather& g, int64_t filters, int64_t j0, int64_t n, float* packed,
                           int64_t patch_stride) {
  vf patch[PATCH][W];
  for (int64_t k0 = 0; k0 < filters; k0 += W) {
    const int64_t here = filters - k0 < W ? filters - k0 : W;
    float* panel = packed + k0 / GEMM_NR * GEMM_NR * n + k0 % GEMM_NR;
    for (int e = 0; e < PATCH; ++e)
      for (int64_t k = here; k < W; ++k) patch[e][k] = vf{};
    for (int64_t j = 0; j < n; j += W) {
      const int64_t lanes = n - j < W ? n - j : W;
      const Cells cells(g, j0 + j, lanes);
      for (int64_t k = 0; k < here; ++k) {
        vf error[4], half[8], full[PATCH];
        cells.load(k0 + k, error);
        for (int c = 0; c < 2; ++c) error_axis(error[c], error[2 + c], half + c, 2);
        for (int r = 0; r < 4; ++r) error_axis(half[2 * r], half[2 * r + 1], full + 4 * r, 1);
        for (int e = 0; e < PATCH; ++e) patch[e][k] = full[e];
      }
      for (int e = 0; e < PATCH; ++e) {
        vf block[W];
        for (int k = 0; k < W; ++k) block[k] = patch[e][k];
        transpose_square(block);
        for (int64_t t = 0; t < lanes; ++t) store(panel + e * patch_stride + (j + t) * GEMM_NR, block[t]);
      }
    }
    // The last panel's missing filters.
    if (k0 + W >= filters)
      for (int64_t more = k0 % GEMM_NR + W; more < GEMM_NR; more += W)
        for (int e = 0; e < PATCH; ++e)
          for (int64_t t = 0; t < n; ++t) store(panel - k0 % GEMM_NR + more + e * patch_stride + t * GEMM_NR, vf{});
  }
}

void winograd_pack_errors(const ConvGather* gather, int64_t filters, int64_t j0, int64_t n, float* packed,
                          int64_t patch_stride) {
  if (gather->cell_stride) {
    pack_errors_of<LaneTileCells<2>>(*gather, filters, j0, n, packed, patch_stride);
  } else {
    pack_errors_of<TileCells<2>>(*gather, filters, j0, n, packed, patch_stride);
  }
}

// G^T m along one axis: four to three.
inline void gradient_axis(vf m0, vf m1, vf m2, vf m3, vf* out, int step) {
  const vf sum = 0.5f * (m1 + m2);
  out[0] = m0 + sum;
  out[step] = 0.5f * (m1 - m2);
  out[2 * step] = sum + m3;
}

void winograd_weight_gradient(const float* products, int64_t patch_stride, int64_t filters, float* d_weight,
                              int64_t filter_stride, int accumulate) {
  for (int64_t k = 0; k < filters; k += W) {
    const int64_t here = filters - k < W ? filters - k : W;
    vf half[12], g[9];
    for (int c = 0; c < 4; ++c) {
      vf m[4];
      for (int r = 0; r < 4; ++r) m[r] = load_first(products + (4 * r + c) * patch_stride + k, here);
      gradient_axis(m[0], m[1], m[2], m[3], half + c, 4);
    }
    for (int r = 0; r < 3; ++r)
      gradient_axis(half[4 * r], half[4 * r + 1], half[4 * r + 2], half[4 * r + 3], g + 3 * r, 1);
    float lanes[9 * W] __attribute__((aligned(64)));
    for (int t = 0; t < 9; ++t) store(lanes + t * W, g[t]);
    for (int64_t i = 0; i < here; ++i) {
      float* out = d_weight + (k + i) * filter_stride;
      for (int t = 0; t < 9; ++t) out[t] = accumulate ? out[t] + lanes[t * W + i] : lanes[t * W + i];
    }
  }
}

}  // namespace
