// Convolution of one plane with one kernel, for layers that do not mix channels (depthwise): a column matrix would be
// read once for each element that is made of it. A tap is an offset into the image, as in conv.inl; `taps` <=
// MOST_TAPS.
//   y[p, q] = bias + sum_t w[t] x[p stride_h + tap_h[t], q stride_w + tap_w[t]]      (0 outside x)
//   d_w[t]  = sum_{p,q} dy[p, q] x[...]
// dE/dx is the first again, over dy and mirrored taps, by phases where the stride is not 1. Vectors run along q.
namespace {

constexpr int MOST_TAPS = kDepthwiseTaps;

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

// What is the same for all rows: where the taps of W outputs from column q read.
struct TapCells {
  StridedCells cells[MOST_TAPS];
  int64_t offset[MOST_TAPS];    // from the row's first cell
  int64_t first_row, last_row;  // output rows between them have all taps inside
  int lanes;

  TapCells(const ConvGather& g, int64_t q) {
    lanes = g.out_width - q < W ? (int)(g.out_width - q) : W;
    int64_t top = 0, bottom = 0;
    for (int64_t t = 0; t < g.taps; ++t) {
      const int64_t w = q * g.stride_w + g.tap_w[t];
      cells[t].set(w, lanes, g.stride_w, g.width);
      offset[t] = g.tap_h[t] * g.width + w;
      if (t == 0 || g.tap_h[t] < top) top = g.tap_h[t];
      if (t == 0 || g.tap_h[t] > bottom) bottom = g.tap_h[t];
    }
    first_row = top < 0 ? (-top + g.stride_h - 1) / g.stride_h : 0;
    const int64_t room = g.height - bottom;
    last_row = room > 0 ? (room + g.stride_h - 1) / g.stride_h : 0;
    if (last_row > g.out_height) last_row = g.out_height;
  }
  bool whole(int64_t p) const { return p >= first_row && p < last_row; }
};

inline void store_strided(float* p, int64_t step, int lanes, vf v) {
  if (step == 1) {
    store_first(p, lanes, v);
  } else {
    float lane[W];
    store(lane, v);
    for (int i = 0; i < lanes; ++i) p[i * step] = lane[i];
  }
}

// ROWS output rows at once: their sums do not wait for each other. TAPS is the number of taps, or 0: any.
template <int ROWS, int TAPS, int STRIDE>
inline void convolve_rows(const ConvGather& g, const TapCells& at, const float* weight, int64_t p, vf* sum) {
  const int64_t taps = TAPS ? TAPS : g.taps;
  const float* row = g.image + p * g.stride_h * g.width;
#pragma GCC unroll 9
  for (int64_t t = 0; t < taps; ++t) {
    const vf w = broadcast(weight[t]);
    StridedCells cells = at.cells[t];
    if (STRIDE) cells.stride = STRIDE;
    const float* from = row + at.offset[t];
    for (int i = 0; i < ROWS; ++i) sum[i] = fma(w, cells.load(from + i * g.stride_h * g.width), sum[i]);
  }
}

template <int TAPS, int STRIDE>
inline void convolve_plane(const ConvGather& g, const float* weight, float bias, int relu, int accumulate, float* y,
                           int64_t row_step, int64_t step) {
  constexpr int ROWS = 4;
  for (int64_t q = 0; q < g.out_width; q += W) {
    const TapCells at(g, q);
    const auto finish = [&](int64_t p, vf sum) {
      float* out = y + p * row_step + q * step;
      if (relu) sum = select(sum < vf{}, vf{}, sum);  // NaN stays
      if (accumulate)
        for (int i = 0; i < at.lanes; ++i) sum[i] += out[i * step];
      store_strided(out, step, at.lanes, sum);
    };
    for (int64_t p = 0; p < g.out_height;) {
      if (at.whole(p) && at.whole(p + ROWS - 1)) {
        vf sum[ROWS];
        for (int i = 0; i < ROWS; ++i) sum[i] = broadcast(bias);
        convolve_rows<ROWS, TAPS, STRIDE>(g, at, weight, p, sum);
        for (int i = 0; i < ROWS; ++i) finish(p + i, sum[i]);
        p += ROWS;
      } else {
        vf sum = broadcast(bias);
        for (int64_t t = 0; t < g.taps; ++t) {
          const int64_t h = p * g.stride_h + g.tap_h[t];
          if (h < 0 || h >= g.height) continue;
          sum = fma(broadcast(weight[t]), at.cells[t].load(g.image + p * g.stride_h * g.width + at.offset[t]), sum);
        }
        finish(p++, sum);
      }
    }
  }
}

void depthwise(const ConvGather* gather, const float* weight, float bias, int relu, int accumulate, float* y,
               int64_t row_step, int64_t step) {
  const ConvGather& g = *gather;
  if (g.taps == 9 && g.stride_w == 1)
    convolve_plane<9, 1>(g, weight, bias, relu, accumulate, y, row_step, step);
  else if (g.taps == 9 && g.stride_w == 2)
    convolve_plane<9, 2>(g, weight, bias, relu, accumulate, y, row_step, step);
  else if (g.stride_w == 1)
    convolve_plane<0, 1>(g, weight, bias, relu, accumulate, y, row_step, step);
  else
    convolve_plane<0, 0>(g, weight, bias, relu, accumulate, y, row_step, step);
}

template <int TAPS, int STRIDE>
inline void weight_sums(const ConvGather& g, const float* dy, float* d_weight) {
  const int64_t taps = TAPS ? TAPS : g.taps;
  vf sum[TAPS ? TAPS : MOST_TAPS];
  for (int64_t t = 0; t < taps; ++t) sum[t] = vf{};
  for (int64_t q = 0; q < g.out_width; q += W) {
    const TapCells at(g, q);
    for (int64_t p = 0; p < g.out_height; ++p) {
      const vf error = load_first(dy + p * g.out_width + q, at.lanes);
      const float* row = g.image + p * g.stride_h * g.width;
      const bool whole = at.whole(p);
#pragma GCC unroll 9
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t h = p * g.stride_h + g.tap_h[t];
        if (!whole && (h < 0 || h >= g.height)) continue;
        StridedCells cells = at.cells[t];
        if (STRIDE) cells.stride = STRIDE;
        sum[t] = fma(error, cells.load(row + at.offset[t]), sum[t]);
      }
    }
  }
  for (int64_t t = 0; t < taps; ++t) d_weight[t] = sum_lanes(sum[t]);
}

void depthwise_weight(const ConvGather* gather, const float* dy, float* d_weight) {
  const ConvGather& g = *gather;
  if (g.taps == 9 && g.stride_w == 1)
    weight_sums<9, 1>(g, dy, d_weight);
  else if (g.taps == 9 && g.stride_w == 2)
    weight_sums<9, 2>(g, dy, d_weight);
  else
    weight_sums<0, 0>(g, dy, d_weight);
}

}  // namespace
