// dE/dW of images in lanes: a task takes strips of rows of a group of images and a part of the filters, packs dE/dy
// with its filters along vectors and multiplies; the tasks' sums are added up in their order.
#include "../parallel.hpp"
#include "lanes.hpp"
#include "lanes_common.hpp"

namespace deepnet {
namespace {

struct WeightTasks {
  Index channels, filters, weights;  // of a group of channels; weights of a filter
  Index rows, strips, units;         // rows of a strip, strips of an image, strips in all
  Index shares, splits, at_once;     // of the units and of the filters; filters of a split
  bool padded;                       // cells are copied with their padding around
  Index width;                       // then: of a padded row
  Index split_floats, share_floats;

  explicit WeightTasks(const ConvShape& s)
      : channels(s.C / s.groups), filters(s.K / s.groups), weights(channels * s.R * s.S) {
    constexpr Index wanted = 8, least_outputs = 128, most_filters = 128;
    const Index groups = image_groups(s.N), nr = kernels().gemm_nr;
    // One tap's channels are too short a run for the kernel where they are few.
    padded = !s.lanes || (!fits(s) && channels < 8);
    width = std::max((s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1, s.pad_left + s.W);
    at_once = round_up(ceil_div(filters, ceil_div(filters, most_filters)), nr);
    splits = ceil_div(filters, at_once);
    const auto floats = [&](Index r) {
      return std::max(r * s.Q * at_once, in_rows(s, r) * width * channels) * lanes();
    };
    const double work = static_cast<double>(groups * lanes() * s.P * s.Q) * static_cast<double>(filters * weights);
    const auto worth_halving = [&](Index tasks) {
      return tasks < wanted && work / static_cast<double>(tasks) >= 2 * least_work;
    };
    rows = s.P;
    while (rows > 1 && (floats(rows) > lanes_cache / 2 ||
                        (rows * s.Q >= 2 * least_outputs && worth_halving(groups * ceil_div(s.P, rows) * splits))))
      rows = (rows + 1) / 2;
    strips = ceil_div(s.P, rows);
    units = groups * strips;
    while (at_once > nr && worth_halving(std::min(units, wanted) * splits)) {
      at_once = round_up(at_once / 2, nr);
      splits = ceil_div(filters, at_once);
    }
    shares = std::max<Index>(1, std::min(units, ceil_div(wanted, splits)));
    split_floats = round_up((weights + 1) * at_once, 16);
    share_floats = s.groups * splits * split_floats;
  }

  static Index in_rows(const ConvShape& s, Index rows) {
    return (rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1;
  }
  // Whether the taps of a row lie inside the image for every output.
  static bool fits(const ConvShape& s) {
    return s.pad_left == 0 && (s.Q - 1) * s.stride_w + (s.S - 1) * s.dilation_w < s.W;
  }
};

// Cells in lanes, of which (row, column) (h, w) lies at `at + h row + w channels`.
struct Cells {
  const float* at;
  Index row;
  Index height, width;  // cells outside are not there
  Index top, left;      // of the first output's first tap
};

// The rows of x that a strip of outputs from row p0 reads, with zeros around.
Cells padded_cells(const ConvShape& s, const WeightTasks& t, const float* x, Index n0, Index p0, Index p1) {
  const Index rows = t.in_rows(s, p1 - p0), step = t.channels * lanes(), row = t.width * step;
  const Index first = p0 * s.stride_h - s.pad_top, count = std::min(lanes(), s.N - n0);
  float* to = thread_scratch(Scratch::pack, static_cast<std::size_t>(t.in_rows(s, t.rows) * row));
  const Cells cells = {to, row, rows, t.width, 0, 0};
  const auto clear = [](float* from, Index floats) {
    std::memset(from, 0, static_cast<std::size_t>(floats) * sizeof(float));
  };
  for (Index i = 0; i < rows; ++i, to += row) {
    const Index h = first + i, right = s.pad_left + s.W;
    if (h < 0 || h >= s.H) {
      clear(to, row);
      continue;
    }
    clear(to, s.pad_left * step);
    clear(to + right * step, (t.width - right) * step);
    if (s.lanes) {
      std::memcpy(to + s.pad_left * step, x + (n0 * s.H + h * lanes()) * s.W * t.channels,
                  static_cast<std::size_t>(s.W * step) * sizeof(float));
    }
  }
  if (s.lanes) return cells;
  to = const_cast<float*>(cells.at);
  const Index h0 = std::max<Index>(first, 0), h1 = std::min(first + rows, s.H), image = s.C * s.H * s.W;
  for (Index c = 0; c < t.channels; ++c) {
    const float* from = x + n0 * image + (c * s.H + h0) * s.W;
    float* there = to + (h0 - first) * row + s.pad_left * step + c * lanes();
    if (t.width == s.W) {
      turn_cells(count, (h1 - h0) * s.W, from, image, there, step);
    } else {
      for (Index h = h0; h < h1; ++h, from += s.W, there += row) turn_cells(count, s.W, from, image, there, step);
    }
  }
  return cells;
}

// dE/dy of `filters` filters and outputs [p0, p1) packed for lane_weights, row (output, image).
void pack_errors(const ConvShape& s, const float* dy, Index filters, Index n0, Index p0, Index p1, float* packed) {
  const Index outputs = (p1 - p0) * s.Q, depth = outputs * lanes(), nr = kernels().gemm_nr;
  if (s.lanes) {
    const float* from = dy + (n0 * s.P + p0 * lanes()) * s.Q * s.K;
    for (Index i = 0; i < outputs; ++i)
      kernels().pack_b(from + i * s.K * lanes(), 1, lanes(), lanes(), filters, depth, packed + i * lanes() * nr);
    return;
  }
  const Index count = std::min(lanes(), s.N - n0), plane = s.P * s.Q;
  if (count < lanes() || filters % nr != 0)
    std::memset(packed, 0, static_cast<std::size_t>(round_up(filters, nr) * depth) * sizeof(float));
  for (Index n = 0; n < count; ++n) {
    for (Index k = 0; k < filters; k += nr) {
      kernels().transpose(dy + ((n0 + n) * s.K + k) * plane + p0 * s.Q, plane, std::min(nr, filters - k), outputs,
                          packed + k * depth + n * nr, lanes() * nr, 0);
    }
  }
}

// Outputs [first, last) of which a tap reads cells in [0, size), from `at` on, `stride` apart.
struct Reached {
  Index first, last;
  Reached(Index outputs, Index at, Index stride, Index size)
      : first(at < 0 ? ceil_div(-at, stride) : 0),
        last(at < size ? std::min(outputs, ceil_div(size - at, stride)) : 0) {
    first = std::min(first, outputs);
    last = std::max(first, last);
  }
};

// sums, (tap row, tap column, channel) x filters, = or += those of one strip; then the errors' own.
void weights_of_strip(const ConvShape& s, const WeightTasks& t, const float* x, const float* dy, Index filters,
                      Index unit, float* sums, bool accumulate) {
  const Index n0 = unit / t.strips * lanes(), p0 = unit % t.strips * t.rows, p1 = std::min(p0 + t.rows, s.P);
  const Index nr = kernels().gemm_nr, height = p1 - p0, depth = height * s.Q * lanes(), step = t.channels * lanes();
  float* errors = thread_scratch(Scratch::tile, static_cast<std::size_t>(t.rows * s.Q * lanes() * t.at_once));
  const Cells cells =
      t.padded ? padded_cells(s, t, x, n0, p0, p1)
               : Cells{x + n0 * s.H * s.W * t.channels, s.W * step, s.H, s.W, p0 * s.stride_h - s.pad_top, -s.pad_left};
  pack_errors(s, dy, filters, n0, p0, p1, errors);

  LaneWeights w = {};
  w.filters = filters;
  w.depth = depth;
  w.error_row_step = s.Q * lanes() * nr;
  w.row_step = s.stride_h * cells.row;
  w.step = s.stride_w * step;
  w.accumulate = accumulate;
  const bool joined = s.dilation_w == 1 && (t.padded || t.fits(s));
  for (Index r = 0; r < s.R; ++r) {
    const Index top = cells.top + r * s.dilation_h;
    const Reached rows(height, top, s.stride_h, cells.height);
    for (Index tap = 0; tap < s.S; tap += joined ? s.S : 1) {
      const Index left = cells.left + tap * s.dilation_w;
      const Reached columns(s.Q, left, s.stride_w, cells.width);
      w.rows = joined ? s.S * t.channels : t.channels;
      w.height = rows.last - rows.first;
      w.width = joined ? s.Q : columns.last - columns.first;
      const Index first = joined ? 0 : columns.first;
      w.cells = cells.at + (top + rows.first * s.stride_h) * cells.row + (left + first * s.stride_w) * step;
      w.errors = errors + (rows.first * s.Q + first) * lanes() * nr;
      w.sums = sums + (r * s.S + tap) * t.channels * filters;
      kernels().lane_weights(&w);
    }
  }
  float* errors_sum = sums + t.weights * filters;
  for (Index k = 0; k < filters; k += nr)
    kernels().sum_rows(depth, std::min(nr, filters - k), errors + k * depth, nr, errors_sum + k, accumulate);
}

}  // namespace

bool lanes_backward_weight_applies(const ConvShape& s) {
  const Index row = s.C / s.groups * ((s.R - 1) * s.dilation_h + 1) * (s.W + 2 * s.pad_left) + s.K / s.groups * s.Q;
  return s.lanes ? s.groups == 1 : fills_lanes(s.N) && row * lanes() <= lanes_cache;
}

// Beyond so many weights every tile of filters reads the images again.
bool lanes_backward_weight_wins(const ConvShape& s) {
  constexpr Index most_weights = 1 << 15, most_weights_strided = 1 << 17, few_kernels = 300;
  const Index kernels = s.C / s.groups * (s.K / s.groups), taps = s.R * s.S;
  const bool strided = is_strided(s), small = kernels <= few_kernels && !strided && is_cached(s);
  if (taps < some_taps || !lanes_backward_weight_applies(s)) return false;
  if (!turning_is_cheap() && !packs_more_than_turns(s, 1.25)) return false;
  if (strided && kernels * taps <= most_weights_strided) return true;
  return (small || taps >= many_taps) && kernels * taps <= most_weights;
}

std::size_t lanes_backward_weight_workspace(const ConvShape& s) {
  const WeightTasks t(s);
  return static_cast<std::size_t>(t.shares * t.share_floats);
}

void lanes_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                           float* sums) {
  lanes_backward_weight_and_bias(s, x, dy, d_weight, nullptr, accumulate, sums);
}

void lanes_backward_weight_and_bias(const ConvShape& s, const float* x, const float* dy, float* d_weight, float* d_bias,
                                    bool accumulate, float* sums) {
  const WeightTasks t(s);
  const Index plane = s.lanes ? lanes() : s.P * s.Q;
  const double work = static_cast<double>(t.units * t.rows * s.Q * lanes()) *
                      static_cast<double>(t.at_once * t.weights) / static_cast<double>(t.shares);
  const auto filters_of = [&](Index split) { return std::min(t.at_once, t.filters - split * t.at_once); };
  const auto sums_of = [&](Index share, Index g, Index split) {
    return sums + share * t.share_floats + (g * t.splits + split) * t.split_floats;
  };
  parallel_for(s.groups * t.shares * t.splits, product_grain(work), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index split = task % t.splits, share = task / t.splits % t.shares, g = task / t.splits / t.shares;
      const Index filter = g * t.filters + split * t.at_once;
      const Index first = share * t.units / t.shares, last = (share + 1) * t.units / t.shares;
      for (Index unit = first; unit < last; ++unit)
        weights_of_strip(s, t, x + g * t.channels * s.H * s.W, dy + filter * plane, filters_of(split), unit,
                         sums_of(share, g, split), unit > first);
    }
  });
  const Index taps = s.R * s.S, cost = t.at_once * (t.weights + 1) * (t.shares + 2);
  parallel_for(s.groups * t.splits, grain_for(static_cast<double>(cost)), [&](Index begin, Index end) {
    float* by_filter = thread_scratch(Scratch::pack, static_cast<std::size_t>(t.at_once * t.weights));
    for (Index i = begin; i < end; ++i) {
      const Index split = i % t.splits, g = i / t.splits, filters = filters_of(split);
      float* total = sums_of(0, g, split);
      for (Index share = 1; share < t.shares; ++share)
        kernels().add((t.weights + 1) * filters, sums_of(share, g, split), total);
      kernels().transpose(total, filters, t.weights, filters, by_filter, t.weights, 0);
      for (Index k = 0; k < filters; ++k) {
        const Index filter = g * t.filters + split * t.at_once + k;
        kernels().transpose(by_filter + k * t.weights, t.channels, taps, t.channels, d_weight + filter * t.weights,
                            taps, accumulate);
        const float error = total[t.weights * filters + k];
        if (d_bias) d_bias[filter] = accumulate ? d_bias[filter] + error : error;
      }
    }
  });
}

}  // namespace deepnet
