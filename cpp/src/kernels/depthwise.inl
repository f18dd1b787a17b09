// Convolution of one plane with one kernel, for layers that do not mix channels (depthwise): a column matrix would be
// read once for each element that is made of it. A tap is an offset into the image, as in conv.inl; `taps` <=
// MOST_TAPS.
//   y[p, q] = bias + sum_t w[t] x[p stride_h + tap_h[t], q stride_w + tap_w[t]]      (0 outside x)
//   d_w[t]  = sum_{p,q} dy[p, q] x[...]
// dE/dx is the first again, over dy and mirrored taps, by phases where the stride is not 1. Vectors run along q.
namespace {

constexpr int MOST_TAPS = kDepthwiseTaps;

inline int lanes_from(const ConvGather& g, int64_t q) { return g.out_width - q < W ? (int)(g.out_width - q) : W; }

// What is the same for all rows: where the taps of W outputs from column q read.
struct TapCells {
  StridedCells cells[MOST_TAPS];
  int64_t offset[MOST_TAPS];  // from the row's first cell
  int lanes;

  TapCells(const ConvGather& g, int64_t q) : lanes(lanes_from(g, q)) {
    for (int64_t t = 0; t < g.taps; ++t) {
      const int64_t w = q * g.stride_w + g.tap_w[t];
      cells[t].set(w, lanes, g.stride_w, g.width);
      offset[t] = g.tap_h[t] * g.width + w;
    }
  }
};

// Whether the taps are a dense 3 x 3 kernel in row-major order, stepped over with stride 1 or 2.
inline bool is_dense_3x3(const ConvGather& g) {
  if (g.taps != 9 || g.stride_h != g.stride_w || g.stride_h > 2) return false;
  for (int t = 0; t < 9; ++t)
    if (g.tap_h[t] != g.tap_h[0] + t / 3 || g.tap_w[t] != g.tap_w[0] + t % 3) return false;
  return true;
}

// The columns of the 3 taps of a row, of W outputs from column q: with stride 2 they share their loads. Whole: there
// are W, and all that they read lies in the image.
template <int STRIDE, bool Whole>
struct ThreeTaps {
  int lanes;
  int64_t offset;  // of the first tap of outputs (0, q)
  vmask inside[3];
  CellPairs near, far;
  ThreeTaps(const ConvGather& g, int64_t q) : lanes(Whole ? W : lanes_from(g, q)) {
    const int64_t w = q * STRIDE + g.tap_w[0];
    offset = g.tap_h[0] * g.width + w;
    if (Whole) return;
    if (STRIDE == 1) {
      for (int s = 0; s < 3; ++s) inside[s] = lanes_inside(w + s, 1, g.width, lanes);
    } else {
      near.set(w, 2 * lanes, g.width);
      far.set(w + 2, 2 * lanes - 1, g.width);
    }
  }
  void load(const float* p, vf* cell) const {
    if (Whole) {
      for (int s = 0; s < 3; ++s) cell[s] = ::load(p + s);
    } else if (STRIDE == 1) {
      for (int s = 0; s < 3; ++s) cell[s] = load_lanes(p + s, inside[s]);
    } else {
      vf odd;
      near.load(p, cell[0], cell[1]);
      far.load(p + 2, cell[2], odd);
    }
  }
};

// run(q, taps) for every W columns of the output.
template <int STRIDE, class Run>
inline void for_columns(const ConvGather& g, Run run) {
  for (int64_t q = 0; q < g.out_width; q += W) {
    const int64_t w = q + g.tap_w[0];
    if (STRIDE == 1 && q + W <= g.out_width && w >= 0 && w + W + 2 <= g.width)
      run(q, ThreeTaps<STRIDE, STRIDE == 1>(g, q));
    else
      run(q, ThreeTaps<STRIDE, false>(g, q));
  }
}

// Output rows that are made together: a row of the image then is loaded once for all the outputs that it takes part in.
constexpr int ROWS = 4;

// What lies above and below the image.
alignas(4 * W) const float zero_cells[4 * W] = {};

// The same pointer, of which the compiler no longer knows how it was made: GCC 12 otherwise keeps a pointer of its own
// to each row, some twenty, and moves them all on in memory.
template <class Pointer>
inline Pointer plain(Pointer p) {
  asm("" : "+r"(p));
  return p;
}

// use(i, r, cells) for output rows p + i, i < ROWS, and each row r of the kernel.
template <bool Inside, int STRIDE, bool Whole, class Use>
inline void for_cells_of(const ConvGather& g, const ThreeTaps<STRIDE, Whole>& at, int64_t top, const float* row,
                         Use use) {
#pragma GCC unroll 16
  for (int h = 0; h < (ROWS - 1) * STRIDE + 3; ++h, row += g.width) {
    vf cell[3];
    __builtin_prefetch(row + g.height * g.width);  // the next plane's
    at.load(Inside || (uint64_t)(top + h) < (uint64_t)g.height ? row : zero_cells, cell);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i)
      if (h - i * STRIDE >= 0 && h - i * STRIDE <= 2) use(i, h - i * STRIDE, cell);
  }
}

template <int STRIDE, bool Whole, class Use>
inline void for_cells(const ConvGather& g, const ThreeTaps<STRIDE, Whole>& at, int64_t p, Use use) {
  const int64_t top = p * STRIDE + g.tap_h[0];
  const float* corner = plain(g.image + p * STRIDE * g.width + at.offset);
  if (top >= 0 && top + (ROWS - 1) * STRIDE + 3 <= g.height)
    for_cells_of<true>(g, at, top, corner, use);
  else
    for_cells_of<false>(g, at, top, corner, use);
}

inline void convolve_row(const ConvGather& g, const TapCells& at, const float* weight, int64_t p, vf& sum) {
  for (int64_t t = 0; t < g.taps; ++t) {
    const int64_t h = p * g.stride_h + g.tap_h[t];
    if (h < 0 || h >= g.height) continue;
    sum = fma(broadcast(weight[t]), at.cells[t].load(g.image + p * g.stride_h * g.width + at.offset[t]), sum);
  }
}

// Where the outputs of a plane go.
struct PlaneOut {
  vf bias, least;  // least: 0 with ReLU, or -infinity
  int accumulate;
  float* y;
  int64_t row_step, step;

  // `rows` rows of `lanes` outputs. What kind of output it is, is asked once: between sums it would keep them apart.
  void put(int64_t p, int64_t q, int lanes, int64_t rows, const vf* sum) const {
    float* out = plain(y + p * row_step + q * step);
    if (step == 1 && !accumulate && lanes == W && rows == ROWS) {
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i, out += row_step) store(out, limited(sum[i]));
      return;
    }
    for (int64_t i = 0; i < rows; ++i, out += row_step) {
      if (step == 1) {
        put_first(out, lanes, limited(accumulate ? load_first(out, lanes) + sum[i] : sum[i]));
      } else {
        float lane[W];
        store(lane, limited(sum[i]));
        for (int l = 0; l < lanes; ++l) out[l * step] = accumulate ? out[l * step] + lane[l] : lane[l];
      }
    }
  }
  vf limited(vf sum) const { return select(sum < least, least, sum); }  // NaN stays
};

// The arguments are copies, which no store can change: nothing is read again behind one.
template <int STRIDE>
inline void convolve_plane_3x3(const ConvGather g, const float* weight, const PlaneOut out) {
  vf taps[9];
  for (int t = 0; t < 9; ++t) taps[t] = broadcast(weight[t]);
  for_columns<STRIDE>(g, [&](int64_t q, const auto& at) {
    for (int64_t p = 0; p < g.out_height; p += ROWS) {
      vf sum[ROWS];
      for (int i = 0; i < ROWS; ++i) sum[i] = out.bias;
      for_cells(g, at, p, [&](int i, int r, const vf* cell) {
        for (int s = 0; s < 3; ++s) sum[i] = fma(taps[3 * r + s], cell[s], sum[i]);
      });
      out.put(p, q, at.lanes, g.out_height - p < ROWS ? g.out_height - p : ROWS, sum);
    }
  });
}

inline void convolve_plane(const ConvGather& g, const float* weight, const PlaneOut& out) {
  for (int64_t q = 0; q < g.out_width; q += W) {
    const TapCells at(g, q);
    for (int64_t p = 0; p < g.out_height; ++p) {
      vf sum = out.bias;
      convolve_row(g, at, weight, p, sum);
      out.put(p, q, at.lanes, 1, &sum);
    }
  }
}

void depthwise(const ConvGather* gather, const float* weight, float bias, int relu, int accumulate, float* y,
               int64_t row_step, int64_t step) {
  const ConvGather& g = *gather;
  const PlaneOut out = {broadcast(bias), broadcast(relu ? 0.0f : -infinity), accumulate, y, row_step, step};
  if (!is_dense_3x3(g))
    convolve_plane(g, weight, out);
  else if (g.stride_w == 1)
    convolve_plane_3x3<1>(g, weight, out);
  else
    convolve_plane_3x3<2>(g, weight, out);
}

void interleave_rows(int64_t n, const float* even, const float* odd, float* out) {
  for (int64_t i = 0; i < n; i += 2 * W) {
    vf pair[2];
    interleave(load_first(even + i / 2, (n - i + 1) / 2), load_first(odd + i / 2, (n - i) / 2), pair, AllLanes());
    put_first(out + i, n - i, pair[0]);
    if (n - i > W) put_first(out + i + W, n - i - W, pair[1]);
  }
}

template <int STRIDE>
inline void weight_sums_3x3(const ConvGather g, const float* dy, float* d_weight) {
  vf sum[9] = {};
  for_columns<STRIDE>(g, [&](int64_t q, const auto& at) {
    for (int64_t p = 0; p < g.out_height; p += ROWS) {
      vf error[ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        const float* errors = dy + (p + i) * g.out_width + q;
        __builtin_prefetch(errors + g.out_height * g.out_width);
        error[i] = p + i < g.out_height ? load_first(errors, at.lanes) : vf{};
      }
      for_cells(g, at, p, [&](int i, int r, const vf* cell) {
        for (int s = 0; s < 3; ++s) sum[3 * r + s] = fma(error[i], cell[s], sum[3 * r + s]);
      });
    }
  });
  for (int t = 0; t < 9; ++t) d_weight[t] = sum_lanes(sum[t]);
}

inline void weight_sums(const ConvGather& g, const float* dy, float* d_weight) {
  vf sum[MOST_TAPS];
  for (int64_t t = 0; t < g.taps; ++t) sum[t] = vf{};
  for (int64_t q = 0; q < g.out_width; q += W) {
    const TapCells at(g, q);
    for (int64_t p = 0; p < g.out_height; ++p) {
      const vf error = load_first(dy + p * g.out_width + q, at.lanes);
      const float* row = g.image + p * g.stride_h * g.width;
      for (int64_t t = 0; t < g.taps; ++t) {
        const int64_t h = p * g.stride_h + g.tap_h[t];
        if (h >= 0 && h < g.height) sum[t] = fma(error, at.cells[t].load(row + at.offset[t]), sum[t]);
      }
    }
  }
  for (int64_t t = 0; t < g.taps; ++t) d_weight[t] = sum_lanes(sum[t]);
}

void depthwise_weight(const ConvGather* gather, const float* dy, float* d_weight) {
  const ConvGather& g = *gather;
  if (!is_dense_3x3(g))
    weight_sums(g, dy, d_weight);
  else if (g.stride_w == 1)
    weight_sums_3x3<1>(g, dy, d_weight);
  else
    weight_sums_3x3<2>(g, dy, d_weight);
}

}  // namespace
