// The column matrix of a convolution (im2col), never made whole: the packers below read it from images in which every
// tap of every output is a cell, see ops/padded_images.hpp:
//   column[c * taps + t][(n * P + p) * Q + q] = image[n * image_stride + c * channel_stride + p * width + q + tap[t]]
// Forward is W (K x C taps) times it. dE/dx is the same product over dE/dy with the taps mirrored; with a stride it
// falls into stride_h x stride_w phases, each a product over the taps reaching it.
//
// Where images are read or written as they lie, a tap is an offset into the image, and may lie outside:
//   h = p * stride_h + tap_h[t],  w = q * stride_w + tap_w[t]
namespace {

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
inline vmask lanes_inside(int64_t w, int64_t stride, int64_t width, int lanes) {
  const LanesInside inside(w, stride, width, lanes);
  return lane_range(inside.first, inside.last);
}

// Reads W cells of a row, `stride` apart; those outside the image are 0 and are not read.
struct StridedCells {
  int64_t stride;
  vmask inside, high;
  // Cell i is column w + i * stride, i in [0, lanes), of a row of `width`.
  void set(int64_t w, int lanes, int64_t step, int64_t width) {
    stride = step;
    if (step != 2) {
      inside = lanes_inside(w, step, width, lanes);
      return;
    }
    CellPairs pairs;
    pairs.set(w, 2 * lanes - 1, width);
    inside = pairs.low;
    high = pairs.high;
  }
  vf load(const float* p) const {
    if (stride == 1) return load_lanes(p, inside);
    if (stride == 2) return even_lanes(load_lanes(p, inside), load_lanes(p + W, high), AllLanes());
    return gather_lanes(p, (int32_t)stride, inside);
  }
};

// --- columns of padded images --------------------------------------------------------------------------------------

// Neighbouring columns that come from one row of one image: lane l of a vector reads from[l].
struct ColumnRun {
  const float* from;
  vmask lanes;
};

// Goes through the columns from j on.
struct ColumnWalk {
  const ColumnGather& g;
  int64_t image, p, q;

  ColumnWalk(const ColumnGather& g, int64_t j) : g(g), image(j / g.out_width / g.out_height) {
    p = j / g.out_width % g.out_height;
    q = j % g.out_width;
  }
  // Splits the next n <= W columns; returns into how many runs.
  int split(int n, ColumnRun* run) {
    int count = 0;
    for (int at = 0; at < n;) {
      const int lanes = g.out_width - q < n - at ? (int)(g.out_width - q) : n - at;
      run[count++] = {g.image + image * g.image_stride + p * g.width + q - at, lane_range(at, at + lanes)};
      at += lanes;
      q += lanes;
      if (q < g.out_width) continue;
      q = 0;
      if (++p == g.out_height) p = 0, ++image;
    }
    return count;
  }
};

// `count` rows of the column matrix, from tap `tap` of channel `channel` on.
struct ColumnRows {
  int64_t channel, tap, count;
  ColumnRows(const ColumnGather& g, int64_t row0, int64_t row1)
      : channel(row0 / g.taps), tap(row0 % g.taps), count(row1 - row0) {}
};

// out[i * out_stride] = cells(the offset of row i's cells)
template <class Cells>
inline void copy_cells(const ColumnGather& g, ColumnRows rows, float* out, int64_t out_stride, Cells cells) {
  const int64_t* tap = g.tap;
  const int64_t taps = g.taps, channel_stride = g.channel_stride;
  int64_t t = rows.tap, channel = rows.channel * channel_stride;
  for (int64_t left = rows.count; left > 0; t = 0, channel += channel_stride) {
    const int64_t end = taps - t < left ? taps : t + left;
    left -= end - t;
    for (; t < end; ++t, out += out_stride) store(out, cells(channel + tap[t]));
  }
}

template <int Runs>
inline void copy_runs(const ColumnGather& g, const ColumnRows& rows, const ColumnRun* run, float* out,
                      int64_t out_stride) {
  copy_cells(g, rows, out, out_stride, [&](int64_t offset) {
    vi cells = (vi)load_lanes(run[0].from + offset, run[0].lanes);
    for (int s = 1; s < Runs; ++s) cells |= (vi)load_lanes(run[s].from + offset, run[s].lanes);
    return (vf)cells;
  });
}

// Writes rows of a vector of columns, row i at out + i * out_stride; lanes of no column become 0.
inline void fill_columns(const ColumnGather& g, const ColumnRows& rows, const ColumnRun* run, int runs, bool whole,
                         float* out, int64_t out_stride) {
  if (whole) {
    const float* from = run[0].from;
    return copy_cells(g, rows, out, out_stride, [=](int64_t offset) { return load(from + offset); });
  }
  if (runs == 1) return copy_runs<1>(g, rows, run, out, out_stride);
  if (runs == 2) return copy_runs<2>(g, rows, run, out, out_stride);
  if (runs == 3) return copy_runs<3>(g, rows, run, out, out_stride);
  copy_cells(g, rows, out, out_stride, [&](int64_t offset) {
    vi cells = {};
    for (int s = 0; s < runs; ++s) cells |= (vi)load_lanes(run[s].from + offset, run[s].lanes);
    return (vf)cells;
  });
}

// The same for the next n <= GEMM_NR columns, row i of the first one at out + i * out_stride: some rows of all their
// vectors at a time, which are in the first-level cache for as long.
inline void fill_panel(ColumnWalk& walk, int64_t row0, int64_t row1, int64_t n, float* out, int64_t out_stride) {
  constexpr int64_t rows_at_once = 64;
  ColumnRun run[GEMM_NV][W];
  int runs[GEMM_NV];
  const int vectors = (int)((n + W - 1) / W);
  for (int v = 0; v < vectors; ++v) runs[v] = walk.split(n - v * W < W ? (int)(n - v * W) : W, run[v]);
  for (int64_t row = row0; row < row1; row += rows_at_once, out += rows_at_once * out_stride) {
    const ColumnRows rows(walk.g, row, row + rows_at_once < row1 ? row + rows_at_once : row1);
    for (int v = 0; v < vectors; ++v) {
      const bool whole = runs[v] == 1 && n - v * W >= W;
      fill_columns(walk.g, rows, run[v], runs[v], whole, out + v * W, out_stride);
    }
  }
}

// The cells of column j, where the n columns from there on are neighbours in memory: of one tap, in one image; or null.
inline const float* contiguous_columns(const ColumnGather& g, int64_t j, int64_t n) {
  const int64_t pixels = g.out_height * g.out_width, pixel = j % pixels;
  if (g.taps > 1 || g.width != g.out_width || pixel + n > pixels) return nullptr;
  return g.image + j / pixels * g.image_stride + pixel + g.tap[0];
}

void pack_columns(const ColumnGather* gather, int64_t row0, int64_t row1, int64_t j0, int64_t n, float* packed) {
  const ColumnGather& g = *gather;
  if (const float* first = contiguous_columns(g, j0, n))
    return pack_b(first + row0 * g.channel_stride, g.channel_stride, 1, row1 - row0, n, row1 - row0, packed);
  ColumnWalk walk(g, j0);
  for (int64_t j = 0; j < n; j += GEMM_NR) {
    const int64_t columns = n - j < GEMM_NR ? n - j : GEMM_NR;
    float* panel = packed + j * (row1 - row0);
    for (int64_t v = (columns + W - 1) / W; v < GEMM_NV; ++v)
      for (int64_t i = 0; i < row1 - row0; ++i) store(panel + i * GEMM_NR + v * W, vf{});
    fill_panel(walk, row0, row1, columns, panel, GEMM_NR);
  }
}

void gather_columns(const ColumnGather* gather, int64_t row0, int64_t row1, int64_t j0, int64_t n, float* out) {
  const ColumnGather& g = *gather;
  if (const float* first = contiguous_columns(g, j0, n)) {
    for (int64_t row = row0; row < row1; ++row)
      for (int64_t j = 0; j < n; j += W)
        store(out + (row - row0) * kRowRunStride + j, load_first(first + row * g.channel_stride + j, n - j));
    return;
  }
  ColumnWalk walk(g, j0);
  for (int64_t j = 0; j < n; j += GEMM_NR)
    fill_panel(walk, row0, row1, n - j < GEMM_NR ? n - j : GEMM_NR, out + j, kRowRunStride);
}

// From the last vectors of all rows to the first: what a whole store writes behind the end of a row is overwritten.
void copy_phase(const PhaseCopy* phase, float* out) {
  const PhaseCopy& it = *phase;
  const float* end = out + it.rows * it.columns;
  for (int64_t j = (it.columns - 1) / W * W; j >= 0; j -= W) {
    const int lanes = it.columns - j < W ? (int)(it.columns - j) : W;
    const int64_t w = it.w0 + j * it.step_w;
    StridedCells cells;
    cells.set(w, lanes, it.step_w, it.width);
    float* to = out + j;
    for (int64_t i = 0; i < it.rows; ++i, to += it.columns) {
      const int64_t h = it.h0 + i * it.step_h;
      __builtin_prefetch(it.image + (h + it.height) * it.width + w);  // the next plane's
      put_first(to, end - to, h < 0 || h >= it.height ? vf{} : cells.load(it.image + h * it.width + w));
    }
  }
}

// --- images as they lie --------------------------------------------------------------------------------------------

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
        if (!halves && g.stride_w != 1) {
          for (int64_t c = 0; c < channels; ++c, from += g.taps * ld, to += g.channel_stride)
            for (int i = 0; i < count; ++i) to[i * g.stride_w] += from[i];
        } else if (count == W) {
          for (int64_t c = 0; c < channels; ++c, from += g.taps * ld, to += g.channel_stride)
            store(to, load(to) + load(from));
        } else {
          for (int64_t c = 0; c < channels; ++c, from += g.taps * ld, to += g.channel_stride)
            put_first(to, count, load_first(to, count) + load_first(from, count));
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
