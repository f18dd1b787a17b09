#include "turned_winograd.hpp"

#include <algorithm>

#include "layout.hpp"
#include "winograd.hpp"

namespace deepnet {
namespace {

ConvShape in_lanes(const ConvShape& s) {
  ConvShape turned = s;
  turned.N = round_up(s.N, lanes());
  turned.lanes = true;
  return turned;
}

Shape inputs_of(const ConvShape& s) { return {s.N, s.C, s.H, s.W}; }
Shape outputs_of(const ConvShape& s) { return {s.N, s.K, s.P, s.Q}; }

Index input_floats(const ConvShape& s) { return inputs_of(in_lanes(s)).size(); }
Index output_floats(const ConvShape& s) { return outputs_of(in_lanes(s)).size(); }

// Some groups of images at a time, so that those in lanes take 64 MB at most. Fewer, which the caches would hold, are
// no faster, and slower for dE/dW, whose sums are finished for each block.
ConvShape images_at_once(ConvShape s) {
  constexpr Index most_floats = 1 << 24;
  const Index group = lanes() * (s.C * s.H * s.W + s.K * s.P * s.Q);
  s.N = std::min(s.N, std::max<Index>(1, most_floats / group) * lanes());
  return s;
}

// run(their shape, the first input, the first output) for some images at a time.
template <class Input, class Output, class Run>
void for_images(const ConvShape& s, Input* input, Output* output, Run run) {
  for_image_blocks(s, images_at_once(s).N, [&](const ConvShape& some, Index first) {
    run(some, input + first * s.C * s.H * s.W, output + first * s.K * s.P * s.Q);
  });
}

std::size_t images_floats(const ConvShape& s) { return static_cast<std::size_t>(input_floats(s) + output_floats(s)); }

// 2 x 2 tiles cost 4 multiplications a cell, input and output channel, 4 x 4 tiles 2.25 where they do not overhang, at
// four fifths of the speed; turning moves a cell of every channel. By what was measured on two cores with AVX-512:
// where it pays, with 192 to 512 channels and 4 to 8 pixels a side, dE/dW takes 4 to 40 % less time; forward and dE/dx
// would gain nothing. Where turning is cheap, it pays unless kernels are too few, least_kernels, or read for too few
// pixels: on two cores with AVX2 forward takes 10 to 34 % less time, backward 13 to 32 %.
bool pays(const ConvShape& s, Index least_kernels) {
  constexpr Index most_floats = 1 << 21;  // beyond, images and weights come from memory
  const Index most_channels = turning_is_cheap() ? 256 : 512;
  constexpr double multiplications_a_move = 64, speed = 0.8;
  if (s.R != 3 || s.lanes || s.groups != 1 || !fills_lanes(s.N) || std::max(s.C, s.K) > most_channels) return false;
  if (turning_is_cheap()) {
    constexpr Index least_channels = 16, kernels_a_pixel = 32;
    return std::min(s.C, s.K) >= least_channels && s.C * s.K >= least_kernels &&
           s.C * s.K <= kernels_a_pixel * s.N * s.P * s.Q;
  }
  const auto multiplications = [&](Index tile) {
    return static_cast<double>(ceil_div(s.P, tile) * ceil_div(s.Q, tile) * (tile + 2) * (tile + 2) * s.C * s.K);
  };
  const double moves = static_cast<double>(s.P * s.Q * (s.C + s.K));
  return std::max(input_floats(s), output_floats(s)) <= most_floats &&
         multiplications(2) - multiplications(4) / speed > multiplications_a_move * moves;
}

}  // namespace

bool turned_winograd_applies(const ConvShape& s) {
  return !s.lanes && s.groups == 1 && fills_lanes(s.N) && winograd_applies(s);
}
bool turned_winograd_backward_data_applies(const ConvShape& s) {
  return turned_winograd_applies(s) && winograd_backward_data_applies(s);
}

bool turned_winograd_forward_wins(const ConvShape& s) {
  return turning_is_cheap() && pays(s, 512) && winograd_forward_wins(in_lanes(s));
}
bool turned_winograd_backward_data_wins(const ConvShape& s) {
  return turning_is_cheap() && pays(s, 512) && winograd_backward_data_wins(in_lanes(s));
}
bool turned_winograd_backward_weight_wins(const ConvShape& s) {
  return pays(s, 2048) && winograd_backward_weight_wins(in_lanes(s));
}

std::size_t turned_winograd_packed(const ConvShape& s) { return winograd_packed(in_lanes(s)); }

std::size_t turned_winograd_forward_workspace(const ConvShape& s) { return images_floats(images_at_once(s)); }
std::size_t turned_winograd_backward_data_workspace(const ConvShape& shape) {
  const ConvShape s = images_at_once(shape);
  return images_floats(s) + winograd_backward_data_workspace(in_lanes(s));
}
std::size_t turned_winograd_backward_weight_workspace(const ConvShape& shape) {
  const ConvShape s = images_at_once(shape);
  ConvShape last = s;
  last.N = shape.N - (ceil_div(shape.N, s.N) - 1) * s.N;
  const auto sums = [](const ConvShape& some) { return winograd_backward_weight_workspace(in_lanes(some)); };
  return images_floats(s) + std::max(sums(s), sums(last));  // fewer images may be dealt out in more shares
}

void turned_winograd_pack(const ConvShape& s, const float* weight, float* packed) {
  winograd_pack(in_lanes(s), weight, packed);
}

void turned_winograd_forward(const ConvShape& shape, const float* x, const float* packed, const float* bias, float* y,
                             Activation activation, float* workspace) {
  for_images(shape, x, y, [&](const ConvShape& s, const float* input, float* output) {
    float *in = workspace, *out = in + input_floats(s);
    to_lanes(inputs_of(s), input, EmptyLanes::last_image, in);
    winograd_forward(in_lanes(s), in, packed, bias, out, activation, nullptr);
    from_lanes(outputs_of(s), out, output);
  });
}

void turned_winograd_backward_data(const ConvShape& shape, const float* dy, const float* weight, float* dx,
                                   float* workspace) {
  for_images(shape, dx, dy, [&](const ConvShape& s, float* d_input, const float* d_output) {
    float *in = workspace, *out = in + output_floats(s), *rest = out + input_floats(s);
    to_lanes(outputs_of(s), d_output, EmptyLanes::zero, in);
    winograd_backward_data(in_lanes(s), in, weight, out, rest);
    from_lanes(inputs_of(s), out, d_input);
  });
}

void turned_winograd_backward_weight(const ConvShape& shape, const float* x, const float* dy, float* d_weight,
                                     bool accumulate, float* workspace) {
  for_images(shape, x, dy, [&](const ConvShape& s, const float* input, const float* d_output) {
    float *cells = workspace, *errors = cells + input_floats(s), *rest = errors + output_floats(s);
    to_lanes(inputs_of(s), input, EmptyLanes::last_image, cells);
    to_lanes(outputs_of(s), d_output, EmptyLanes::zero, errors);
    winograd_backward_weight(in_lanes(s), cells, errors, d_weight, accumulate || input != x, rest);
  });
}

}  // namespace deepnet
