// Pooling of one (H, W) plane x to a (P, Q) plane y. Window (p, q) covers the cells
//   h = p * stride_h - pad_h + r,  r in [0, R),    w = q * stride_w - pad_w + s,  s in [0, S)
//   max:      y[p,q] = max over the window's cells,      dx[h,w] = sum of the dy whose maximum lies at (h, w)
//   average:  y[p,q] = sum over the window's cells / RS, dx[h,w] = sum of the dy whose window covers (h, w) / RS
// Cells outside the plane never win a maximum, and are zeros in a sum. Nothing aliases.
//
// The winner is PyTorch's: cells in row-major order, the next one wins where it is greater or NaN. So the first
// of equals keeps the place, and a NaN takes it from everything before it.
//
// Windows of 2x2 with stride 2 have their own loops: two rows in, deinterleaved, at the speed of memory. All
// others run W output columns at a time where windows lie within the row, and cell by cell where padding cuts them.
namespace {
namespace pool {

// --- lanes -------------------------------------------------------------------------------------------------

template <int... I>
inline vi lane_numbers(Lanes<I...>) {
  return vi{I...};
}

// p[0], p[2], ..., p[2 W - 2], reading nothing beyond: the second vector starts one early.
template <int... I>
inline vf every_second(const float* p, Lanes<I...>) {
  return shuffle<(I < W / 2 ? 2 * I : 2 * I + 1)...>(load(p), load(p + W - 1));
}

// p[0], p[stride], ...: n of them, the other lanes 0.
inline vf load_strided(const float* p, int64_t stride, int64_t n) {
  if (stride == 1) return load_first(p, n);
  if (stride == 2 && n >= W) return every_second(p, AllLanes());
  return gather_lanes(p, (int32_t)stride, lane_range(0, n < W ? (int)n : W));
}

inline vi load_ints(const int32_t* p, int64_t n) {
  if (n >= W) return load_int(p);
  int32_t lane[W] = {};
  for (int64_t i = 0; i < n; ++i) lane[i] = p[i];
  return load_int(lane);
}
inline void store_ints(int32_t* p, int64_t n, vi v) {
  if (n >= W) return store_int(p, v);
  int32_t lane[W];
  store_int(lane, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lane[i];
}

// The largest of the cells seen so far, row by row, and its place.
template <bool keep_position>
struct Maximum {
  vf best;
  vi place;

  Maximum(vf value, int64_t cell) : best(value), place(broadcast_int((int32_t)cell)) {}
  void compete(vf value, int64_t cell) {
    const vi wins = (value > best) | is_nan(value);
    best = select(wins, value, best);
    if (keep_position) place = wins ? broadcast_int((int32_t)cell) : place;
  }
};

// --- windows of 2x2, stride 2, no padding ------------------------------------------------------------------
// Where a row is shorter than a vector, loads and stores run over into the next row as far as the plane goes:
// a row's values are written before the next row's, which then overwrite the surplus.

inline bool is_2x2_stride_2(const Pool2dShape& s) {
  return s.kernel_h == 2 && s.kernel_w == 2 && s.stride_h == 2 && s.stride_w == 2 && s.pad_h == 0 && s.pad_w == 0;
}

// First column of the vector after the one at q: the last vector of a long row ends at the row's end, and so
// overlaps the one before.
inline int64_t next_column(int64_t q, int64_t columns) {
  const int64_t next = q + W;
  return next < columns && next + W > columns ? columns - W : next;
}

struct Pairs {
  vf even, odd;
};

// The 2 W floats at p, of which n may be read.
inline Pairs load_pairs(const float* p, int64_t n) {
  const vf a = load_first(p, n), b = load_first(p + W, n - W);
  return {even_lanes(a, b, AllLanes()), odd_lanes(a, b, AllLanes())};
}

// even0 odd0 even1 odd1 ...: the 2 W floats at p, of which n may be written.
inline void store_pairs(float* p, int64_t n, vf even, vf odd) {
  vf pair[2];
  interleave(even, odd, pair, AllLanes());
  store_first(p, n, pair[0]);
  store_first(p + W, n - W, pair[1]);
}

// Calls window(out, n, top, upper, lower) for W windows: the first one's output position, of which n may be written,
// its upper left cell, and the cells of both rows.
template <class Window>
inline void for_2x2_windows(const Pool2dShape& s, const float* x, Window window) {
  const int64_t width = s.width, cells = s.height * width, outputs = s.out_height * s.out_width;
  for (int64_t p = 0; p < s.out_height; ++p)
    for (int64_t q = 0; q < s.out_width; q = next_column(q, s.out_width)) {
      const int64_t top = 2 * p * width + 2 * q, low = top + width, out = p * s.out_width + q;
      window(out, outputs - out, top, load_pairs(x + top, cells - top), load_pairs(x + low, cells - low));
    }
}

template <bool keep_position>
void max_2x2(const Pool2dShape& s, const float* x, float* y, int32_t* position) {
  const vi twice_lane = 2 * lane_numbers(AllLanes());
  for_2x2_windows(s, x, [&](int64_t out, int64_t n, int64_t top, Pairs upper, Pairs lower) {
    Maximum<keep_position> maximum(upper.even, top);
    maximum.compete(upper.odd, top + 1);
    maximum.compete(lower.even, top + s.width);
    maximum.compete(lower.odd, top + s.width + 1);
    store_first(y + out, n, maximum.best);
    if (keep_position) store_ints(position + out, n, maximum.place + twice_lane);
  });
}

void avg_2x2(const Pool2dShape& s, const float* x, float* y) {
  for_2x2_windows(s, x, [&](int64_t out, int64_t n, int64_t, Pairs upper, Pairs lower) {
    store_first(y + out, n, 0.25f * (upper.even + upper.odd + lower.even + lower.odd));
  });
}

// Writes both rows of dx that window row p covers: cell(q, corner) gives the gradients of corner 0 1 (upper row) or
// 2 3 (lower row) of W windows from column q.
template <class Cell>
inline void write_2x2_rows(const Pool2dShape& s, int64_t p, float* dx, Cell cell) {
  const int64_t width = s.width, cells = s.height * width;
  for (int64_t row = 0; row < 2; ++row) {
    const int64_t begin = (2 * p + row) * width;
    for (int64_t q = 0; q < s.out_width; q = next_column(q, s.out_width)) {
      const int64_t at = begin + 2 * q;
      store_pairs(dx + at, cells - at, cell(q, 2 * row), cell(q, 2 * row + 1));
    }
    for (int64_t w = 2 * s.out_width; w < width; ++w) dx[begin + w] = 0.0f;
  }
}

inline void zero(float* dx, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) dx[i] = 0.0f;
}

void max_2x2_backward(const Pool2dShape& s, const float* dy, const int32_t* position, float* dx) {
  const int64_t width = s.width, outputs = s.out_height * s.out_width;
  const vi twice_lane = 2 * lane_numbers(AllLanes());
  const int32_t corner_offset[4] = {0, 1, (int32_t)width, (int32_t)(width + 1)};
  for (int64_t p = 0; p < s.out_height; ++p)
    write_2x2_rows(s, p, dx, [&](int64_t q, int64_t corner) {
      const int64_t out = p * s.out_width + q, left = outputs - out;
      const vi corner_position = twice_lane + (int32_t)(2 * p * width + 2 * q) + corner_offset[corner];
      const vi won = load_ints(position + out, left) == corner_position;
      return (vf)((vi)load_first(dy + out, left) & won);
    });
  zero(dx, 2 * s.out_height * width, s.height * width);
}

void avg_2x2_backward(const Pool2dShape& s, const float* dy, float* dx) {
  const int64_t outputs = s.out_height * s.out_width;
  for (int64_t p = 0; p < s.out_height; ++p)
    write_2x2_rows(s, p, dx, [&](int64_t q, int64_t) {
      const int64_t out = p * s.out_width + q;
      return 0.25f * load_first(dy + out, outputs - out);
    });
  zero(dx, 2 * s.out_height * s.width, s.height * s.width);
}

// --- any windows -------------------------------------------------------------------------------------------

struct Range {
  int64_t begin, end;
};

// Cells of an axis of `size` that the window at `start` covers.
inline Range covered(int64_t start, int64_t kernel, int64_t size) {
  return {start < 0 ? 0 : start, start + kernel < size ? start + kernel : size};
}

// Output columns whose windows no padding cuts.
inline Range whole_windows(const Pool2dShape& s) {
  const int64_t last_start = s.width - s.kernel_w + s.pad_w;
  int64_t begin = (s.pad_w + s.stride_w - 1) / s.stride_w;
  int64_t end = last_start < 0 ? 0 : last_start / s.stride_w + 1;
  if (begin > s.out_width) begin = s.out_width;
  if (end > s.out_width) end = s.out_width;
  return {begin, end > begin ? end : begin};
}

// Calls pool.one(out, rows, columns) for each window that padding cuts, and pool.several(out, n, rows, w) for n
// whole windows side by side, 1 <= n <= W, the first starting in column w; out is the flat output position. Where
// the pool may repeat windows, the last vector of a long row overlaps the one before.
template <class Pool>
inline void for_windows(const Pool2dShape& s, Pool pool) {
  const Range whole = whole_windows(s);
  for (int64_t p = 0; p < s.out_height; ++p) {
    const Range rows = covered(p * s.stride_h - s.pad_h, s.kernel_h, s.height);
    const auto one = [&](int64_t q) {
      pool.one(p * s.out_width + q, rows, covered(q * s.stride_w - s.pad_w, s.kernel_w, s.width));
    };
    for (int64_t q = 0; q < whole.begin; ++q) one(q);
    for (int64_t q = whole.begin, n; q < whole.end; q += n) {
      if (Pool::may_repeat && q + W > whole.end && q > whole.begin) q = whole.end - W;
      n = whole.end - q < W ? whole.end - q : W;
      pool.several(p * s.out_width + q, n, rows, q * s.stride_w - s.pad_w);
    }
    for (int64_t q = whole.end; q < s.out_width; ++q) one(q);
  }
}

struct Max {
  static constexpr bool may_repeat = true;
  const Pool2dShape& s;
  const float* x;
  float* y;
  int32_t* position;

  void one(int64_t out, Range rows, Range columns) const {
    int64_t best_at = rows.begin * s.width + columns.begin;
    float best = x[best_at];
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t w = columns.begin; w < columns.end; ++w) {
        const float value = x[h * s.width + w];
        if (value > best || value != value) {
          best = value;
          best_at = h * s.width + w;
        }
      }
    y[out] = best;
    if (position) position[out] = (int32_t)best_at;
  }

  void several(int64_t out, int64_t n, Range rows, int64_t w) const {
    const int64_t first = rows.begin * s.width + w;
    Maximum<true> maximum(load_strided(x + first, s.stride_w, n), first);
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t column = 0; column < s.kernel_w; ++column) {
        const int64_t at = h * s.width + w + column;
        maximum.compete(load_strided(x + at, s.stride_w, n), at);
      }
    store_first(y + out, n, maximum.best);
    if (position) store_ints(position + out, n, maximum.place + (int32_t)s.stride_w * lane_numbers(AllLanes()));
  }
};

struct Average {
  static constexpr bool may_repeat = true;
  const Pool2dShape& s;
  const float* x;
  float* y;
  float cells;

  void one(int64_t out, Range rows, Range columns) const {
    float sum = 0.0f;
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t w = columns.begin; w < columns.end; ++w) sum += x[h * s.width + w];
    y[out] = sum / cells;
  }

  void several(int64_t out, int64_t n, Range rows, int64_t w) const {
    vf sum = {};
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t column = 0; column < s.kernel_w; ++column)
        sum += load_strided(x + h * s.width + w + column, s.stride_w, n);
    store_first(y + out, n, sum / cells);
  }
};

// dx += dy / RS over each window.
struct AverageBackward {
  static constexpr bool may_repeat = false;
  const Pool2dShape& s;
  const float* dy;
  float* dx;
  float cells;

  void one(int64_t out, Range rows, Range columns) const {
    const float d = dy[out] / cells;
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t w = columns.begin; w < columns.end; ++w) dx[h * s.width + w] += d;
  }

  void several(int64_t out, int64_t n, Range rows, int64_t w) const {
    if (s.stride_w != 1) {
      for (int64_t i = 0; i < n; ++i) one(out + i, rows, {w + i * s.stride_w, w + i * s.stride_w + s.kernel_w});
      return;
    }
    const vf d = load_first(dy + out, n) / cells;
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t column = 0; column < s.kernel_w; ++column) {
        float* cell = dx + h * s.width + w + column;
        store_first(cell, n, load_first(cell, n) + d);
      }
  }
};

}  // namespace pool

void max_pool(const Pool2dShape* shape, const float* x, float* y, int32_t* position) {
  if (!pool::is_2x2_stride_2(*shape)) return pool::for_windows(*shape, pool::Max{*shape, x, y, position});
  if (position)
    pool::max_2x2<true>(*shape, x, y, position);
  else
    pool::max_2x2<false>(*shape, x, y, nullptr);
}

void max_pool_backward(const Pool2dShape* shape, const float* dy, const int32_t* position, float* dx) {
  // Rows shorter than a vector are scattered faster than they are compared.
  if (pool::is_2x2_stride_2(*shape) && shape->out_width >= W) return pool::max_2x2_backward(*shape, dy, position, dx);
  pool::zero(dx, 0, shape->height * shape->width);
  for (int64_t i = 0; i < shape->out_height * shape->out_width; ++i) dx[position[i]] += dy[i];
}

void avg_pool(const Pool2dShape* shape, const float* x, float* y) {
  if (pool::is_2x2_stride_2(*shape)) return pool::avg_2x2(*shape, x, y);
  const float cells = (float)(shape->kernel_h * shape->kernel_w);
  pool::for_windows(*shape, pool::Average{*shape, x, y, cells});
}

void avg_pool_backward(const Pool2dShape* shape, const float* dy, float* dx) {
  if (pool::is_2x2_stride_2(*shape)) return pool::avg_2x2_backward(*shape, dy, dx);
  pool::zero(dx, 0, shape->height * shape->width);
  const float cells = (float)(shape->kernel_h * shape->kernel_w);
  pool::for_windows(*shape, pool::AverageBackward{*shape, dy, dx, cells});
}

}  // namespace
