// Strips of columns are tasks: a strip's columns are packed block by block of depth, unless they lie well as they are,
// and multiplied with all of A. Where columns are few and A is large, rows of A are tasks: each core keeps to its own,
// and packs the columns for itself.
#include "column_product.hpp"

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "activation.hpp"
#include "blocking.hpp"

namespace deepnet {
namespace {

// Depth of blocks of an A that is not packed: gemm_rows has its panels of B in the first-level cache.
constexpr Index unpacked_depth = 256;

// The columns [j, j + n) of a 1x1 convolution as they lie in an image, row after row of the column matrix; or null
// where they do not, or are sooner packed: because rows of A are many tiles, each of which reads them (1x1 convolutions
// to 32 filters take 0.8 of the time with AVX2, to 128 as long; with AVX-512 0.65 to 0.9 for 24 to 128, to 512 as
// long), or because cells of different channels share sets of the first-level cache.
const float* columns_as_they_lie(const ColumnProduct& p, Index j, Index n) {
  const ColumnGather& g = p.gather;
  const Index pixels = g.out_height * g.out_width, pixel = j % pixels;
  const bool many_rows = kernels().gemm_mr > 8;
  if (p.a || g.taps > 1 || g.width != g.out_width || pixel + n > pixels || n % kernels().vector_width != 0 ||
      g.channel_stride % (clashing_stride / 4) == 0 || (!many_rows && p.rows > 64))
    return nullptr;
  return g.image + j / pixels * g.image_stride + pixel + g.tap[0];
}

// One strip of columns [j0, j0 + n) to c, rows ldc apart.
void multiply_strip(const ColumnProduct& p, Index j0, Index n, float* c, Index ldc) {
  const KernelTable& kernel = kernels();
  const Index block = even_piece(p.depth, p.a ? unpacked_depth : gemm_depth);
  const float* as_they_lie = columns_as_they_lie(p, j0, n);
  float* columns = thread_scratch(Scratch::pack, static_cast<std::size_t>(block * round_up(n, kernel.gemm_nr)));
  GemmBlock g = {};
  g.m = p.rows;
  g.n = n;
  g.b = columns;
  g.c = c;
  g.ldc = ldc;
  for (Index k0 = 0; k0 < p.depth; k0 += block) {
    const Index k1 = std::min(k0 + block, p.depth);
    if (!as_they_lie) kernel.pack_columns(&p.gather, k0, k1, j0, n, columns);
    const bool last = k1 == p.depth;
    g.k = k1 - k0;
    g.a = p.a ? p.a + k0 : p.packed_a + p.rows * k0;
    g.accumulate = k0 > 0;
    g.bias_row = last ? p.bias : nullptr;
    g.relu = last && is_fused(p.activation);
    if (p.a) {
      kernel.gemm_rows(&g, p.a_stride);
    } else if (as_they_lie) {
      g.b = as_they_lie + k0 * p.gather.channel_stride;
      kernel.gemm_b_rows(&g, p.gather.channel_stride);
    } else {
      g.ahead[0] = last ? cells_of(p.gather, p.images, 0, block, j0 + n, n)
                        : cells_of(p.gather, p.images, k1, std::min(k1 + block, p.depth), j0, n);
      kernel.gemm_packed(&g);
    }
  }
  apply_unfused(p.activation, p.rows, n, c, ldc);
}

// Copies a finished strip, rows ld apart, to the cells of its pixels.
void scatter_strip(const ColumnProduct& p, Index j0, Index n, const float* tile, Index ld) {
  const Index Q = p.gather.out_width, pixels = p.gather.out_height * Q;
  const bool dense = p.step_h == 1 && p.step_w == 1 && Q == p.out_width;
  for (Index done = 0; done < n;) {
    const Index j = j0 + done, image = j / pixels, pixel = j % pixels;
    // The longest run that lies in one image, and in one row unless rows follow each other without gaps.
    const Index run = std::min(n - done, dense ? pixels - pixel : Q - pixel % Q);
    float* out = p.out + image * p.out_image_stride + pixel / Q * p.step_h * p.out_width + pixel % Q * p.step_w;
    for (Index i = 0; i < p.rows; ++i) {
      const float* from = tile + i * ld + done;
      float* to = out + i * p.out_plane_stride;
      if (p.step_w == 1) {
        std::memcpy(to, from, static_cast<std::size_t>(run) * sizeof(float));
      } else {
        kernels().copy_strided(run, from, to, p.step_w);
      }
    }
    done += run;
  }
}

// The same product for rows [first, first + rows) of an A that is not packed.
ColumnProduct rows_of(ColumnProduct p, Index first, Index rows) {
  p.rows = rows;
  p.a += first * p.a_stride;
  if (p.bias) p.bias += first;
  p.out += first * p.out_plane_stride;
  return p;
}

}  // namespace

Taps forward_taps(const ConvShape& s, float* workspace) {
  const Taps taps = {reinterpret_cast<int32_t*>(workspace), reinterpret_cast<int32_t*>(workspace) + s.R * s.S};
  for (Index r = 0; r < s.R; ++r) {
    for (Index c = 0; c < s.S; ++c) {
      taps.h[r * s.S + c] = static_cast<int32_t>(r * s.dilation_h - s.pad_top);
      taps.w[r * s.S + c] = static_cast<int32_t>(c * s.dilation_w - s.pad_left);
    }
  }
  return taps;
}

ConvGather forward_gather(const ConvShape& s, const float* x, const Taps& taps) {
  ConvGather g = {};
  g.image = x;
  g.image_stride = s.C * s.H * s.W;
  g.channel_stride = s.H * s.W;
  g.height = s.H;
  g.width = s.W;
  g.out_height = s.P;
  g.out_width = s.Q;
  g.stride_h = s.stride_h;
  g.stride_w = s.stride_w;
  g.taps = s.R * s.S;
  g.tap_h = taps.h;
  g.tap_w = taps.w;
  return g;
}

// Packing the columns once more takes as long as some 16 rows.
Index forward_row_blocks(const ConvShape& s) {
  constexpr Index least_rows = 24;
  const Index rows = s.K / s.groups, channels = s.C / s.groups, depth = channels * s.R * s.S, pixels = s.P * s.Q;
  const double work = static_cast<double>(rows * depth) * static_cast<double>(s.N * pixels);
  const bool larger_than_images = rows * depth > s.N * channels * s.H * s.W;
  const bool pays =
      few_columns(s.N, pixels, depth) && larger_than_images && rows >= 2 * least_rows && work >= 2 * least_work;
  return pays ? 2 : 1;
}

Index phase_taps(const ConvShape& s, Index a, Index b, const Taps& taps, Index* position) {
  Index count = 0;
  for (Index r = s.R; r-- > 0;) {
    const Index h = a + s.pad_top - r * s.dilation_h;
    if (h % s.stride_h != 0) continue;
    for (Index c = s.S; c-- > 0;) {
      const Index w = b + s.pad_left - c * s.dilation_w;
      if (w % s.stride_w != 0) continue;
      taps.h[count] = static_cast<int32_t>(h / s.stride_h);
      taps.w[count] = static_cast<int32_t>(w / s.stride_w);
      position[count++] = r * s.S + c;
    }
  }
  return count;
}

CacheLines cells_of(const ColumnGather& g, Index images, Index row0, Index row1, Index j, Index n) {
  const Index pixels = g.out_height * g.out_width, image = j / pixels, pixel = j % pixels;
  if (image >= images) return {};
  const Index first = row0 / g.taps, channels = ceil_div(row1, g.taps) - first;
  const Index place = pixel / g.out_width * g.width + pixel % g.out_width + g.tap[0];
  const Index under_taps = std::min(g.tap[g.taps - 1] - g.tap[0], n);
  return {g.image + image * g.image_stride + first * g.channel_stride + place, channels, g.channel_stride,
          ceil_div(n + under_taps, kCacheLine)};
}

void multiply_columns(ColumnProduct p) {
  const Index nr = kernels().gemm_nr, width = kernels().vector_width;
  const Index pixels = p.gather.out_height * p.gather.out_width;
  const bool dense = p.step_h == 1 && p.step_w == 1 && p.gather.out_width == p.out_width;
  if (dense) {
    p.gather = with_rows_joined(p.gather);
    p.out_width = p.gather.out_width;
  }
  // Strips end with the image and are written in place where what the last panel wastes takes less time than copying
  // out the strips of columns that run on over images.
  const Index rest = pixels % nr;
  const double panels = static_cast<double>(pixels) / nr, filled = static_cast<double>(rest) / nr;
  const double wasted = rest == 0 ? 0.0 : (rest <= width ? 0.6 : 1.0) - filled;  // panels; half a one takes 0.6 of one
  constexpr double copy = 8;                                                     // steps of k that take as long
  const bool in_place = dense && wasted / panels * static_cast<double>(p.depth) <= copy;
  const Index span = in_place ? pixels : p.images * pixels, spans = in_place ? p.images : 1;
  if (span == 0 || spans == 0) return;

  Index strip = p.a ? nr : std::min(round_up(even_piece(span, 512), nr), round_up(span, nr));
  const double work_per_column = static_cast<double>(p.rows) * p.depth / p.row_blocks;
  const auto tasks = [&] { return spans * ceil_div(span, strip) * p.row_blocks; };
  while (tasks() < 16 && work_per_column * strip >= 2 * least_work && strip > 2 * nr) strip = round_up(strip / 2, nr);
  const Index strips = ceil_div(span, strip), block = ceil_div(p.rows, p.row_blocks);
  const Index grain = product_grain(work_per_column * std::min(strip, span));

  parallel_for(tasks(), grain, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index first_row = task / (spans * strips) * block, image = task % (spans * strips) / strips;
      const Index first = task % strips * strip, n = std::min(strip, span - first);
      const ColumnProduct part = p.row_blocks == 1 ? p : rows_of(p, first_row, std::min(block, p.rows - first_row));
      if (in_place) {
        multiply_strip(part, image * pixels + first, n, part.out + image * p.out_image_stride + first,
                       p.out_plane_stride);
      } else {
        float* tile = thread_scratch(Scratch::tile, static_cast<std::size_t>(part.rows * strip));
        multiply_strip(part, first, n, tile, strip);
        scatter_strip(part, first, n, tile, strip);
      }
    }
  });
}

bool few_columns(Index images, Index pixels, Index a_stride) {
  const Index most = images == 1 ? 256 : 128;
  return images * pixels <= most && a_stride % clashing_stride != 0;
}

void pack_blocks(const float* a, Index row_stride, Index rows, Index depth, float* packed) {
  const Index block = even_piece(depth, gemm_depth);
  for (Index k0 = 0; k0 < depth; k0 += block) {
    kernels().pack_a(a + k0, row_stride, 1, rows, std::min(block, depth - k0), packed + rows * k0);
  }
}

}  // namespace deepnet
