// A task is a few planes. A plane of x has K / groups filters, one after the other; dE/dW is summed plane by plane and
// then, in order, over the images.
#include "depthwise.hpp"

#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "column_product.hpp"

namespace deepnet {
namespace {

// Planes [first, last) a task; 9 taps cost about as much as moving two elements.
Index planes_at_once(const ConvShape& s) {
  return grain_for(static_cast<double>(s.P * s.Q) * (2 + static_cast<double>(s.R * s.S) / 8));
}

}  // namespace

// Beyond four filters a channel the column matrix is read often enough to pay.
bool depthwise_applies(const ConvShape& s) {
  return s.groups == s.C && s.C > 1 && s.K / s.groups <= 4 && s.R * s.S <= kDepthwiseTaps;
}

std::size_t depthwise_forward_workspace(const ConvShape& s) { return taps_floats(s); }

std::size_t depthwise_backward_data_workspace(const ConvShape& s) {
  const std::size_t positions = taps_floats(s);  // R * S Index
  return taps_floats(s) + positions + static_cast<std::size_t>(s.K * s.R * s.S);
}

std::size_t depthwise_backward_weight_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(s.N * s.K * s.R * s.S);
}

void depthwise_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                       Activation activation, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  const Index filters = s.K / s.groups, pixels = s.P * s.Q;
  const bool relu = activation.kind == ActivationKind::relu;
  parallel_for(s.N * s.K, planes_at_once(s), [&](Index begin, Index end) {
    for (Index plane = begin; plane < end; ++plane) {
      const Index n = plane / s.K, k = plane % s.K;
      float* out = y + plane * pixels;
      const ConvGather gather = forward_gather(s, x + (n * s.C + k / filters) * s.H * s.W, taps);
      kernels().depthwise(&gather, weight + k * s.R * s.S, bias ? bias[k] : 0.0f, relu, 0, out, s.Q, 1);
      if (activation.kind != ActivationKind::none && !relu) {
        kernels().activation_forward(static_cast<int>(activation.kind), activation.parameter, pixels, out, out);
      }
    }
  });
}

void depthwise_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  Index* position = reinterpret_cast<Index*>(workspace + taps_floats(s));
  float* mirrored = workspace + 2 * taps_floats(s);
  const Index filters = s.K / s.groups, cells = s.R * s.S;
  for (Index phase = 0; phase < s.stride_h * s.stride_w; ++phase) {
    const Index a = phase / s.stride_w, b = phase % s.stride_w;
    if (a >= s.H || b >= s.W) continue;
    const Index count = phase_taps(s, a, b, taps, position);
    for (Index k = 0; k < s.K; ++k) {
      for (Index t = 0; t < count; ++t) mirrored[k * count + t] = weight[k * cells + position[t]];
    }
    ConvGather errors = {};
    errors.height = s.P;
    errors.width = s.Q;
    errors.out_height = (s.H - a + s.stride_h - 1) / s.stride_h;
    errors.out_width = (s.W - b + s.stride_w - 1) / s.stride_w;
    errors.stride_h = errors.stride_w = 1;
    errors.taps = count;
    errors.tap_h = taps.h;
    errors.tap_w = taps.w;
    parallel_for(s.N * s.C, planes_at_once(s), [&](Index begin, Index end) {
      ConvGather gather = errors;
      for (Index plane = begin; plane < end; ++plane) {
        const Index n = plane / s.C, c = plane % s.C;
        float* out = dx + plane * s.H * s.W + a * s.W + b;
        for (Index k = c * filters; k < (c + 1) * filters; ++k) {
          gather.image = dy + (n * s.K + k) * s.P * s.Q;
          kernels().depthwise(&gather, mirrored + k * count, 0.0f, 0, k > c * filters, out, s.stride_h * s.W,
                              s.stride_w);
        }
      }
    });
  }
}

void depthwise_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                               float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* sums = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, cells = s.R * s.S;
  parallel_for(s.N * s.K, planes_at_once(s), [&](Index begin, Index end) {
    for (Index plane = begin; plane < end; ++plane) {
      const Index n = plane / s.K, k = plane % s.K;
      const ConvGather gather = forward_gather(s, x + (n * s.C + k / filters) * s.H * s.W, taps);
      kernels().depthwise_weight(&gather, dy + plane * s.P * s.Q, sums + plane * cells);
    }
  });
  for (Index i = 0; i < s.K * cells; ++i) {
    double sum = accumulate ? d_weight[i] : 0.0;
    for (Index n = 0; n < s.N; ++n) sum += sums[n * s.K * cells + i];
    d_weight[i] = static_cast<float>(sum);
  }
}

}  // namespace deepnet
