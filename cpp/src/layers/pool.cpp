// MaxPool2d and AvgPool2d: (N, C, H, W) -> (N, C, P, Q), each plane by itself, with
//   P = floor((H + 2 padding - R) / stride) + 1, Q likewise.
// The max's backward reads the winners' positions from the cache, the average's only dE/dy: neither needs
// the input or the output to stay in memory.
#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../ops/layout.hpp"
#include "../ops/streaming.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

std::string pair_text(Size2 size) { return "(" + std::to_string(size.h) + ", " + std::to_string(size.w) + ")"; }

void check(bool ok, const char* kind, const std::string& expected, Size2 got) {
  if (!ok) throw ValueError("[" + std::string(kind) + "] expected " + expected + ", got " + pair_text(got));
}

Size2 checked_kernel(const char* kind, Size2 kernel) {
  check(in_range(kernel, 1), kind, range_text("kernel_size", 1), kernel);
  return kernel;
}

Size2 checked_stride(const char* kind, Size2 stride, Size2 kernel) {
  if (stride.h == 0 && stride.w == 0) return kernel;
  check(in_range(stride, 1), kind, range_text("stride", 1), stride);
  return stride;
}

// With more padding than half a window, some windows would hold nothing but padding.
Size2 checked_padding(const char* kind, Size2 padding, Size2 kernel) {
  const bool fits = padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2;
  const std::string expected = "0 <= padding <= kernel_size / 2 for kernel_size " + pair_text(kernel);
  check(in_range(padding, 0) && fits, kind, expected, padding);
  return padding;
}

Size2 config_pair(const Config& config, const char* kind, const char* name) {
  const std::vector<Index> sizes = config_ints(config, kind, name);
  if (sizes.size() != 2) {
    throw ValueError("[" + std::string(kind) + "] expected " + name + " to be a pair, got " +
                     std::to_string(sizes.size()) + " numbers");
  }
  return {sizes[0], sizes[1]};
}

template <class Pool>
LayerPtr make_pool(const char* kind, const Config& config) {
  const Size2 stride = config_pair(config, kind, "stride");
  check(in_range(stride, 1), kind, range_text("stride", 1), stride);
  return std::make_shared<Pool>(config_pair(config, kind, "kernel_size"), stride, config_pair(config, kind, "padding"));
}

Pool2dShape plane_shape(const Pool2d& pool, const Shape& x_shape, const Shape& y_shape) {
  const Shape x = image_shape(x_shape), y = image_shape(y_shape);
  return {x[2],          x[3],          y[2],           y[3],          pool.kernel_size.h, pool.kernel_size.w,
          pool.stride.h, pool.stride.w, pool.padding.h, pool.padding.w};
}

// Of images in lanes: calls fn(p, x's first element, y's) for every row p of windows of every group of images.
template <class Fn>
void for_lane_rows(const Pool2dShape& shape, const Shape& x, Fn fn) {
  const Index row = shape.width * x[3] * x[4], x_size = shape.height * row;
  const Index y_size = shape.out_height * shape.out_width * x[3] * x[4], rows = shape.out_height;
  parallel_for(x[0] * rows, grain_for(static_cast<double>(shape.stride_h * row)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) fn(i % rows, i / rows * x_size, i / rows * y_size);
  });
}

// The same for backward, which adds up in the cells of overlapping windows, and sets those that none covers to 0.
template <class Fn>
void for_lane_rows_backward(const Pool2dShape& shape, Tensor& dx, Fn fn) {
  const Shape& x = dx.shape();
  const bool overlap = shape.stride_h < shape.kernel_h || shape.stride_w < shape.kernel_w;
  const bool covered = shape.stride_h == shape.kernel_h && shape.stride_w == shape.kernel_w &&
                       shape.out_height * shape.stride_h >= shape.height + shape.pad_h &&
                       shape.out_width * shape.stride_w >= shape.width + shape.pad_w;
  const Index group = x.size(1, 5);
  const auto clear = [&](Index at, Index floats) { std::fill_n(dx.data() + at, floats, 0.0f); };
  if (!overlap) {
    if (!covered) parallel_for(dx.size(), grain_for(0.5, 64), [&](Index a, Index b) { clear(a, b - a); });
    return for_lane_rows(shape, x, fn);
  }
  const Index y_size = shape.out_height * shape.out_width * x[3] * x[4];
  parallel_for(x[0], grain_for(static_cast<double>(2 * group)), [&](Index begin, Index end) {
    for (Index g = begin; g < end; ++g) {
      clear(g * group, group);
      for (Index p = 0; p < shape.out_height; ++p) fn(p, g * group, g * y_size);
    }
  });
}

// Whether planes that follow each other are one tall plane, no window reaching over from one into the next.
bool are_stackable(const Pool2dShape& shape) {
  return shape.pad_h == 0 && shape.out_height * shape.stride_h == shape.height;
}

// Calls fn(planes, x's first element, y's) for all planes (n, c); `planes` is the shape of one, or of several that are
// stacked, and spare each the beginning and the end of a short loop.
template <class Fn>
void for_planes(const Pool2dShape& shape, const Shape& x, bool stacked, Fn fn) {
  const Index x_size = shape.height * shape.width, y_size = shape.out_height * shape.out_width;
  parallel_for(x[0] * x[1], grain_for(static_cast<double>(x_size + y_size)), [&](Index begin, Index end) {
    Pool2dShape planes = shape;
    const Index count = stacked ? end - begin : 1;
    planes.height *= count;
    planes.out_height *= count;
    for (Index i = begin; i < end; i += count) fn(planes, i * x_size, i * y_size);
  });
}

// fn(first element of y, plane) makes every plane of dx.
template <class Fn>
void make_planes(const Pool2dShape& shape, const Shape& x, float* dx, Fn fn) {
  const Index x_size = shape.height * shape.width, y_size = shape.out_height * shape.out_width;
  const bool streamed = is_streamed(x.size());
  parallel_for(x[0] * x[1], grain_for(static_cast<double>(x_size + y_size)), [&](Index begin, Index end) {
    const PieceWriter planes(streamed);
    for (Index i = begin; i < end; ++i)
      planes.make(x_size, dx + i * x_size, [&](float* plane) { fn(i * y_size, plane); });
  });
}

}  // namespace

// --- Pool2d ----------------------------------------------------------------------------------------------------

Pool2d::Pool2d(const char* kind, Size2 kernel, Size2 stride, Size2 padding)
    : kernel_size(checked_kernel(kind, kernel)),
      stride(checked_stride(kind, stride, kernel)),
      padding(checked_padding(kind, padding, kernel)) {}

Config Pool2d::config() const {
  const auto pair = [](Size2 size) { return std::vector<Index>{size.h, size.w}; };
  return {{"kernel_size", pair(kernel_size)}, {"stride", pair(stride)}, {"padding", pair(padding)}};
}

Shape Pool2d::output_shape(const std::vector<Shape>& inputs) const {
  const Shape& x = image_input(*this, inputs);
  // A plane's positions are kept as int32.
  constexpr Index most = std::numeric_limits<std::int32_t>::max() / 2;
  if (x[2] < 1 || x[3] < 1 || x[2] > most || x[3] > most || x.size(2, 4) > most) {
    throw ShapeError("[" + kind() + "] expected images of 1 to " + std::to_string(most) + " cells, got " + x.str());
  }
  const Size2 padded(x[2] + 2 * padding.h, x[3] + 2 * padding.w);
  if (padded.h < kernel_size.h || padded.w < kernel_size.w) {
    throw ShapeError("[" + kind() + "] expected a padded input of at least kernel_size " + pair_text(kernel_size) +
                     ", got " + pair_text(padded) + " from input " + x.str());
  }
  const Shape y = {x[0], x[1], (padded.h - kernel_size.h) / stride.h + 1, (padded.w - kernel_size.w) / stride.w + 1};
  y.size();  // throws where it overflows
  return y;
}

// --- MaxPool2d -------------------------------------------------------------------------------------------------

MaxPool2d::MaxPool2d(Size2 kernel, Size2 stride, Size2 padding) : Pool2d("MaxPool2d", kernel, stride, padding) {}

LayerPtr MaxPool2d::from_config(const Config& config) { return make_pool<MaxPool2d>("MaxPool2d", config); }

Contract MaxPool2d::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.lanes = Contract::Lanes::follows;
  c.selects = true;
  c.inspectable = true;
  c.row_by_row = true;
  return c;
}

Memory MaxPool2d::memory(const std::vector<Shape>& inputs, bool) const {
  Memory m;
  m.cache = static_cast<std::size_t>(output_shape({image_shape(inputs[0])}).size()) * sizeof(std::int32_t);
  return m;
}

void MaxPool2d::forward(const ForwardCall& call) const {
  const Shape& x_shape = call.inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.output->shape());
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  std::int32_t* position = static_cast<std::int32_t*>(call.cache);
  if (is_in_lanes(x_shape)) {
    return for_lane_rows(shape, x_shape, [&](Index p, Index x_at, Index y_at) {
      kernels().lane_max_pool(&shape, x_shape[3], p, x + x_at, y + y_at, position ? position + y_at : nullptr);
    });
  }
  const bool stacked = are_stackable(shape) && !position;  // positions are those in a plane
  for_planes(shape, x_shape, stacked, [&](const Pool2dShape& planes, Index x_at, Index y_at) {
    kernels().max_pool(&planes, x + x_at, y + y_at, position ? position + y_at : nullptr);
  });
}

void MaxPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& x_shape = call.d_inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.d_output->shape());
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  const std::int32_t* position = static_cast<const std::int32_t*>(call.cache);
  if (is_in_lanes(x_shape)) {
    return for_lane_rows_backward(shape, call.d_inputs[0], [&](Index p, Index x_at, Index y_at) {
      kernels().lane_max_pool_backward(&shape, x_shape[3], p, dy + y_at, position + y_at, dx + x_at);
    });
  }
  make_planes(shape, x_shape, dx, [&](Index y_at, float* plane) {
    kernels().max_pool_backward(&shape, dy + y_at, position + y_at, plane);
  });
}

// --- AvgPool2d -------------------------------------------------------------------------------------------------

AvgPool2d::AvgPool2d(Size2 kernel, Size2 stride, Size2 padding) : Pool2d("AvgPool2d", kernel, stride, padding) {}

LayerPtr AvgPool2d::from_config(const Config& config) { return make_pool<AvgPool2d>("AvgPool2d", config); }

Contract AvgPool2d::contract() const {
  Contract c;
  c.backward_needs_input = false;
  c.lanes = Contract::Lanes::follows;
  c.row_by_row = true;
  return c;
}

void AvgPool2d::forward(const ForwardCall& call) const {
  const Shape& x_shape = call.inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.output->shape());
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  if (is_in_lanes(x_shape)) {
    return for_lane_rows(shape, x_shape, [&](Index p, Index x_at, Index y_at) {
      kernels().lane_avg_pool(&shape, x_shape[3], p, x + x_at, y + y_at);
    });
  }
  for_planes(shape, x_shape, are_stackable(shape), [&](const Pool2dShape& planes, Index x_at, Index y_at) {
    kernels().avg_pool(&planes, x + x_at, y + y_at);
  });
}

void AvgPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& x_shape = call.d_inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.d_output->shape());
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  if (is_in_lanes(x_shape)) {
    return for_lane_rows_backward(shape, call.d_inputs[0], [&](Index p, Index x_at, Index y_at) {
      kernels().lane_avg_pool_backward(&shape, x_shape[3], p, dy + y_at, dx + x_at);
    });
  }
  make_planes(shape, x_shape, dx,
              [&](Index y_at, float* plane) { kernels().avg_pool_backward(&shape, dy + y_at, plane); });
}

}  // namespace deepnet
