// Columns W^T (CRS x K) dy (K x pixels) of an image are made strip by strip and added to the cells of dx that they were
// read from: faster than the implicit product where the columns of dy would be many more (few channels, small images).
#include "col2im.hpp"

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "blocking.hpp"
#include "column_product.hpp"

namespace deepnet {
namespace {

// How the product is cut, by shape alone. Tasks are images and blocks of channels or, where forward keeps a core to a
// block of filters, those blocks, whose shares of dx are added up.
struct Cut {
  Index filters, channels, cells, pixels;  // of a group of channels
  Index block;                             // channels
  Index strip;                             // pixels
  Index plane;                             // floats of one channel while columns are added to it
  bool halves;                             // with a stride of 2 the even columns of dx are gathered apart from the odd
  bool packed;                             // W^T is
  Index filter_blocks, filters_per_block;

  explicit Cut(const ConvShape& s)
      : filters(s.K / s.groups), channels(s.C / s.groups), cells(s.R * s.S), pixels(s.P * s.Q) {
    const Index nr = kernels().gemm_nr;
    // Blocks of channels that keep a strip of columns within 512 KB, and every core busy where images are few.
    constexpr Index most = 1 << 17;  // floats
    const Index most_rows = std::max<Index>(cells, most / nr);
    block = std::max<Index>(1, std::min(even_piece(channels, std::max<Index>(1, most_rows / cells)), channels));
    const Index half = (s.W + 1) / 2;
    halves = s.stride_w == 2 && s.H * 2 * half <= most;
    plane = halves ? s.H * 2 * half : s.H * s.W;
    while (block > 1 && halves && block * plane > most) block = (block + 1) / 2;
    filter_blocks = forward_row_blocks(s);
    filters_per_block = ceil_div(filters, filter_blocks);
    packed = !few_columns(s.N, pixels, row());
    const double work_per_channel = static_cast<double>(filters * cells * pixels);
    while (filter_blocks == 1 && s.N * s.groups * blocks() < 8 && work_per_channel * block >= 2 * least_work &&
           block > 1) {
      block = (block + 1) / 2;
    }
    strip = std::min(round_up(pixels, nr), std::max<Index>(nr, most / (block * cells) / nr * nr));
  }
  Index blocks() const { return ceil_div(channels, block); }
  Index block_at(Index first) const { return std::min(block, channels - first); }
  Index row() const { return channels * cells; }
};

// W^T of a group for each block of channels.
void pack_weight(const Cut& cut, const float* weight, float* packed) {
  const Index row = cut.row(), filters = cut.filters, depth = even_piece(filters, gemm_depth);
  for (Index c = 0; c < cut.channels; c += cut.block) {
    const Index rows = cut.block_at(c) * cut.cells;
    for (Index k = 0; k < filters; k += depth) {
      kernels().pack_a(weight + k * row + c * cut.cells, 1, row, rows, std::min(depth, filters - k),
                       packed + c * cut.cells * filters + rows * k);
    }
  }
}

// dE/dx of the block of channels from c on, by filters [k0, k1), to `planes` of one image; weight of the group, packed
// (then k0 is 0 and k1 all filters) or as it is.
void add_columns(const ConvShape& s, const Cut& cut, const Taps& taps, const float* weight, const float* dy, Index c,
                 Index k0, Index k1, float* planes) {
  const KernelTable& kernel = kernels();
  const Index count = cut.block_at(c), depth = even_piece(k1 - k0, gemm_depth), pixels = cut.pixels;
  float* errors = thread_scratch(Scratch::pack, static_cast<std::size_t>(depth * cut.strip));
  float* tile = thread_scratch(Scratch::tile, static_cast<std::size_t>(cut.block * cut.cells * cut.strip));
  float* out = cut.halves ? thread_scratch(Scratch::columns, static_cast<std::size_t>(count * cut.plane)) : planes;
  ConvGather gather = forward_gather(s, nullptr, taps);
  gather.channel_stride = cut.plane;
  std::memset(out, 0, static_cast<std::size_t>(count * cut.plane) * sizeof(float));
  GemmBlock product = {};
  product.m = count * cut.cells;
  product.b = errors;
  product.c = tile;
  product.ldc = cut.strip;
  for (Index j = 0; j < pixels; j += cut.strip) {
    product.n = std::min(cut.strip, pixels - j);
    for (Index k = k0; k < k1; k += depth) {
      product.k = std::min(depth, k1 - k);
      product.accumulate = k > k0;
      kernel.pack_b(dy + k * pixels + j, pixels, 1, product.k, product.n, product.k, errors);
      if (cut.packed) {
        product.a = weight + c * cut.cells * cut.filters + product.m * k;
        kernel.gemm_packed(&product);
      } else {
        product.a = weight + k * cut.row() + c * cut.cells;
        kernel.gemm_columns(&product, cut.row());
      }
    }
    (cut.halves ? kernel.scatter_columns_halves : kernel.scatter_columns)(&gather, product.m, j, product.n, tile,
                                                                          cut.strip, out);
  }
  const Index half = (s.W + 1) / 2;
  for (Index row = 0; cut.halves && row < count * s.H; ++row)
    kernel.interleave_rows(s.W, out + row * 2 * half, out + row * 2 * half + half, planes + row * s.W);
}

// Every block of filters' share, the first one in dx, the others in `shares`; then their sum.
void add_shares(const ConvShape& s, const Cut& cut, const Taps& taps, const float* dy, const float* weight, float* dx,
                float* shares) {
  const Index cells = s.N * s.C * s.H * s.W, plane = s.H * s.W;
  parallel_for(cut.filter_blocks, 1, [&](Index begin, Index end) {
    for (Index b = begin; b < end; ++b) {
      const Index k0 = b * cut.filters_per_block, k1 = std::min(k0 + cut.filters_per_block, cut.filters);
      float* share = b == 0 ? dx : shares + (b - 1) * cells;
      for (Index g = 0; g < s.groups; ++g) {
        const float* own = weight + g * cut.filters * cut.row();
        for (Index n = 0; n < s.N; ++n) {
          for (Index c = 0; c < cut.channels; c += cut.block)
            add_columns(s, cut, taps, own, dy + (n * s.K + g * cut.filters) * cut.pixels, c, k0, k1,
                        share + (n * s.C + g * cut.channels + c) * plane);
        }
      }
    }
  });
  for (Index b = 1; b < cut.filter_blocks; ++b) kernels().add(cells, shares + (b - 1) * cells, dx);
}

}  // namespace

std::size_t col2im_backward_data_workspace(const ConvShape& s) {
  const Cut cut(s);
  const Index packed = cut.packed ? s.groups * cut.filters * cut.row() : 0;
  return taps_floats(s) + static_cast<std::size_t>(packed + (cut.filter_blocks - 1) * s.N * s.C * s.H * s.W);
}

// dx = col2im(W^T dy)
void col2im_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  const Cut cut(s);
  float* memory = workspace + taps_floats(s);
  if (cut.filter_blocks > 1) return add_shares(s, cut, taps, dy, weight, dx, memory);
  const Index group_floats = cut.filters * cut.row();
  for (Index g = 0; cut.packed && g < s.groups; ++g)
    pack_weight(cut, weight + g * group_floats, memory + g * group_floats);
  const float* from = cut.packed ? memory : weight;
  const Index blocks = cut.blocks();
  const double work = static_cast<double>(cut.block * cut.cells * cut.filters) * static_cast<double>(cut.pixels);
  parallel_for(s.N * s.groups * blocks, product_grain(work), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index c = task % blocks * cut.block, g = task / blocks % s.groups, n = task / blocks / s.groups;
      add_columns(s, cut, taps, from + g * group_floats, dy + (n * s.K + g * cut.filters) * cut.pixels, c, 0,
                  cut.filters, dx + (n * s.C + g * cut.channels + c) * s.H * s.W);
    }
  });
}

}  // namespace deepnet
