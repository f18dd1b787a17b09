// y (N x out) = x (N x in) W^T + b, every axis of x but the last taken together as N.
//   dE/dx = dE/dy W        dE/dW = dE/dy^T x        dE/db = sum over n of dE/dy
#include <deepnet/layers.hpp>

#include "../config.hpp"
#include "../dispatch.hpp"
#include "../ops/gemm.hpp"
#include "../parallel.hpp"
#include "common.hpp"

namespace deepnet {
namespace {

Index checked(Index in, Index out) {
  if (in < 1 || out < 1) {
    throw ValueError("[Linear] expected in_features and out_features >= 1, got " + std::to_string(in) + " and " +
                     std::to_string(out));
  }
  return in;
}

}  // namespace

Linear::Linear(Index in, Index out, bool with_bias)
    : in_features(checked(in, out)),
      out_features(out),
      weight(default_parameter(addressable("Linear", {out, in}), in)),
      bias(with_bias ? default_parameter({out}, in) : nullptr) {}

LayerPtr Linear::from_config(const Config& config) {
  return std::make_shared<Linear>(config_int(config, "Linear", "in_features"),
                                  config_int(config, "Linear", "out_features"), config_bool(config, "Linear", "bias"));
}

Config Linear::config() const {
  return {{"in_features", in_features}, {"out_features", out_features}, {"bias", bias != nullptr}};
}

Contract Linear::contract() const {
  Contract c;
  c.accepts_activation = true;
  return c;
}

Shape Linear::output_shape(const std::vector<Shape>& inputs) const {
  const Shape& x = one_input(*this, inputs);
  if (x.rank() < 1 || x[-1] != in_features) {
    throw ShapeError("[Linear] expected input of shape (N, " + std::to_string(in_features) + "), got " + x.str());
  }
  Shape y = x;
  y[-1] = out_features;
  y.size();
  return y;
}

Memory Linear::memory(const std::vector<Shape>& inputs, bool) const {
  const Index n = inputs[0].size(0, inputs[0].rank() - 1);
  Memory m;
  m.forward_workspace = gemm_workspace(n, out_features, in_features) * sizeof(float);
  m.backward_workspace =
      std::max(gemm_workspace(n, in_features, out_features), gemm_workspace(out_features, in_features, n)) *
      sizeof(float);
  return m;
}

void Linear::forward(const ForwardCall& call) const {
  const Shape& shape = call.inputs[0].shape();
  const Index n = shape.size(0, shape.rank() - 1);
  const float* x = call.inputs[0].data();
  float* y = call.output->data();
  const float* b = bias ? bias->data.data() : nullptr;
  const float* w = weight->data.data();
  GemmEpilogue epilogue;
  epilogue.bias_col = b;
  epilogue.activation = call.activation;
  gemm(n, out_features, in_features, {x, in_features, 1}, {w, 1, in_features}, y, out_features, epilogue,
       static_cast<float*>(call.workspace));
}

void Linear::backward(const BackwardCall& call) {
  const Shape& shape = call.d_output->shape();
  const Index n = shape.size(0, shape.rank() - 1);
  const float* x = call.inputs[0].data();
  const float* dy = call.d_output->data();
  float* workspace = static_cast<float*>(call.workspace);
  const MatrixView dy_matrix = {dy, out_features, 1};
  GemmEpilogue epilogue;
  if (call.d_inputs[0].defined()) {
    gemm(n, in_features, out_features, dy_matrix, {weight->data.data(), in_features, 1}, call.d_inputs[0].data(),
         in_features, epilogue, workspace);
  }
  constexpr Index few = 16;  // rows whose product is made anew sooner than it is read from memory
  if (n > 0 && n <= few && !call.accumulate) {
    weight->set_grad(n, dy, x);
  } else {
    epilogue.accumulate = call.accumulate;
    gemm(out_features, in_features, n, dy_matrix.transposed(), {x, in_features, 1}, weight->grad().data(), in_features,
         epilogue, workspace);
  }
  if (bias) {
    float* d_bias = bias->grad().data();
    parallel_for(out_features, grain_for(static_cast<double>(n), 16), [&](Index begin, Index end) {
      kernels().sum_rows(n, end - begin, dy + begin, out_features, d_bias + begin, call.accumulate);
    });
  }
}

NamedParameters Linear::parameters() const {
  NamedParameters list = {{"weight", weight}};
  if (bias) list.emplace_back("bias", bias);
  return list;
}

}  // namespace deepnet
