// Three products with the column matrix of conv.inl (rows (c, r, s), columns (n, p, q)), per group of channels:
//   forward   y       (K x pixels)  = W (K x CRS)          columns of x (CRS x pixels)
//   dE/dx     dx      (C x pixels)  = mirrored W (C x KRS) columns of dy, in stride_h x stride_w phases
//       or    dx      = col2im of     W^T (CRS x K)  dy (K x pixels), where the columns of dy would be many more
//   dE/dW     d_W^T   (CRS x K)     = columns of x (CRS x pixels)  dy^T (pixels x K)
// In the last, vectors run along K and the columns need no transposing: a row of them is a run of the image.
#include "convolution.hpp"

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "gemm.hpp"

namespace deepnet {
namespace {

constexpr double least_work = 1 << 20;  // multiply-adds that are worth a thread

Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// int32 tap offsets kept in a float workspace.
std::size_t taps_floats(const ConvShape& s) { return static_cast<std::size_t>(2 * s.R * s.S); }

struct Taps {
  int32_t *h, *w;
};

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

// A (rows x depth, packed in blocks of k) times a column matrix, written to the planes of an image.
struct ColumnProduct {
  ConvGather gather;
  Index images, rows, depth;
  const float* packed_a;
  const float* bias = nullptr;
  Activation activation = {};
  float* out;  // cell (0, 0) of plane 0 of image 0
  Index out_image_stride, out_plane_stride;
  Index out_width;               // of the whole plane
  Index step_h = 1, step_w = 1;  // from one pixel's cell to the next; out is already at the first
};

// One strip of columns [j0, j0 + n) to c, rows ldc apart.
void multiply_strip(const ColumnProduct& p, Index j0, Index n, float* c, Index ldc) {
  const KernelTable& kernel = kernels();
  const Index block = even_piece(p.depth, gemm_depth);
  float* columns = thread_scratch(Scratch::pack, static_cast<std::size_t>(block * round_up(n, kernel.gemm_nr)));
  GemmBlock g = {};
  g.m = p.rows;
  g.n = n;
  g.b = columns;
  g.c = c;
  g.ldc = ldc;
  for (Index k0 = 0; k0 < p.depth; k0 += block) {
    const Index k1 = std::min(k0 + block, p.depth);
    kernel.pack_columns(&p.gather, k0, k1, j0, n, columns);
    const bool last = k1 == p.depth;
    g.k = k1 - k0;
    g.a = p.packed_a + p.rows * k0;
    g.accumulate = k0 > 0;
    g.bias_row = last ? p.bias : nullptr;
    g.relu = last && p.activation.kind == ActivationKind::relu;
    kernel.gemm_packed(&g);
  }
  if (p.activation.kind != ActivationKind::none && p.activation.kind != ActivationKind::relu) {
    for (Index i = 0; i < p.rows; ++i) {
      kernel.activation_forward(static_cast<int>(p.activation.kind), p.activation.parameter, n, c + i * ldc,
                                c + i * ldc);
    }
  }
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
        for (Index c = 0; c < run; ++c) to[c * p.step_w] = from[c];
      }
    }
    done += run;
  }
}

void multiply_columns(const ColumnProduct& p) {
  const Index nr = kernels().gemm_nr, width = kernels().vector_width;
  const Index pixels = p.gather.out_height * p.gather.out_width;
  // Where an image's pixels fill vectors well, strips end with the image and are written in place; else strips run
  // on over images and are copied out.
  const bool dense = p.step_h == 1 && p.step_w == 1 && p.gather.out_width == p.out_width;
  const bool in_place = dense && round_up(pixels, width) * 8 <= pixels * 9;
  const Index span = in_place ? pixels : p.images * pixels, spans = in_place ? p.images : 1;
  if (span == 0 || spans == 0) return;

  Index strip = std::min(round_up(even_piece(span, 512), nr), round_up(span, nr));
  const double work_per_column = static_cast<double>(p.rows) * p.depth;
  while (spans * ((span + strip - 1) / strip) < 16 && work_per_column * strip >= 2 * least_work && strip > 2 * nr) {
    strip = round_up(strip / 2, nr);
  }
  const Index strips = (span + strip - 1) / strip;
  const Index grain = grain_for(work_per_column * std::min(strip, span) / 16);

  parallel_for(spans * strips, grain, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index image = task / strips, first = task % strips * strip, n = std::min(strip, span - first);
      if (in_place) {
        multiply_strip(p, image * pixels + first, n, p.out + image * p.out_image_stride + first, p.out_plane_stride);
      } else {
        float* tile = thread_scratch(Scratch::tile, static_cast<std::size_t>(p.rows * strip));
        multiply_strip(p, first, n, tile, strip);
        scatter_strip(p, first, n, tile, strip);
      }
    }
  });
}

// Packs a rows x depth matrix for ColumnProduct::packed_a.
void pack_blocks(const float* a, Index row_stride, Index rows, Index depth, float* packed) {
  const Index block = even_piece(depth, gemm_depth);
  for (Index k0 = 0; k0 < depth; k0 += block) {
    kernels().pack_a(a + k0, row_stride, 1, rows, std::min(block, depth - k0), packed + rows * k0);
  }
}

// The taps of forward that reach the input cells (a + stride_h i, b + stride_w j), as offsets into dy, and where they
// stand in the kernel.
Index phase_taps(const ConvShape& s, Index a, Index b, const Taps& taps, Index* position) {
  Index count = 0;
  for (Index r = 0; r < s.R; ++r) {
    const Index h = a + s.pad_top - r * s.dilation_h;
    if (h % s.stride_h != 0) continue;
    for (Index c = 0; c < s.S; ++c) {
      const Index w = b + s.pad_left - c * s.dilation_w;
      if (w % s.stride_w != 0) continue;
      taps.h[count] = static_cast<int32_t>(h / s.stride_h);
      taps.w[count] = static_cast<int32_t>(w / s.stride_w);
      position[count++] = r * s.S + c;
    }
  }
  return count;
}

void clear_phase(const ConvShape& s, Index a, Index b, float* dx) {
  parallel_for(s.N * s.C, grain_for(static_cast<double>(s.H * s.W)), [&](Index begin, Index end) {
    for (Index plane = begin; plane < end; ++plane) {
      for (Index h = a; h < s.H; h += s.stride_h) {
        for (Index w = b; w < s.W; w += s.stride_w) dx[(plane * s.H + h) * s.W + w] = 0.0f;
      }
    }
  });
}

void backward_data_by_phases(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  Index* position = reinterpret_cast<Index*>(workspace + taps_floats(s));
  float* mirrored = workspace + 2 * taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, cells = s.R * s.S;
  for (Index phase = 0; phase < s.stride_h * s.stride_w; ++phase) {
    const Index a = phase / s.stride_w, b = phase % s.stride_w;
    if (a >= s.H || b >= s.W) continue;
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

// Cost of dE/dx a filter and channel, in multiply-adds and moved elements, both ways. Phases compute every cell of x
// from all its taps, also those that fall outside dy, and pack K columns for them; scattering computes only what is in
// dy but moves C columns twice, to the tile and from there to dx. A move is taken for
// 10 multiply-adds: an estimate.
bool scatter_is_cheaper(const ConvShape& s) {
  const double cells = static_cast<double>(s.H * s.W), pixels = static_cast<double>(s.P * s.Q);
  const double C = static_cast<double>(s.C / s.groups), K = static_cast<double>(s.K / s.groups);
  const double strides = static_cast<double>(s.stride_h * s.stride_w);
  return pixels * (C * K + 3 * 10 * C) < cells / strides * (C * K + 2 * 10 * K);
}

// dx = col2im(W^T dy), a task an image and block of channels.
void backward_data_by_scatter(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const KernelTable& kernel = kernels();
  const Taps taps = forward_taps(s, workspace);
  float* packed = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, cells = s.R * s.S, pixels = s.P * s.Q;
  const Index depth = even_piece(filters, gemm_depth);
  // Blocks of channels that keep a strip of columns within 512 KB, and every core busy where images are few.
  const Index most_rows = std::max<Index>(cells, (1 << 17) / kernel.gemm_nr);
  Index block = std::max<Index>(1, std::min(even_piece(channels, std::max<Index>(1, most_rows / cells)), channels));
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
      float* out = dx + (image * s.C + channel) * s.H * s.W;
      const float* in = dy + (image * s.K + g * filters) * pixels;
      const ConvGather gather = forward_gather(s, nullptr, taps);
      std::memset(out, 0, static_cast<std::size_t>(count * s.H * s.W) * sizeof(float));
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
        kernel.scatter_columns(&gather, product.m, j, product.n, tile, strip, out);
      }
    }
  });
}

// How dE/dW is cut into tasks: image groups, each with its own partial sums, added in order afterwards, times splits of
// the column matrix's rows. Few groups where dE/dW is large, because their sums cost memory traffic.
struct WeightTasks {
  Index image_groups, images_per_group, row_splits, rows_per_split;
};

WeightTasks weight_tasks(const ConvShape& s) {
  const Index pixels = s.P * s.Q, rows = s.C / s.groups * s.R * s.S;
  const double work = static_cast<double>(s.N * pixels) * rows * (s.K / s.groups);
  WeightTasks t;
  const Index wanted = std::clamp<Index>(s.N * pixels / 2048, 1, 8);
  t.images_per_group = even_piece(s.N, std::max<Index>(1, (s.N + wanted - 1) / wanted));
  t.image_groups = std::max<Index>(1, (s.N + t.images_per_group - 1) / t.images_per_group);
  t.row_splits = 1;
  while (t.row_splits * t.image_groups * s.groups < 8 && rows / t.row_splits >= 128 &&
         work / static_cast<double>(t.row_splits * t.image_groups) >= 2 * least_work) {
    t.row_splits *= 2;
  }
  t.rows_per_split = (rows + t.row_splits - 1) / t.row_splits;
  return t;
}

// dy^T of pixels [j0, j0 + n) and one group's filters, packed as the right operand.
void pack_errors(const ConvShape& s, const float* dy, Index j0, Index n, float* packed) {
  const Index pixels = s.P * s.Q;
  for (Index done = 0; done < n;) {
    const Index image = (j0 + done) / pixels, pixel = (j0 + done) % pixels;
    const Index run = std::min(n - done, pixels - pixel);
    kernels().pack_b(dy + image * s.K * pixels + pixel, 1, pixels, run, s.K / s.groups, n,
                     packed + done * kernels().gemm_nr);
    done += run;
  }
}

// Rows [row0, row1) of d_W^T (CRS x K), summed over images [n0, n1).
void weight_task(const ConvShape& s, const ConvGather& gather, const float* dy, Index row0, Index row1, Index n0,
                 Index n1, float* sums) {
  constexpr Index rows_at_once = 126;  // columns of 126 rows x 256 pixels leave room in a 256 KB cache
  const KernelTable& kernel = kernels();
  const Index filters = s.K / s.groups, first = n0 * s.P * s.Q, last = n1 * s.P * s.Q;
  const Index run = even_piece(last - first, kRowRun);
  float* errors = thread_scratch(Scratch::pack, static_cast<std::size_t>(run * round_up(filters, kernel.gemm_nr)));
  float* columns = thread_scratch(Scratch::columns, static_cast<std::size_t>(rows_at_once * kRowRunStride + kRowRun));
  for (Index j = first; j < last; j += run) {
    const Index n = std::min(run, last - j);
    pack_errors(s, dy, j, n, errors);
    for (Index row = row0; row < row1; row += rows_at_once) {
      const Index rows = std::min(rows_at_once, row1 - row);
      kernel.gather_columns(&gather, row, row + rows, j, n, columns);
      kernel.gemm_row_runs(rows, filters, n, columns, errors, sums + row * filters, filters, j > first);
    }
  }
}

}  // namespace

std::size_t conv_forward_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
}

std::size_t conv_backward_workspace(const ConvShape& s) {
  const std::size_t weights = static_cast<std::size_t>(s.K * (s.C / s.groups) * s.R * s.S);
  const std::size_t positions = taps_floats(s);  // R * S Index
  return taps_floats(s) +
         std::max(positions + 2 * weights, weights * static_cast<std::size_t>(weight_tasks(s).image_groups));
}

void conv_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                  Activation activation, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* packed = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, depth = channels * s.R * s.S;
  for (Index g = 0; g < s.groups; ++g) {
    pack_blocks(weight + g * filters * depth, depth, filters, depth, packed);
    ColumnProduct p = {};
    p.gather = forward_gather(s, x + g * channels * s.H * s.W, taps);
    p.images = s.N;
    p.rows = filters;
    p.depth = depth;
    p.packed_a = packed;
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

void conv_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  if (scatter_is_cheaper(s)) {
    backward_data_by_scatter(s, dy, weight, dx, workspace);
  } else {
    backward_data_by_phases(s, dy, weight, dx, workspace);
  }
}

void conv_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                          float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* sums = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, channels = s.C / s.groups, rows = channels * s.R * s.S;
  const Index one_sum = s.K * rows;  // all groups of channels, [g][row][filter]
  const WeightTasks t = weight_tasks(s);
  if (s.N == 0) {
    std::memset(sums, 0, static_cast<std::size_t>(one_sum) * sizeof(float));
  }
  const double work =
      static_cast<double>(t.rows_per_split) * filters * static_cast<double>(t.images_per_group * s.P * s.Q);
  parallel_for(s.N == 0 ? 0 : s.groups * t.image_groups * t.row_splits, grain_for(work / 16),
               [&](Index begin, Index end) {
                 for (Index task = begin; task < end; ++task) {
                   const Index split = task % t.row_splits, group = task / t.row_splits % t.image_groups;
                   const Index g = task / t.row_splits / t.image_groups;
                   const Index row0 = split * t.rows_per_split, row1 = std::min(row0 + t.rows_per_split, rows);
                   const Index n0 = group * t.images_per_group, n1 = std::min(n0 + t.images_per_group, s.N);
                   const ConvGather gather = forward_gather(s, x + g * channels * s.H * s.W, taps);
                   weight_task(s, gather, dy + g * filters * s.P * s.Q, row0, row1, n0, n1,
                               sums + group * one_sum + g * filters * rows);
                 }
               });
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

void conv_backward_bias(const ConvShape& s, const float* dy, float* d_bias, bool accumulate) {
  const Index pixels = s.P * s.Q;
  parallel_for(s.K, grain_for(static_cast<double>(s.N * pixels)), [&](Index begin, Index end) {
    for (Index k = begin; k < end; ++k) {
      double sum = accumulate ? d_bias[k] : 0.0;
      for (Index n = 0; n < s.N; ++n) sum += kernels().sum(pixels, dy + (n * s.K + k) * pixels);
      d_bias[k] = static_cast<float>(sum);
    }
  });
}

}  // namespace deepnet
