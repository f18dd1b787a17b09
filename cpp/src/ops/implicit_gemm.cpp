// Three products with the column matrix of conv.inl (rows (c, r, s), columns (n, p, q)), per group of channels:
//   forward   y     (K x pixels) = W (K x CRS)          columns of x (CRS x pixels)
//   dE/dx     dx    (C x pixels) = mirrored W (C x KRS) columns of dy, in stride_h x stride_w phases
//   dE/dW     d_W^T (CRS x K)    = columns of x (CRS x pixels)  dy^T (pixels x K)
// In the last, vectors run along K and the columns need no transposing: a row of them is a run of the image.
#include "implicit_gemm.hpp"

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "blocking.hpp"
#include "column_product.hpp"
#include "padded_images.hpp"

namespace deepnet {
namespace {

void clear_phase(const ConvShape& s, Index a, Index b, float* dx) {
  parallel_for(s.N * s.C, grain_for(static_cast<double>(s.H * s.W)), [&](Index begin, Index end) {
    for (Index plane = begin; plane < end; ++plane) {
      for (Index h = a; h < s.H; h += s.stride_h) {
        for (Index w = b; w < s.W; w += s.stride_w) dx[(plane * s.H + h) * s.W + w] = 0.0f;
      }
    }
  });
}

// How dE/dW is cut into tasks: blocks of filters, each core keeping to those of forward; groups of the column matrix's
// columns, each with its own partial sums, added in order afterwards; splits of its rows. Few groups, because their
// sums cost memory traffic. Where one run has all columns, the sums go to dE/dW at once.
struct WeightTasks {
  Index groups, columns_per_group, row_splits, rows_per_split, filter_blocks, filters_per_block;
  bool at_once;

  explicit WeightTasks(const ConvShape& s) {
    const Index columns = s.N * s.P * s.Q, filters = s.K / s.groups, rows = s.C / s.groups * s.R * s.S;
    const double work = static_cast<double>(columns) * rows * filters;
    const auto cut_columns = [&](Index wanted) {
      columns_per_group = std::max<Index>(1, ceil_div(columns, wanted));
      groups = std::max<Index>(1, ceil_div(columns, columns_per_group));
    };
    cut_columns(std::clamp<Index>(columns / 2048, 1, 8));
    at_once = columns <= kRowRun;
    filter_blocks = at_once ? forward_row_blocks(s) : 1;
    filters_per_block = ceil_div(filters, filter_blocks);
    row_splits = 1;
    while (tasks() * s.groups < 8 && rows / row_splits >= 128 &&
           work / static_cast<double>(tasks()) >= 2 * least_work) {
      row_splits *= 2;
    }
    rows_per_split = ceil_div(rows, row_splits);
    if (tasks() * s.groups == 1 && !at_once && work >= least_work / 2) cut_columns(2);
  }
  Index tasks() const { return row_splits * groups * filter_blocks; }  // of each group of channels
};

// dy^T of pixels [j0, j0 + n) and filters from that of `dy` on, packed as the right operand.
void pack_errors(const ConvShape& s, const float* dy, Index filters, Index j0, Index n, float* packed) {
  const Index pixels = s.P * s.Q;
  for (Index done = 0; done < n;) {
    const Index image = (j0 + done) / pixels, pixel = (j0 + done) % pixels;
    const Index run = std::min(n - done, pixels - pixel);
    kernels().pack_b(dy + image * s.K * pixels + pixel, 1, pixels, run, filters, n, packed + done * kernels().gemm_nr);
    done += run;
  }
}

// Most of what that reads.
CacheLines errors_of(const ConvShape& s, const float* dy, Index filters, Index images, Index j0, Index n) {
  const Index pixels = s.P * s.Q, image = j0 / pixels, pixel = j0 % pixels;
  if (image >= images) return {};
  return {dy + image * s.K * pixels + pixel, filters, pixels, ceil_div(std::min(n, pixels - pixel), kCacheLine)};
}

// Padded copies are made for some images at a time, so that they are still in the caches when they are packed.
Index images_at_once(const ConvShape& s, const PaddedImages& padded) {
  constexpr Index most_floats = 1 << 22;
  const Index floats = static_cast<Index>(padded.floats());
  return floats == 0 ? s.N : std::min(s.N, even_piece(s.N, std::max<Index>(1, most_floats / floats)));
}

// Memory that the three products share out: padded images, and where the taps read.
struct GatherMemory {
  std::size_t images, taps;

  GatherMemory(const ConvShape& s, const PaddedImages& padded)
      : images(static_cast<std::size_t>(images_at_once(s, padded)) * padded.floats()),
        taps(taps_floats(s)) {}  // int64: as many floats as two int32 each
  std::size_t floats() const { return images + taps; }
};

ColumnGather gather_of(const PaddedImages& padded, Index out_height, Index out_width, Index taps, const int64_t* tap) {
  ColumnGather g = {};
  g.image_stride = padded.image_stride();
  g.channel_stride = padded.channel_stride();
  g.width = padded.width();
  g.out_height = out_height;
  g.out_width = out_width;
  g.taps = taps;
  g.tap = tap;
  return g;
}

// Of x, image still to be set.
ColumnGather input_gather(const ConvShape& s, const PaddedImages& padded, float* memory) {
  int64_t* tap = reinterpret_cast<int64_t*>(memory);
  for (Index r = 0; r < s.R; ++r)
    for (Index c = 0; c < s.S; ++c) tap[r * s.S + c] = padded.tap(r, c);
  return gather_of(padded, s.P, s.Q, s.R * s.S, tap);
}

// One task: the rows [row0, row1) of d_W^T (CRS x K) for some filters, summed over columns [first, last).
struct WeightTask {
  Index row0, row1, filters, first, last;
  ColumnGather gather;
  const float* dy;  // of the first filter
};

// To sums or, of a single run of pixels, transposed to d_weight; and the sums of the errors, unless null.
void weight_task(const ConvShape& s, const WeightTask& t, float* sums, float* errors_sums, float* d_weight,
                 bool accumulate) {
  constexpr Index rows_at_once = 126;  // columns of 126 rows x 256 pixels leave room in a 256 KB cache
  const KernelTable& kernel = kernels();
  const Index depth = s.C / s.groups * s.R * s.S, run = even_piece(t.last - t.first, kRowRun);
  float* errors = thread_scratch(Scratch::pack, static_cast<std::size_t>(run * round_up(t.filters, kernel.gemm_nr)));
  float* columns = thread_scratch(Scratch::columns, static_cast<std::size_t>(rows_at_once * kRowRunStride + kRowRun));
  for (Index j = t.first; j < t.last; j += run) {
    const Index n = std::min(run, t.last - j);
    pack_errors(s, t.dy, t.filters, j, n, errors);
    for (Index k = 0; errors_sums && k < t.filters; k += kernel.gemm_nr)
      kernel.sum_rows(n, std::min<Index>(kernel.gemm_nr, t.filters - k), errors + k * n, kernel.gemm_nr,
                      errors_sums + k, j > t.first);
    for (Index row = t.row0; row < t.row1; row += rows_at_once) {
      const Index rows = std::min(rows_at_once, t.row1 - row);
      kernel.gather_columns(&t.gather, row, row + rows, j, n, columns);
      GemmBlock g = {};
      g.m = rows;
      g.n = t.filters;
      g.k = n;
      g.a = columns;
      g.b = errors;
      if (d_weight) {
        g.c = d_weight + row;
        g.ldc = depth;
        g.accumulate = accumulate;
        kernel.gemm_rows_transposed(&g, kRowRunStride);
      } else {
        g.c = sums + row * t.filters;
        g.ldc = t.filters;
        g.accumulate = j > t.first;
        if (row + rows < t.row1) {
          g.ahead[0] = cells_of(t.gather, s.N, row + rows, std::min(row + rows + rows_at_once, t.row1), j, n);
        } else {
          g.ahead[0] = cells_of(t.gather, s.N, t.row0, std::min(t.row0 + rows_at_once, t.row1), j + n, run);
          g.ahead[1] = errors_of(s, t.dy, t.filters, s.N, j + n, run);
        }
        kernel.gemm_row_runs(&g);
      }
    }
  }
}

// dE/dW of images that are padded already, and the bias's gradient, unless null; sums has room for all groups' sums of
// both.
void add_weight_gradient(const ConvShape& s, const ColumnGather& gather, const float* dy, float* d_weight,
                         float* d_bias, bool accumulate, float* sums) {
  const Index filters = s.K / s.groups, channels = s.C / s.groups, rows = channels * s.R * s.S;
  const Index one_sum = s.K * rows;  // all groups of channels, [g][row][filter]
  const WeightTasks t(s);
  float* errors_sums = sums + (t.at_once ? 0 : t.groups * one_sum);  // [group][filter]
  const double work = static_cast<double>(t.rows_per_split) * static_cast<double>(t.filters_per_block) *
                      static_cast<double>(t.columns_per_group);
  parallel_for(s.groups * t.tasks(), product_grain(work), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index split = task % t.row_splits, block = task / t.row_splits % t.filter_blocks;
      const Index group = task / t.row_splits / t.filter_blocks % t.groups, g = task / t.tasks();
      const Index row0 = split * t.rows_per_split, row1 = std::min(row0 + t.rows_per_split, rows);
      const Index k0 = block * t.filters_per_block, k1 = std::min(k0 + t.filters_per_block, filters);
      const Index first = group * t.columns_per_group, last = std::min(first + t.columns_per_group, s.N * s.P * s.Q);
      WeightTask part = {row0, row1, k1 - k0, first, last, gather, dy + (g * filters + k0) * s.P * s.Q};
      part.gather.image += g * channels * gather.channel_stride;
      weight_task(s, part, sums + group * one_sum + g * filters * rows,
                  d_bias && split == 0 ? errors_sums + group * s.K + g * filters + k0 : nullptr,
                  t.at_once ? d_weight + (g * filters + k0) * rows : nullptr, accumulate);
    }
  });
  for (Index k = 0; d_bias && k < s.K; ++k) {
    float sum = accumulate ? d_bias[k] : 0.0f;
    for (Index group = 0; group < t.groups; ++group) sum += errors_sums[group * s.K + k];
    d_bias[k] = sum;
  }
  if (t.at_once) return;
  const Index rows_at_once = std::max<Index>(16, grain_for(static_cast<double>(filters * t.groups), 16));
  for (Index g = 0; g < s.groups; ++g) {
    parallel_for(rows, rows_at_once, [&](Index begin, Index end) {
      float* total = sums + g * filters * rows + begin * filters;
      for (Index group = 1; group < t.groups; ++group) {
        kernels().add((end - begin) * filters, total + group * one_sum, total);
      }
      kernels().transpose(total, filters, end - begin, filters, d_weight + g * filters * rows + begin, rows,
                          accumulate);
    });
  }
}

// Floats of the sums of that.
std::size_t weight_sums(ConvShape s, Index images) {
  s.N = images;
  const WeightTasks t(s);
  const Index weights = t.at_once ? 0 : s.C / s.groups * s.R * s.S;
  return static_cast<std::size_t>(s.K * (weights + 1) * t.groups);
}

}  // namespace

std::size_t implicit_packed(const ConvShape& s) {
  const Index depth = s.C / s.groups * s.R * s.S;
  return few_columns(s.N, s.P * s.Q, depth) ? 0 : static_cast<std::size_t>(s.K * depth);
}

std::size_t implicit_forward_workspace(const ConvShape& s) {
  return GatherMemory(s, PaddedImages::of_input(s)).floats();
}

std::size_t implicit_backward_data_workspace(const ConvShape& s) {
  const std::size_t positions = taps_floats(s);  // R * S Index
  return GatherMemory(s, PaddedImages::of_errors(s)).floats() + taps_floats(s) + positions +
         2 * static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
}

std::size_t implicit_backward_weight_workspace(const ConvShape& s) {
  const PaddedImages padded = PaddedImages::of_input(s);
  const Index at_once = images_at_once(s, padded);
  const Index rest = at_once == 0 ? 0 : s.N % at_once;
  return GatherMemory(s, padded).floats() + std::max(weight_sums(s, at_once), weight_sums(s, rest));
}

void implicit_pack(const ConvShape& s, const float* weight, float* packed) {
  const Index filters = s.K / s.groups, depth = s.C / s.groups * s.R * s.S;
  for (Index g = 0; g < s.groups; ++g)
    pack_blocks(weight + g * filters * depth, depth, filters, depth, packed + g * filters * depth);
}

void implicit_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y,
                      Activation activation, float* workspace) {
  const PaddedImages padded = PaddedImages::of_input(shape);
  const GatherMemory memory(shape, padded);
  float *images = workspace, *taps = images + memory.images;
  const Index filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const Index depth = channels * shape.R * shape.S, pixels = shape.P * shape.Q;
  const bool packed = implicit_packed(shape) > 0;
  ColumnProduct p = {};
  p.gather = input_gather(shape, padded, taps);
  p.rows = filters;
  p.depth = depth;
  p.activation = activation;
  p.out_image_stride = shape.K * pixels;
  p.out_plane_stride = pixels;
  p.out_width = shape.Q;
  if (!packed) {
    p.a_stride = depth;
    // Where no backward follows that would find its rows in the same core's cache, columns are shared out instead.
    const bool shares_columns = !shape.training && shape.N * pixels > kernels().gemm_nr;
    p.row_blocks = shares_columns ? 1 : forward_row_blocks(shape);
  }
  for_image_blocks(shape, images_at_once(shape, padded), [&](const ConvShape& s, Index first) {
    const float* from = padded.make(s.N, x + first * s.C * s.H * s.W, images);
    p.images = s.N;
    for (Index g = 0; g < s.groups; ++g) {
      (packed ? p.packed_a : p.a) = weight + g * filters * depth;
      p.gather.image = from + g * channels * padded.channel_stride();
      p.bias = bias ? bias + g * filters : nullptr;
      p.out = y + (first * s.K + g * filters) * pixels;
      multiply_columns(p);
    }
  });
}

namespace {

// The weights of a group of channels in the order of a phase's product, channels x (filters, taps), packed.
void pack_mirrored(const ConvShape& s, const float* weight, Index taps, const Index* position, float* mirrored,
                   float* packed) {
  const Index filters = s.K / s.groups, channels = s.C / s.groups, cells = s.R * s.S, depth = filters * taps;
  parallel_for(channels, grain_for(static_cast<double>(depth)), [&](Index begin, Index end) {
    for (Index c = begin; c < end; ++c) {
      for (Index k = 0; k < filters; ++k) {
        for (Index t = 0; t < taps; ++t)
          mirrored[(c * filters + k) * taps + t] = weight[(k * channels + c) * cells + position[t]];
      }
    }
  });
  pack_blocks(mirrored, depth, channels, depth, packed);
}

}  // namespace

void implicit_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx, float* workspace) {
  const PaddedImages padded = PaddedImages::of_errors(shape);
  const GatherMemory memory(shape, padded);
  float *images = workspace, *after = images + memory.images + memory.taps;
  int64_t* tap = reinterpret_cast<int64_t*>(images + memory.images);
  const Taps taps = {reinterpret_cast<int32_t*>(after), reinterpret_cast<int32_t*>(after) + shape.R * shape.S};
  Index* position = reinterpret_cast<Index*>(after + taps_floats(shape));
  float* mirrored = after + 2 * taps_floats(shape);
  const Index filters = shape.K / shape.groups, channels = shape.C / shape.groups, cells = shape.R * shape.S;
  float* all_packed = mirrored + filters * channels * cells;
  for_image_blocks(shape, images_at_once(shape, padded), [&](const ConvShape& s, Index first) {
    const float* from = padded.make(s.N, dy + first * s.K * s.P * s.Q, images);
    float* packed = all_packed;  // of all phases and groups: by the first images
    for (Index phase = 0; phase < phases_h(s) * phases_w(s); ++phase) {
      const Index a = phase / phases_w(s), b = phase % phases_w(s);
      const Index count = phase_taps(s, a, b, taps, position);
      float* out = dx + first * s.C * s.H * s.W;
      if (count == 0) {
        clear_phase(s, a, b, out);
        continue;
      }
      for (Index t = 0; t < count; ++t) tap[t] = padded.cell(taps.h[t], taps.w[t]);
      ColumnProduct p = {};
      p.gather = gather_of(padded, ceil_div(s.H - a, s.stride_h), ceil_div(s.W - b, s.stride_w), count, tap);
      p.images = s.N;
      p.rows = channels;
      p.depth = filters * count;
      p.out_image_stride = s.C * s.H * s.W;
      p.out_plane_stride = s.H * s.W;
      p.out_width = s.W;
      p.step_h = s.stride_h;
      p.step_w = s.stride_w;
      for (Index g = 0; g < s.groups; ++g, packed += channels * p.depth) {
        if (first == 0) pack_mirrored(s, weight + g * filters * channels * cells, count, position, mirrored, packed);
        p.packed_a = packed;
        p.gather.image = from + g * filters * padded.channel_stride();
        p.out = out + g * channels * s.H * s.W + a * s.W + b;
        multiply_columns(p);
      }
    }
  });
}

void implicit_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace) {
  implicit_backward_weight_and_bias(shape, x, dy, d_weight, nullptr, accumulate, workspace);
}

void implicit_backward_weight_and_bias(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                       float* d_bias, bool accumulate, float* workspace) {
  if (shape.N == 0) {
    const Index floats = shape.K * (shape.C / shape.groups) * shape.R * shape.S;
    if (accumulate) return;
    std::memset(d_weight, 0, static_cast<std::size_t>(floats) * sizeof(float));
    if (d_bias) std::memset(d_bias, 0, static_cast<std::size_t>(shape.K) * sizeof(float));
    return;
  }
  const PaddedImages padded = PaddedImages::of_input(shape);
  const GatherMemory memory(shape, padded);
  float *images = workspace, *taps = images + memory.images, *sums = taps + memory.taps;
  ColumnGather gather = with_rows_joined(input_gather(shape, padded, taps));
  for_image_blocks(shape, images_at_once(shape, padded), [&](const ConvShape& s, Index first) {
    gather.image = padded.make(s.N, x + first * s.C * s.H * s.W, images);
    add_weight_gradient(s, gather, dy + first * s.K * s.P * s.Q, d_weight, d_bias, accumulate || first > 0, sums);
  });
}

}  // namespace deepnet
