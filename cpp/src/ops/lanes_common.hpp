// What the files of ops/lanes.hpp share.
#pragma once

#include <algorithm>
#include <cstring>

#include "blocking.hpp"
#include "convolution.hpp"
#include "layout.hpp"

namespace deepnet {

constexpr Index lanes_cache = (1 << 20) / 4;  ///< floats of the second-level cache for a task
constexpr Index lanes_depth = 8192;           ///< products that one running sum adds up, at most

// Turning images costs as many cache lines as they have cells / 16, in W streams side by side; packing columns costs
// as many as the kernel has taps, in one stream. So lanes win with many taps, or where images come from the caches.
constexpr Index many_taps = 25, some_taps = 9;
inline bool is_strided(const ConvShape& s) { return s.stride_h * s.stride_w > 1; }
inline bool is_cached(const ConvShape& s) { return s.N * (s.C * s.H * s.W + s.K * s.P * s.Q) <= 1 << 20; }

/// Whether packing the column matrix moves `times` as many elements as turning images into lanes, and outputs back.
inline bool packs_more_than_turns(const ConvShape& s, double times) {
  const double packed = static_cast<double>(s.C * s.R * s.S * s.P * s.Q);
  return packed > times * static_cast<double>(s.C * s.H * s.W + s.K * s.P * s.Q);
}

/// Copies `count` images' cells, image_stride apart, to vectors `step` floats apart; lanes without an image become 0.
inline void turn_cells(Index count, Index cells, const float* from, Index image_stride, float* to, Index step) {
  if (count < lanes())
    for (Index i = 0; i < cells; ++i) std::memset(to + i * step, 0, static_cast<std::size_t>(lanes()) * sizeof(float));
  kernels().transpose(from, image_stride, count, cells, to, step, 0);
}

}  // namespace deepnet
