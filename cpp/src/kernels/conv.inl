// The column matrix of a convolution (im2col), never made whole: the packers below read it straight from the image.
//   column[c * taps + t][(n * P + p) * Q + q] = image[n, c, p * stride_h + tap_h[t], q * stride_w + tap_w[t]],
// 0 outside the image. Forward is W (K x C taps) times it. dE/dx is the same product over dE/dy with the taps
// mirrored; with a stride it falls into stride_h x stride_w phases, each a stride-1 product over the taps reaching it.
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

// Lanes [first, last) of `lanes`: those whose input cell w + i * stride lies in [0, width).
struct LanesInside {
  int first, last;
  LanesInside(int64_t w, int64_t stride, int64_t width, int lanes) {
    const int64_t begin = w < 0 ? (-w + stride - 1) / stride : 0;
    const int64_t end = w < width ? (width - w + stride - 1) / stride : 0;
    first = begin < lanes ? (int)begin : lanes;
    last = end < lanes ? (int)end : lanes;
  }
};
inline vmask lanes_inside(int64_t w, int64_t stride, int64_t width, int lanes, int at = 0) {
  const LanesInside inside(w, stride, width, lanes);
  return lane_range(at + inside.first, at + inside.last);
}

// Rows [row0, row1) of the column matrix, and the channels [first(t), last(t)) that have one of tap t among them.
struct ColumnRows {
  int64_t row0, row1, taps, c0, c_end;
  ColumnRows(int64_t from, int64_t to, int64_t taps_a_channel)
      : row0(from), row1(to), taps(taps_a_channel), c0(from / taps), c_end((to + taps - 1) / taps) {}

  int64_t first(int64_t t) const { return c0 * taps + t < row0 ? c0 + 1 : c0; }
  int64_t last(int64_t t) const { return (c_end - 1) * taps + t < row1 ? c_end : c_end - 1; }
};

// Whether every tap of every cell of these runs lies in the image: taps rise in both directions.
inline bool all_inside(const ConvGather& g, const RowRun* run, int runs) {
  const int64_t top = g.tap_h[0], bottom = g.tap_h[g.taps - 1], left = g.tap_w[0], right = g.tap_w[g.taps - 1];
  for (int s = 0; s < runs; ++s) {
    const RowRun& it = run[s];
    if (it.h + top < 0 || it.h + bottom >= g.height || it.w + left < 0) return false;
    if (it.w + (it.lanes - 1) * g.stride_w + right >= g.width) return false;
  }
  return true;
}

// Writes rows of a vector of columns, row r at out + (r - row0) * out_stride, where neighbouring columns come from
// neighbouring cells and all taps lie in the image.
template <int Runs>
inline void copy_column_rows(const ConvGather& g, const ColumnRows& rows, const RowRun* run, float* out,
                             int64_t out_stride) {
  const float* from[Runs];
  vmask lanes[Runs];
  for (int s = 0; s < Runs; ++s) {
    from[s] = run[s].image + run[s].h * g.width + run[s].w - run[s].at;
    lanes[s] = lane_range(run[s].at, run[s].at + run[s].lanes);
  }
  const int64_t taps = g.taps, width = g.width, channel_stride = g.channel_stride;
  const int32_t *tap_h = g.tap_h, *tap_w = g.tap_w;
  for (int64_t c = rows.c0; c < rows.c_end; ++c) {
    const int64_t t0 = c > rows.c0 ? 0 : rows.row0 - c * taps;
    const int64_t t1 = (c + 1) * taps <= rows.row1 ? taps : rows.row1 - c * taps;
    const float* channel[Runs];
    for (int s = 0; s < Runs; ++s) channel[s] = from[s] + c * channel_stride;
    for (int64_t t = t0; t < t1; ++t, out += out_stride) {
      const int64_t cell = tap_h[t] * width + tap_w[t];
      vi cells = (vi)load_lanes(channel[0] + cell, lanes[0]);
      for (int s = 1; s < Runs; ++s) cells |= (vi)load_lanes(channel[s] + cell, lanes[s]);
      store(out, (vf)cells);
    }
  }
}

// The same where some taps lie outside: loads of what the mask leaves of each run, and one store.
inline void merge_column_rows(const ConvGather& g, const ColumnRows& rows, const RowRun* run, int runs, float* out,
                              int64_t out_stride) {
  for (int64_t t = 0; t < g.taps; ++t) {
    const float* from[W];
    vmask inside[W];
    int count = 0;
    for (int s = 0; s < runs; ++s) {
      const int64_t h = run[s].h + g.tap_h[t], w = run[s].w + g.tap_w[t];
      if (h < 0 || h >= g.height) continue;
      from[count] = run[s].image + h * g.width + w - run[s].at;
      inside[count++] = lanes_inside(w, 1, g.width, run[s].lanes, run[s].at);
    }
    const int64_t c_first = rows.first(t), c_last = rows.last(t);
    float* to = out + (c_first * g.taps + t - rows.row0) * out_stride;
    for (int64_t c = c_first; c < c_last; ++c, to += g.taps * out_stride) {
      vi cells = {};
      for (int s = 0; s < count; ++s) cells |= (vi)load_lanes(from[s] + c * g.channel_stride, inside[s]);
      store(to, (vf)cells);
    }
  }
}

// The same for any stride and, where all lanes are one run, for stride 1: sooner done than merging.
inline void fill_column_rows(const ConvGather& g, const ColumnRows& rows, const RowRun* run, int runs, float* out,
                             int64_t out_stride) {
  for (int s = 0; s < runs; ++s) {
    const RowRun& it = run[s];
    for (int64_t t = 0; t < g.taps; ++t) {
      const int64_t h = it.h + g.tap_h[t], w = it.w + g.tap_w[t];
      const int64_t c_first = rows.first(t), c_last = rows.last(t);
      float* to = out + (c_first * g.taps + t - rows.row0) * out_stride + it.at;
      const int64_t to_step = g.taps * out_stride;
      const bool row_inside = h >= 0 && h < g.height;
      const bool whole = row_inside && w >= 0 && w + (it.lanes - 1) * g.stride_w < g.width;
      const vmask inside = row_inside ? lanes_inside(w, g.stride_w, g.width, it.lanes) : lane_range(0, 0);
      const float* from = it.image + h * g.width + w + c_first * g.channel_stride;
      if (whole && g.stride_w == 1) {  // where W lanes are one run
        for (int64_t c = c_first; c < c_last; ++c, to += to_step, from += g.channel_stride) store(to, load(from));
      } else if (g.stride_w == 1) {
        for (int64_t c = c_first; c < c_last; ++c, to += to_step, from += g.channel_stride)
          store(to, load_lanes(from, inside));
      } else if (g.stride_w == 2) {
        CellPairs pairs;
        pairs.set(w, row_inside ? 2 * it.lanes - 1 : 0, g.width);
        for (int64_t c = c_first; c < c_last; ++c, to += to_step, from += g.channel_stride) {
          vf even, odd;
          pairs.load(from, even, odd);
          store_first(to, it.lanes, even);
        }
      } else {
        for (int64_t c = c_first; c < c_last; ++c, to += to_step, from += g.channel_stride)
          store_first(to, it.lanes, gather_lanes(from, (int32_t)g.stride_w, inside));
      }
    }
  }
}

// Channels whose cells share a set of the first-level cache are taken a few at a time, so that a cell is still there
// when the next tap reads it.
constexpr int64_t CLASHING_STRIDE = 256, CLASHING_CHANNELS = 8;

// Writes rows [row0, row1) of a vector of n <= W columns from j, row r at out + (r - row0) * out_stride; other lanes 0.
inline void fill_columns(const ConvGather& g, int64_t row0, int64_t row1, int64_t j, int64_t n, float* out,
                         int64_t out_stride) {
  RowRun run[W];
  const int runs = split_runs(g, j, n, run);
  if (g.stride_w == 1 && runs <= 3 && all_inside(g, run, runs)) {
    const auto copy = runs == 1 ? copy_column_rows<1> : runs == 2 ? copy_column_rows<2> : copy_column_rows<3>;
    return copy(g, ColumnRows(row0, row1, g.taps), run, out, out_stride);
  }
  const bool merges = g.stride_w == 1 && run[0].lanes < W;
  if (n < W && !merges)
    for (int64_t r = row0; r < row1; ++r) store(out + (r - row0) * out_stride, vf{});
  const int64_t at_once =
      g.taps > 1 && g.channel_stride % CLASHING_STRIDE == 0 ? CLASHING_CHANNELS * g.taps : row1 - row0;
  for (int64_t r = row0; r < row1; r += at_once) {
    const ColumnRows rows(r, r + at_once < row1 ? r + at_once : row1, g.taps);
    (merges ? merge_column_rows : fill_column_rows)(g, rows, run, runs, out + (r - row0) * out_stride, out_stride);
  }
}

// Whether the column matrix is the image itself: one tap, which reads every pixel's own cell.
inline bool is_pointwise(const ConvGather& g) {
  return g.taps == 1 && g.tap_h[0] == 0 && g.tap_w[0] == 0 && g.stride_h == 1 && g.stride_w == 1 &&
         g.out_height == g.height && g.out_width == g.width;
}

void pack_columns(const ConvGather* gather, int64_t row0, int64_t row1, int64_t j0, int64_t n, float* packed) {
  const int64_t pixels = gather->out_height * gather->out_width, pixel = j0 % pixels;
  if (is_pointwise(*gather) && pixel + n <= pixels) {
    const float* first = gather->image + j0 / pixels * gather->image_stride + row0 * gather->channel_stride + pixel;
    pack_b(first, gather->channel_stride, 1, row1 - row0, n, row1 - row0, packed);
    return;
  }
  for (int64_t j = 0; j < n; j += W) {
    float* out = packed + j / GEMM_NR * GEMM_NR * (row1 - row0) + j % GEMM_NR;
    fill_columns(*gather, row0, row1, j0 + j, n - j < W ? n - j : W, out, GEMM_NR);
  }
}

void gather_columns(const ConvGather* gather, int64_t row0, int64_t row1, int64_t j0, int64_t n, float* out) {
  const int64_t pixels = gather->out_height * gather->out_width, pixel = j0 % pixels;
  if (is_pointwise(*gather) && pixel + n <= pixels) {
    const float* first = gather->image + j0 / pixels * gather->image_stride + pixel;
    for (int64_t row = row0; row < row1; ++row)
      for (int64_t j = 0; j < n; j += W)
        store(out + (row - row0) * kRowRunStride + j, load_first(first + row * gather->channel_stride + j, n - j));
    return;
  }
  for (int64_t j = 0; j < n; j += W)
    fill_columns(*gather, row0, row1, j0 + j, n - j < W ? n - j : W, out + j, kRowRunStride);
}

void copy_strided(int64_t n, const float* from, float* to, int64_t step) {
  if (step != 2) {
    for (int64_t i = 0; i < n; ++i) to[i * step] = from[i];
    return;
  }
  // Whole vectors of which every other lane is stored; the last one's last lane has nothing after it.
  int64_t i = 0;
  for (; i + W < n; i += W) {
    vf pair[2];
    const vf v = load(from + i);
    interleave(v, v, pair, AllLanes());
    store_even(to + 2 * i, pair[0]);
    store_even(to + 2 * i + W, pair[1]);
  }
  for (; i < n; ++i) to[2 * i] = from[i];
}

// Taps are outermost: a cell is then touched again only after all channels, long after its last store has retired.
// With `halves` a stride of 2 adds to neighbouring cells as well: all columns that a tap reaches are even, or all odd.
template <bool halves>
inline void scatter(const ConvGather& g, int64_t rows, int64_t j0, int64_t n, const float* columns, int64_t ld,
                    float* image) {
  const int64_t channels = rows / g.taps, half = (g.width + 1) / 2;
  const int64_t q0 = j0 % g.out_width, p0 = j0 / g.out_width;
  for (int64_t t = 0; t < g.taps; ++t) {
    for (int64_t j = 0, q = q0, p = p0; j < n;) {
      const int64_t in_row = g.out_width - q < n - j ? g.out_width - q : n - j;
      const int lanes = (int)(in_row < W ? in_row : W);
      const int64_t h = p * g.stride_h + g.tap_h[t], w = q * g.stride_w + g.tap_w[t], odd = w & 1;
      if (h >= 0 && h < g.height) {
        // The usual strides as constants: no division.
        const LanesInside inside = halves            ? LanesInside(w, 2, g.width, lanes)
                                   : g.stride_w == 1 ? LanesInside(w, 1, g.width, lanes)
                                                     : LanesInside(w, g.stride_w, g.width, lanes);
        const int count = inside.last - inside.first;
        const float* from = columns + t * ld + j + inside.first;
        float* to = halves ? image + h * 2 * half + odd * half + (w - odd) / 2 + inside.first
                           : image + h * g.width + w + inside.first * g.stride_w;
        for (int64_t c = 0; c < channels; ++c, from += g.taps * ld, to += g.channel_stride) {
          if (halves || g.stride_w == 1)
            store_first(to, count, load_first(to, count) + load_first(from, count));
          else
            for (int i = 0; i < count; ++i) to[i * g.stride_w] += from[i];
        }
      }
      j += lanes;
      q += lanes;
      if (q == g.out_width) q = 0, ++p;
    }
  }
}

void scatter_columns(const ConvGather* gather, int64_t rows, int64_t j0, int64_t n, const float* columns, int64_t ld,
                     float* image) {
  scatter<false>(*gather, rows, j0, n, columns, ld, image);
}

void scatter_columns_halves(const ConvGather* gather, int64_t rows, int64_t j0, int64_t n, const float* columns,
                            int64_t ld, float* image) {
  scatter<true>(*gather, rows, j0, n, columns, ld, image);
}

}  // namespace
