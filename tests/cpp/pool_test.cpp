// Every instruction set's pooling kernels, and the layers over them, against a naive scan.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <deepnet/layers.hpp>

#include "check.hpp"
#include "dispatch.hpp"

namespace {

using namespace deepnet;
using Floats = std::vector<float>;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();

struct Expected {
  Floats max, avg;
  std::vector<std::int32_t> position;
};

// Calls visit(output, cell) for each cell of each window, windows and cells in row-major order.
template <class Visit>
void for_cells(const Pool2dShape& s, Visit visit) {
  for (std::int64_t out = 0; out < s.out_height * s.out_width; ++out) {
    for (std::int64_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap) {
      const std::int64_t h = out / s.out_width * s.stride_h - s.pad_h + tap / s.kernel_w;
      const std::int64_t w = out % s.out_width * s.stride_w - s.pad_w + tap % s.kernel_w;
      if (h >= 0 && h < s.height && w >= 0 && w < s.width) visit(out, h * s.width + w);
    }
  }
}

Expected naive(const Pool2dShape& s, const Floats& x) {
  const std::size_t outputs = static_cast<std::size_t>(s.out_height * s.out_width);
  Expected e{Floats(outputs), Floats(outputs), std::vector<std::int32_t>(outputs, -1)};
  for_cells(s, [&](std::int64_t out, std::int64_t cell) {
    if (e.position[out] < 0 || x[cell] > e.max[out] || std::isnan(x[cell])) {
      e.max[out] = x[cell];
      e.position[out] = static_cast<std::int32_t>(cell);
    }
    e.avg[out] += x[cell] / static_cast<float>(s.kernel_h * s.kernel_w);
  });
  return e;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

float largest_difference(const Floats& a, const Floats& b) {
  float most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::fmax(most, std::fabs(a[i] - b[i]));
  return most;
}

bool agrees(const KernelTable& kernels, const Pool2dShape& s, std::mt19937& random) {
  const std::size_t cells = static_cast<std::size_t>(s.height * s.width);
  const std::size_t outputs = static_cast<std::size_t>(s.out_height * s.out_width);
  const auto draw = [&](int n) { return static_cast<int>(random() % n); };
  Floats x(cells), y(outputs), dx(cells, nan), dy(outputs), expected_max(cells), expected_avg(cells);
  for (float& v : x) v = draw(40) == 0 ? nan : draw(9) == 0 ? -inf : static_cast<float>(draw(7) - 3);  // many ties
  for (float& v : dy) v = static_cast<float>(draw(9) - 4);
  std::vector<std::int32_t> position(outputs);
  const Expected e = naive(s, x);
  for (std::size_t i = 0; i < outputs; ++i) expected_max[e.position[i]] += dy[i];
  for_cells(s, [&](std::int64_t out, std::int64_t cell) {
    expected_avg[cell] += dy[out] / static_cast<float>(s.kernel_h * s.kernel_w);
  });

  kernels.max_pool(&s, x.data(), y.data(), position.data());
  bool ok = same_bits(y, e.max) && position == e.position;
  std::fill(y.begin(), y.end(), nan);
  kernels.max_pool(&s, x.data(), y.data(), nullptr);
  ok = ok && same_bits(y, e.max);
  kernels.max_pool_backward(&s, dy.data(), position.data(), dx.data());
  ok = ok && dx == expected_max;

  for (float& v : x) v = static_cast<float>(draw(100));
  kernels.avg_pool(&s, x.data(), y.data());
  ok = ok && largest_difference(y, naive(s, x).avg) < 1e-4f;
  std::fill(dx.begin(), dx.end(), nan);
  kernels.avg_pool_backward(&s, dy.data(), dx.data());
  return ok && largest_difference(dx, expected_avg) < 1e-5f;
}

Pool2dShape shape(std::int64_t height, std::int64_t width, Size2 kernel, Size2 stride, Size2 padding) {
  return {height,
          width,
          (height + 2 * padding.h - kernel.h) / stride.h + 1,
          (width + 2 * padding.w - kernel.w) / stride.w + 1,
          kernel.h,
          kernel.w,
          stride.h,
          stride.w,
          padding.h,
          padding.w};
}

// A layer's forward and backward with memory of the caller's.
struct Run {
  Tensor y, dx;
  std::vector<std::int32_t> cache;

  Run(Layer& layer, const Tensor& x, const Tensor& dy) : y(layer.output_shape({x.shape()})), dx(x.shape()) {
    cache.resize(layer.memory({x.shape()}, true).cache / sizeof(std::int32_t));
    ForwardCall forward;
    forward.inputs = &x;
    forward.output = &y;
    forward.cache = cache.data();
    layer.forward(forward);
    BackwardCall backward;
    backward.d_output = &dy;
    backward.d_inputs = &dx;
    backward.cache = cache.data();
    layer.backward(backward);
  }
};

Floats values(const Tensor& t) { return Floats(t.data(), t.data() + t.size()); }

TEST(kernels_agree_with_a_naive_scan) {
  for (const KernelTable* kernels : available_kernels()) {
    std::mt19937 random(1);
    int bad = 0;
    for (int i = 0; i < 3000; ++i) {
      const auto draw = [&](int n) { return static_cast<Index>(random() % n); };
      const bool usual = draw(3) == 0;
      const Size2 kernel = usual ? Size2(2) : Size2(1 + draw(4), 1 + draw(4));
      const Size2 stride = usual ? Size2(2) : Size2(1 + draw(4), 1 + draw(4));
      const Size2 padding = usual ? Size2(0) : Size2(draw(2) * (kernel.h / 2), draw(2) * (kernel.w / 2));
      const Index height = kernel.h + draw(12), width = kernel.w + draw(70);
      bad += !agrees(*kernels, shape(height, width, kernel, stride, padding), random);
    }
    std::printf("%s: %d of 3000 shapes differ\n", kernels->name, bad);
    CHECK(bad == 0);
  }
}

TEST(max_pool_sends_the_error_to_the_first_maximum) {
  MaxPool2d pool(2);
  const Tensor x = Tensor::from({1, 5, 5, 2, 5, 0, 1, 2, 7, 7, -inf, -inf, 7, 7, -inf, -inf}, {1, 1, 4, 4});
  const Run run(pool, x, Tensor::from({1, 2, 3, 4}, {1, 1, 2, 2}));
  CHECK(values(run.y) == Floats({5, 5, 7, -inf}));
  CHECK(run.cache == std::vector<std::int32_t>({1, 2, 8, 10}));
  CHECK(values(run.dx) == Floats({0, 1, 2, 0, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0}));
}

TEST(a_nan_wins_and_padding_never_does) {
  MaxPool2d pool(3, 2, 1);
  const Tensor x = Tensor::from({-9, -8, -7, -6, nan, -5, -4, -3, -2}, {1, 1, 3, 3});
  const Run run(pool, x, Tensor::from({1, 1, 1, 1}, {1, 1, 2, 2}));
  for (float v : values(run.y)) CHECK(std::isnan(v));
  CHECK(run.dx.data()[4] == 4.0f);
  const Run negative(pool, Tensor::full({2, 3, 5, 5}, -3.0f), Tensor::full({2, 3, 3, 3}, 1.0f));
  for (float v : values(negative.y)) CHECK(v == -3.0f);
}

TEST(overlapping_windows_add_up) {
  MaxPool2d max(3, 1);
  Tensor x = Tensor::zeros({1, 1, 5, 5});
  x.data()[12] = 1.0f;
  CHECK(Run(max, x, Tensor::full({1, 1, 3, 3}, 1.0f)).dx.data()[12] == 9.0f);
  AvgPool2d avg(3, 1, 1);
  const Run run(avg, Tensor::full({1, 2, 4, 4}, 9.0f), Tensor::full({1, 2, 4, 4}, 9.0f));
  CHECK(run.y.data()[0] == 4.0f && run.y.data()[5] == 9.0f);
  CHECK(run.dx.data()[0] == 4.0f && run.dx.data()[5] == 9.0f);
}

TEST(an_empty_batch_has_an_empty_output) {
  MaxPool2d max(2);
  GlobalAvgPool2d mean;
  CHECK(Run(max, Tensor({0, 3, 8, 8}), Tensor({0, 3, 4, 4})).y.shape() == Shape({0, 3, 4, 4}));
  CHECK(Run(mean, Tensor({0, 3, 8, 8}), Tensor({0, 3})).y.shape() == Shape({0, 3}));
}

TEST(global_mean_is_accurate) {
  GlobalAvgPool2d mean;
  Tensor x({2, 3, 224, 224});
  std::mt19937 random(2);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = 1000.0f + static_cast<float>(random() % 1000) / 1000.0f;
  const Run run(mean, x, Tensor::full({2, 3}, 224.0f * 224.0f));
  for (Index plane = 0; plane < 6; ++plane) {
    double sum = 0;
    for (Index i = 0; i < 224 * 224; ++i) sum += x.data()[plane * 224 * 224 + i];
    CHECK_NEAR(run.y.data()[plane], sum / (224 * 224), 1e-4);  // an ulp of 1000 is 6e-5
  }
  CHECK(values(run.dx) == Floats(static_cast<std::size_t>(x.size()), 1.0f));
}

TEST(arguments_and_shapes_are_checked) {
  CHECK_THROWS(ValueError, MaxPool2d(0));
  CHECK_THROWS(ValueError, MaxPool2d(2, -1));
  CHECK_THROWS(ValueError, MaxPool2d(2, Size2(0, 1)));
  CHECK_THROWS(ValueError, MaxPool2d(2, 2, -1));
  CHECK_THROWS(ValueError, MaxPool2d(3, 2, 2));
  CHECK_THROWS(ValueError, AvgPool2d(Size2(2, 1), 1, 1));
  CHECK_THROWS(ValueError, AvgPool2d(Index{1} << 62));
  const MaxPool2d pool(3, 2, 1);
  CHECK(pool.output_shape({{4, 2, 7, 8}}) == Shape({4, 2, 4, 4}));
  CHECK_THROWS(ShapeError, pool.output_shape({{2, 7, 8}}));
  CHECK_THROWS(ShapeError, pool.output_shape({{1, 1, 0, 8}}));
  CHECK_THROWS(ShapeError, pool.output_shape({{1, 1, 1 << 20, 1 << 20}}));
  CHECK_THROWS(ShapeError, MaxPool2d(5).output_shape({{1, 1, 4, 8}}));
  CHECK_THROWS(ShapeError, GlobalAvgPool2d().output_shape({{1, 1, 0, 8}}));
  try {
    AvgPool2d(5).output_shape({{1, 1, 4, 8}});
  } catch (const ShapeError& error) {
    CHECK(std::string(error.what()) ==
          "[AvgPool2d] expected a padded input of at least kernel_size (5, 5), got (4, 8) from input (1, 1, 4, 8)");
  }
}

TEST(config_makes_the_same_layer) {
  const MaxPool2d pool(Size2(3, 2), Size2(2, 1), Size2(1, 0));
  CHECK(MaxPool2d::from_config(pool.config())->config() == pool.config());
  CHECK(AvgPool2d(3).config().at("stride") == ConfigValue(std::vector<Index>{3, 3}));
  Config config = pool.config();
  config["stride"] = std::vector<Index>{0, 0};
  CHECK_THROWS(ValueError, MaxPool2d::from_config(config));
  config["stride"] = std::vector<Index>{1};
  CHECK_THROWS(ValueError, MaxPool2d::from_config(config));
}

}  // namespace
