// Layers against loops over their definition. With small integers every sum is exact, so answers must be equal,
// whatever the instruction set: DEEPNET_ISA chooses it.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <thread>

#include <deepnet/deepnet.hpp>

#include "check.hpp"
#include "ops/layout.hpp"

using namespace deepnet;

namespace {

// Integers in [-4, 4] that repeat with a long period.
Tensor integers(const Shape& shape, unsigned seed) {
  Tensor t(shape);
  std::uint32_t state = seed * 2654435761u + 1u;
  for (Index i = 0; i < t.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    t.data()[i] = static_cast<float>(static_cast<int>((state >> 24) % 9) - 4);
  }
  return t;
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::equal(a.data(), a.data() + a.size(), b.data());
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (Index i = 0; i < a.size(); ++i) sum += static_cast<double>(a.data()[i]) * b.data()[i];
  return sum;
}

struct ConvCase {
  Index n, c, h, w, k, r, s, stride, padding, dilation, groups;
};

constexpr ConvCase conv_cases[] = {
    {1, 1, 9, 9, 1, 3, 3, 2, 2, 1, 1},    {2, 3, 8, 7, 5, 3, 3, 1, 1, 1, 1},     {1, 4, 11, 5, 6, 5, 1, 1, 0, 2, 2},
    {3, 6, 7, 7, 6, 3, 3, 1, 1, 1, 6},    {2, 16, 12, 13, 17, 1, 1, 1, 0, 1, 1}, {1, 8, 15, 15, 33, 3, 3, 2, 1, 1, 1},
    {2, 5, 16, 16, 20, 5, 5, 1, 2, 1, 1}, {1, 2, 10, 10, 4, 2, 4, 3, 1, 2, 1},   {8, 2, 5, 6, 1681, 3, 3, 2, 1, 1, 1},
};

// Calls term(y index, x index, weight index) for every product of the convolution.
template <class Term>
void for_each_product(const ConvCase& t, Index p_size, Index q_size, Term&& term) {
  const Index c_group = t.c / t.groups, k_group = t.k / t.groups;
  for (Index n = 0; n < t.n; ++n)
    for (Index k = 0; k < t.k; ++k)
      for (Index p = 0; p < p_size; ++p)
        for (Index q = 0; q < q_size; ++q)
          for (Index c = 0; c < c_group; ++c)
            for (Index r = 0; r < t.r; ++r)
              for (Index s = 0; s < t.s; ++s) {
                const Index h = p * t.stride + r * t.dilation - t.padding;
                const Index w = q * t.stride + s * t.dilation - t.padding;
                if (h < 0 || h >= t.h || w < 0 || w >= t.w) continue;
                const Index channel = k / k_group * c_group + c;
                term(((n * t.k + k) * p_size + p) * q_size + q, ((n * t.c + channel) * t.h + h) * t.w + w,
                     ((k * c_group + c) * t.r + r) * t.s + s);
              }
}

std::shared_ptr<Conv2d> conv_of(const ConvCase& t) {
  Conv2dOptions options;
  options.stride = t.stride;
  options.padding = t.padding;
  options.dilation = t.dilation;
  options.groups = t.groups;
  return std::make_shared<Conv2d>(t.c, t.k, Size2(t.r, t.s), options);
}

void check_conv(const ConvCase& t) {
  const auto layer = conv_of(t);
  const Tensor weight = integers(layer->weight->data.shape(), 1), bias = integers({t.k}, 2);
  std::copy_n(weight.data(), weight.size(), layer->weight->data.data());
  std::copy_n(bias.data(), bias.size(), layer->bias->data.data());

  const Tensor x = integers({t.n, t.c, t.h, t.w}, 3);
  Model net{LayerPtr(layer)};
  const Tensor y = net.run({x});
  const Tensor dy = integers(y.shape(), 4);
  const Tensor dx = net.backward(dy)[0];

  const Index p = y.shape()[2], q = y.shape()[3];
  Tensor y_sum(y.shape()), dx_sum = Tensor::zeros(x.shape()), dw_sum = Tensor::zeros(weight.shape());
  Tensor db_sum = Tensor::zeros({t.k});
  for (Index i = 0; i < y.size(); ++i) {
    const Index k = i / (p * q) % t.k;
    y_sum.data()[i] = bias.data()[k];
    db_sum.data()[k] += dy.data()[i];
  }
  for_each_product(t, p, q, [&](Index yi, Index xi, Index wi) {
    y_sum.data()[yi] += weight.data()[wi] * x.data()[xi];
    dx_sum.data()[xi] += weight.data()[wi] * dy.data()[yi];
    dw_sum.data()[wi] += x.data()[xi] * dy.data()[yi];
  });
  CHECK(equal(y, y_sum));
  CHECK(equal(dx, dx_sum));
  CHECK(equal(layer->weight->grad(), dw_sum));
  CHECK(equal(layer->bias->grad(), db_sum));
}

// By every algorithm on one instruction set or another; images fill the vectors of all.
constexpr ConvCase packed_cases[] = {
    {1, 8, 9, 9, 12, 3, 3, 2, 1, 1, 1},    {2, 8, 12, 12, 12, 5, 5, 1, 2, 1, 1},  {2, 8, 13, 12, 12, 3, 3, 2, 2, 2, 4},
    {2, 32, 12, 11, 40, 3, 3, 1, 1, 1, 1}, {2, 64, 9, 12, 32, 3, 3, 1, 1, 1, 2},  {32, 32, 8, 9, 24, 3, 3, 1, 1, 1, 1},
    {32, 3, 12, 10, 8, 5, 5, 1, 2, 1, 1},  {32, 16, 11, 9, 24, 5, 5, 1, 2, 1, 2}, {32, 6, 9, 9, 6, 3, 3, 1, 1, 1, 6},
};

Tensor memory_of(std::size_t bytes) { return Tensor({static_cast<Index>(bytes / sizeof(float))}); }

Tensor packed_of(const Layer& layer, const Shape& input) {
  Tensor packed = memory_of(layer.memory({input}, false).packed);
  layer.pack({input}, packed.raw());
  return packed;
}

// Forward alone, with a workspace of its own.
Tensor forward_of(const Layer& layer, const Tensor& x, const Tensor& packed, const Shape& output) {
  Tensor y(output), workspace = memory_of(layer.memory({x.shape()}, false).forward_workspace);
  ForwardCall call;
  call.inputs = &x;
  call.output = &y;
  call.packed = packed.raw();
  call.workspace = workspace.raw();
  layer.forward(call);
  return y;
}

// Two threads with the same packed weights against one run after the other, each with its own.
void check_packing(const Layer& layer, const Shape& input, const Shape& output) {
  const Tensor x[2] = {integers(input, 13), integers(input, 14)};
  Tensor wanted[2], got[2];
  for (int i = 0; i < 2; ++i) wanted[i] = forward_of(layer, x[i], packed_of(layer, input), output);
  const Tensor packed = packed_of(layer, input);
  const auto run = [&](int i) {
    for (int times = 0; times < 3; ++times) got[i] = forward_of(layer, x[i], packed, output);
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  for (int i = 0; i < 2; ++i) CHECK(equal(got[i], wanted[i]));
}

}  // namespace

TEST(convolution_is_exact) {
  for (const ConvCase& t : conv_cases) check_conv(t);
}

TEST(one_packing_serves_several_threads) {
  for (const ConvCase& t : packed_cases) {
    const auto layer = conv_of(t);
    const Shape input = {t.n, t.c, t.h, t.w}, output = layer->output_shape({input});
    check_packing(*layer, input, output);
    if (fills_lanes(t.n) && layer->contract().lanes != Contract::Lanes::no)
      check_packing(*layer, lanes_shape(input), lanes_shape(output));
  }
}

TEST(weights_that_are_read_as_they_lie_take_no_packed_memory) {
  CHECK(conv_of(packed_cases[0])->memory({{1, 8, 9, 9}}, false).packed == 0);
  CHECK(conv_of(packed_cases[8])->memory({{32, 6, 9, 9}}, false).packed == 0);
  CHECK(conv_of(packed_cases[1])->memory({{2, 8, 12, 12}}, false).packed == 12 * 8 * 25 * sizeof(float));
}

TEST(linear_is_exact) {
  for (const Index n : {1, 3, 8, 33}) {
    const Index in = 7 + 5 * n, out = 2 * n + 1;
    const auto layer = std::make_shared<Linear>(in, out);
    const Tensor weight = integers({out, in}, 5), bias = integers({out}, 6), x = integers({n, in}, 7);
    std::copy_n(weight.data(), weight.size(), layer->weight->data.data());
    std::copy_n(bias.data(), bias.size(), layer->bias->data.data());
    Model net{LayerPtr(layer)};
    const Tensor y = net.run({x});
    const Tensor dy = integers(y.shape(), 8);
    const Tensor dx = net.backward(dy)[0];

    Tensor y_sum({n, out}), dx_sum = Tensor::zeros({n, in}), dw_sum = Tensor::zeros({out, in});
    for (Index i = 0; i < n; ++i)
      for (Index o = 0; o < out; ++o) {
        y_sum.data()[i * out + o] = bias.data()[o];
        for (Index f = 0; f < in; ++f) {
          y_sum.data()[i * out + o] += weight.data()[o * in + f] * x.data()[i * in + f];
          dx_sum.data()[i * in + f] += weight.data()[o * in + f] * dy.data()[i * out + o];
          dw_sum.data()[o * in + f] += x.data()[i * in + f] * dy.data()[i * out + o];
        }
      }
    CHECK(equal(y, y_sum));
    CHECK(equal(dx, dx_sum));
    CHECK(equal(layer->weight->grad(), dw_sum));
  }
}

TEST(max_pooling_takes_the_first_of_equals) {
  Model net{LayerPtr(std::make_shared<MaxPool2d>(2))};
  const Tensor x = Tensor::from({1, 1, 2, 0, 1, 1, 3, 3, -1, -2, 0, 0, -3, -1, 0, 0}, {1, 1, 4, 4});
  const Tensor y = net.run({x});
  CHECK(equal(y, Tensor::from({1, 3, -1, 0}, {1, 1, 2, 2})));
  const Tensor dx = net.backward(Tensor::from({1, 2, 3, 4}, {1, 1, 2, 2}))[0];
  CHECK(equal(dx, Tensor::from({1, 0, 0, 0, 0, 0, 2, 0, 3, 0, 4, 0, 0, 0, 0, 0}, {1, 1, 4, 4})));
}

TEST(average_pooling_is_its_own_adjoint) {
  Model net{LayerPtr(std::make_shared<AvgPool2d>(Size2(3, 2), Size2(2, 2), Size2(1, 1)))};
  const Tensor x = integers({2, 3, 9, 8}, 9);
  const Tensor y = net.run({x});
  const Tensor dy = integers(y.shape(), 10);
  CHECK_NEAR(dot(y, dy), dot(x, net.backward(dy)[0]), 1e-3);
}

TEST(activations_follow_their_definitions) {
  const std::pair<LayerPtr, std::function<double(double)>> cases[] = {
      {std::make_shared<ReLU>(), [](double x) { return x > 0 ? x : 0.0; }},
      {std::make_shared<Sigmoid>(), [](double x) { return 1 / (1 + std::exp(-x)); }},
      {std::make_shared<Tanh>(), [](double x) { return std::tanh(x); }},
      {std::make_shared<Softplus>(), [](double x) { return std::log1p(std::exp(x)); }},
      {std::make_shared<GELU>(), [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }},
      {std::make_shared<SiLU>(), [](double x) { return x / (1 + std::exp(-x)); }},
  };
  for (const auto& [layer, f] : cases) {
    Model net{layer};
    Tensor x({37});
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = 0.4f * static_cast<float>(i) - 7.3f;
    const Tensor y = net.run({x}), dx = net.backward(Tensor::full(x.shape(), 1.0f))[0];
    for (Index i = 0; i < x.size(); ++i) {
      const double at = x.data()[i], h = 1e-5;
      CHECK_NEAR(y.data()[i], f(at), 2e-6 * std::fmax(1.0, std::fabs(at)));
      CHECK_NEAR(dx.data()[i], (f(at + h) - f(at - h)) / (2 * h), 1e-5);
    }
  }
}

TEST(im2col_and_col2im_are_adjoint) {
  const Tensor x = integers({2, 3, 7, 9}, 11);
  const Tensor columns = image::im2col(x, {3, 2}, {2, 1}, {1, 0}, {1, 2});
  const Tensor other = integers(columns.shape(), 12);
  CHECK(dot(columns, other) == dot(x, image::col2im(other, {7, 9}, {3, 2}, {2, 1}, {1, 0}, {1, 2})));
}

TEST(shapes_that_do_not_fit_are_refused) {
  Model conv{LayerPtr(std::make_shared<Conv2d>(3, 4, 5))};
  CHECK_THROWS(ShapeError, conv.forward(Tensor::zeros({1, 1, 8, 8})));
  CHECK_THROWS(ShapeError, conv.forward(Tensor::zeros({1, 3, 4, 4})));
  CHECK_THROWS(ShapeError, conv.forward(Tensor::zeros({3, 8, 8})));
  CHECK_THROWS(ValueError, Conv2d(0, 4, 3));
  CHECK_THROWS(ValueError, MaxPool2d(0));
  CHECK_THROWS(ValueError, Dropout(1.5));
}
