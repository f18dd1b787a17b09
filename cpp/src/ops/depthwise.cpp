// A task is a few planes. A plane of x has K / groups filters, one after the other; dE/dW is summed plane by plane and
// then, in order, over the images.
#include "depthwise.hpp"

#include <algorithm>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "activation.hpp"
#include "blocking.hpp"
#include "column_product.hpp"
#include "streaming.hpp"

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
  const std::size_t phases = static_cast<std::size_t>(phases_h(s) * phases_w(s));
  return phases * (taps_floats(s) + positions + 1) + static_cast<std::size_t>(s.K * s.R * s.S);
}

std::size_t depthwise_backward_weight_workspace(const ConvShape& s) {
  return taps_floats(s) + static_cast<std::size_t>(s.N * s.K * s.R * s.S);
}

void depthwise_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y,
                       Activation activation, float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  const Index filters = s.K / s.groups, pixels = s.P * s.Q;
  const bool relu = is_fused(activation), streamed = is_streamed(s.N * s.K * pixels);
  parallel_for(s.N * s.K, planes_at_once(s), [&](Index begin, Index end) {
    const PieceWriter planes(streamed);
    ConvGather gather = forward_gather(s, x, taps);
    for (Index plane = begin; plane < end; ++plane) {
      const Index n = plane / s.K, k = plane % s.K;
      gather.image = x + (n * s.C + k / filters) * s.H * s.W;
      planes.make(pixels, y + plane * pixels, [&](float* out) {
        kernels().depthwise(&gather, weight + k * s.R * s.S, bias ? bias[k] : 0.0f, relu, 0, out, s.Q, 1);
        apply_unfused(activation, 1, pixels, out, pixels);
      });
    }
  });
}

void depthwise_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Index filters = s.K / s.groups, cells = s.R * s.S;
  const Index across = phases_w(s), phases = phases_h(s) * across;
  // Of each phase: how its taps read a plane of errors, and their weights in every filter.
  std::vector<ConvGather> errors;
  std::vector<const float*> mirrored;
  for (Index phase = 0; phase < phases; ++phase) {
    const Index a = phase / across, b = phase % across;
    const Taps taps = {reinterpret_cast<int32_t*>(workspace), reinterpret_cast<int32_t*>(workspace) + cells};
    Index* position = reinterpret_cast<Index*>(workspace + taps_floats(s));
    float* weights = workspace + 2 * taps_floats(s);
    const Index count = phase_taps(s, a, b, taps, position);
    for (Index k = 0; k < s.K; ++k) {
      for (Index t = 0; t < count; ++t) weights[k * count + t] = weight[k * cells + position[t]];
    }
    ConvGather g = {};
    g.height = s.P;
    g.width = s.Q;
    g.out_height = (s.H - a + s.stride_h - 1) / s.stride_h;
    g.out_width = (s.W - b + s.stride_w - 1) / s.stride_w;
    g.stride_h = g.stride_w = 1;
    g.taps = count;
    g.tap_h = taps.h;
    g.tap_w = taps.w;
    errors.push_back(g);
    mirrored.push_back(weights);
    workspace = weights + round_up(s.K * count, 2);
  }
  const auto make_phase = [&](Index phase, Index n, Index c, float* out, Index row_step, Index step) {
    ConvGather gather = errors[static_cast<std::size_t>(phase)];
    for (Index k = c * filters; k < (c + 1) * filters; ++k) {
      gather.image = dy + (n * s.K + k) * s.P * s.Q;
      kernels().depthwise(&gather, mirrored[static_cast<std::size_t>(phase)] + k * gather.taps, 0.0f, 0,
                          k > c * filters, out, row_step, step);
    }
  };
  const bool streamed = is_streamed(s.N * s.C * s.H * s.W);
  parallel_for(s.N * s.C, planes_at_once(s), [&](Index begin, Index end) {
    const PieceWriter planes(streamed);
    const Index half = (s.W + 1) / 2, rows = (s.H + s.stride_h - 1) / s.stride_h;
    const bool pairs = s.stride_w == 2 && across == 2;
    float* columns = pairs ? thread_scratch(Scratch::tile, static_cast<std::size_t>(2 * rows * half)) : nullptr;
    for (Index plane = begin; plane < end; ++plane) {
      const Index n = plane / s.C, c = plane % s.C;
      planes.make(s.H * s.W, dx + plane * s.H * s.W, [&](float* image) {
        for (Index phase = 0; phase < phases; ++phase) {
          const Index a = phase / across, b = phase % across;
          float* out = image + a * s.W;
          if (!pairs) {
            make_phase(phase, n, c, out + b, s.stride_h * s.W, s.stride_w);
            continue;
          }
          // Even and odd columns apart, then together: whole vectors instead of every other element.
          make_phase(phase, n, c, columns + b * rows * half, half, 1);
          for (Index i = 0; b == 1 && a + i * s.stride_h < s.H; ++i) {
            kernels().interleave_rows(s.W, columns + i * half, columns + (rows + i) * half, out + i * s.stride_h * s.W);
          }
        }
      });
    }
  });
}

void depthwise_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, bool accumulate,
                               float* workspace) {
  const Taps taps = forward_taps(s, workspace);
  float* sums = workspace + taps_floats(s);
  const Index filters = s.K / s.groups, cells = s.R * s.S;
  parallel_for(s.N * s.K, planes_at_once(s), [&](Index begin, Index end) {
    ConvGather gather = forward_gather(s, x, taps);
    for (Index plane = begin; plane < end; ++plane) {
      const Index n = plane / s.K, k = plane % s.K;
      gather.image = x + (n * s.C + k / filters) * s.H * s.W;
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
