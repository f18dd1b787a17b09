// Depthwise convolution of images in lanes (lanes.inl): cell (h, w) of channel c is a vector of one pixel of W images.
//   y[p, q, c]  = bias[c] + sum_t weight[c, t] x[p stride_h + tap_h[t], q stride_w + tap_w[t], c]      (0 outside x)
//   d_w[c, t]   = sum_{p,q} dy[p, q, c] x[...], summed over the lanes by the caller
// dE/dx is the first again, over dy and mirrored taps, by phases where the stride is not 1. The gather's image is that
// of a group of W images, its cells cell_stride apart.
namespace {

// The taps of output (p, q) that are inside the image.
struct LaneTaps {
  int count = 0;
  int number[MOST_TAPS];
  const float* cell[MOST_TAPS];  // of channel 0

  LaneTaps(const ConvGather& g, int64_t p, int64_t q) {
    for (int64_t t = 0; t < g.taps; ++t) {
      const int64_t h = p * g.stride_h + g.tap_h[t], w = q * g.stride_w + g.tap_w[t];
      if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
      number[count] = (int)t;
      cell[count++] = g.image + (h * g.width + w) * g.cell_stride;
    }
  }
};

constexpr int LANE_OUTPUTS = 4;  // side by side, which share cells and weights

// The rows and columns of outputs of a dense 3 x 3 kernel: what of row p's windows is inside the image.
template <int STRIDE>
struct LaneWindows {
  int first_row, last_row;  // of the kernel's, inside the image
  int64_t first, last;      // outputs whose columns all are
  const float* corner;      // cell of output 0's first tap, which may be outside
  int64_t row_step, cell_step;

  LaneWindows(const ConvGather& g, int64_t p) : row_step(g.width * g.cell_stride), cell_step(g.cell_stride) {
    const int64_t h = p * STRIDE + g.tap_h[0], w = g.tap_w[0];
    first_row = h < 0 ? (int)(-h) : 0;
    last_row = g.height - h < 3 ? (int)(g.height - h) : 3;
    first = w < 0 ? (-w + STRIDE - 1) / STRIDE : 0;
    last = g.width - 3 - w < 0 ? 0 : (g.width - 3 - w) / STRIDE + 1;
    if (last > g.out_width) last = g.out_width;
    corner = g.image + (h * g.width + w) * g.cell_stride;
  }

  // Calls use(r, cell) for the kernel's rows inside: the cells of channel c that row r's taps of LANE_OUTPUTS
  // from q read.
  template <class Use>
  void for_rows(int64_t q, int64_t c, Use use) const {
    constexpr int cells = (LANE_OUTPUTS - 1) * STRIDE + 3;
    const float* at = corner + q * STRIDE * cell_step + c * W;
    for (int r = first_row; r < last_row; ++r) {
      vf cell[cells];
#pragma GCC unroll 9
      for (int i = 0; i < cells; ++i) cell[i] = load(at + r * row_step + i * cell_step);
      use(r, cell);
    }
  }
};

// one(q) for outputs that the border cuts or that are left over, several(q) for LANE_OUTPUTS from q.
template <int STRIDE, class One, class Several>
inline void for_lane_outputs(const LaneWindows<STRIDE>& at, int64_t width, One one, Several several) {
  for (int64_t q = 0; q < width;) {
    if (q >= at.first && q + LANE_OUTPUTS <= at.last) {
      several(q);
      q += LANE_OUTPUTS;
    } else {
      one(q++);
    }
  }
}

struct LaneOut {
  const float* bias;  // or null
  vf least;           // 0 with ReLU, or -infinity
  float* y;
  int64_t step;

  vf first(int64_t c) const { return broadcast(bias ? bias[c] : 0.0f); }
  void put(int64_t q, int64_t c, vf sum) const { store(y + q * step + c * W, select(sum < least, least, sum)); }
};

inline void convolve_lane_output(const ConvGather& g, int64_t channels, int64_t p, int64_t q, const float* weight,
                                 const LaneOut& out) {
  const LaneTaps taps(g, p, q);
  for (int64_t c = 0; c < channels; ++c) {
    vf sum = out.first(c);
    for (int i = 0; i < taps.count; ++i)
      sum = fma(broadcast(weight[c * g.taps + taps.number[i]]), load(taps.cell[i] + c * W), sum);
    out.put(q, c, sum);
  }
}

template <int STRIDE>
inline void convolve_lane_row_3x3(const ConvGather& g, int64_t channels, int64_t p, const float* weight,
                                  const LaneOut& out) {
  const LaneWindows<STRIDE> at(g, p);
  const auto one = [&](int64_t q) { convolve_lane_output(g, channels, p, q, weight, out); };
  for_lane_outputs(at, g.out_width, one, [&](int64_t q) {
    for (int64_t c = 0; c < channels; ++c) {
      vf sum[LANE_OUTPUTS];
      for (vf& s : sum) s = out.first(c);
      at.for_rows(q, c, [&](int r, const vf* cell) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
          const vf tap = broadcast(weight[9 * c + 3 * r + s]);
#pragma GCC unroll 4
          for (int i = 0; i < LANE_OUTPUTS; ++i) sum[i] = fma(tap, cell[i * STRIDE + s], sum[i]);
        }
      });
#pragma GCC unroll 4
      for (int i = 0; i < LANE_OUTPUTS; ++i) out.put(q + i, c, sum[i]);
    }
  });
}

void lane_depthwise(const ConvGather* gather, int64_t channels, int64_t p, const float* weight, const float* bias,
                    int relu, float* y, int64_t step) {
  const ConvGather& g = *gather;
  const LaneOut out = {bias, broadcast(relu ? 0.0f : -infinity), y, step};
  if (!is_dense_3x3(g)) {
    for (int64_t q = 0; q < g.out_width; ++q) convolve_lane_output(g, channels, p, q, weight, out);
  } else if (g.stride_w == 1) {
    convolve_lane_row_3x3<1>(g, channels, p, weight, out);
  } else {
    convolve_lane_row_3x3<2>(g, channels, p, weight, out);
  }
}

inline void add_lane_weights(const ConvGather& g, int64_t first, int64_t last, int64_t p, int64_t q, const float* dy,
                             float* sums) {
  const LaneTaps taps(g, p, q);
  for (int64_t c = first; c < last; ++c) {
    const vf error = load(dy + q * g.cell_stride + c * W);
    for (int i = 0; i < taps.count; ++i) {
      float* sum = sums + (c * g.taps + taps.number[i]) * W;
      store(sum, fma(error, load(taps.cell[i] + c * W), load(sum)));
    }
  }
}

template <int STRIDE>
inline void add_lane_weights_3x3(const ConvGather& g, int64_t first, int64_t last, int64_t p, const float* dy,
                                 float* sums) {
  const LaneWindows<STRIDE> at(g, p);
  const auto one = [&](int64_t q) { add_lane_weights(g, first, last, p, q, dy, sums); };
  for_lane_outputs(at, g.out_width, one, [&](int64_t q) {
    for (int64_t c = first; c < last; ++c) {
      vf error[LANE_OUTPUTS];
#pragma GCC unroll 4
      for (int i = 0; i < LANE_OUTPUTS; ++i) error[i] = load(dy + (q + i) * g.cell_stride + c * W);
      at.for_rows(q, c, [&](int r, const vf* cell) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) {
          float* sum = sums + (9 * c + 3 * r + s) * W;
          vf total = load(sum);
#pragma GCC unroll 4
          for (int i = 0; i < LANE_OUTPUTS; ++i) total = fma(error[i], cell[i * STRIDE + s], total);
          store(sum, total);
        }
      });
    }
  });
}

void lane_depthwise_weight(const ConvGather* gather, int64_t channels, int64_t p, const float* dy, float* sums) {
  constexpr int64_t at_once = 256 / W;  // channels whose sums stay in the first-level cache
  const ConvGather& g = *gather;
  for (int64_t first = 0; first < channels; first += at_once) {
    const int64_t last = first + at_once < channels ? first + at_once : channels;
    if (!is_dense_3x3(g)) {
      for (int64_t q = 0; q < g.out_width; ++q) add_lane_weights(g, first, last, p, q, dy, sums);
    } else if (g.stride_w == 1) {
      add_lane_weights_3x3<1>(g, first, last, p, dy, sums);
    } else {
      add_lane_weights_3x3<2>(g, first, last, p, dy, sums);
    }
  }
}

}  // namespace
