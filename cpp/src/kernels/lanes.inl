// Convolution of W images at once, one in each lane: a cell of such images is one vector a channel, cell after cell,
// the layout (height, width, channels, W). cuda-convnet (Krizhevsky 2012) put images last too, behind channels apart.
// The cells under a row of taps are then one run of vectors where they lie: there are no columns to pack and nothing
// to shuffle, whatever stride and kernel, and taps outside the image are left out.
namespace {

void lane_pack_weight(const float* weight, int64_t row_stride, int64_t channel_stride, int64_t rows, int64_t channels,
                      int64_t taps, const int32_t* place, int64_t tile0, int64_t tile1, float* packed) {
  const int64_t tiles = tile_count(rows);
  for (int64_t tile = tile0; tile < tile1; ++tile) {
    const int64_t first = tile_start(rows, tiles, tile), here = tile_start(rows, tiles, tile + 1) - first;
    for (int64_t i = 0; i < here; i += W) {
      const int64_t lanes = here - i < W ? here - i : W;
      const vmask some = lane_range(0, (int)lanes);
      const float* from = weight + (first + i) * row_stride;
      float* to = packed + first * taps * channels + i;
      for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += here)
        for (int64_t t = 0; t < taps; ++t)
          put_first(to + t * channels * here, lanes, gather_lanes(from + place[t], (int32_t)row_stride, some));
    }
  }
}

// R channels of `count` outputs, p.step apart, V of them at once: the sum over the taps [first, last) of every tap row
// inside, and all channels. The first use of cells, which come from beyond the first-level cache, asks for those of the
// next V outputs.
template <int R, int V, bool first_use>
void lane_tiles(const LaneProduct& p, const float* __restrict weight, const float* cells, int64_t first, int64_t last,
                int64_t count, const float* bias, float* out) {
  const int64_t channels = p.channels, taps_w = p.taps_w, step = p.step, out_step = p.out_step;
  const int64_t first_row = p.first_row, last_row = p.last_row;
  const int64_t run = p.joined ? (last - first) * channels : channels, taps_a_run = p.joined ? last - first : 1;
  const vf least = broadcast(p.relu ? 0.0f : -infinity);
  vf shift[R] = {};
  if (bias) {
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) shift[k] = broadcast(bias[k]);
  }
  for (; count >= V; count -= V, cells += V * step, out += V * out_step) {
    vf sum[R][V] = {};
    for (int64_t r = first_row; r < last_row; ++r) {
      for (int64_t s = first; s < last; s += taps_a_run) {
        const float* at = cells + p.offset[r * taps_w + s];
        const float* w = weight + (r * taps_w + s) * channels * R;
        for (int64_t i = 0; i < run; ++i, at += W, w += R) {
          vf cell[V];
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            cell[v] = load(at + v * step);
            if (first_use) __builtin_prefetch(at + (V + v) * step);
          }
#pragma GCC unroll 16
          for (int k = 0; k < R; ++k) {
            const vf left = broadcast(w[k]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[k][v] = fma(left, cell[v], sum[k][v]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(out + k * W + v * out_step, maximum(least, sum[k][v] + shift[k]));  // NaN stays
    }
  }
}

typedef void LaneTiles(const LaneProduct& p, const float* weight, const float* cells, int64_t first, int64_t last,
                       int64_t count, const float* bias, float* out);

template <int R, int V>
inline LaneTiles* lane_tiles_of(int64_t rows, bool first_use) {
  if (rows < R) return lane_tiles_of<(R > 1 ? R - 1 : 1), V>(rows, first_use);
  return first_use ? lane_tiles<R, V, true> : lane_tiles<R, V, false>;
}

constexpr int FEW_ROWS = 4;

void lane_product(const LaneProduct* product) {
  const LaneProduct& p = *product;
  const int64_t tiles = tile_count(p.rows);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = tile_start(p.rows, tiles, tile), rows = tile_start(p.rows, tiles, tile + 1) - row;
    // A few channels are too few sums in flight to hide the latency of a multiply-add: more outputs at once.
    const struct {
      int64_t outputs;
      LaneTiles* make;
    } sizes[] = {{4, rows <= FEW_ROWS ? lane_tiles_of<FEW_ROWS, 4>(rows, tile == 0) : nullptr},
                 {2, lane_tiles_of<GEMM_MR, 2>(rows, tile == 0)},
                 {1, lane_tiles_of<GEMM_MR, 1>(rows, tile == 0)}};
    const float* weight = p.weight + row * p.taps_h * p.taps_w * p.channels;
    const float* bias = p.bias ? p.bias + row : nullptr;
    for (int64_t j = 0; j < p.width;) {
      const int32_t* inside = p.inside + 2 * j;
      int64_t same = 1;
      while (j + same < p.width && inside[0] == inside[2 * same] && inside[1] == inside[2 * same + 1]) ++same;
      for (const auto& size : sizes) {
        const int64_t count = size.make ? same / size.outputs * size.outputs : 0;
        if (count == 0) continue;
        size.make(p, weight, p.cells + j * p.step, inside[0], inside[1], count, bias, p.out + row * W + j * p.out_step);
        j += count;
        same -= count;
      }
    }
  }
}

// --- dE/dW: cells, a scalar an image, times errors whose vectors run along filters --------------------------------

// R cells of a run times V vectors of filters, summed over outputs and images. Of an output's cells only these few
// lines are read, too far from the last output's for the hardware to foresee: they are asked for two outputs before.
template <int R, int V>
void lane_outer(const LaneWeights& w, const float* __restrict cells, const float* __restrict errors, int64_t filters,
                float* sums) {
  vf sum[R][V] = {};
  for (int64_t p = 0; p < w.height; ++p) {
    const float* at = cells + p * w.row_step;
    const float* error = errors + p * w.error_row_step;
    for (int64_t q = 0; q < w.width; ++q, at += w.step) {
#pragma GCC unroll 16
      for (int i = 0; i < R * W; i += kCacheLine) __builtin_prefetch(at + 2 * w.step + i);
      __builtin_prefetch(at + 2 * w.step + R * W - 1);
#pragma GCC unroll 2
      for (int lane = 0; lane < W; ++lane, error += GEMM_NR) {
        vf row[V];
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) row[v] = load(error + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const vf cell = broadcast(at[i * W + lane]);
#pragma GCC unroll 3
          for (int v = 0; v < V; ++v) sum[i][v] = fma(cell, row[v], sum[i][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    float* to = sums + i * w.filters;
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v)
      put_first(to + v * W, filters - v * W,
                w.accumulate ? sum[i][v] + load_first(to + v * W, filters - v * W) : sum[i][v]);
  }
}

typedef void LaneOuter(const LaneWeights& w, const float* cells, const float* errors, int64_t filters, float* sums);

template <int R>
inline LaneOuter* lane_outer_of(int64_t rows, int64_t vectors) {
  if (rows < R) return lane_outer_of<(R > 1 ? R - 1 : 1)>(rows, vectors);
  if (vectors == 1) return lane_outer<R, 1>;
  if (vectors == 2) return lane_outer<R, (GEMM_NV < 2 ? GEMM_NV : 2)>;
  return lane_outer<R, GEMM_NV>;
}

// Errors of so many bytes stay in the first-level cache while all tiles of cells meet them.
constexpr int64_t errors_at_once = 16384;

void lane_weights(const LaneWeights* weights) {
  LaneWeights w = *weights;
  const int64_t tiles = tile_count(w.rows), row_bytes = w.error_row_step * (int64_t)sizeof(float);
  const int64_t most = row_bytes < errors_at_once ? errors_at_once / row_bytes : 1;
  int64_t left = w.height;
  do {  // once where no output meets the run: its sums are 0
    w.height = left < most ? left : most;
    for (int64_t k = 0; k < w.filters; k += GEMM_NR) {
      const int64_t filters = w.filters - k < GEMM_NR ? w.filters - k : GEMM_NR;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = tile_start(w.rows, tiles, tile), rows = tile_start(w.rows, tiles, tile + 1) - row;
        lane_outer_of<GEMM_MR>(rows, (filters + W - 1) / W)(w, w.cells + row * W, w.errors + k * w.depth, filters,
                                                            w.sums + row * w.filters + k);
      }
    }
    w.accumulate = 1;
    w.cells += w.height * w.row_step;
    w.errors += w.height * w.error_row_step;
    left -= w.height;
  } while (left > 0);
}

// --- pooling: windows as in pool.inl, a vector a channel --------------------------------------------------------

// Calls cell(r, s) for the window's cells inside, in row-major order, with their row and column in the image.
template <class Cell>
inline void for_window(const Pool2dShape& s, int64_t p, int64_t q, Cell cell) {
  const pool::Range rows = pool::covered(p * s.stride_h - s.pad_h, s.kernel_h, s.height);
  const pool::Range columns = pool::covered(q * s.stride_w - s.pad_w, s.kernel_w, s.width);
  for (int64_t h = rows.begin; h < rows.end; ++h)
    for (int64_t w = columns.begin; w < columns.end; ++w) cell(h, w);
}

template <bool keep_position>
inline void store_maximum(const pool::Maximum<keep_position>& maximum, float* y, int32_t* position, int64_t at) {
  store(y + at, maximum.best);
  if (keep_position) store_int(position + at, maximum.place);
}

template <bool keep_position>
inline void lane_max_window(const Pool2dShape& s, int64_t channels, int64_t p, int64_t q, const float* x, float* y,
                            int32_t* position) {
  const pool::Range rows = pool::covered(p * s.stride_h - s.pad_h, s.kernel_h, s.height);
  const pool::Range columns = pool::covered(q * s.stride_w - s.pad_w, s.kernel_w, s.width);
  const int64_t first = rows.begin * s.width + columns.begin, step = channels * W;
  if (rows.end - rows.begin == 2 && columns.end - columns.begin == 2) {
    const float *upper = x + first * step, *lower = upper + s.width * step;
    for (int64_t i = 0; i < step; i += W) {
      pool::Maximum<keep_position> maximum(load(upper + i), first);
      maximum.compete(load(upper + step + i), first + 1);
      maximum.compete(load(lower + i), first + s.width);
      maximum.compete(load(lower + step + i), first + s.width + 1);
      store_maximum(maximum, y, position, i);
    }
    return;
  }
  for (int64_t i = 0; i < step; i += W) {
    pool::Maximum<keep_position> maximum(load(x + first * step + i), first);
    for_window(s, p, q, [&](int64_t h, int64_t w) {
      const int64_t cell = h * s.width + w;
      maximum.compete(load(x + cell * step + i), cell);
    });
    store_maximum(maximum, y, position, i);
  }
}

void lane_max_pool(const Pool2dShape* shape, int64_t channels, int64_t p, const float* x, float* y, int32_t* position) {
  const Pool2dShape& s = *shape;
  for (int64_t q = 0; q < s.out_width; ++q) {
    const int64_t to = (p * s.out_width + q) * channels * W;
    if (position) {
      lane_max_window<true>(s, channels, p, q, x, y + to, position + to);
    } else {
      lane_max_window<false>(s, channels, p, q, x, y + to, nullptr);
    }
  }
}

void lane_max_pool_backward(const Pool2dShape* shape, int64_t channels, int64_t p, const float* dy,
                            const int32_t* position, float* dx) {
  const Pool2dShape& s = *shape;
  const bool overlap = s.stride_h < s.kernel_h || s.stride_w < s.kernel_w;
  for (int64_t q = 0; q < s.out_width; ++q) {
    const int64_t from = (p * s.out_width + q) * channels * W;
    for_window(s, p, q, [&](int64_t h, int64_t w) {
      const vi here = broadcast_int((int32_t)(h * s.width + w));
      float* to = dx + (h * s.width + w) * channels * W;
      for (int64_t i = 0; i < channels * W; i += W) {
        const vf won = (vf)((vi)load(dy + from + i) & (load_int(position + from + i) == here));
        store(to + i, overlap ? load(to + i) + won : won);
      }
    });
  }
}

void lane_avg_pool(const Pool2dShape* shape, int64_t channels, int64_t p, const float* x, float* y) {
  const Pool2dShape& s = *shape;
  const vf share = broadcast(1.0f / (float)(s.kernel_h * s.kernel_w));
  for (int64_t q = 0; q < s.out_width; ++q) {
    for (int64_t c = 0; c < channels; ++c) {
      vf sum = {};
      for_window(s, p, q, [&](int64_t h, int64_t w) { sum += load(x + ((h * s.width + w) * channels + c) * W); });
      store(y + ((p * s.out_width + q) * channels + c) * W, share * sum);
    }
  }
}

void lane_avg_pool_backward(const Pool2dShape* shape, int64_t channels, int64_t p, const float* dy, float* dx) {
  const Pool2dShape& s = *shape;
  const vf share = broadcast(1.0f / (float)(s.kernel_h * s.kernel_w));
  const bool overlap = s.stride_h < s.kernel_h || s.stride_w < s.kernel_w;
  for (int64_t q = 0; q < s.out_width; ++q) {
    const float* error = dy + (p * s.out_width + q) * channels * W;
    for_window(s, p, q, [&](int64_t h, int64_t w) {
      float* to = dx + (h * s.width + w) * channels * W;
      for (int64_t i = 0; i < channels * W; i += W) {
        const vf part = share * load(error + i);
        store(to + i, overlap ? load(to + i) + part : part);
      }
    });
  }
}

}  // namespace
