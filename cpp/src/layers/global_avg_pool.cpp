// y[n,c] = sum over h and w of x[n,c,h,w] / (H W):  (N, C, H, W) -> (N, C).
//   dE/dx[n,c,h,w] = dE/dy[n,c] / (H W)
#include <deepnet/layers.hpp>

#include "../dispatch.hpp"
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

}  // namespace

LayerPtr GlobalAvgPool2d::from_config(const Config&) { return std::make_shared<GlobalAvgPool2d>(); }

Contract GlobalAvgPool2d::contract() const {
  Contract c;
  c.backward_needs_input = false;
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
  const Index cells = shape.size(2, 4);
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  parallel_for(shape.size(0, 2), grain_for(static_cast<double>(cells)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      y[i] = static_cast<float>(plane_sum(x + i * cells, cells) / static_cast<double>(cells));
    }
  });
}

void GlobalAvgPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& shape = call.d_inputs[0].shape();
  const Index cells = shape.size(2, 4);
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  parallel_for(shape.size(0, 2), grain_for(static_cast<double>(cells)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) std::fill_n(dx + i * cells, cells, dy[i] / static_cast<float>(cells));
  });
}

}  // namespace deepnet
