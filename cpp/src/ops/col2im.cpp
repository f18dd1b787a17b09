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

std::size_t col2im_backward_data_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
}

// dx = col2im(W^T dy), a task an image and block of channels.
void col2im_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const KernelTable& kernel = kernels();
  const Taps taps = forward_taps(s, workspace);
  float* packed = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, cells = s.R * s.S, pixels = s.P * s.Q;
  const Index depth = even_piece(filters, gemm_depth);
  // Blocks of channels that keep a strip of columns within 512 KB, and every core busy where images are few.
  const Index most_rows = std::max<Index>(cells, (1 << 17) / kernel.gemm_nr);
  Index block = std::max<Index>(1, std::min(even_piece(channels, std::max<Index>(1, most_rows / cells)), channels));
  // With a stride of 2 the even columns of dx are gathered apart from the odd ones.
  constexpr Index most_apart = 1 << 17;  // floats
  const Index half = (s.W + 1) / 2;
  const bool halves = s.stride_w == 2 && s.H * 2 * half <= most_apart;
  const Index plane = halves ? s.H * 2 * half : s.H * s.W;
  while (block > 1 && halves && block * plane > most_apart) block = (block + 1) / 2;
  while (s.N * s.groups * ((channels + block - 1) / block) < 8 && block * cells >= 64 && block > 1)
    block = (block + 1) / 2;
  const Index blocks = (channels + block - 1) / block;
  const Index strip =
      std::min(round_up(pixels, kernel.gemm_nr),
               std::max<Index>(kernel.gemm_nr, (1 << 17) / (block * cells) / kernel.gemm_nr * kernel.gemm_nr));

  for (Index g = 0; g < s.groups; ++g) {
    const float* w = weight + g * filters * channels * cells;
    for (Index b = 0; b < blocks; ++b) {
      const Index row = b * block * cells, rows = std::min(block, channels - b * block) * cells;
      for (Index k0 = 0; k0 < filters; k0 += depth) {
        kernel.pack_a(w + k0 * channels * cells + row, 1, channels * cells, rows, std::min(depth, filters - k0),
                      packed + (g * channels * cells + row) * filters + rows * k0);
      }
    }
  }

  const double work = static_cast<double>(block * cells * filters) * static_cast<double>(pixels);
  parallel_for(s.N * s.groups * blocks, grain_for(work / 16), [&](Index begin, Index end) {
    float* errors = thread_scratch(Scratch::pack, static_cast<std::size_t>(depth * strip));
    float* tile = thread_scratch(Scratch::tile, static_cast<std::size_t>(block * cells * strip));
    for (Index task = begin; task < end; ++task) {
      const Index b = task % blocks, g = task / blocks % s.groups, image = task / blocks / s.groups;
      const Index channel = g * channels + b * block, count = std::min(block, channels - b * block);
      float* planes = dx + (image * s.C + channel) * s.H * s.W;
      float* out = halves ? thread_scratch(Scratch::columns, static_cast<std::size_t>(count * plane)) : planes;
      const float* in = dy + (image * s.K + g * filters) * pixels;
      ConvGather gather = forward_gather(s, nullptr, taps);
      gather.channel_stride = plane;
      std::memset(out, 0, static_cast<std::size_t>(count * plane) * sizeof(float));
      GemmBlock product = {};
      product.m = count * cells;
      product.b = errors;
      product.c = tile;
      product.ldc = strip;
      for (Index j = 0; j < pixels; j += strip) {
        product.n = std::min(strip, pixels - j);
        for (Index k0 = 0; k0 < filters; k0 += depth) {
          product.k = std::min(depth, filters - k0);
          product.accumulate = k0 > 0;
          product.a = packed + channel * cells * filters + product.m * k0;
          kernel.pack_b(in + k0 * pixels + j, pixels, 1, product.k, product.n, product.k, errors);
          kernel.gemm_packed(&product);
        }
        (halves ? kernel.scatter_columns_halves : kernel.scatter_columns)(&gather, product.m, j, product.n, tile, strip,
                                                                          out);
      }
      for (Index row = 0; halves && row < count * s.H; ++row)
        kernel.interleave_rows(s.W, out + row * 2 * half, out + row * 2 * half + half, planes + row * s.W);
    }
  });
}

}  // namespace deepnet
