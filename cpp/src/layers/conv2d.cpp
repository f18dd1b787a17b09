// y[n,k,p,q] = b[k] + sum_{c,r,s} W[k,c,r,s] x[n, c, p stride + r dilation - pad, q stride + s dilation - pad]
// over each group's C/groups channels and K/groups filters. The products are in ops/convolution.cpp.
#include <limits>

#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../ops/convolution.hpp"
#include "../ops/lane_depthwise.hpp"
#include "../ops/lanes.hpp"
#include "../ops/layout.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

std::string pair_text(Size2 size) { return "(" + std::to_string(size.h) + ", " + std::to_string(size.w) + ")"; }

void check(bool ok, const std::string& expected, const std::string& got) {
  if (!ok) throw ValueError("[Conv2d] expected " + expected + ", got " + got);
}

Conv2dOptions checked(Index in, Index out, Size2 kernel, Conv2dOptions o) {
  const auto check_size = [](const char* name, Size2 size, Index least) {
    check(in_range(size, least), range_text(name, least), pair_text(size));
  };
  check(in >= 1 && out >= 1, "in_channels and out_channels >= 1", std::to_string(in) + " and " + std::to_string(out));
  check_size("kernel_size", kernel, 1);
  check_size("stride", o.stride, 1);
  check_size("dilation", o.dilation, 1);
  check_size("padding", o.padding, 0);
  check(o.groups >= 1, "groups >= 1", std::to_string(o.groups));
  check(in % o.groups == 0 && out % o.groups == 0, "groups to divide in_channels and out_channels",
        std::to_string(o.groups) + " groups for " + std::to_string(in) + " and " + std::to_string(out));
  check(o.padding_mode.empty() || o.padding_mode == "same" || o.padding_mode == "valid",
        "padding to be a number, a pair, \"same\" or \"valid\"", "\"" + o.padding_mode + "\"");
  check(o.padding_mode != "same" || (o.stride.h == 1 && o.stride.w == 1), "stride 1 with padding \"same\"",
        pair_text(o.stride));
  if (!o.padding_mode.empty()) o.padding = 0;
  return o;
}

Shape weight_shape(Index in, Index out, Size2 kernel, const Conv2dOptions& o) {
  return addressable("Conv2d", {out, in / o.groups, kernel.h, kernel.w});
}

Index receptive(Index kernel, Index dilation) { return dilation * (kernel - 1) + 1; }

}  // namespace

Conv2d::Conv2d(Index in, Index out, Size2 kernel, Conv2dOptions o)
    : in_channels(in),
      out_channels(out),
      kernel_size(kernel),
      options(checked(in, out, kernel, std::move(o))),
      weight(
          default_parameter(weight_shape(in, out, kernel, options), weight_shape(in, out, kernel, options).size(1, 4))),
      bias(options.bias ? default_parameter({out}, weight->data.shape().size(1, 4)) : nullptr) {}

LayerPtr Conv2d::from_config(const Config& config) {
  const auto pair = [&](const char* name) {
    const std::vector<Index> v = config_ints(config, "Conv2d", name);
    check(v.size() == 2, std::string(name) + " to be a pair", std::to_string(v.size()) + " numbers");
    return Size2(v[0], v[1]);
  };
  Conv2dOptions o;
  o.stride = pair("stride");
  o.padding = pair("padding");
  o.dilation = pair("dilation");
  o.groups = config_int(config, "Conv2d", "groups");
  o.bias = config_bool(config, "Conv2d", "bias");
  o.padding_mode = config_string(config, "Conv2d", "padding_mode");
  return std::make_shared<Conv2d>(config_int(config, "Conv2d", "in_channels"),
                                  config_int(config, "Conv2d", "out_channels"), pair("kernel_size"), o);
}

Config Conv2d::config() const {
  const auto pair = [](Size2 s) { return std::vector<Index>{s.h, s.w}; };
  return {{"in_channels", in_channels},     {"out_channels", out_channels},     {"kernel_size", pair(kernel_size)},
          {"stride", pair(options.stride)}, {"padding", pair(options.padding)}, {"dilation", pair(options.dilation)},
          {"groups", options.groups},       {"bias", bias != nullptr},          {"padding_mode", options.padding_mode}};
}

Contract Conv2d::contract() const {
  Contract c;
  c.accepts_activation = true;
  c.row_by_row = true;
  const Index kernel = kernel_size.h * kernel_size.w, most = std::max(in_channels, out_channels);
  if (options.groups == 1 && lanes_can_multiply(most * kernel, options.stride.h, options.stride.w))
    c.lanes = Contract::Lanes::prefers;
  if (options.groups > 1 && lane_depthwise_can_convolve(in_channels, out_channels, options.groups, kernel))
    c.lanes = Contract::Lanes::follows;
  return c;
}

Conv2d::Padding Conv2d::padding() const {
  if (options.padding_mode == "same") {
    const Index h = receptive(kernel_size.h, options.dilation.h) - 1,
                w = receptive(kernel_size.w, options.dilation.w) - 1;
    return {h / 2, h - h / 2, w / 2, w - w / 2};
  }
  return {options.padding.h, options.padding.h, options.padding.w, options.padding.w};
}

Shape Conv2d::output_shape(const std::vector<Shape>& inputs) const {
  return output_of(image_input(*this, inputs, in_channels));
}

// Of images whose channels are right. Without a vector of shapes: geometry() asks for it in every step.
Shape Conv2d::output_of(const Shape& x) const {
  const Padding pad = padding();
  const Index h = x[2] + pad.top + pad.bottom, w = x[3] + pad.left + pad.right;
  const Index need_h = receptive(kernel_size.h, options.dilation.h),
              need_w = receptive(kernel_size.w, options.dilation.w);
  constexpr Index most = std::numeric_limits<std::int32_t>::max();
  if (h < need_h || w < need_w || h > most || w > most) {
    throw ShapeError("[Conv2d] expected a padded input of at least " + pair_text({need_h, need_w}) +
                     " for kernel_size " + pair_text(kernel_size) + " and dilation " + pair_text(options.dilation) +
                     ", got " + pair_text({h, w}) + " from input " + x.str());
  }
  const Shape y = {x[0], out_channels, (h - need_h) / options.stride.h + 1, (w - need_w) / options.stride.w + 1};
  y.size();  // throws where it overflows
  return y;
}

ConvShape Conv2d::geometry(const Shape& input) const {
  const Shape x = image_shape(input), y = output_of(x);
  const Padding pad = padding();
  return {x[0],
          x[1],
          x[2],
          x[3],
          out_channels,
          kernel_size.h,
          kernel_size.w,
          y[2],
          y[3],
          options.stride.h,
          options.stride.w,
          options.dilation.h,
          options.dilation.w,
          pad.top,
          pad.left,
          options.groups,
          is_in_lanes(input)};
}

Memory Conv2d::memory(const std::vector<Shape>& inputs, bool training) const {
  const ConvShape shape = geometry(inputs[0]);
  Memory m;
  m.packed = conv_packed(shape) * sizeof(float);
  m.forward_workspace = conv_forward_workspace(shape) * sizeof(float);
  if (training) m.backward_workspace = conv_backward_workspace(shape) * sizeof(float);
  return m;
}

void Conv2d::pack(const std::vector<Shape>& inputs, void* packed) const {
  conv_pack(geometry(inputs[0]), weight->data.data(), static_cast<float*>(packed));
}

void Conv2d::forward(const ForwardCall& call) const {
  ConvShape shape = geometry(call.inputs[0].shape());
  shape.training = call.training;
  conv_forward(shape, call.inputs[0].data(), weight->data.data(), static_cast<const float*>(call.packed),
               bias ? bias->data.data() : nullptr, call.output->data(), call.activation,
               static_cast<float*>(call.workspace));
}

void Conv2d::backward(const BackwardCall& call) {
  const ConvShape shape = geometry(call.inputs[0].shape());
  const float* dy = call.d_output->data();
  float* workspace = static_cast<float*>(call.workspace);
  if (call.d_inputs[0].defined()) {
    conv_backward_data(shape, dy, weight->data.data(), call.d_inputs[0].data(), workspace);
  }
  conv_backward_weight(shape, call.inputs[0].data(), dy, weight->grad().data(), bias ? bias->grad().data() : nullptr,
                       call.accumulate, workspace);
}

NamedParameters Conv2d::parameters() const {
  NamedParameters list = {{"weight", weight}};
  if (bias) list.emplace_back("bias", bias);
  return list;
}

}  // namespace deepnet
