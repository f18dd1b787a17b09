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

// How dE/dW is cut into tasks: blocks of filters, each core keeping to those of forward; image groups, each with its
// own partial sums, added in order afterwards; splits of the column matrix's rows. Few groups where dE/dW is large,
// because their sums cost memory traffic. Where one run has all pixels, the sums go to dE/dW at once.
struct WeightTasks {
  Index image_groups, images_per_group, row_splits, rows_per_split, filter_blocks, filters_per_block;
  bool at_once;

  explicit WeightTasks(const ConvShape& s) {
    const Index pixels = s.P * s.Q, filters = s.K / s.groups, rows = s.C / s.groups * s.R * s.S;
    const double work = static_cast<double>(s.N * pixels) * rows * filters;
    const Index wanted = std::clamp<Index>(s.N * pixels / 2048, 1, 8);
    images_per_group = even_piece(s.N, std::max<Index>(1, ceil_div(s.N, wanted)));
    image_groups = std::max<Index>(1, ceil_div(s.N, images_per_group));
    at_once = image_groups == 1 && s.N * pixels <= kRowRun;
    filter_blocks = at_once ? forward_row_blocks(s) : 1;
    filters_per_block = ceil_div(filters, filter_blocks);
    row_splits = 1;
    while (tasks() * s.groups < 8 && rows / row_splits >= 128 &&
           work / static_cast<double>(tasks()) >= 2 * least_work) {
      row_splits *= 2;
    }
    rows_per_split = ceil_div(rows, row_splits);
  }
  Index tasks() const { return row_splits * image_groups * filter_blocks; }  // of each group of channels
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

// One task: the rows [row0, row1) of d_W^T (CRS x K) for some filters, summed over images [n0, n1).
struct WeightTask {
  Index row0, row1, filters, n0, n1;
  ConvGather gather;
  const float* dy;  // of the first filter
};

// To sums or, of a single run of pixels, transposed to d_weight.
void weight_task(const ConvShape& s, const WeightTask& t, float* sums, float* d_weight, bool accumulate) {
  constexpr Index rows_at_once = 126;  // columns of 126 rows x 256 pixels leave room in a 256 KB cache
  const KernelTable& kernel = kernels();
  const Index depth = s.C / s.groups * s.R * s.S, first = t.n0 * s.P * s.Q, last = t.n1 * s.P * s.Q;
  const Index run = even_piece(last - first, kRowRun);
  float* errors = thread_scratch(Scratch::pack, static_cast<std::size_t>(run * round_up(t.filters, kernel.gemm_nr)));
  float* columns = thread_scratch(Scratch::columns, static_cast<std::size_t>(rows_at_once * kRowRunStride + kRowRun));
  for (Index j = first; j < last; j += run) {
    const Index n = std::min(run, last - j);
    pack_errors(s, t.dy, t.filters, j, n, errors);
    for (Index row = t.row0; row < t.row1; row += rows_at_once) {
      const Index rows = std::min(rows_at_once, t.row1 - row);
      kernel.gather_columns(&t.gather, row, row + rows, j, n, columns);
      if (d_weight) {
        const GemmBlock g = {rows,  t.filters, n,       columns,    errors, d_weight + row,
                             depth, nullptr,   nullptr, accumulate, 0};
        kernel.gemm_rows_transposed(&g, kRowRunStride);
      } else {
        kernel.gemm_row_runs(rows, t.filters, n, columns, errors, sums + row * t.filters, t.filters, j > first);
      }
    }
  }
}

}  // namespace

std::size_t implicit_forward_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
}

std::size_t implicit_backward_data_workspace(const ConvShape& s) {
  const std::size_t positions = taps_floats(s);  // R * S Index
  return taps_floats(s) + positions + 2 * static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
}

std::size_t implicit_backward_weight_workspace(const ConvShape& s) {
  const WeightTasks t(s);
  if (t.at_once) return taps_floats(s);
  return taps_floats(s) + static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S * t.image_groups);
}

void implicit_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                      Activation activation, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* packed = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, depth = channels * s.R * s.S;
  const bool packs = !few_columns(s.N, s.P * s.Q, depth);
  for (Index g = 0; g < s.groups; ++g) {
    ColumnProduct p = {};
    if (packs) {
      pack_blocks(weight + g * filters * depth, depth, filters, depth, packed);
      p.packed_a = packed;
    } else {
      p.a = weight + g * filters * depth;
      p.a_stride = depth;
      p.row_blocks = forward_row_blocks(s);
    }
    p.gather = forward_gather(s, x + g * channels * s.H * s.W, taps);
    p.images = s.N;
    p.rows = filters;
    p.depth = depth;
    p.bias = bias ? bias + g * filters : nullptr;
    p.activation = activation;
    p.out = y + g * filters * s.P * s.Q;
    p.out_image_stride = s.K * s.P * s.Q;
    p.out_plane_stride = s.P * s.Q;
    p.out_width = s.Q;
    p.step_h = p.step_w = 1;
    multiply_columns(p);
  }
}

void implicit_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  Index* position = reinterpret_cast<Index*>(workspace + taps_floats(s));
  float* mirrored = workspace + 2 * taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, cells = s.R * s.S;
  for (Index phase = 0; phase < phases_h(s) * phases_w(s); ++phase) {
    const Index a = phase / phases_w(s), b = phase % phases_w(s);
    const Index count = phase_taps(s, a, b, taps, position);
    if (count == 0) {
      clear_phase(s, a, b, dx);
      continue;
    }
    const Index depth = filters * count;
    float* packed = mirrored + channels * depth;
    ColumnProduct p = {};
    p.gather.image_stride = s.K * s.P * s.Q;
    p.gather.channel_stride = s.P * s.Q;
    p.gather.height = s.P;
    p.gather.width = s.Q;
    p.gather.out_height = (s.H - a + s.stride_h - 1) / s.stride_h;
    p.gather.out_width = (s.W - b + s.stride_w - 1) / s.stride_w;
    p.gather.stride_h = p.gather.stride_w = 1;
    p.gather.taps = count;
    p.gather.tap_h = taps.h;
    p.gather.tap_w = taps.w;
    p.images = s.N;
    p.rows = channels;
    p.depth = depth;
    p.packed_a = packed;
    p.out_image_stride = s.C * s.H * s.W;
    p.out_plane_stride = s.H * s.W;
    p.out_width = s.W;
    p.step_h = s.stride_h;
    p.step_w = s.stride_w;
    for (Index g = 0; g < s.groups; ++g) {
      const float* w = weight + g * filters * channels * cells;
      parallel_for(channels, grain_for(static_cast<double>(depth)), [&](Index begin, Index end) {
        for (Index c = begin; c < end; ++c) {
          for (Index k = 0; k < filters; ++k) {
            for (Index t = 0; t < count; ++t) {
              mirrored[(c * filters + k) * count + t] = w[(k * channels + c) * cells + position[t]];
            }
          }
        }
      });
      pack_blocks(mirrored, depth, channels, depth, packed);
      p.gather.image = dy + g * filters * s.P * s.Q;
      p.out = dx + g * channels * s.H * s.W + a * s.W + b;
      multiply_columns(p);
    }
  }
}

void implicit_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* sums = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, rows = channels * s.R * s.S;
  const Index one_sum = s.K * rows;  // all groups of channels, [g][row][filter]
  const WeightTasks t(s);
  if (s.N == 0) {
    if (!accumulate) std::memset(d_weight, 0, static_cast<std::size_t>(one_sum) * sizeof(float));
    return;
  }
  const double work = static_cast<double>(t.rows_per_split) * static_cast<double>(t.filters_per_block) *
                      static_cast<double>(t.images_per_group * s.P * s.Q);
  parallel_for(s.groups * t.tasks(), grain_for(work / 16), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index split = task % t.row_splits, block = task / t.row_splits % t.filter_blocks;
      const Index group = task / t.row_splits / t.filter_blocks % t.image_groups, g = task / t.tasks();
      const Index row0 = split * t.rows_per_split, row1 = std::min(row0 + t.rows_per_split, rows);
      const Index k0 = block * t.filters_per_block, k1 = std::min(k0 + t.filters_per_block, filters);
      const Index n0 = group * t.images_per_group, n1 = std::min(n0 + t.images_per_group, s.N);
      const WeightTask part = {row0,
                               row1,
                               k1 - k0,
                               n0,
                               n1,
                               forward_gather(s, x + g * channels * s.H * s.W, taps),
                               dy + (g * filters + k0) * s.P * s.Q};
      weight_task(s, part, sums + group * one_sum + g * filters * rows,
                  t.at_once ? d_weight + (g * filters + k0) * rows : nullptr, accumulate);
    }
  });
  if (t.at_once) return;
  const Index rows_at_once = std::max<Index>(16, grain_for(static_cast<double>(filters * t.image_groups), 16));
  for (Index g = 0; g < s.groups; ++g) {
    parallel_for(rows, rows_at_once, [&](Index begin, Index end) {
      float* total = sums + g * filters * rows + begin * filters;
      for (Index group = 1; group < t.image_groups; ++group) {
        kernels().add((end - begin) * filters, total + group * one_sum, total);
      }
      kernels().transpose(total, filters, end - begin, filters, d_weight + g * filters * rows + begin, rows,
                          accumulate);
    });
  }
}

}  // namespace deepnet
