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

// The columns of the 3 taps of a row, of W outputs from column q: with stride 2 they share their loads.
template <int STRIDE>
struct ThreeTaps {
  int lanes;
  int64_t offset;  // of the first tap of outputs (0, q)
  bool whole;      // all lanes of all taps lie in the image
  vmask inside[3];
  CellPairs near, far;
  ThreeTaps(const ConvGather& g, int64_t q) : lanes(lanes_from(g, q)) {
    const int64_t w = q * STRIDE + g.tap_w[0];
    offset = g.tap_h[0] * g.width + w;
    whole = STRIDE == 1 && w >= 0 && w + W + 2 <= g.width;
    if (STRIDE == 1) {
      for (int s = 0; s < 3; ++s) inside[s] = lanes_inside(w + s, 1, g.width, lanes);
    } else {
      near.set(w, 2 * lanes, g.width);
      far.set(w + 2, 2 * lanes - 1, g.width);
    }
  }
  void load(const float* p, vf* cell) const {
    if (whole) {
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

// Output rows that are made together: a row of the image then is loaded once for all the outputs that it takes part in.
constexpr int ROWS = 4;

template <int rows, int STRIDE, bool inside, class Use>
inline void for_cells_from(const ConvGather& g, const ThreeTaps<STRIDE>& at, int64_t p, int64_t top, Use use) {
  const float* corner = g.image + p * STRIDE * g.width + at.offset;
#pragma GCC unroll 16
  for (int h = 0; h < (rows - 1) * STRIDE + 3; ++h) {
    if (!inside && (top + h < 0 || top + h >= g.height)) continue;
    vf cell[3];
    at.load(corner + h * g.width, cell);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i)
      if (h - i * STRIDE >= 0 && h - i * STRIDE <= 2) use(i, h - i * STRIDE, cell);
  }
}

// use(i, r, cells) for output rows p + i, i < rows, and each row r of the kernel that meets the image there.
template <int rows, int STRIDE, class Use>
inline void for_cells(const ConvGather& g, const ThreeTaps<STRIDE>& at, int64_t p, Use use) {
  const int64_t top = p * STRIDE + g.tap_h[0];
  if (top >= 0 && top + (rows - 1) * STRIDE + 3 <= g.height)
    for_cells_from<rows, STRIDE, true>(g, at, p, top, use);
  else
    for_cells_from<rows, STRIDE, false>(g, at, p, top, use);
}

inline void convolve_row(const ConvGather& g, const TapCells& at, const float* weight, int64_t p, vf& sum) {
  for (int64_t t = 0; t < g.taps; ++t) {
    const int64_t h = p * g.stride_h + g.tap_h[t];
    if (h < 0 || h >= g.height) continue;
    sum = fma(broadcast(weight[t]), at.cells[t].load(g.image + p * g.stride_h * g.width + at.offset[t]), sum);
  }
}

// Where W outputs of a plane go.
struct PlaneOut {
  float bias;
  int relu, accumulate;
  float* y;
  int64_t row_step, step;

  void put(int64_t p, int64_t q, int lanes, vf sum) const {
    float* out = y + p * row_step + q * step;
    if (relu) sum = select(sum < vf{}, vf{}, sum);  // NaN stays
    if (step == 1) {
      if (accumulate) sum += load_first(out, lanes);
      put_first(out, lanes, sum);
    } else {
      float lane[W];
      store(lane, sum);
      for (int i = 0; i < lanes; ++i) out[i * step] = accumulate ? out[i * step] + lane[i] : lane[i];
    }
  }
};

template <int STRIDE>
inline void convolve_plane_3x3(const ConvGather& g, const float* weight, const PlaneOut& out) {
  vf taps[9];
  for (int t = 0; t < 9; ++t) taps[t] = broadcast(weight[t]);
  for (int64_t q = 0; q < g.out_width; q += W) {
    const ThreeTaps<STRIDE> at(g, q);
    for (int64_t p = 0; p < g.out_height; p += ROWS) {
      vf sum[ROWS];
      for (int i = 0; i < ROWS; ++i) sum[i] = broadcast(out.bias);
      for_cells<ROWS>(g, at, p, [&](int i, int r, const vf* cell) {
        for (int s = 0; s < 3; ++s) sum[i] = fma(taps[3 * r + s], cell[s], sum[i]);
      });
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i)
        if (p + i < g.out_height) out.put(p + i, q, at.lanes, sum[i]);
    }
  }
}

inline void convolve_plane(const ConvGather& g, const float* weight, const PlaneOut& out) {
  for (int64_t q = 0; q < g.out_width; q += W) {
    const TapCells at(g, q);
    for (int64_t p = 0; p < g.out_height; ++p) {
      vf sum = broadcast(out.bias);
      convolve_row(g, at, weight, p, sum);
      out.put(p, q, at.lanes, sum);
    }
  }
}

void depthwise(const ConvGather* gather, const float* weight, float bias, int relu, int accumulate, float* y,
               int64_t row_step, int64_t step) {
  const ConvGather& g = *gather;
  const PlaneOut out = {bias, relu, accumulate, y, row_step, step};
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
inline void weight_sums_3x3(const ConvGather& g, const float* dy, float* d_weight) {
  vf sum[9] = {};
  for (int64_t q = 0; q < g.out_width; q += W) {
    const ThreeTaps<STRIDE> at(g, q);
    vf error[ROWS];
    const auto add = [&](int i, int r, const vf* cell) {
      for (int s = 0; s < 3; ++s) sum[3 * r + s] = fma(error[i], cell[s], sum[3 * r + s]);
    };
    const auto load_errors = [&](int64_t p, int rows) {
      for (int i = 0; i < rows; ++i) error[i] = load_first(dy + (p + i) * g.out_width + q, at.lanes);
    };
    int64_t p = 0;
    for (; p + ROWS <= g.out_height; p += ROWS) {
      load_errors(p, ROWS);
      for_cells<ROWS>(g, at, p, add);
    }
    for (; p < g.out_height; ++p) {
      load_errors(p, 1);
      for_cells<1>(g, at, p, add);
    }
  }
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
