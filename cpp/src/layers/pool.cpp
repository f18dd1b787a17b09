// MaxPool2d and AvgPool2d: (N, C, H, W) -> (N, C, P, Q), each plane by itself, with
//   P = floor((H + 2 padding - R) / stride) + 1, Q likewise.
// The max's backward reads the winners' positions from the cache, the average's only dE/dy: neither needs
// the input or the output to stay in memory.
#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
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

Pool2dShape plane_shape(const Pool2d& pool, const Shape& x, const Shape& y) {
  return {x[2],          x[3],          y[2],           y[3],          pool.kernel_size.h, pool.kernel_size.w,
          pool.stride.h, pool.stride.w, pool.padding.h, pool.padding.w};
}

// Calls fn with the first elements of x and y of every plane (n, c).
template <class Fn>
void for_planes(const Pool2dShape& shape, const Shape& x, Fn fn) {
  const Index x_size = shape.height * shape.width, y_size = shape.out_height * shape.out_width;
  parallel_for(x[0] * x[1], grain_for(static_cast<double>(x_size + y_size)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) fn(i * x_size, i * y_size);
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
  c.selects = true;
  c.inspectable = true;
  return c;
}

Memory MaxPool2d::memory(const std::vector<Shape>& inputs, bool) const {
  Memory m;
  m.cache = static_cast<std::size_t>(output_shape(inputs).size()) * sizeof(std::int32_t);
  return m;
}

void MaxPool2d::forward(const ForwardCall& call) const {
  const Shape& x_shape = call.inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.output->shape());
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  std::int32_t* position = static_cast<std::int32_t*>(call.cache);
  for_planes(shape, x_shape, [&](Index x_at, Index y_at) {
    kernels().max_pool(&shape, x + x_at, y + y_at, position ? position + y_at : nullptr);
  });
}

void MaxPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& x_shape = call.d_inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.d_output->shape());
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  const std::int32_t* position = static_cast<const std::int32_t*>(call.cache);
  for_planes(shape, x_shape, [&](Index x_at, Index y_at) {
    kernels().max_pool_backward(&shape, dy + y_at, position + y_at, dx + x_at);
  });
}

// --- AvgPool2d -------------------------------------------------------------------------------------------------

AvgPool2d::AvgPool2d(Size2 kernel, Size2 stride, Size2 padding) : Pool2d("AvgPool2d", kernel, stride, padding) {}

LayerPtr AvgPool2d::from_config(const Config& config) { return make_pool<AvgPool2d>("AvgPool2d", config); }

Contract AvgPool2d::contract() const {
  Contract c;
  c.backward_needs_input = false;
  return c;
}

void AvgPool2d::forward(const ForwardCall& call) const {
  const Shape& x_shape = call.inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.output->shape());
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  for_planes(shape, x_shape, [&](Index x_at, Index y_at) { kernels().avg_pool(&shape, x + x_at, y + y_at); });
}

void AvgPool2d::backward(const BackwardCall& call) {
  if (!call.d_inputs[0].defined()) return;
  const Shape& x_shape = call.d_inputs[0].shape();
  const Pool2dShape shape = plane_shape(*this, x_shape, call.d_output->shape());
  const float* dy = call.d_output->data();
  float* dx = call.d_inputs[0].data();
  for_planes(shape, x_shape,
             [&](Index x_at, Index y_at) { kernels().avg_pool_backward(&shape, dy + y_at, dx + x_at); });
}

}  // namespace deepnet
