// What the files of ops/lanes.hpp share.
#pragma once

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "blocking.hpp"
#include "convolution.hpp"

namespace deepnet {

constexpr Index lanes_cache = (1 << 20) / 4;  ///< floats of the second-level cache for a task

inline Index lanes() { return kernels().vector_width; }
inline Index image_groups(Index images) { return ceil_div(images, lanes()); }

/// Whether vectors are filled: two groups of images, or one and a half, and at most a quarter of the lanes empty.
inline bool fills_lanes(const ConvShape& s) {
  return 2 * s.N >= 3 * lanes() && 4 * s.N >= 3 * lanes() * image_groups(s.N);
}

// Turning images costs as many cache lines as they have cells / 16, in W streams side by side; packing columns costs
// as many as the kernel has taps, in one stream. So lanes win with many taps, or where images come from the caches.
constexpr Index many_taps = 25, some_taps = 9;
inline bool is_cached(const ConvShape& s) { return s.N * (s.C * s.H * s.W + s.K * s.P * s.Q) <= 1 << 20; }

/// Copies `count` images' cells, image_stride apart, into lanes; lanes without an image become 0.
inline void to_lanes(Index count, Index cells, const float* from, Index image_stride, float* to) {
  if (count < lanes()) std::memset(to, 0, static_cast<std::size_t>(cells * lanes()) * sizeof(float));
  kernels().transpose(from, image_stride, count, cells, to, lanes(), 0);
}

}  // namespace deepnet
