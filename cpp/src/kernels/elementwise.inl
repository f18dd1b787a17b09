// Passes over arrays, and sums. Sums keep partial results that are short against the whole (per lane, per block), so
// that rounding grows with the square root of their number, and always add them in the same order.
namespace {

// Lane i for i < n, `value` from n on; n may be above W.
inline vf fill_from(int64_t n, float value, vf v) {
  const vi lane = (vi)lane_numbers();
  return n >= W ? v : select(lane < (int32_t)n, v, broadcast(value));
}

void add(int64_t n, const float* x, float* y) {
  map(n, x, y, y, [](vf a, vf b) { return b + a; });
}

// Copies whole lines of 64 bytes past the caches, where the ISA can.
void stream(int64_t n, const float* from, float* to) {
  constexpr int64_t line = 16;
  const int64_t to_line = (line - (int64_t)((uintptr_t)to / sizeof(float) % line)) % line;
  const int64_t head = to_line < n ? to_line : n, whole = head + (n - head) / line * line;
  map(head, from, to, [](vf v) { return v; });
  for (int64_t i = head; i < whole; i += W) store_streaming(to + i, load(from + i));
  map(n - whole, from + whole, to + whole, [](vf v) { return v; });
}

// y may be x.
void scale(int64_t n, float scale, const float* x, float* y) {
  map(n, x, y, [=](vf v) { return v * scale; });
}

// Four chains, because an addition's result is ready only some four additions later.
inline float sum_block(int64_t n, const float* x) {
  vf s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    s0 += load(x + i);
    s1 += load(x + i + W);
    s2 += load(x + i + 2 * W);
    s3 += load(x + i + 3 * W);
  }
  for (; i < n; i += W) s0 += load_first(x + i, n - i);
  return sum_lanes((s0 + s1) + (s2 + s3));
}

float sum(int64_t n, const float* x) {
  constexpr int64_t block = 4096;
  double total = 0.0;
  for (int64_t i = 0; i < n; i += block) total += (double)sum_block(n - i < block ? n - i : block, x + i);
  return (float)total;
}

// Sums of NV neighbouring columns' vectors, the last one of `last` lanes.
template <int NV>
inline void sum_columns(int64_t rows, int64_t last, const float* x, int64_t stride, float* out, int accumulate) {
  constexpr int64_t block = 128;
  vf total[NV] = {};
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t end = first + block < rows ? first + block : rows;
    vf part[NV] = {};
    for (int64_t i = first; i < end; ++i) {
      const float* row = x + i * stride;
      for (int v = 0; v < NV - 1; ++v) part[v] += load(row + v * W);
      part[NV - 1] += load_first(row + (NV - 1) * W, last);
    }
    for (int v = 0; v < NV; ++v) total[v] += part[v];
  }
  for (int v = 0; v < NV; ++v) {
    const int64_t lanes = v == NV - 1 ? last : W;
    const vf before = accumulate ? load_first(out + v * W, lanes) : vf{};
    store_first(out + v * W, lanes, before + total[v]);
  }
}

void sum_rows(int64_t rows, int64_t cols, const float* x, int64_t stride, float* out, int accumulate) {
  int64_t j = 0;
  for (; j + 4 * W <= cols; j += 4 * W) sum_columns<4>(rows, W, x + j, stride, out + j, accumulate);
  for (; j < cols; j += W) sum_columns<1>(rows, cols - j, x + j, stride, out + j, accumulate);
}

// x * 0 is 0 but for infinities and NaN, which stay in a sum.
inline bool all_finite(int64_t n, const float* x) {
  vf s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    s0 = load(x + i) * 0.0f + s0;
    s1 = load(x + i + W) * 0.0f + s1;
  }
  for (; i < n; i += W) s0 = load_first(x + i, n - i) * 0.0f + s0;
  return sum_lanes(s0 + s1) == 0.0f;
}

int64_t find_nonfinite(int64_t n, const float* x) {
  constexpr int64_t block = 2048;
  for (int64_t first = 0; first < n; first += block) {
    const int64_t end = first + block < n ? first + block : n;
    if (all_finite(end - first, x + first)) continue;
    for (int64_t i = first; i < end; ++i)
      if (x[i] * 0.0f != 0.0f) return i;
  }
  return n;
}

// body(i, lanes) for every vector of n elements; lanes = W, a constant, for all but a shorter last one.
template <class Body>
inline void for_vectors(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body(i, int64_t{W});
  if (i < n) body(i, n - i);
}

// The largest of a row, NaN passed over (the sum of exponentials will be NaN); -infinity of nothing.
inline float row_max(int64_t n, const float* x) {
  constexpr int chains = 4;  // a comparison's result is ready only some comparisons later
  vf m[chains];
  for (vf& some : m) some = broadcast(-infinity);
  int64_t i = 0;
  for (; i + chains * W <= n; i += chains * W)
    for (int c = 0; c < chains; ++c) m[c] = maximum(m[c], load(x + i + c * W));
  for (; i < n; i += W) m[0] = maximum(m[0], fill_from(n - i, -infinity, load_first(x + i, n - i)));
  return max_lanes(maximum(maximum(m[1], m[0]), maximum(m[3], m[2])));
}

// Sum of e^(x - shift); each term is written to y unless that is null. y may be x.
inline float row_exp(int64_t n, float shift, const float* x, float* y) {
  vf s{};
  for_vectors(n, [&](int64_t i, int64_t lanes) {
    const vf e = fill_from(lanes, 0.0f, vexp_to_zero(load_first(x + i, lanes) - shift));
    if (y) store_first(y + i, lanes, e);
    s += e;
  });
  return sum_lanes(s);
}

inline float log_of(float x) { return vlog(broadcast(x))[0]; }

}  // namespace
