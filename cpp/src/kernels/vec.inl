// What every ISA's vectors share: GCC's and Clang's vector extensions give + - * / < and ?: on vf, vi and vu.
// A C-style cast between them keeps the bits; comparisons give lanes of 0 and -1.
namespace {

typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

inline vf load(const float* p) { return *(const vf_unaligned*)p; }
inline void store(float* p, vf v) { *(vf_unaligned*)p = v; }
inline vi load_int(const int32_t* p) { return *(const vi_unaligned*)p; }
inline void store_int(int32_t* p, vi v) { *(vi_unaligned*)p = v; }

inline vf broadcast(float x) { return x - vf{}; }
inline vi broadcast_int(int32_t x) { return x - vi{}; }

// The first n lanes; n may be 0 or more than W.
inline vf load_first(const float* p, int64_t n) { return n >= W ? load(p) : load_lanes(p, lane_range(0, (int)n)); }
inline void store_first(float* p, int64_t n, vf v) {
  if (n >= W)
    store(p, v);
  else
    store_lanes(p, lane_range(0, (int)n), v);
}
// The same, faster on some machines, for what was copied or added up. Behind products its branches make compilers split
// the loop, and join multiplications and additions in whole vectors otherwise than in the last one.
inline void put_first(float* p, int64_t n, vf v) {
  if (n >= W)
    store(p, v);
  else
    store_front(p, n, v);
}

inline void zero_row(int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += W) store_first(to + i, n - i, vf{});
}

// a b + c, in one rounding where the ISA has it.
inline vf fma(vf a, vf b, vf c) { return a * b + c; }

inline vf select(vi condition, vf yes, vf no) { return condition ? yes : no; }
// b where either is NaN, as x86's minps and maxps. Templates are for ISAs whose vec.hpp has no such function.
template <class V>
inline V minimum(V a, V b) {
  return a < b ? a : b;
}
template <class V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}
inline vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }
inline vf sign_of(vf x) { return (vf)((vi)x & (int32_t)0x80000000); }
inline vf copy_sign(vf magnitude, vf sign) { return (vf)((vi)magnitude | ((vi)sign & (int32_t)0x80000000)); }
inline vi is_nan(vf x) { return x != x; }

// Lane i is table[index[i] % 32]; the table is aligned to 64 bytes.
template <class Index>
inline vf lookup(const float (&table)[32], Index index) {
  vf v;
  for (int i = 0; i < W; ++i) v[i] = table[index[i] % 32];
  return v;
}
// a b + c, in one rounding for sure where has_fast_lookup.
template <class V>
inline V fused(V a, V b, V c) {
  return a * b + c;
}
// Whether any lane has one of the mask's bits.
template <class Bits>
inline bool any_set(Bits bits, uint32_t mask) {
  uint32_t all = 0;
  for (int i = 0; i < W; ++i) all |= bits[i];
  return (all & mask) != 0;
}

inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }
inline vi to_int(vf x) { return __builtin_convertvector(x, vi); }

// Lane i of the result is lane I of (a, b), b's lanes counted from W: shuffle<1, W + 1, ...>(a, b).
template <int... I>
inline vf shuffle(vf a, vf b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, vi{I...});
#endif
}

// Lanes<0, 1, ..., W - 1>: to deduce a pack of lane numbers from.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  typedef Lanes<I...> type;
};
typedef LanesUpTo<W>::type AllLanes;

template <int... I>
inline vu numbers_of(Lanes<I...>) {
  return vu{I...};
}
// 0, 1, ..., W - 1.
inline vu lane_numbers() { return numbers_of(AllLanes()); }

// Of the 2 W floats (low, high): those in even places, and in odd ones.
template <int... I>
inline vf even_lanes(vf low, vf high, Lanes<I...>) {
  return shuffle<(2 * I)...>(low, high);
}
template <int... I>
inline vf odd_lanes(vf low, vf high, Lanes<I...>) {
  return shuffle<(2 * I + 1)...>(low, high);
}

// even0 odd0 even1 odd1 ...: 2 W floats.
template <int... I>
inline void interleave(vf even, vf odd, vf* out, Lanes<I...>) {
  out[0] = shuffle<((I & 1) ? W + I / 2 : I / 2)...>(even, odd);
  out[1] = shuffle<((I & 1) ? W + W / 2 + I / 2 : W / 2 + I / 2)...>(even, odd);
}

// Up to 2 W neighbouring cells of a row; those outside the image are 0 and are not read.
struct CellPairs {
  vmask low, high;
  // Cells [0, n) from column w of a row of `width`.
  void set(int64_t w, int64_t n, int64_t width) {
    const int first = w >= 0 ? 0 : w > -2 * W ? (int)-w : 2 * W;
    const int last = width - w >= n ? (int)n : width - w > 0 ? (int)(width - w) : 0;
    low = lane_range(first, last);
    high = lane_range(first - W, last - W);
  }
  void load(const float* row, vf& even, vf& odd) const {
    const vf a = load_lanes(row, low), b = load_lanes(row + W, high);
    even = even_lanes(a, b, AllLanes());
    odd = odd_lanes(a, b, AllLanes());
  }
};

// One stage of Eklundh's transposition (1972): swaps the off-diagonal D x D blocks of rows i and i + D.
template <int D, int... I>
inline void swap_blocks(vf& upper, vf& lower, Lanes<I...>) {
  const vf a = upper, b = lower;
  upper = shuffle<((I & D) ? W + I - D : I)...>(a, b);
  lower = shuffle<((I & D) ? W + I : I + D)...>(a, b);
}
template <int D>
inline void transpose_stage(vf* row) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if ((i & D) == 0) swap_blocks<D>(row[i], row[i + D], AllLanes());
}
// Transposes W rows of W floats in registers.
inline void transpose_square(vf* row) {
  transpose_stage<1>(row);
  transpose_stage<2>(row);
  if (W > 4) transpose_stage<(W > 4 ? 4 : 1)>(row);
  if (W > 8) transpose_stage<(W > 8 ? 8 : 1)>(row);
}

// Four columns of up to W rows: lane r of column[c] is src[r * stride + c], and 0 beyond the last row. Quads are put in
// their places as they are read, which leaves half the shuffles of transpose_square.
inline void load_columns(const float* src, int64_t stride, int rows, vf (&column)[4]) {
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) column[r] = load_quads(src + r * stride, 4 * stride, (rows + 3 - r) / 4);
  swap_blocks<1>(column[0], column[1], AllLanes());
  swap_blocks<1>(column[2], column[3], AllLanes());
  swap_blocks<2>(column[0], column[2], AllLanes());
  swap_blocks<2>(column[1], column[3], AllLanes());
}

// Lane i is v's lane i + D.
template <int D, int... I>
inline vf lanes_from(vf v, Lanes<I...>) {
  return shuffle<((I + D) % W)...>(v, v);
}
// Lanes joined in a fixed order: halves, quarters, ...
template <int D, class Join>
inline float fold_lanes(vf v, Join join) {
  v = join(v, lanes_from<D>(v, AllLanes()));
  if constexpr (D > 1) return fold_lanes<D / 2>(v, join);
  return v[0];
}
inline float sum_lanes(vf v) {
  return fold_lanes<W / 2>(v, [](vf a, vf b) { return a + b; });
}
inline float max_lanes(vf v) {
  return fold_lanes<W / 2>(v, [](vf a, vf b) { return maximum(b, a); });
}

}  // namespace
