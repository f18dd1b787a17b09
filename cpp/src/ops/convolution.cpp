// Chooses, by shape alone, how each of a convolution's three products is made.
#include "convolution.hpp"

#include <algorithm>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "col2im.hpp"
#include "depthwise.hpp"
#include "implicit_gemm.hpp"
#include "lanes.hpp"
#include "layout.hpp"
#include "turned_winograd.hpp"
#include "winograd.hpp"

namespace deepnet {
namespace {

// Cost of dE/dx a filter and channel, in multiply-adds and moved elements, both ways. Phases compute every cell of x
// from all its taps, also those that fall outside dy, and pack K columns for them; scattering computes only what is in
// dy but moves C columns twice, to the tile and from there to dx. A move is taken for
// 10 multiply-adds: an estimate.
bool scatter_is_cheaper(const ConvShape& s) {
  if (s.R * s.S == 1 && s.stride_h * s.stride_w == 1) return false;  // the product itself is dx
  const double cells = static_cast<double>(s.H * s.W), pixels = static_cast<double>(s.P * s.Q);
  const double C = static_cast<double>(s.C / s.groups), K = static_cast<double>(s.K / s.groups);
  const double strides = static_cast<double>(s.stride_h * s.stride_w);
  return pixels * (C * K + 3 * 10 * C) < cells / strides * (C * K + 2 * 10 * K);
}

// Too few to pay for transforming patches, where lanes will do.
bool has_few_channels(const ConvShape& s) { return std::min(s.C, s.K) < 16 * s.groups; }

template <class Run>
struct Method {
  std::size_t (*workspace)(const ConvShape&);
  Run* run;
};

Method<decltype(conv_forward)> forward_method(const ConvShape& s) {
  if (s.lanes && winograd_forward_wins(s)) return {winograd_forward_workspace, winograd_forward};
  if (s.lanes) return {lanes_forward_workspace, lanes_forward};
  if (depthwise_applies(s)) return {depthwise_forward_workspace, depthwise_forward};
  const bool lanes = lanes_forward_wins(s);
  if (winograd_forward_wins(s) && !(lanes && has_few_channels(s)))
    return {winograd_forward_workspace, winograd_forward};
  if (lanes) return {lanes_forward_workspace, lanes_forward};
  return {implicit_forward_workspace, implicit_forward};
}

Method<decltype(conv_backward_data)> backward_data_method(const ConvShape& s) {
  if (s.lanes && winograd_backward_data_wins(s)) return {winograd_backward_data_workspace, winograd_backward_data};
  if (s.lanes) return {lanes_backward_data_workspace, lanes_backward_data};
  if (depthwise_applies(s)) return {depthwise_backward_data_workspace, depthwise_backward_data};
  if (turned_winograd_backward_data_wins(s))
    return {turned_winograd_backward_data_workspace, turned_winograd_backward_data};
  const bool lanes = lanes_backward_data_wins(s);
  if (winograd_backward_data_wins(s) && !(lanes && has_few_channels(s)))
    return {winograd_backward_data_workspace, winograd_backward_data};
  if (lanes) return {lanes_backward_data_workspace, lanes_backward_data};
  if (scatter_is_cheaper(s)) return {col2im_backward_data_workspace, col2im_backward_data};
  return {implicit_backward_data_workspace, implicit_backward_data};
}

Method<decltype(winograd_backward_weight)> backward_weight_method(const ConvShape& s) {
  if (s.lanes && winograd_backward_weight_wins(s))
    return {winograd_backward_weight_workspace, winograd_backward_weight};
  if (s.lanes) return {lanes_backward_weight_workspace, lanes_backward_weight};
  if (depthwise_applies(s)) return {depthwise_backward_weight_workspace, depthwise_backward_weight};
  if (turned_winograd_backward_weight_wins(s))
    return {turned_winograd_backward_weight_workspace, turned_winograd_backward_weight};
  const bool lanes = lanes_backward_weight_wins(s);
  if (winograd_backward_weight_wins(s) && !(lanes && has_few_channels(s)))
    return {winograd_backward_weight_workspace, winograd_backward_weight};
  if (lanes) return {lanes_backward_weight_workspace, lanes_backward_weight};
  return {implicit_backward_weight_workspace, implicit_backward_weight};
}

// How images in lanes are cut to add up their errors.
struct BiasTasks {
  Index cells, cells_a_part, parts, columns;

  explicit BiasTasks(const ConvShape& s) : cells(s.N / lanes() * s.P * s.Q), columns(s.K * lanes()) {
    cells_a_part = std::max<Index>(1, ceil_div(cells, 16));
    parts = std::max<Index>(1, ceil_div(cells, cells_a_part));
  }
};

// d_bias[k] = or += sum of dy over images in lanes and pixels.
void lanes_backward_bias(const ConvShape& s, const float* dy, float* d_bias, bool accumulate, float* workspace) {
  const BiasTasks t(s);
  parallel_for(t.parts, grain_for(static_cast<double>(t.cells_a_part * t.columns)), [&](Index begin, Index end) {
    for (Index part = begin; part < end; ++part) {
      const Index first = part * t.cells_a_part;
      kernels().sum_rows(std::min(t.cells_a_part, t.cells - first), t.columns, dy + first * t.columns, t.columns,
                         workspace + part * t.columns, 0);
    }
  });
  for (Index part = 1; part < t.parts; ++part) kernels().add(t.columns, workspace + part * t.columns, workspace);
  for (Index k = 0; k < s.K; ++k) {
    const float sum = kernels().sum(lanes(), workspace + k * lanes());
    d_bias[k] = accumulate ? d_bias[k] + sum : sum;
  }
}

// d_bias[k] = or += sum of dy over images and pixels.
void backward_bias(const ConvShape& s, const float* dy, float* d_bias, bool accumulate) {
  const Index pixels = s.P * s.Q;
  parallel_for(s.K, grain_for(static_cast<double>(s.N * pixels)), [&](Index begin, Index end) {
    for (Index k = begin; k < end; ++k) {
      double sum = accumulate ? d_bias[k] : 0.0;
      for (Index n = 0; n < s.N; ++n) sum += kernels().sum(pixels, dy + (n * s.K + k) * pixels);
      d_bias[k] = static_cast<float>(sum);
    }
  });
}

}  // namespace

std::size_t conv_forward_workspace(const ConvShape& s) { return forward_method(s).workspace(s); }

std::size_t conv_backward_workspace(const ConvShape& s) {
  const std::size_t floats = std::max(backward_data_method(s).workspace(s), backward_weight_method(s).workspace(s));
  if (!s.lanes) return floats;
  const BiasTasks t(s);
  return std::max(floats, static_cast<std::size_t>(t.parts * t.columns));
}

void conv_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                  Activation activation, float* workspace) {
  forward_method(s).run(s, x, weight, bias, y, activation, workspace);
}

void conv_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  backward_data_method(s).run(s, dy, weight, dx, workspace);
}

void conv_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, float* d_bias,
                          bool accumulate, float* workspace) {
  const auto run = backward_weight_method(s).run;
  if (run == lanes_backward_weight)  // which has the errors at hand, packed
    return lanes_backward_weight_and_bias(s, x, dy, d_weight, d_bias, accumulate, workspace);
  run(s, x, dy, d_weight, accumulate, workspace);
  if (d_bias == nullptr) return;
  if (s.lanes) return lanes_backward_bias(s, dy, d_bias, accumulate, workspace);
  backward_bias(s, dy, d_bias, accumulate);
}

}  // namespace deepnet
