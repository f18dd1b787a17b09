// Chooses how each of a convolution's three products is made: by shape alone, or by time (tuning.hpp).
#include "convolution.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "../tuning.hpp"
#include "col2im.hpp"
#include "depthwise.hpp"
#include "implicit_gemm.hpp"
#include "lane_depthwise.hpp"
#include "lanes.hpp"
#include "layout.hpp"
#include "turned_winograd.hpp"
#include "winograd.hpp"

namespace deepnet {
namespace {

// Cost of dE/dx a tap and image, in multiply-adds and moved elements, both ways. Phases compute every cell of x from
// all its taps, also those that fall outside dy, pack K columns for them, write, or clear where they have no tap, cell
// by cell, and first mirror the weights; scattering computes only what is in dy but moves C columns twice, to the tile
// and from there to dx. A move is taken for 10 multiply-adds; what bench/choices.py times with AVX2 agrees.
bool scatter_is_cheaper(const ConvShape& s) {
  const double cells = static_cast<double>(s.H * s.W), pixels = static_cast<double>(s.P * s.Q);
  const double C = static_cast<double>(s.C / s.groups), K = static_cast<double>(s.K / s.groups);
  const double strides = static_cast<double>(s.stride_h * s.stride_w);
  const double cleared = strides - static_cast<double>(std::min(s.R, s.stride_h) * std::min(s.S, s.stride_w));
  const double mirrored = 3 * 10 * C * K / static_cast<double>(s.N), taps = static_cast<double>(s.R * s.S);
  const double written = strides > 1 ? cells * 25 * C / taps : 0;
  // Here the product itself is dx: by what bench/choices.py times, packing a cell costs no more than 7.
  if (taps * strides == 1) return mirrored > pixels * 7 * C;
  return pixels * (C * K + 3 * 10 * C) < cells / strides * (C * K + 2 * 10 * K + cleared * 10 * C) + mirrored + written;
}

// Too few to pay for transforming patches, where lanes will do.
bool has_few_channels(const ConvShape& s) { return std::min(s.C, s.K) < 16 * s.groups; }

// --- the algorithms there are ---------------------------------------------------------------------------------------

template <class Run>
struct Method {
  ConvAlgorithm algorithm;
  bool (*applies)(const ConvShape&);
  std::size_t (*workspace)(const ConvShape&);
  Run* run;
};

/// `run` is given packed weights, or, where there are no floats of them, the weights as they lie.
struct ForwardMethod {
  ConvAlgorithm algorithm;
  bool (*applies)(const ConvShape&);
  std::size_t (*packed)(const ConvShape&);
  void (*pack)(const ConvShape&, const float* weight, float* packed);
  std::size_t (*workspace)(const ConvShape&);
  decltype(winograd_forward)* run;
};

std::size_t none(const ConvShape&) { return 0; }
bool has_no_lanes(const ConvShape& s) { return !s.lanes; }
bool is_depthwise(const ConvShape& s) { return !s.lanes && depthwise_applies(s); }

using A = ConvAlgorithm;

const ForwardMethod forward_methods[] = {
    {A::depthwise, is_depthwise, none, nullptr, depthwise_forward_workspace, depthwise_forward},
    {A::implicit, has_no_lanes, implicit_packed, implicit_pack, implicit_forward_workspace, implicit_forward},
    {A::lane_depthwise, lane_depthwise_applies, none, nullptr, lane_depthwise_forward_workspace,
     lane_depthwise_forward},
    {A::lanes, lanes_forward_applies, lanes_packed, lanes_pack, lanes_forward_workspace, lanes_forward},
    {A::winograd, winograd_applies, winograd_packed, winograd_pack, none, winograd_forward},
    {A::turned_winograd, turned_winograd_applies, turned_winograd_packed, turned_winograd_pack,
     turned_winograd_forward_workspace, turned_winograd_forward},
};
const Method<decltype(conv_backward_data)> backward_data_methods[] = {
    {A::depthwise, is_depthwise, depthwise_backward_data_workspace, depthwise_backward_data},
    {A::implicit, has_no_lanes, implicit_backward_data_workspace, implicit_backward_data},
    {A::lane_depthwise, lane_depthwise_applies, lane_depthwise_backward_data_workspace, lane_depthwise_backward_data},
    {A::lanes, lanes_backward_data_applies, lanes_backward_data_workspace, lanes_backward_data},
    {A::winograd, winograd_backward_data_applies, winograd_backward_data_workspace, winograd_backward_data},
    {A::turned_winograd, turned_winograd_backward_data_applies, turned_winograd_backward_data_workspace,
     turned_winograd_backward_data},
    {A::col2im, has_no_lanes, col2im_backward_data_workspace, col2im_backward_data},
};
const Method<decltype(winograd_backward_weight)> backward_weight_methods[] = {
    {A::depthwise, is_depthwise, depthwise_backward_weight_workspace, depthwise_backward_weight},
    {A::implicit, has_no_lanes, implicit_backward_weight_workspace, implicit_backward_weight},
    {A::lane_depthwise, lane_depthwise_applies, lane_depthwise_backward_weight_workspace,
     lane_depthwise_backward_weight},
    {A::lanes, lanes_backward_weight_applies, lanes_backward_weight_workspace, lanes_backward_weight},
    {A::winograd, winograd_applies, winograd_backward_weight_workspace, winograd_backward_weight},
    {A::turned_winograd, turned_winograd_applies, turned_winograd_backward_weight_workspace,
     turned_winograd_backward_weight},
};

template <class M, std::size_t n>
const M& method_of(const M (&methods)[n], ConvAlgorithm algorithm) {
  return *std::find_if(methods, methods + n, [&](const M& m) { return m.algorithm == algorithm; });
}

// --- by the cost model ----------------------------------------------------------------------------------------------

ConvAlgorithm forward_by_model(const ConvShape& s) {
  if (lane_depthwise_applies(s)) return A::lane_depthwise;
  if (s.lanes) return winograd_forward_wins(s) ? A::winograd : A::lanes;
  if (depthwise_applies(s)) return A::depthwise;
  if (turned_winograd_forward_wins(s)) return A::turned_winograd;
  const bool lanes = lanes_forward_wins(s);
  if (winograd_forward_wins(s) && !(lanes && has_few_channels(s))) return A::winograd;
  return lanes ? A::lanes : A::implicit;
}

ConvAlgorithm backward_data_by_model(const ConvShape& s) {
  if (lane_depthwise_applies(s)) return A::lane_depthwise;
  if (s.lanes) return winograd_backward_data_wins(s) ? A::winograd : A::lanes;
  if (depthwise_applies(s)) return A::depthwise;
  if (turned_winograd_backward_data_wins(s)) return A::turned_winograd;
  const bool lanes = lanes_backward_data_wins(s);
  if (winograd_backward_data_wins(s) && !(lanes && has_few_channels(s))) return A::winograd;
  if (lanes) return A::lanes;
  return scatter_is_cheaper(s) ? A::col2im : A::implicit;
}

ConvAlgorithm backward_weight_by_model(const ConvShape& s) {
  if (lane_depthwise_applies(s)) return A::lane_depthwise;
  if (s.lanes) return winograd_backward_weight_wins(s) ? A::winograd : A::lanes;
  if (depthwise_applies(s)) return A::depthwise;
  if (turned_winograd_backward_weight_wins(s)) return A::turned_winograd;
  const bool lanes = lanes_backward_weight_wins(s);
  if (winograd_backward_weight_wins(s) && !(lanes && has_few_channels(s))) return A::winograd;
  return lanes ? A::lanes : A::implicit;
}

// --- by time --------------------------------------------------------------------------------------------------------

TuningKey key_of(ConvProduct product, const ConvShape& s) {
  return {product,
          {s.N, s.C, s.H, s.W, s.K, s.R, s.S, s.P, s.Q, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.pad_top,
           s.pad_left, s.groups, s.lanes}};
}

ConvShape shape_of(const TuningKey& key) {
  const auto& n = key.shape;
  return {n[0], n[1],  n[2],  n[3],  n[4],  n[5],  n[6],  n[7],      n[8],
          n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16] != 0};
}

class Trial : public TuningTrial {
 public:
  explicit Trial(const TuningKey& key)
      : product_(key.product),
        shape_(shape_of(key)),
        x_(numbers(shape_.N * shape_.C * shape_.H * shape_.W)),
        y_(numbers(shape_.N * shape_.K * shape_.P * shape_.Q)),
        weight_(numbers(shape_.K * (shape_.C / shape_.groups) * shape_.R * shape_.S)) {}

  void run(ConvAlgorithm algorithm) override {
    const ConvShape& s = shape_;
    float *x = x_.data(), *y = y_.data(), *weight = weight_.data();
    switch (product_) {
      case ConvProduct::forward: {
        const auto& method = method_of(forward_methods, algorithm);
        const std::size_t floats = method.packed(s);
        float* packed = floats > 0 ? at_least(floats, packed_) : weight;
        if (floats > 0) method.pack(s, weight, packed);
        return method.run(s, x, packed, nullptr, y, {}, at_least(method.workspace(s), workspace_));
      }
      case ConvProduct::backward_data: {
        const auto& method = method_of(backward_data_methods, algorithm);
        return method.run(s, y, weight, x, at_least(method.workspace(s), workspace_));
      }
      case ConvProduct::backward_weight: {
        const auto& method = method_of(backward_weight_methods, algorithm);
        return method.run(s, x, y, weight, false, at_least(method.workspace(s), workspace_));
      }
    }
  }

 private:
  // Neither zeros nor so small that products vanish.
  static std::vector<float> numbers(Index n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    std::uint32_t state = 1;
    for (float& v : values) v = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
    return values;
  }
  static float* at_least(std::size_t floats, std::vector<float>& memory) {
    if (floats > memory.size()) memory.resize(floats);
    return memory.data();
  }

  ConvProduct product_;
  ConvShape shape_;
  std::vector<float> x_, y_, weight_, packed_, workspace_;
};

std::unique_ptr<TuningTrial> make_trial(const TuningKey& key) { return std::make_unique<Trial>(key); }

// --- the choice -----------------------------------------------------------------------------------------------------

/// `planning`: for the first time, perhaps.
template <class M, std::size_t n>
const M& choose(ConvProduct product, const M (&methods)[n], ConvAlgorithm by_model, const ConvShape& s, bool planning) {
  if (s.N * s.P * s.Q == 0 || (!planning && !is_tuning_in_use())) return method_of(methods, by_model);
  const TuningKey key = key_of(product, s);
  if (!planning) return method_of(methods, decided(key, by_model));
  std::vector<ConvAlgorithm> candidates;
  for (const M& method : methods)
    if (method.applies(s)) candidates.push_back(method.algorithm);
  return method_of(methods, decide(key, by_model, candidates, make_trial));
}

const auto& forward_method(const ConvShape& s, bool planning = false) {
  return choose(ConvProduct::forward, forward_methods, forward_by_model(s), s, planning);
}
const auto& backward_data_method(const ConvShape& s, bool planning = false) {
  return choose(ConvProduct::backward_data, backward_data_methods, backward_data_by_model(s), s, planning);
}
const auto& backward_weight_method(const ConvShape& s, bool planning = false) {
  return choose(ConvProduct::backward_weight, backward_weight_methods, backward_weight_by_model(s), s, planning);
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

std::size_t conv_forward_workspace(const ConvShape& s) { return forward_method(s, true).workspace(s); }

std::size_t conv_backward_workspace(const ConvShape& s) {
  const std::size_t floats =
      std::max(backward_data_method(s, true).workspace(s), backward_weight_method(s, true).workspace(s));
  if (!s.lanes) return floats;
  const BiasTasks t(s);
  return std::max(floats, static_cast<std::size_t>(t.parts * t.columns));
}

std::size_t conv_packed(const ConvShape& s) { return forward_method(s, true).packed(s); }

void conv_pack(const ConvShape& s, const float* weight, float* packed) {
  const ForwardMethod& method = forward_method(s);
  if (method.packed(s) > 0) method.pack(s, weight, packed);
}

void conv_forward(const ConvShape& s, const float* x, const float* weight, const float* packed, const float* bias,
                  float* y, Activation activation, float* workspace) {
  const ForwardMethod& method = forward_method(s);
  method.run(s, x, method.packed(s) > 0 ? packed : weight, bias, y, activation, workspace);
}

void conv_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  backward_data_method(s).run(s, dy, weight, dx, workspace);
}

void conv_backward_weight(const ConvShape& s, const float* x, const float* dy, float* d_weight, float* d_bias,
                          bool accumulate, float* workspace) {
  const auto& method = backward_weight_method(s);
  // These have the errors at hand, packed.
  if (method.algorithm == ConvAlgorithm::lanes)
    return lanes_backward_weight_and_bias(s, x, dy, d_weight, d_bias, accumulate, workspace);
  if (method.algorithm == ConvAlgorithm::implicit)
    return implicit_backward_weight_and_bias(s, x, dy, d_weight, d_bias, accumulate, workspace);
  method.run(s, x, dy, d_weight, accumulate, workspace);
  if (d_bias == nullptr) return;
  if (s.lanes) return lanes_backward_bias(s, dy, d_bias, accumulate, workspace);
  backward_bias(s, dy, d_bias, accumulate);
}

}  // namespace deepnet
