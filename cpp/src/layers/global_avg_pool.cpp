// y[n,c] = sum over h and w of x[n,c,h,w] / (H W):  (N, C, H, W) -> (N, C).
//   dE/dx[n,c,h,w] = dE/dy[n,c] / (H W)
#include <deepnet/layers.hpp>

#include <algorithm>
#include <cstring>

#include "../dispatch.hpp"
#include "../ops/layout.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

// Short runs are added in float, the runs in double: as exact for 224 x 224 cells as for 7 x 7.
double plane_sum(const float* x, Index cells) {
  constexpr Index run = 512;
  double sum = 0.0;
  for (Index begin = 0; begin < cells; begin += run) {
    sum += kernels().sum(std::min(run, cells - begin), x + begin);
  }
  return sum;
}

// Of images in lanes, (groups, H, W, C, lanes): calls fn with neighbouring channels of a group of images.
struct LaneBlock {
  static constexpr Index most_floats = 256;

  Index first_image, images;  // those that there are
  Index first_channel, channels;
  Index floats;  // of all lanes of these channels
  Index at;      // of the first of them, in the first cell
};
template <class Fn>
void for_lane_blocks(const Shape& x, Index images, Fn fn) {
  const Index channels = x[3], at_once = LaneBlock::most_floats / x[4], blocks = ceil_div(channels, at_once);
  const double work = static_cast<double>(x[1] * x[2] * LaneBlock::most_floats);
  parallel_for(x[0] * blocks, grain_for(work), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const Index group = i / blocks, first = i % blocks * at_once;
      const Index here = std::min(at_once, channels - first), n = group * x[4];
      fn(LaneBlock{n, std::min(x[4], images - n), first, here, here * x[4], group * x.size(1, 5) + first * x[4]});
    }
  });
}

void forward_in_lanes(const Shape& x_shape, const float* x, const Shape& y_shape, float* y) {
  const Index cells = x_shape.size(1, 3), cell = x_shape.size(3, 5), lanes = x_shape[4], channels = y_shape[1];
  for_lane_blocks(x_shape, y_shape[0], [&](const LaneBlock& block) {
    float means[LaneBlock::most_floats];
    kernels().sum_rows(cells, block.floats, x + block.at, cell, means, 0);
    for (Index i = 0; i < block.floats; ++i) means[i] /= static_cast<float>(cells);
    kernels().transpose(means, lanes, block.channels, block.images,
                        y + block.first_image * channels + block.first_channel, channels, 0);
  });
}

void backward_in_lanes(const Shape& dy_shape, const float* dy, const Shape& dx_shape, float* dx) {
  const Index cells = dx_shape.size(1, 3), cell = dx_shape.size(3, 5), lanes = dx_shape[4], channels = dy_shape[1];
  for_lane_blocks(dx_shape, dy_shape[0], [&](const LaneBlock& block) {
    float shares[LaneBlock::most_floats] = {};
    kernels().transpose(dy + block.first_image * channels + block.first_channel, channels, block.images, block.channels,
                        shares, lanes, 0);
    for (Index i = 0; i < block.floats; ++i) shares[i] /= static_cast<float>(cells);
    for (Index i = 0; i < cells; ++i)
      std::memcpy(dx + block.at + i * cell, shares, static_cast<std::size_t>(block.floats) * sizeof(float));
  });
}

}  // namespace

LayerPtr GlobalAvgPool2d::from_config(const Config&) { return std::make_shared<GlobalAvgPool2d>(); }

Contract GlobalAvgPool2d::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.lanes = Contract::Lanes::follows;
  c.row_by_row = true;
  return c;
}

Shape GlobalAvgPool2d::output_shape(const std::vector<Shape>& inputs) const {
  const Shape& x = image_input(*this, inputs);
  if (x[2] < 1 || x[3] < 1) {
    throw ShapeError("[GlobalAvgPool2d] expected images of 1 or more cells, got " + x.str());
  }
  return {x[0], x[1]};
}

void GlobalAvgPool2d::forward(const ForwardCall& call) const {
  const Shape& shape = call.inputs[0].shape();
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  if (is_in_lanes(shape)) return forward_in_lanes(shape, x, call.output->shape(), y);
  const Index cells = shape.size(2, 4);
  parallel_for(shape.size(0, 2), grain_for(static_cast<double>(cells)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      y[i] = static_cast<float>(plane_sum(x + i * cells, cells) / static_cast<double>(cells));
    }
  });
}

void GlobalAvgPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& shape = call.d_inputs[0].shape();
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  if (is_in_lanes(shape)) return backward_in_lanes(call.d_output->shape(), dy, shape, dx);
  const Index cells = shape.size(2, 4);
  parallel_for(shape.size(0, 2), grain_for(static_cast<double>(cells)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::fill_n(dx + i * cells, cells, dy[i] / static_cast<float>(cells));
  });
}

}  // namespace deepnet
