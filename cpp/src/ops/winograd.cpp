// A strip of tiles is one task: its patches are transformed and packed, multiplied and transformed back while they stay
// in the second-level cache. dE/dx is the same convolution of dE/dy with the kernels mirrored and transposed. dE/dW
// cuts channels and filters into blocks, and tiles into groups whose sums are added in order.
#include "winograd.hpp"

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "blocking.hpp"
#include "layout.hpp"

namespace deepnet {
namespace {

constexpr Index cache = (1 << 20) / 4;  // floats of the second-level cache for each operand

// The distance between operands. A multiple of 4 KB would put all of them into the same lines of the first-level cache.
Index padded(Index floats) { return round_up(floats, 16) + 16; }

constexpr Index least_channels = 8;  // of input and of output: below, tiles never pay

// Cells of a tile.
Index patch_of(WinogradTile tile) {
  const Index side = tile.outputs + tile.taps - 1;
  return side * side;
}
// Tiles of height x width outputs.
Index tiles_in(WinogradTile tile, Index height, Index width) {
  return ceil_div(height, tile.outputs) * ceil_div(width, tile.outputs);
}

// For height x width outputs: for 3 x 3 kernels 4 x 4 where images are in lanes and tiles do not overhang much.
WinogradTile tile_for(const ConvShape& s, Index height, Index width) {
  const auto patches = [&](WinogradTile tile) { return tiles_in(tile, height, width) * patch_of(tile); };
  const WinogradTile small = {2, static_cast<int>(s.R)}, large = {4, 3};
  return s.lanes && s.R == 3 && patches(large) < patches(small) ? large : small;
}
WinogradTile output_tile(const ConvShape& s) { return tile_for(s, s.P, s.Q); }
WinogradTile input_tile(const ConvShape& s) { return tile_for(s, s.H, s.W); }

// Taps inside the image, of all outputs along an axis.
Index taps_inside(Index outputs, Index taps, Index cells, Index pad) {
  Index count = 0;
  for (Index p = 0; p < outputs; ++p)
    count += std::max<Index>(0, std::min(taps, cells + pad - p) - std::max<Index>(0, pad - p));
  return count;
}

// Multiply-adds, with what moving elements costs, against those of the implicit product: transforming a cell of a patch
// takes about as long as 10 multiply-adds, packing one of the column matrix as 6, and an operand of the weights, or of
// their gradient, once for all images, as many as below. From 8 to 64 channels and 7 x 7 to 56 x 56 pixels the ratio is
// within 15 % of that of the times measured (1.1 for 8 channels, 1.7 for 64); the costs of weights are from 1 to 4
// images of 8 x 8 to 56 x 56 pixels (AVX2). For images in lanes nothing is packed either way, and taps outside the
// image are not multiplied, which tells for dE/dx of a convolution without padding: there, of 188 convolutions with 5 x
// 5 kernels, 8 to 256 channels and 8 x 8 to 56 x 56 pixels, what is chosen takes 0.1 % longer on average than the
// faster, dE/dW 2.8 % (AVX-512; 4 to 8 % with AVX2).
constexpr double forward_cost = 65, backward_data_cost = 50;
double backward_weight_cost(const ConvShape& s) { return s.R == 3 ? 30 : 150; }

// Multiply-adds of the product without tiles: `channels` and `filters` into height x width outputs, zeros where a tap
// is outside the image, or, where images are in lanes, without them.
double direct_cost(const ConvShape& s, Index channels, Index filters, Index height, Index width) {
  const double C = static_cast<double>(channels), K = static_cast<double>(filters);
  if (!s.lanes) return static_cast<double>(height * width * s.R * s.S) * (C * K + 6 * C);
  return static_cast<double>(taps_inside(s.P, s.R, s.H, s.pad_top) * taps_inside(s.Q, s.S, s.W, s.pad_left)) * C * K;
}

double tiles_cost(const ConvShape& s, Index height, Index width, double operand_cost) {
  const WinogradTile tile = tile_for(s, height, width);
  const double C = static_cast<double>(s.C / s.groups), K = static_cast<double>(s.K / s.groups);
  const double weights = C * K * operand_cost / static_cast<double>(s.N);
  return static_cast<double>(patch_of(tile)) *
         (static_cast<double>(tiles_in(tile, height, width)) * (C * K + 10 * (C + K)) + weights);
}

// The cell that the first tile starts at.
struct Corner {
  int32_t h, w;
  Corner(Index top, Index left) : h(static_cast<int32_t>(top)), w(static_cast<int32_t>(left)) {}
};

// Some channels of images (N, all channels, height, width), or of groups of images in lanes.
struct Images {
  const float* first;
  Index count;  // of images, or groups
  Index stride;
  Index height, width;
  Index channel_stride;
  Index cell_stride;  // of images in lanes; or 0

  Images(const float* data, const ConvShape& s, Index channels, Index height, Index width, Index channel)
      : count(s.lanes ? s.N / lanes() : s.N), height(height), width(width) {
    channel_stride = s.lanes ? lanes() : height * width;
    cell_stride = s.lanes ? channels * lanes() : 0;
    stride = channels * height * width * (s.lanes ? lanes() : 1);
    first = data + channel * channel_stride;
  }
  // Columns of a tile.
  Index at_once() const { return cell_stride ? lanes() : 1; }
};

Images input_of(const ConvShape& s, const float* x, Index channel) { return {x, s, s.C, s.H, s.W, channel}; }
Images output_of(const ConvShape& s, const float* y, Index filter) { return {y, s, s.K, s.P, s.Q, filter}; }

// Images as tiles for out_height x out_width outputs.
ConvGather tiles_of(const Images& images, WinogradTile tile, Index out_height, Index out_width, const Corner& corner) {
  ConvGather g = {};
  g.image = images.first;
  g.image_stride = images.stride;
  g.channel_stride = images.channel_stride;
  g.cell_stride = images.cell_stride;
  g.height = images.height;
  g.width = images.width;
  g.out_height = ceil_div(out_height, tile.outputs);
  g.out_width = ceil_div(out_width, tile.outputs);
  g.stride_h = g.stride_w = tile.outputs;
  g.taps = 1;
  g.tap_h = &corner.h;
  g.tap_w = &corner.w;
  return g;
}

// One group's stride-1 convolution of `channels` of x with `filters` kernels.
struct Convolution {
  WinogradTile tile;
  Index channels, filters;
  Images x;
  Index top, left;  // of the first window
  Images y;
  float* to;                   // y.first
  const float* packed_weight;  // by winograd_pack_weight, blocks of filters as pack_weight cuts them
  const float* bias;
  Activation activation;
};

// About the cells that `channels` of columns [j, j + n) read and those before them did not; nothing beyond the last
// image, and of cells in lanes that have more channels.
CacheLines patches_of(const ConvGather& g, Index images, WinogradTile tile, Index channels, Index j, Index n) {
  const bool in_lanes = g.cell_stride != 0;
  if (in_lanes && channels * lanes() != g.cell_stride) return {};
  const Index columns = in_lanes ? lanes() : 1, count = n / columns;
  const Index q = j / columns % g.out_width, p = j / columns / g.out_width % g.out_height;
  const Index image = j / columns / g.out_width / g.out_height;
  if (image >= images) return {};
  const Index cell = in_lanes ? g.cell_stride : 1, row = g.width * cell;
  const bool in_one_row = q + count <= g.out_width;
  const Index h = g.stride_h * p + (in_one_row ? 0 : g.stride_h * q / g.out_width) + g.tap_h[0] + tile.taps - 1;
  const float* from = g.image + image * g.image_stride + std::max<Index>(h, 0) * row;
  if (!in_lanes)
    return {from, channels, g.channel_stride, ceil_div(count * g.stride_h * g.width, g.out_width * kCacheLine)};
  if (!in_one_row) return {from, ceil_div(count * g.stride_h, g.out_width), row, row / kCacheLine};
  return {from + std::max<Index>(g.stride_w * q + g.tap_w[0], 0) * cell, g.stride_h, row,
          count * g.stride_w * cell / kCacheLine};
}

// Part `i` of `parts` of the lines of every row.
CacheLines part_of(const CacheLines& lines, Index i, Index parts) {
  const Index first = lines.lines * i / parts, last = lines.lines * (i + 1) / parts;
  return {lines.from + first * kCacheLine, lines.rows, lines.stride, last - first};
}

// Filters that are multiplied at once: their products, for every element of a patch, stay in the cache.
Index filters_at_once(Index filters) { return even_piece(filters, 128); }

// Floats of the packed weights of a group of channels.
Index packed_group(const ConvShape& s, WinogradTile tile) {
  return patch_of(tile) * padded(s.K / s.groups * (s.C / s.groups));
}

void pack_weight(WinogradTile tile, const float* weight, Index row_stride, Index k_stride, bool mirrored, Index rows,
                 Index depth, float* packed) {
  const Index patch = patch_of(tile);
  const Index block = filters_at_once(rows);
  for (Index k = 0; k < rows; k += block) {
    const Index here = std::min(block, rows - k);
    parallel_for(depth, grain_for(static_cast<double>(here * patch) * 2), [&](Index begin, Index end) {
      kernels().winograd_pack_weight(tile, weight + k * row_stride, row_stride, k_stride, mirrored, here, depth, begin,
                                     end, packed + k * depth, padded(rows * depth));
    });
  }
}

void multiply_tiles(const Convolution& c) {
  const KernelTable& kernel = kernels();
  const Corner first_cell(c.top, c.left), first_pixel(0, 0);
  const ConvGather cells = tiles_of(c.x, c.tile, c.y.height, c.y.width, first_cell);
  const ConvGather pixels = tiles_of(c.y, c.tile, c.y.height, c.y.width, first_pixel);
  const Index patch = patch_of(c.tile);
  const Index tiles = c.x.count * cells.out_height * cells.out_width * c.x.at_once(), nr = kernel.gemm_nr;
  if (tiles == 0) return;
  const Index block = filters_at_once(c.filters), weight_stride = padded(c.filters * c.channels);
  Index strip = std::min<Index>(cache / (patch * std::max(c.channels, block)), 128) / nr * nr;
  strip = std::min(std::max(strip, nr), round_up(tiles, nr));
  while (tiles / strip < 16 && strip > nr && static_cast<double>(strip * patch) * c.channels * c.filters > least_work) {
    strip = round_up(strip / 2, nr);
  }
  // Filters are split where strips are few: each split transforms the patches again.
  const Index strips = (tiles + strip - 1) / strip, blocks = (c.filters + block - 1) / block;
  const Index splits = strips >= 8 ? 1 : blocks;
  const Index blocks_per_split = (blocks + splits - 1) / splits;
  const Index cells_stride = padded(c.channels * strip), products_stride = padded(block * strip);

  const double work = static_cast<double>(strip * patch) * c.channels * c.filters / static_cast<double>(splits);
  parallel_for(strips * splits, product_grain(work), [&](Index begin, Index end) {
    float* packed = thread_scratch(Scratch::pack, static_cast<std::size_t>(patch * cells_stride));
    float* products = thread_scratch(Scratch::tile, static_cast<std::size_t>(patch * products_stride));
    for (Index task = begin; task < end; ++task) {
      const Index first = task / splits * strip, n = std::min(strip, tiles - first);
      const Index k_first = task % splits * blocks_per_split * block;
      const Index k_last = std::min(k_first + blocks_per_split * block, c.filters);
      kernel.winograd_pack_input(c.tile, &cells, c.channels, first, n, packed, cells_stride);
      const CacheLines next = patches_of(cells, c.x.count, c.tile, c.channels, first + n, n);
      for (Index k = k_first; k < k_last; k += block) {
        GemmBlock product = {};
        product.m = std::min(block, c.filters - k);
        product.n = n;
        product.k = c.channels;
        product.ldc = strip;
        for (Index e = 0; e < patch; ++e) {
          product.a = c.packed_weight + e * weight_stride + k * c.channels;
          product.b = packed + e * cells_stride;
          product.c = products + e * products_stride;
          product.ahead[0] = k + block >= k_last ? part_of(next, e, patch) : CacheLines();
          kernel.gemm_packed(&product);
        }
        kernel.winograd_output(c.tile, &pixels, product.m, first, n, products, strip, products_stride,
                               c.bias ? c.bias + k : nullptr, static_cast<int>(c.activation.kind),
                               c.activation.parameter, c.to + k * c.y.channel_stride);
      }
    }
  });
}

// How dE/dW is cut into tasks: blocks of channels and of filters, and groups of columns with their own sums.
struct WeightTasks {
  Index channels_at_once, filters_at_once, columns_per_group;
  Index channel_blocks, filter_blocks, groups;

  explicit WeightTasks(const ConvShape& s) {
    const Index channels = s.C / s.groups, filters = s.K / s.groups;
    const WinogradTile tile = output_tile(s);
    const Index columns = s.N * tiles_in(tile, s.P, s.Q);
    const auto cut_columns = [&](Index wanted) {
      columns_per_group = round_up(std::max<Index>(1, ceil_div(columns, wanted)), lanes());
      groups = std::max<Index>(1, ceil_div(columns, columns_per_group));
    };
    const auto cut_channels = [&](Index most) {
      channels_at_once = even_piece(channels, most);
      channel_blocks = ceil_div(channels, channels_at_once);
    };
    cut_channels(64);
    filters_at_once = even_piece(filters, 64);
    filter_blocks = ceil_div(filters, filters_at_once);
    const auto tasks = [&] { return channel_blocks * filter_blocks * s.groups * groups; };
    cut_columns(
        std::clamp<Index>(std::min(ceil_div(16, channel_blocks * filter_blocks * s.groups), columns / 512), 1, 8));
    // By columns, whose sums have to be added up: by shape alone, that the sums be the same for any number of threads.
    const double work = static_cast<double>(columns * patch_of(tile)) * static_cast<double>(s.C * filters);
    if (tasks() == 1 && columns >= 128 && work >= least_work / 2) cut_columns(2);
    // By channels, which changes no sum, but errors are packed for every block: as few as threads need.
    const auto worth_cutting = [&] {
      return tasks() < threads_for_this_call() && channels_at_once >= 16 &&
             work / static_cast<double>(tasks()) >= least_work / 2;
    };
    while (worth_cutting()) cut_channels(ceil_div(channels_at_once, 2));
  }
};

// Sums of dE/dW before the last transform, (e, channel, filter), over columns [first, last) of a block of channels x
// filters.
void sum_products(WinogradTile tile, const ConvGather& cells, const ConvGather& errors, Index channels, Index filters,
                  Index images, Index first, Index last, float* sums, Index ld, Index sums_stride) {
  const Index patch = patch_of(tile);
  const Index run = patch > 16 ? 64 : 128;  // columns: their patches of 64 channels take half a megabyte
  const KernelTable& kernel = kernels();
  const Index at_once = cells.cell_stride ? run : even_piece(last - first, run);
  const Index rows_stride = channels * kRowRunStride + 16;
  const Index errors_stride = padded(round_up(filters, kernel.gemm_nr) * at_once);
  float* rows = thread_scratch(Scratch::columns, static_cast<std::size_t>(patch * rows_stride + kRowRun));
  float* packed = thread_scratch(Scratch::pack, static_cast<std::size_t>(patch * errors_stride));
  for (Index j = first; j < last; j += at_once) {
    const Index n = std::min(at_once, last - j);
    kernel.winograd_input_rows(tile, &cells, channels, j, n, rows, rows_stride);
    kernel.winograd_pack_errors(tile, &errors, filters, j, n, packed, errors_stride);
    const CacheLines next_cells = patches_of(cells, images, tile, channels, j + at_once, at_once);
    const CacheLines next_errors = patches_of(errors, images, tile, filters, j + at_once, at_once);
    GemmBlock product = {};
    product.m = channels;
    product.n = filters;
    product.k = n;
    product.ldc = ld;
    product.accumulate = j > first;
    for (Index e = 0; e < patch; ++e) {
      product.a = rows + e * rows_stride;
      product.b = packed + e * errors_stride;
      product.c = sums + e * sums_stride;
      product.ahead[0] = part_of(next_cells, e, patch);
      product.ahead[1] = part_of(next_errors, e, patch);
      kernel.gemm_row_runs(&product);
    }
  }
}

}  // namespace

bool winograd_applies(const ConvShape& s) {
  return std::min(s.C, s.K) >= least_channels * s.groups && (s.R == 3 || (s.R == 5 && s.lanes)) && s.S == s.R &&
         s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
}

bool winograd_backward_data_applies(const ConvShape& s) {
  return winograd_applies(s) && s.pad_top < s.R && s.pad_left < s.S;
}

bool winograd_forward_wins(const ConvShape& s) {
  return winograd_applies(s) &&
         tiles_cost(s, s.P, s.Q, forward_cost) < direct_cost(s, s.C / s.groups, s.K / s.groups, s.P, s.Q);
}

bool winograd_backward_data_wins(const ConvShape& s) {
  return winograd_backward_data_applies(s) &&
         tiles_cost(s, s.H, s.W, backward_data_cost) < direct_cost(s, s.K / s.groups, s.C / s.groups, s.H, s.W);
}

bool winograd_backward_weight_wins(const ConvShape& s) {
  return winograd_applies(s) &&
         tiles_cost(s, s.P, s.Q, backward_weight_cost(s)) < direct_cost(s, s.C / s.groups, s.K / s.groups, s.P, s.Q);
}

std::size_t winograd_packed(const ConvShape& s) {
  return static_cast<std::size_t>(s.groups * packed_group(s, output_tile(s)));
}

std::size_t winograd_backward_data_workspace(const ConvShape& s) {
  return static_cast<std::size_t>(packed_group(s, input_tile(s)));
}

std::size_t winograd_backward_weight_workspace(const ConvShape& s) {
  const Index patch = patch_of(output_tile(s));
  return static_cast<std::size_t>(WeightTasks(s).groups * patch * padded(s.K * (s.C / s.groups)));
}

void winograd_pack(const ConvShape& s, const float* weight, float* packed) {
  const Index channels = s.C / s.groups, filters = s.K / s.groups, taps = s.R * s.S;
  const WinogradTile tile = output_tile(s);
  for (Index g = 0; g < s.groups; ++g) {
    pack_weight(tile, weight + g * filters * channels * taps, channels * taps, taps, false, filters, channels,
                packed + g * packed_group(s, tile));
  }
}

void winograd_forward(const ConvShape& s, const float* x, const float* packed, const float* bias, float* y,
                      Activation activation, float*) {
  const Index channels = s.C / s.groups, filters = s.K / s.groups;
  const WinogradTile tile = output_tile(s);
  for (Index g = 0; g < s.groups; ++g) {
    const Images to = output_of(s, y, g * filters);
    multiply_tiles({tile, channels, filters, input_of(s, x, g * channels), -s.pad_top, -s.pad_left, to,
                    y + (to.first - y), packed + g * packed_group(s, tile), bias ? bias + g * filters : nullptr,
                    activation});
  }
}

void winograd_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Index channels = s.C / s.groups, filters = s.K / s.groups, taps = s.R * s.S;
  const WinogradTile tile = input_tile(s);
  for (Index g = 0; g < s.groups; ++g) {
    pack_weight(tile, weight + g * filters * channels * taps, taps, channels * taps, true, channels, filters,
                workspace);
    const Images to = input_of(s, dx, g * channels);
    multiply_tiles({tile, filters, channels, output_of(s, dy, g * filters), s.pad_top - s.R + 1, s.pad_left - s.S + 1,
                    to, dx + (to.first - dx), workspace, nullptr, Activation()});
  }
}

void winograd_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                              float* workspace) {
  const Index channels = s.C / s.groups, filters = s.K / s.groups;
  const Corner first_cell(-s.pad_top, -s.pad_left), first_pixel(0, 0);
  const WinogradTile tile = output_tile(s);
  const Index patch = patch_of(tile), taps = s.R * s.S;
  const WeightTasks t(s);
  const Index sums_stride = padded(s.K * channels), one_group = patch * sums_stride;  // (e, g, channel, filter)
  const Index blocks = t.channel_blocks * t.filter_blocks, columns = s.N * tiles_in(tile, s.P, s.Q);
  if (s.N == 0) std::memset(workspace, 0, static_cast<std::size_t>(one_group) * sizeof(float));
  const double work =
      static_cast<double>(t.channels_at_once * t.filters_at_once * patch) * static_cast<double>(t.columns_per_group);
  parallel_for(s.groups * t.groups * blocks, product_grain(work), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index block = task % blocks, group = task / blocks % t.groups, g = task / blocks / t.groups;
      const Index c = block / t.filter_blocks * t.channels_at_once, k = block % t.filter_blocks * t.filters_at_once;
      const Images from = input_of(s, x, g * channels + c);
      const ConvGather cells = tiles_of(from, tile, s.P, s.Q, first_cell);
      const ConvGather errors = tiles_of(output_of(s, dy, g * filters + k), tile, s.P, s.Q, first_pixel);
      sum_products(tile, cells, errors, std::min(t.channels_at_once, channels - c),
                   std::min(t.filters_at_once, filters - k), from.count, group * t.columns_per_group,
                   std::min((group + 1) * t.columns_per_group, columns),
                   workspace + group * one_group + (g * channels + c) * filters + k, filters, sums_stride);
    }
  });
  parallel_for(s.C, grain_for(static_cast<double>(filters * patch * (t.groups + 2))), [&](Index begin, Index end) {
    for (Index channel = begin; channel < end; ++channel) {
      const Index g = channel / channels, c = channel % channels;
      float* sums = workspace + channel * filters;
      for (Index group = 1; group < t.groups; ++group) {
        for (Index e = 0; e < patch; ++e) {
          kernels().add(filters, sums + group * one_group + e * sums_stride, sums + e * sums_stride);
        }
      }
      kernels().winograd_weight_gradient(tile, sums, sums_stride, filters,
                                         d_weight + (g * filters * channels + c) * taps, channels * taps, accumulate);
    }
  });
}

}  // namespace deepnet
