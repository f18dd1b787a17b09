// A task is some rows of outputs of a group of images. dE/dW is summed by such tasks and then, in order, over them.
#include "lane_depthwise.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "activation.hpp"
#include "blocking.hpp"
#include "column_product.hpp"
#include "layout.hpp"

namespace deepnet {
namespace {

// Moved elements that a row of outputs costs; 9 taps cost about as much as moving two.
double row_cost(const ConvShape& s, Index outputs) {
  return static_cast<double>(outputs * s.C * lanes()) * (2 + static_cast<double>(s.R * s.S) / 8);
}

// A gather of images that are in lanes: the channels of a cell lie side by side.
ConvGather in_lanes(const ConvShape& s, ConvGather g) {
  g.channel_stride = lanes();
  g.cell_stride = s.C * lanes();
  g.image_stride = g.height * g.width * g.cell_stride;
  return g;
}

// Rows of all groups of images that a task of dE/dW takes: by shape alone, some 16 tasks.
Index weight_rows(const ConvShape& s) {
  const Index rows = s.N / lanes() * s.P;
  return std::max<Index>(1, ceil_div(rows, 16));
}
Index weight_tasks(const ConvShape& s) { return ceil_div(s.N / lanes() * s.P, weight_rows(s)); }

// The weights of a phase's taps, channel by channel.
void pick_taps(const ConvShape& s, const float* weight, Index count, const Index* position, float* picked) {
  const Index cells = s.R * s.S;
  for (Index c = 0; c < s.C; ++c)
    for (Index t = 0; t < count; ++t) picked[c * count + t] = weight[c * cells + position[t]];
}

}  // namespace

bool lane_depthwise_can_convolve(Index channels, Index filters, Index groups, Index taps) {
  return groups == channels && filters == channels && taps <= kDepthwiseTaps;
}

bool lane_depthwise_applies(const ConvShape& s) {
  return s.lanes && lane_depthwise_can_convolve(s.C, s.K, s.groups, s.R * s.S);
}

std::size_t lane_depthwise_forward_workspace(const ConvShape& s) { return taps_floats(s); }

std::size_t lane_depthwise_backward_data_workspace(const ConvShape& s) {
  return 2 * taps_floats(s) + static_cast<std::size_t>(s.C * s.R * s.S);  // taps, their positions (Index), weights
}

std::size_t lane_depthwise_backward_weight_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(weight_tasks(s) * s.C * s.R * s.S * lanes());
}

void lane_depthwise_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                            Activation activation, float* workspace) {
  const ConvGather all = in_lanes(s, forward_gather(s, x, forward_taps(s, workspace)));
  const Index row = s.Q * all.cell_stride;
  parallel_for(s.N / lanes() * s.P, grain_for(row_cost(s, s.Q)), [&](Index begin, Index end) {
    ConvGather g = all;
    for (Index i = begin; i < end; ++i) {
      float* out = y + i * row;
      g.image = all.image + i / s.P * g.image_stride;
      kernels().lane_depthwise(&g, s.C, i % s.P, weight, bias, is_fused(activation), out, g.cell_stride);
      apply_unfused(activation, 1, row, out, row);
    }
  });
}

void lane_depthwise_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx,
                                  float* workspace) {
  const Taps taps = {reinterpret_cast<int32_t*>(workspace), reinterpret_cast<int32_t*>(workspace) + s.R * s.S};
  Index* position = reinterpret_cast<Index*>(workspace + taps_floats(s));
  float* picked = workspace + 2 * taps_floats(s);
  for (Index phase = 0; phase < phases_h(s) * phases_w(s); ++phase) {
    const Index a = phase / phases_w(s), b = phase % phases_w(s);
    ConvGather errors = {};
    errors.image = dy;
    errors.height = s.P;
    errors.width = s.Q;
    errors.out_height = ceil_div(s.H - a, s.stride_h);
    errors.out_width = ceil_div(s.W - b, s.stride_w);
    errors.stride_h = errors.stride_w = 1;
    errors.taps = phase_taps(s, a, b, taps, position);
    errors.tap_h = taps.h;
    errors.tap_w = taps.w;
    const ConvGather all = in_lanes(s, errors);
    pick_taps(s, weight, all.taps, position, picked);
    const Index rows = all.out_height;
    parallel_for(s.N / lanes() * rows, grain_for(row_cost(s, all.out_width)), [&](Index begin, Index end) {
      ConvGather g = all;
      for (Index i = begin; i < end; ++i) {
        const Index group = i / rows, h = a + i % rows * s.stride_h;
        g.image = all.image + group * g.image_stride;
        kernels().lane_depthwise(&g, s.C, i % rows, picked, nullptr, 0,
                                 dx + ((group * s.H + h) * s.W + b) * g.cell_stride, s.stride_w * g.cell_stride);
      }
    });
  }
}

void lane_depthwise_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight,
                                    bool accumulate, float* workspace) {
  const ConvGather all = in_lanes(s, forward_gather(s, x, forward_taps(s, workspace)));
  float* sums = workspace + taps_floats(s);
  const Index weights = s.C * s.R * s.S, one_sum = weights * lanes(), rows = s.N / lanes() * s.P;
  const Index rows_at_once = weight_rows(s), tasks = weight_tasks(s), row = s.Q * all.cell_stride;
  parallel_for(tasks, grain_for(row_cost(s, s.Q) * static_cast<double>(rows_at_once)), [&](Index begin, Index end) {
    ConvGather g = all;
    for (Index task = begin; task < end; ++task) {
      float* sum = sums + task * one_sum;
      std::memset(sum, 0, static_cast<std::size_t>(one_sum) * sizeof(float));
      for (Index i = task * rows_at_once; i < std::min(rows, (task + 1) * rows_at_once); ++i) {
        g.image = all.image + i / s.P * g.image_stride;
        kernels().lane_depthwise_weight(&g, s.C, i % s.P, dy + i * row, sum);
      }
    }
  });
  for (Index task = 1; task < tasks; ++task) kernels().add(one_sum, sums + task * one_sum, sums);
  for (Index i = 0; i < weights; ++i) {
    const float sum = tasks == 0 ? 0.0f : kernels().sum(lanes(), sums + i * lanes());
    d_weight[i] = accumulate ? d_weight[i] + sum : sum;
  }
}

}  // namespace deepnet
