// Images as a convolution of stride 1 that has all of its taps inside wants them, so that packing its columns is
// copying and nothing else (kernels/conv.inl): with zeros around, and with a stride's phases apart, those of the cells
// h = a, a + stride, a + 2 stride, ... for each a that a tap begins at. A tap of any convolution then is one offset.
//
// Packing straight from x, with masks and by strides, was slower (AVX2, whole layers): 7x7/2 and 5x5 of 3 channels by a
// fifth, 3x3/2 of 64 channels not at all, because there the copy costs what packing saves.
#pragma once

#include <deepnet/tensor.hpp>

#include "../kernels/kernels.hpp"
#include "convolution.hpp"

namespace deepnet {

class PaddedImages {
 public:
  /// x, as forward and dE/dW read it.
  static PaddedImages of_input(const ConvShape& shape);
  /// dy, as all phases of dE/dx read it.
  static PaddedImages of_errors(const ConvShape& shape);

  /// Of one image; 0 where images serve as they lie.
  std::size_t floats() const { return copied_ ? static_cast<std::size_t>(image_stride()) : 0; }
  /// Copies images to memory of floats() each, unless they serve as they lie; returns where they are.
  const float* make(Index images, const float* from, float* memory) const;

  Index image_stride() const { return channels_ * channel_stride_; }
  Index channel_stride() const { return channel_stride_; }
  Index width() const { return copied_ ? w_.cells : w_.length; }
  /// From an output's place to the cell that tap (r, c) of forward reads.
  Index tap(Index r, Index c) const;
  /// From an output's place to the cell of dy that lies (h, w) from it.
  Index cell(Index h, Index w) const { return (h + h_.before) * width() + w + w_.before; }

 private:
  struct Axis {
    Index length;                  // of the images
    Index step, dilation, phases;  // phase i begins at cell i * dilation % step, less `before`
    Index before;                  // zeros in front
    Index cells;                   // of a phase

    bool as_it_lies() const { return step == 1 && before == 0 && cells <= length; }
  };
  static Axis input_axis(Index length, Index outputs, Index taps, Index step, Index dilation, Index pad);
  static Axis errors_axis(Index length, Index outputs, Index taps, Index step, Index dilation, Index pad);

  PaddedImages(Index channels, Axis h, Axis w, bool several_taps);
  Index planes() const { return h_.phases * w_.phases; }
  Index plane() const { return h_.cells * w_.cells; }

  Index channels_, channel_stride_;
  Axis h_, w_;
  bool copied_;
};

}  // namespace deepnet
