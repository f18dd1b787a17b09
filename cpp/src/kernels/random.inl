// Dropout: y[i] = x[i] * scale where element first + i's random bits are >= threshold, else 0. y may be x.
//
// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4) maps
// (key, counter) to four words, so no state is kept and any piece can be made alone, and again in the backward pass.
// Element e of a stream is word (e / 16) % 4 of counter (e / 64) * 16 + e % 16: blocks of 64 elements, within which
// the words of 16 counters side by side fill vectors of any width without a shuffle, the same on every ISA.
namespace {

constexpr int philox_lanes = 16, philox_block = 4 * philox_lanes;

// The halves of the lanes' 64-bit products a b: even lanes and odd lanes are multiplied apart.
struct WideProduct {
  vu high, low;
};
inline WideProduct multiply_wide(vu a, uint32_t b) {
  constexpr uint64_t low_half = 0xffffffffu;
  const vu_wide even = multiply_even(a, vu{} + b), odd = multiply_even((vu)((vu_wide)a >> 32), vu{} + b);
  return {(vu)((even >> 32) | (odd & ~low_half)), (vu)((even & low_half) | (odd << 32))};
}

struct PhiloxState {
  vu c[4];

  void round(uint32_t k0, uint32_t k1) {
    const WideProduct p0 = multiply_wide(c[0], 0xD2511F53u), p1 = multiply_wide(c[2], 0xCD9E8D57u);
    c[0] = p1.high ^ c[1] ^ k0;
    c[2] = p0.high ^ c[3] ^ k1;
    c[1] = p1.low;
    c[3] = p0.low;
  }
};

// The words of counters first_counter ... first_counter + 15, a multiple of 16, so that its low half never carries. Two
// vectors of counters at once, because a round waits for its products.
inline void philox(uint64_t key, uint64_t first_counter, uint32_t* words) {
  constexpr int at_once = W < philox_lanes ? 2 : 1;
  for (int first = 0; first < philox_lanes; first += at_once * W) {
    PhiloxState state[at_once];
    for (int s = 0; s < at_once; ++s) {
      const uint32_t counter = (uint32_t)first_counter + (uint32_t)(first + s * W);
      state[s] = {{lane_numbers() + counter, vu{} + (uint32_t)(first_counter >> 32), vu{}, vu{}}};
    }
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      for (int s = 0; s < at_once; ++s) state[s].round(k0, k1);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int s = 0; s < at_once; ++s)
      for (int w = 0; w < 4; ++w) store_int((int32_t*)words + w * philox_lanes + first + s * W, (vi)state[s].c[w]);
  }
}

inline vf drop(vf x, const uint32_t* words, vu threshold, float scale) {
  const vu bits = (vu)load_int((const int32_t*)words);
  return select((vi)(bits >= threshold), x * scale, vf{});
}

void dropout(uint64_t key, int64_t first, int64_t n, uint32_t threshold, float scale, const float* x, float* y) {
  const vu limit = vu{} + threshold;
  uint32_t words[philox_block + W] = {};  // W more: a piece that begins inside a block reads whole vectors too
  for (int64_t i = 0; i < n;) {
    const int64_t within = (first + i) % philox_block;
    const int64_t piece = n - i < philox_block - within ? n - i : philox_block - within;
    philox(key, (uint64_t)((first + i) / philox_block) * philox_lanes, words);
    for (int64_t j = 0; j < piece; j += W)
      store_first(y + i + j, piece - j, drop(load_first(x + i + j, piece - j), words + within + j, limit, scale));
    i += piece;
  }
}

}  // namespace
