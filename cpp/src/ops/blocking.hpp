// How products are cut into blocks.
#pragma once

#include <deepnet/tensor.hpp>

#include "../parallel.hpp"

namespace deepnet {

/// Multiply-adds that are worth a thread.
constexpr double least_work = 1 << 19;

/// Items a piece for parallel_for, each a product of so many multiply-adds. While one product follows another, threads
/// wait awake for the next: a piece of 1.5 us pays, and a first convolution of one image takes 0.6 of the time.
inline Index product_grain(double multiply_adds) { return grain_for(multiply_adds / 16, 1, 8192); }

/// Depth of the blocks that k is cut into: a panel of B that deep (48 KB with 32 columns) comes from the first- and
/// second-level cache. 256 and 640 were 1 to 3 % slower on the convolutions of a VGG.
constexpr Index gemm_depth = 384;

/// Floats: rows a multiple of 4 KB apart share a set of the first-level cache, which holds 8 lines or more.
constexpr Index clashing_stride = 1024;

inline Index ceil_div(Index n, Index by) { return (n + by - 1) / by; }
inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Cuts n items into the fewest equal pieces of at most `most`; returns the piece's size.
inline Index even_piece(Index n, Index most) {
  const Index pieces = (n + most - 1) / most;
  return pieces == 0 ? 1 : (n + pieces - 1) / pieces;
}

/// Cuts n items into equal pieces of at most about `most`, an even number of them where there are several, so that two
/// threads share them alike and all passes over the same items at the same place; returns the piece's size.
inline Index paired_piece(Index n, Index most, Index multiple = 1) {
  const Index pieces = ceil_div(n, most);
  return pieces <= 1 ? most : round_up(ceil_div(n, pieces + pieces % 2), multiple);
}

}  // namespace deepnet
