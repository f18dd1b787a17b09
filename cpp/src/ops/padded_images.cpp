#include "padded_images.hpp"

#include <algorithm>
#include <numeric>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "blocking.hpp"

namespace deepnet {

PaddedImages::Axis PaddedImages::input_axis(Index length, Index outputs, Index taps, Index step, Index dilation,
                                            Index pad) {
  const Index phases = std::min(taps, step / std::gcd(step, dilation));
  return {length, step, dilation, phases, pad, outputs + (taps - 1) * dilation / step};
}

// Cell a + step i of x, with a < step, is read by output i + (a + pad - tap dilation) / step, where that is whole.
PaddedImages::Axis PaddedImages::errors_axis(Index length, Index outputs, Index taps, Index step, Index dilation,
                                             Index pad) {
  Index before = 0, end = 0;
  for (Index a = 0; a < std::min(step, length); ++a) {
    for (Index t = 0; t < taps; ++t) {
      const Index cell = a + pad - t * dilation, cells = ceil_div(length - a, step);
      if (cell % step != 0) continue;
      before = std::max(before, -cell / step);
      end = std::max(end, cells + cell / step);
    }
  }
  return {outputs, 1, 1, 1, before, before + end};
}

PaddedImages PaddedImages::of_input(const ConvShape& s) {
  return {s.C, input_axis(s.H, s.P, s.R, s.stride_h, s.dilation_h, s.pad_top),
          input_axis(s.W, s.Q, s.S, s.stride_w, s.dilation_w, s.pad_left), s.R * s.S > 1};
}

PaddedImages PaddedImages::of_errors(const ConvShape& s) {
  return {s.K, errors_axis(s.H, s.P, s.R, s.stride_h, s.dilation_h, s.pad_top),
          errors_axis(s.W, s.Q, s.S, s.stride_w, s.dilation_w, s.pad_left), s.R * s.S > 1};
}

PaddedImages::PaddedImages(Index channels, Axis h, Axis w, bool several_taps) : channels_(channels), h_(h), w_(w) {
  // Channels that share sets of the first-level cache would lose their cells before the next tap reads them.
  constexpr Index line = 16, clashing_plane = 256;
  const bool clashes = several_taps && h.length * w.length % clashing_plane == 0;
  copied_ = clashes || !h.as_it_lies() || !w.as_it_lies();
  channel_stride_ = copied_ ? (ceil_div(planes() * plane(), line) | 1) * line : h.length * w.length;
}

Index PaddedImages::tap(Index r, Index c) const {
  const Index phase = r % h_.phases * w_.phases + c % w_.phases;
  return phase * plane() + r * h_.dilation / h_.step * width() + c * w_.dilation / w_.step;
}

const float* PaddedImages::make(Index images, const float* from, float* memory) const {
  if (!copied_) return from;
  parallel_for(images * channels_, grain_for(static_cast<double>(channel_stride_) / 4), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      float* to = memory + i * channel_stride_;
      for (Index a = 0; a < h_.phases; ++a) {
        for (Index b = 0; b < w_.phases; ++b, to += plane()) {
          const PhaseCopy phase = {from + i * h_.length * w_.length,
                                   h_.length,
                                   w_.length,
                                   a * h_.dilation % h_.step - h_.before,
                                   b * w_.dilation % w_.step - w_.before,
                                   h_.step,
                                   w_.step,
                                   h_.cells,
                                   w_.cells};
          kernels().copy_phase(&phase, to);
        }
      }
    }
  });
  return memory;
}

}  // namespace deepnet
