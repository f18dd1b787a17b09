// dE/dW sums each strip's dot products of errors with cells and adds the tasks' sums in their order.
#include "../parallel.hpp"
#include "lanes.hpp"
#include "lanes_common.hpp"

namespace deepnet {
namespace {

// Planes of x are laid out with their padding, so that every tap has a cell for every output. A task takes some strips
// of images and a part of the filters.
struct WeightTasks {
  Index rows, strips, units;        // rows of a strip, strips of an image, strips in all
  Index shares, splits, filters;    // of the units and of the filters; filters of a split
  Index width, plane, error_plane;  // of a padded plane

  explicit WeightTasks(const ConvShape& s) {
    constexpr Index wanted = 8, least_outputs = 128;  // of a strip: their sums are to be worth adding up
    const Index channels = s.C / s.groups, all_filters = s.K / s.groups, groups = image_groups(s.N);
    width = std::max((s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1, s.pad_left + s.W);
    const auto plane_of = [&](Index r) {
      return ((r - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1) * width * lanes();
    };
    const double work = static_cast<double>(s.N * s.P * s.Q) * channels * all_filters * s.R * s.S;
    const auto worth_halving = [&](Index tasks) {
      return tasks < wanted && work / static_cast<double>(tasks) >= 2 * least_work;
    };
    rows = s.P;
    while (rows > 1 && (channels * plane_of(rows) + all_filters * rows * s.Q * lanes() > lanes_cache ||
                        (rows * s.Q >= 2 * least_outputs && worth_halving(groups * ceil_div(s.P, rows)))))
      rows = (rows + 1) / 2;
    strips = ceil_div(s.P, rows);
    units = groups * strips;
    shares = std::max<Index>(1, std::min(units, wanted));
    splits = 1;
    while (all_filters / splits >= 8 && worth_halving(shares * splits)) splits *= 2;
    filters = ceil_div(all_filters, splits);
    splits = ceil_div(all_filters, filters);
    plane = plane_of(rows);
    error_plane = rows * s.Q * lanes();
  }
};

// The rows of x that a strip of outputs from row p0 reads, with zeros around, in lanes.
void pad_to_lanes(const ConvShape& s, const WeightTasks& t, const float* x, Index count, Index p0, Index p1,
                  float* to) {
  const Index first = p0 * s.stride_h - s.pad_top;
  const Index rows = (p1 - 1 - p0) * s.stride_h + (s.R - 1) * s.dilation_h + 1, row = t.width * lanes();
  const Index image_stride = s.C * s.H * s.W;
  if (s.pad_left == 0 && t.width == s.W && first >= 0 && first + rows <= s.H)
    return to_lanes(count, rows * s.W, x + first * s.W, image_stride, to);
  for (Index i = 0; i < rows; ++i, to += row) {
    const Index h = first + i;
    if (h < 0 || h >= s.H) {
      std::memset(to, 0, static_cast<std::size_t>(row) * sizeof(float));
      continue;
    }
    const Index right = t.width - s.pad_left - s.W;
    std::memset(to, 0, static_cast<std::size_t>(s.pad_left * lanes()) * sizeof(float));
    to_lanes(count, s.W, x + h * s.W, image_stride, to + s.pad_left * lanes());
    std::memset(to + (s.pad_left + s.W) * lanes(), 0, static_cast<std::size_t>(right * lanes()) * sizeof(float));
  }
}

// sums (filters x weights of a filter) = or += those of one strip of one group of images.
void weights_of_strip(const ConvShape& s, const WeightTasks& t, const int32_t* offset, const float* x, const float* dy,
                      Index filters, Index unit, float* sums, bool accumulate) {
  const Index channels = s.C / s.groups;
  const Index n0 = unit / t.strips * lanes(), count = std::min(lanes(), s.N - n0);
  const Index p0 = unit % t.strips * t.rows, p1 = std::min(p0 + t.rows, s.P);
  float* cells = thread_scratch(Scratch::pack, static_cast<std::size_t>(channels * t.plane));
  float* errors = thread_scratch(Scratch::tile, static_cast<std::size_t>(filters * t.error_plane));
  for (Index c = 0; c < channels; ++c)
    pad_to_lanes(s, t, x + (n0 * s.C + c) * s.H * s.W, count, p0, p1, cells + c * t.plane);
  for (Index k = 0; k < filters; ++k) {
    to_lanes(count, (p1 - p0) * s.Q, dy + ((n0 * s.K + k) * s.P + p0) * s.Q, s.K * s.P * s.Q,
             errors + k * t.error_plane);
  }
  LaneWeights w = {};
  w.rows = filters;
  w.columns = channels * s.R * s.S;
  w.errors = errors;
  w.error_plane = t.error_plane;
  w.height = p1 - p0;
  w.width = s.Q;
  w.cells = cells;
  w.offset = offset;
  w.row_step = s.stride_h * t.width * lanes();
  w.step = s.stride_w * lanes();
  w.sums = sums;
  w.accumulate = accumulate;
  kernels().lane_weights(&w);
}

}  // namespace

// Beyond so many weights every tile of filters reads the images again.
bool lanes_backward_weight_wins(const ConvShape& s) {
  constexpr Index most_weights = 1 << 15, few_kernels = 300;
  const Index kernels = s.C / s.groups * (s.K / s.groups), taps = s.R * s.S;
  const bool small = taps >= some_taps && kernels <= few_kernels && s.stride_h * s.stride_w == 1 && is_cached(s);
  const Index row = s.C / s.groups * ((s.R - 1) * s.dilation_h + 1) * (s.W + 2 * s.pad_left) + s.K / s.groups * s.Q;
  return (small || taps >= many_taps) && kernels * taps <= most_weights && fills_lanes(s) &&
         row * lanes() <= lanes_cache;
}

std::size_t lanes_backward_weight_workspace(const ConvShape& s) {
  const Index one = s.K * (s.C / s.groups) * s.R * s.S;
  return static_cast<std::size_t>(round_up(s.C / s.groups * s.R * s.S, 16) + WeightTasks(s).shares * one);
}

void lanes_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                           float* workspace) {
  const WeightTasks t(s);
  const Index channels = s.C / s.groups, filters = s.K / s.groups, columns = channels * s.R * s.S;
  int32_t* offset = reinterpret_cast<int32_t*>(workspace);
  float* sums = workspace + round_up(columns, 16);
  for (Index i = 0; i < columns; ++i) {
    const Index c = i / (s.R * s.S), r = i / s.S % s.R, tap = i % s.S;
    offset[i] = static_cast<int32_t>(c * t.plane + (r * s.dilation_h * t.width + tap * s.dilation_w) * lanes());
  }
  const Index one = s.K * columns;
  const double work = static_cast<double>(t.units * t.rows * s.Q * lanes()) * static_cast<double>(t.filters * columns) /
                      static_cast<double>(t.shares);
  parallel_for(s.groups * t.shares * t.splits, grain_for(work / 16), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index split = task % t.splits, share = task / t.splits % t.shares, g = task / t.splits / t.shares;
      const Index k = split * t.filters, count = std::min(t.filters, filters - k), filter = g * filters + k;
      const Index first = share * t.units / t.shares, last = (share + 1) * t.units / t.shares;
      for (Index unit = first; unit < last; ++unit) {
        weights_of_strip(s, t, offset, x + g * channels * s.H * s.W, dy + filter * s.P * s.Q, count, unit,
                         sums + share * one + filter * columns, unit > first);
      }
    }
  });
  parallel_for(one, grain_for(static_cast<double>(t.shares), 64), [&](Index begin, Index end) {
    const Index n = end - begin;
    if (accumulate) {
      kernels().add(n, sums + begin, d_weight + begin);
    } else {
      std::memcpy(d_weight + begin, sums + begin, static_cast<std::size_t>(n) * sizeof(float));
    }
    for (Index share = 1; share < t.shares; ++share) kernels().add(n, sums + share * one + begin, d_weight + begin);
  });
}

}  // namespace deepnet
