// R x R convolution of stride 1 by T x T tiles of outputs: F(TxT, RxR) of Winograd (1980) as Lavin and Gray (2016, sec.
// 4) use it, with S = T + R - 1. A tile costs S S multiplications a channel and filter instead of T T R R:
//   y = A^T [ (G g G^T) . (B^T d B) ] A       d the S x S input cells of a tile, g the R x R kernel, . element by
//   element dg = G^T [ (B^T d B) . (A e A^T) ] G      e the T x T errors dE/dy of a tile: the adjoint in g
// T = 2, R = 3: 16 instead of 36, exact for small integers.
//         | 1  0 -1  0 |         | 1   0   0  |
//   B^T = | 0  1  1  0 |     G = | 1/2 1/2 1/2|     A^T = | 1  1  1  0 |
//         | 0 -1  1  0 |         | 1/2-1/2 1/2|           | 0  1 -1 -1 |
//         | 0  1  0 -1 |         | 0   0   1  |
// T = 4, R = 3: 36 instead of 144, for images in lanes (lanes.inl) alone. It interpolates at 0, +-1/r, +-r and infinity
// with r = sqrt(2), where errors are a fifth of those at 0, +-1, +-2 (Barabasz et al. 2020, "Error Analysis and
// Improving the Accuracy of Winograd Convolution", look for such points), some 1e-6 of the largest output:
//         | 1   0  -5/2   0   1  0 |         |   1     0    0  |
//         | 0  -r   -2   1/r  1  0 |         | -r/3  -1/3 -r/6 |           | 1   r    r   1/r  1/r  0 |
//   B^T = | 0   r   -2  -1/r  1  0 |     G = | -r/3   1/3 -r/6 |     A^T = | 0   1   -1    1   -1   0 |
//         | 0 -1/r -1/2   r   1  0 |         |  r/6   1/3  r/3 |           | 0  1/r  1/r   r    r   0 |
//         | 0  1/r -1/2  -r   1  0 |         |  r/6  -1/3  r/3 |           | 0  1/2 -1/2   2   -2   1 |
//         | 0   1    0  -5/2  0  1 |         |   0     0    1  |
// T = 2, R = 5: 36 instead of 100, in lanes too, at the same points, so with the same B; errors are 1.4 times the
// direct sum's:
//         |   1     0    0    0    0   |
//         | -r/3  -1/3 -r/6 -1/6 -r/12 |
//     G = | -r/3   1/3 -r/6  1/6 -r/12 |     A^T = | 1   r    r   1/r  1/r  0 |
//         |  r/6   1/3  r/3  2/3  2r/3 |           | 0   1   -1    1   -1   1 |
//         |  r/6  -1/3  r/3 -2/3  2r/3 |
//         |   0     0    0    0    1   |
// Over channels and tiles the element-wise products are S S matrix products, one an element of the S x S patch: operand
// number i lies at `patch_stride` times i. Tiles run along vectors, numbered as the columns of conv.inl, row by row and
// image by image; tile (p, q) starts at cell (T p + tap_h[0], T q + tap_w[0]).
namespace {

// Neighbouring columns that come from one row of one image: `lanes` of them, at lane `at` of the vector.
struct RowRun {
  const float* image;  // of channel 0
  int64_t h, w;        // input cell of the first lane for a tap of (0, 0)
  int at, lanes;
};

// Splits columns [j, j + n), n <= W, into row runs.
inline int split_runs(const ConvGather& g, int64_t j, int64_t n, RowRun* run) {
  int count = 0;
  for (int at = 0; at < n;) {
    const int64_t q = (j + at) % g.out_width, row = (j + at) / g.out_width;
    const int64_t left_in_row = g.out_width - q, left = n - at;
    const int lanes = (int)(left_in_row < left ? left_in_row : left);
    run[count++] = {g.image + row / g.out_height * g.image_stride, row % g.out_height * g.stride_h, q * g.stride_w, at,
                    lanes};
    at += lanes;
  }
  return count;
}

// --- the transforms along one axis, in place or from `in` to `out`, elements `step` apart ----------------------------

template <int outputs, int taps>
struct TileOf {
  static constexpr int T = outputs, R = taps, S = T + R - 1;
  static constexpr bool lanes_only = S > 4;
};

// Calls run with the TileOf<T, R> that `tile` names.
template <class Run>
inline void with_tile(WinogradTile tile, Run run) {
  if (tile.taps == 5) return run(TileOf<2, 5>());
  if (tile.outputs == 4) return run(TileOf<4, 3>());
  run(TileOf<2, 3>());
}

constexpr float kRoot = 1.41421356f, kInverseRoot = 0.70710678f;  // r and 1/r

// B^T x.
inline void input_axis(TileOf<2, 3>, vf* x, int step) {
  const vf x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
  x[0] = x0 - x2;
  x[step] = x1 + x2;
  x[2 * step] = x2 - x1;
  x[3 * step] = x1 - x3;
}
inline void input_axis(TileOf<4, 3>, vf* x, int step) {
  const vf x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
  const vf root = broadcast(kRoot), inverse = broadcast(kInverseRoot), two = broadcast(2.0f), half = broadcast(0.5f);
  const vf centre = broadcast(2.5f);
  const vf even = x4 - two * x2, odd = x3 - two * x1, wide_even = x4 - half * x2, wide_odd = x3 - half * x1;
  x[0] = x0 + x4 - centre * x2;
  x[step] = fma(inverse, odd, even);
  x[2 * step] = even - inverse * odd;
  x[3 * step] = fma(root, wide_odd, wide_even);
  x[4 * step] = wide_even - root * wide_odd;
  x[5 * step] = x1 + x5 - centre * x3;
}
inline void input_axis(TileOf<2, 5>, vf* x, int step) { input_axis(TileOf<4, 3>(), x, step); }

// G g.
inline void weight_axis(TileOf<2, 3>, const vf* g, int step, vf* out, int out_step) {
  const vf g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const vf outer = 0.5f * (g0 + g2), middle = 0.5f * g1;
  out[0] = g0;
  out[out_step] = outer + middle;
  out[2 * out_step] = outer - middle;
  out[3 * out_step] = g2;
}
inline void weight_axis(TileOf<4, 3>, const vf* g, int step, vf* out, int out_step) {
  const vf g0 = g[0], g1 = g[step], g2 = g[2 * step];
  const vf middle = (1.0f / 3) * g1, near = (kRoot / 6) * g0, far = (kRoot / 6) * g2;
  const vf even = -2.0f * near - far, wide_even = near + 2.0f * far;
  out[0] = g0;
  out[out_step] = even - middle;
  out[2 * out_step] = even + middle;
  out[3 * out_step] = wide_even + middle;
  out[4 * out_step] = wide_even - middle;
  out[5 * out_step] = g2;
}
inline void weight_axis(TileOf<2, 5>, const vf* g, int step, vf* out, int out_step) {
  const vf g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step], g4 = g[4 * step];
  const vf middle = (1.0f / 3) * g1, even = g2 + 2.0f * g0 + 0.5f * g4, odd = middle + (1.0f / 6) * g3;
  const vf wide_even = g2 + 0.5f * g0 + 2.0f * g4, wide_odd = middle + (2.0f / 3) * g3;
  out[0] = g0;
  out[out_step] = (-kRoot / 6) * even - odd;
  out[2 * out_step] = (-kRoot / 6) * even + odd;
  out[3 * out_step] = (kRoot / 3) * wide_even + wide_odd;
  out[4 * out_step] = (kRoot / 3) * wide_even - wide_odd;
  out[5 * out_step] = g4;
}

// A^T m.
inline void output_axis(TileOf<2, 3>, const vf* m, int step, vf* out, int out_step) {
  out[0] = m[0] + m[step] + m[2 * step];
  out[out_step] = m[step] - m[2 * step] - m[3 * step];
}
inline void output_axis(TileOf<4, 3>, const vf* m, int step, vf* out, int out_step) {
  const vf root = broadcast(kRoot), inverse = broadcast(kInverseRoot);
  const vf sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
  const vf wide_sum = m[3 * step] + m[4 * step], wide_difference = m[3 * step] - m[4 * step];
  out[0] = fma(root, sum, fma(inverse, wide_sum, m[0]));
  out[out_step] = difference + wide_difference;
  out[2 * out_step] = fma(inverse, sum, root * wide_sum);
  out[3 * out_step] = fma(broadcast(0.5f), difference, fma(broadcast(2.0f), wide_difference, m[5 * step]));
}
inline void output_axis(TileOf<2, 5>, const vf* m, int step, vf* out, int out_step) {
  const vf sum = m[step] + m[2 * step], wide_sum = m[3 * step] + m[4 * step];
  out[0] = fma(broadcast(kRoot), sum, fma(broadcast(kInverseRoot), wide_sum, m[0]));
  out[out_step] = (m[step] - m[2 * step]) + (m[3 * step] - m[4 * step]) + m[5 * step];
}

// A e.
inline void error_axis(TileOf<2, 3>, const vf* e, int step, vf* out, int out_step) {
  out[0] = e[0];
  out[out_step] = e[0] + e[step];
  out[2 * out_step] = e[0] - e[step];
  out[3 * out_step] = -e[step];
}
inline void error_axis(TileOf<4, 3>, const vf* e, int step, vf* out, int out_step) {
  const vf root = broadcast(kRoot), inverse = broadcast(kInverseRoot);
  const vf e0 = e[0], e1 = e[step], e2 = e[2 * step], e3 = e[3 * step];
  const vf even = fma(root, e0, inverse * e2), odd = fma(broadcast(0.5f), e3, e1);
  const vf wide_even = fma(inverse, e0, root * e2), wide_odd = fma(broadcast(2.0f), e3, e1);
  out[0] = e0;
  out[out_step] = even + odd;
  out[2 * out_step] = even - odd;
  out[3 * out_step] = wide_even + wide_odd;
  out[4 * out_step] = wide_even - wide_odd;
  out[5 * out_step] = e3;
}
inline void error_axis(TileOf<2, 5>, const vf* e, int step, vf* out, int out_step) {
  const vf e0 = e[0], e1 = e[step], even = kRoot * e0, wide_even = kInverseRoot * e0;
  out[0] = e0;
  out[out_step] = even + e1;
  out[2 * out_step] = even - e1;
  out[3 * out_step] = wide_even + e1;
  out[4 * out_step] = wide_even - e1;
  out[5 * out_step] = e1;
}

// G^T m.
inline void gradient_axis(TileOf<2, 3>, const vf* m, int step, vf* out, int out_step) {
  const vf sum = 0.5f * (m[step] + m[2 * step]);
  out[0] = m[0] + sum;
  out[out_step] = 0.5f * (m[step] - m[2 * step]);
  out[2 * out_step] = sum + m[3 * step];
}
inline void gradient_axis(TileOf<4, 3>, const vf* m, int step, vf* out, int out_step) {
  const vf sum = (kRoot / 6) * (m[step] + m[2 * step]), wide_sum = (kRoot / 6) * (m[3 * step] + m[4 * step]);
  const vf difference = m[2 * step] - m[step], wide_difference = m[3 * step] - m[4 * step];
  out[0] = m[0] - 2.0f * sum + wide_sum;
  out[out_step] = (1.0f / 3) * (difference + wide_difference);
  out[2 * out_step] = 2.0f * wide_sum - sum + m[5 * step];
}
inline void gradient_axis(TileOf<2, 5>, const vf* m, int step, vf* out, int out_step) {
  const vf sum = (kRoot / 6) * (m[step] + m[2 * step]), wide_sum = (kRoot / 6) * (m[3 * step] + m[4 * step]);
  const vf difference = m[2 * step] - m[step], wide_difference = m[3 * step] - m[4 * step];
  out[0] = m[0] - 2.0f * sum + wide_sum;
  out[out_step] = (1.0f / 3) * (difference + wide_difference);
  out[2 * out_step] = 2.0f * wide_sum - sum;
  out[3 * out_step] = (1.0f / 6) * difference + (2.0f / 3) * wide_difference;
  out[4 * out_step] = 4.0f * wide_sum - 0.5f * sum + m[5 * step];
}

// --- tiles of images ---------------------------------------------------------------------------------------------

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

// B^T d B of all channels and n tiles from j0: of tile j's channel c element i goes to place(j) + i * patch_stride +
// c * out_stride.
template <class Tile, class Cells, class Place>
inline void transform_tiles(const ConvGather& g, int64_t channels, int64_t j0, int64_t n, Place place,
                            int64_t out_stride, int64_t patch_stride) {
  constexpr int S = Tile::S;
  for (int64_t j = 0; j < n; j += W) {
    const Cells cells(g, j0 + j, n - j < W ? n - j : W);
    float* out = place(j);
    for (int64_t channel = 0; channel < channels; ++channel, out += out_stride) {
      vf x[S * S];
      cells.load(channel, x);
#pragma GCC unroll 6
      for (int c = 0; c < S; ++c) input_axis(Tile(), x + c, S);
#pragma GCC unroll 6
      for (int r = 0; r < S; ++r) {
        input_axis(Tile(), x + r * S, 1);
#pragma GCC unroll 6
        for (int c = 0; c < S; ++c) store(out + (r * S + c) * patch_stride, x[r * S + c]);
      }
    }
  }
}

template <class Place>
inline void transform_input(WinogradTile tile, const ConvGather& g, int64_t channels, int64_t j0, int64_t n,
                            Place place, int64_t out_stride, int64_t patch_stride) {
  with_tile(tile, [&](auto chosen) {
    typedef decltype(chosen) Chosen;
    constexpr int S = Chosen::S;
    if (g.cell_stride)
      return transform_tiles<Chosen, LaneTileCells<S>>(g, channels, j0, n, place, out_stride, patch_stride);
    if constexpr (!Chosen::lanes_only)
      transform_tiles<Chosen, TileCells<S>>(g, channels, j0, n, place, out_stride, patch_stride);
  });
}

void winograd_pack_input(WinogradTile tile, const ConvGather* gather, int64_t channels, int64_t j0, int64_t n,
                         float* packed, int64_t patch_stride) {
  const auto place = [=](int64_t j) { return packed + j / GEMM_NR * GEMM_NR * channels + j % GEMM_NR; };
  transform_input(tile, *gather, channels, j0, n, place, GEMM_NR, patch_stride);
}

void winograd_input_rows(WinogradTile tile, const ConvGather* gather, int64_t channels, int64_t j0, int64_t n,
                         float* rows, int64_t patch_stride) {
  const auto place = [=](int64_t j) { return rows + j; };
  transform_input(tile, *gather, channels, j0, n, place, kRowRunStride, patch_stride);
}

template <class Tile>
inline void pack_weight_of(const float* weight, int64_t row_stride, int64_t k_stride, int mirrored, int64_t m,
                           int64_t k, int64_t k0, int64_t k1, float* packed, int64_t patch_stride) {
  constexpr int S = Tile::S, R = Tile::R, taps = R * R;
  const int64_t tiles = tile_count(m);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile_start(m, tiles, tile), rows = tile_start(m, tiles, tile + 1) - first;
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t here = rows - i < W ? rows - i : W;
      for (int64_t j = k0; j < k1; ++j) {
        const float* in = weight + (first + i) * row_stride + j * k_stride;
        vf g[taps], half[R * S], u[S * S];
        for (int t = 0; t < taps; ++t)
          g[t] = gather_lanes(in + (mirrored ? taps - 1 - t : t), (int32_t)row_stride, lane_range(0, (int)here));
        for (int c = 0; c < R; ++c) weight_axis(Tile(), g + c, R, half + c, R);
        for (int r = 0; r < S; ++r) weight_axis(Tile(), half + R * r, 1, u + S * r, 1);
        // So many places at once are more than the hardware sees coming: without asking, every line was waited for.
        float* out = packed + first * k + j * rows + i;
        for (int e = 0; e < S * S; ++e) {
          store_first(out + e * patch_stride, here, u[e]);
          __builtin_prefetch(out + e * patch_stride + 128, 1);
        }
      }
    }
  }
}

void winograd_pack_weight(WinogradTile tile, const float* weight, int64_t row_stride, int64_t k_stride, int mirrored,
                          int64_t m, int64_t k, int64_t k0, int64_t k1, float* packed, int64_t patch_stride) {
  with_tile(tile, [&](auto chosen) {
    pack_weight_of<decltype(chosen)>(weight, row_stride, k_stride, mirrored, m, k, k0, k1, packed, patch_stride);
  });
}

// What is made of a convolution's sums: the kind and parameter of an activation.
struct Finish {
  int activation;
  float parameter;
};

// f(A^T m A + bias) of W tiles: the T x T pixels of each, row by row.
template <class Tile>
inline void transform_output(const float* m, int64_t patch_stride, vf bias, Finish finish, vf* pixels) {
  constexpr int S = Tile::S, T = Tile::T;
  vf half[T * S];
#pragma GCC unroll 6
  for (int c = 0; c < S; ++c) {
    vf x[S];
#pragma GCC unroll 6
    for (int r = 0; r < S; ++r) x[r] = load(m + (r * S + c) * patch_stride);
    output_axis(Tile(), x, 1, half + c, S);
  }
#pragma GCC unroll 4
  for (int r = 0; r < T; ++r) {
    output_axis(Tile(), half + r * S, 1, pixels + r * T, 1);
#pragma GCC unroll 4
    for (int c = 0; c < T; ++c) {
      vf& pixel = pixels[r * T + c];
      pixel += bias;
      if (finish.activation == kActRelu) pixel = select(pixel < vf{}, vf{}, pixel);  // NaN stays
    }
  }
  if (finish.activation == kActNone || finish.activation == kActRelu) return;
  float values[T * T * W];  // so that the pixels themselves have no address
  for (int i = 0; i < T * T; ++i) store(values + i * W, pixels[i]);
  activation_forward(finish.activation, finish.parameter, T * T * W, values, values);
  for (int i = 0; i < T * T; ++i) pixels[i] = load(values + i * W);
}

template <class Tile>
inline void lane_output_of(const ConvGather& g, int64_t rows, int64_t j0, int64_t n, const float* products, int64_t ld,
                           int64_t patch_stride, const float* bias, Finish finish, float* y) {
  constexpr int T = Tile::T;
  for (int64_t j = 0; j < n; j += W) {
    const LaneTileCells<T> tile(g, j0 + j, W);
    float* corner = y + (tile.corner - g.image);
    for (int64_t k = 0; k < rows; ++k) {
      vf pixels[T * T];
      transform_output<Tile>(products + k * ld + j, patch_stride, broadcast(bias ? bias[k] : 0.0f), finish, pixels);
      // Asking for the pixels ahead, as above.
#pragma GCC unroll 16
      for (int i = 0; i < T * T; ++i)
        if (tile.inside || (tile.h + i / T < g.height && tile.w + i % T < g.width)) {
          float* pixel = corner + (i / T * g.width + i % T) * g.cell_stride + k * W;
          store(pixel, pixels[i]);
          __builtin_prefetch(pixel + 4 * W, 1);
        }
    }
  }
}

// Of images that are not in lanes, by 2 x 2 tiles.
template <class Tile>
inline void row_output_of(const ConvGather& g, int64_t rows, int64_t j0, int64_t n, const float* products, int64_t ld,
                          int64_t patch_stride, const float* bias, Finish finish, float* y) {
  for (int64_t j = 0; j < n; j += W) {
    RowRun run[W];
    const int runs = split_runs(g, j0 + j, n - j < W ? n - j : W, run);
    for (int64_t k = 0; k < rows; ++k) {
      vf tile[4], pixels[4];
      transform_output<Tile>(products + k * ld + j, patch_stride, broadcast(bias ? bias[k] : 0.0f), finish, tile);
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

void winograd_output(WinogradTile tile, const ConvGather* tiles, int64_t rows, int64_t j0, int64_t n,
                     const float* products, int64_t ld, int64_t patch_stride, const float* bias, int activation,
                     float parameter, float* y) {
  const Finish finish = {activation, parameter};
  with_tile(tile, [&](auto chosen) {
    typedef decltype(chosen) Chosen;
    if (tiles->cell_stride)
      return lane_output_of<Chosen>(*tiles, rows, j0, n, products, ld, patch_stride, bias, finish, y);
    if constexpr (!Chosen::lanes_only)
      row_output_of<Chosen>(*tiles, rows, j0, n, products, ld, patch_stride, bias, finish, y);
  });
}

// Errors are turned before their transform: that is T T squares to transpose instead of S S.
template <class Tile, class Cells>
inline void pack_errors_of(const ConvGather& g, int64_t filters, int64_t j0, int64_t n, float* packed,
                           int64_t patch_stride) {
  constexpr int S = Tile::S, T = Tile::T;
  const int64_t padded = (filters + GEMM_NR - 1) / GEMM_NR * GEMM_NR;
  for (int64_t j = 0; j < n; j += W) {
    const int64_t lanes = n - j < W ? n - j : W;
    const Cells cells(g, j0 + j, lanes);
    for (int64_t k0 = 0; k0 < padded; k0 += W) {
      vf errors[T * T][W];  // of a tile's pixel, one filter a row; turned, one tile
      for (int k = 0; k < W; ++k) {
        vf error[T * T] = {};
        if (k0 + k < filters) cells.load(k0 + k, error);
        for (int i = 0; i < T * T; ++i) errors[i][k] = error[i];
      }
      for (int i = 0; i < T * T; ++i) transpose_square(errors[i]);
      float* panel = packed + k0 / GEMM_NR * GEMM_NR * n + k0 % GEMM_NR + j * GEMM_NR;
      for (int64_t t = 0; t < lanes; ++t) {
        vf half[T * S];
#pragma GCC unroll 4
        for (int c = 0; c < T; ++c) {
          vf error[T];
#pragma GCC unroll 4
          for (int r = 0; r < T; ++r) error[r] = errors[r * T + c][t];
          error_axis(Tile(), error, 1, half + c, T);
        }
#pragma GCC unroll 6
        for (int r = 0; r < S; ++r) {
          vf full[S];
          error_axis(Tile(), half + T * r, 1, full, 1);
#pragma GCC unroll 6
          for (int c = 0; c < S; ++c) store(panel + (r * S + c) * patch_stride + t * GEMM_NR, full[c]);
        }
      }
    }
  }
}

void winograd_pack_errors(WinogradTile tile, const ConvGather* gather, int64_t filters, int64_t j0, int64_t n,
                          float* packed, int64_t patch_stride) {
  with_tile(tile, [&](auto chosen) {
    typedef decltype(chosen) Chosen;
    if (gather->cell_stride)
      return pack_errors_of<Chosen, LaneTileCells<Chosen::T>>(*gather, filters, j0, n, packed, patch_stride);
    if constexpr (!Chosen::lanes_only)
      pack_errors_of<Chosen, TileCells<Chosen::T>>(*gather, filters, j0, n, packed, patch_stride);
  });
}

template <class Tile>
inline void weight_gradient_of(const float* products, int64_t patch_stride, int64_t filters, float* d_weight,
                               int64_t filter_stride, int accumulate) {
  constexpr int S = Tile::S, R = Tile::R, taps = R * R;
  for (int64_t k = 0; k < filters; k += W) {
    const int64_t here = filters - k < W ? filters - k : W;
    vf half[R * S], g[taps];
    for (int c = 0; c < S; ++c) {
      vf m[S];
      for (int r = 0; r < S; ++r) m[r] = load_first(products + (S * r + c) * patch_stride + k, here);
      gradient_axis(Tile(), m, 1, half + c, S);
    }
    for (int r = 0; r < R; ++r) gradient_axis(Tile(), half + S * r, 1, g + R * r, 1);
    float lanes[taps * W] __attribute__((aligned(64)));
    for (int t = 0; t < taps; ++t) store(lanes + t * W, g[t]);
    for (int64_t i = 0; i < here; ++i) {
      float* out = d_weight + (k + i) * filter_stride;
      for (int t = 0; t < taps; ++t) out[t] = accumulate ? out[t] + lanes[t * W + i] : lanes[t * W + i];
    }
  }
}

void winograd_weight_gradient(WinogradTile tile, const float* products, int64_t patch_stride, int64_t filters,
                              float* d_weight, int64_t filter_stride, int accumulate) {
  with_tile(tile, [&](auto chosen) {
    weight_gradient_of<decltype(chosen)>(products, patch_stride, filters, d_weight, filter_stride, accumulate);
  });
}

}  // namespace
