// Softmax and its logarithm along one axis of any shape, seen as (outer, length, inner):
//   y_i = e^(x_i) / sum_j e^(x_j)           dE/dx_i = y_i (dE/dy_i - sum_j y_j dE/dy_j)
//   y_i = x_i - log sum_j e^(x_j)           dE/dx_i = dE/dy_i - e^(y_i) sum_j dE/dy_j
// y may be x, dE/dx may be dE/dy. Backward works from x.
#include <algorithm>

#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../ops/streaming.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

Contract softmax_contract() {
  Contract c;
  c.in_place = true;
  return c;
}

Shape softmax_shape(const Layer& layer, int axis, const std::vector<Shape>& inputs) {
  const Shape& x = one_input(layer, inputs);
  if (axis < -x.rank() || axis >= x.rank()) {
    throw ShapeError("[" + layer.kind() + "] expected input with an axis " + std::to_string(axis) + ", got " + x.str());
  }
  return x;
}

// Calls kernel(length, stride, count, offset) for rows that make up the array. Rows that touch in memory go one after
// the other (stride 1); others side by side, `tile` at a time.
template <class Kernel>
void for_rows(const Shape& shape, int axis, Kernel kernel) {
  constexpr Index tile = 256;
  constexpr double cost = 5.0;  // of an exponential, in moved elements
  if (axis < 0) axis += shape.rank();
  const Index outer = shape.size(0, axis), length = shape[axis], inner = shape.size(axis + 1, shape.rank());
  const double row_cost = cost * static_cast<double>(length);
  if (shape.size() == 0) return;
  if (inner == 1) {
    parallel_for(outer, grain_for(row_cost),
                 [&](Index begin, Index end) { kernel(length, Index{1}, end - begin, begin * length); });
    return;
  }
  const Index tiles = (inner + tile - 1) / tile;
  parallel_for(outer * tiles, grain_for(row_cost * static_cast<double>(std::min(tile, inner))),
               [&](Index begin, Index end) {
                 for (Index i = begin; i < end; ++i) {
                   const Index first = i % tiles * tile;
                   kernel(length, inner, std::min(tile, inner - first), i / tiles * length * inner + first);
                 }
               });
}

// fn(first element, rows, to) makes `count` rows of `out`, a few at a time.
template <class Fn>
void make_rows(bool streamed, Index length, Index count, float* out, Fn fn) {
  constexpr Index floats_at_once = 1024;  // more wait for each other on their way to memory
  const PieceWriter pieces(streamed);
  const Index at_once = streamed ? std::max<Index>(1, floats_at_once / length) : count;
  for (Index row = 0; row < count; row += at_once) {
    const Index first = row * length, rows = std::min(at_once, count - row);
    pieces.make(rows * length, out + first, [&](float* to) { fn(first, rows, to); });
  }
}

void softmax_forward(const ForwardCall& call, int axis, int logarithm) {
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  const bool streamed = x != y && is_streamed(call.output->size());
  for_rows(call.output->shape(), axis, [&](Index length, Index stride, Index count, Index at) {
    if (stride > 1) return kernels().softmax(length, stride, count, x + at, y + at, logarithm);
    make_rows(streamed, length, count, y + at, [&](Index first, Index rows, float* to) {
      kernels().softmax(length, 1, rows, x + at + first, to, logarithm);
    });
  });
}

void softmax_backward(const BackwardCall& call, int axis, int logarithm) {
  if (!call.d_inputs[0].defined()) return;
  const float *x = call.inputs[0].data(), *dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  const bool streamed = dx != dy && is_streamed(call.d_output->size());
  for_rows(call.d_output->shape(), axis, [&](Index length, Index stride, Index count, Index at) {
    if (stride > 1) return kernels().softmax_backward(length, stride, count, x + at, dy + at, dx + at, logarithm);
    make_rows(streamed, length, count, dx + at, [&](Index first, Index rows, float* to) {
      kernels().softmax_backward(length, 1, rows, x + at + first, dy + at + first, to, logarithm);
    });
  });
}

int axis_of(const Config& config, const char* kind) {
  const Index axis = config_int(config, kind, "axis");
  if (axis < -Shape::max_rank || axis >= Shape::max_rank) {
    throw ValueError("[" + std::string(kind) + "] expected an axis of at most " + std::to_string(Shape::max_rank) +
                     ", got " + std::to_string(axis));
  }
  return static_cast<int>(axis);
}

}  // namespace

LayerPtr Softmax::from_config(const Config& config) { return std::make_shared<Softmax>(axis_of(config, "Softmax")); }
Config Softmax::config() const { return {{"axis", Index{axis}}}; }
Contract Softmax::contract() const { return softmax_contract(); }
Shape Softmax::output_shape(const std::vector<Shape>& inputs) const { return softmax_shape(*this, axis, inputs); }
void Softmax::forward(const ForwardCall& call) const { softmax_forward(call, axis, 0); }
void Softmax::backward(const BackwardCall& call) { softmax_backward(call, axis, 0); }

LayerPtr LogSoftmax::from_config(const Config& config) {
  return std::make_shared<LogSoftmax>(axis_of(config, "LogSoftmax"));
}
Config LogSoftmax::config() const { return {{"axis", Index{axis}}}; }
Contract LogSoftmax::contract() const { return softmax_contract(); }
Shape LogSoftmax::output_shape(const std::vector<Shape>& inputs) const { return softmax_shape(*this, axis, inputs); }
void LogSoftmax::forward(const ForwardCall& call) const { softmax_forward(call, axis, 1); }
void LogSoftmax::backward(const BackwardCall& call) { softmax_backward(call, axis, 1); }

}  // namespace deepnet
