// The image functions against their definitions; integers must come out exactly.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <deepnet/error.hpp>
#include <deepnet/image.hpp>
#include <deepnet/runtime.hpp>

#include "check.hpp"

namespace {

using namespace deepnet;

Tensor integers(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  Tensor t(shape);
  for (Index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<float>(static_cast<int>(random() % 19) - 9);
  return t;
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += double{a.data()[i]} * double{b.data()[i]};
  return sum;
}

// x[plane, h, w], 0 outside.
float cell(const Tensor& x, Index plane, Index h, Index w) {
  const Index H = x.shape()[-2], W = x.shape()[-1];
  return h >= 0 && h < H && w >= 0 && w < W ? x.data()[(plane * H + h) * W + w] : 0.0f;
}

TEST(gaussian_kernel_has_the_published_values) {
  const Tensor k = image::gaussian_kernel(7, 0.84089642);
  CHECK_NEAR(k.data()[3 * 7 + 3], 0.22508352, 5e-9);
  CHECK_NEAR(k.data()[0], 0.00000067, 5e-9);
  double sum = 0;
  for (Index i = 0; i < k.size(); ++i) sum += k.data()[i];
  CHECK_NEAR(sum, 1.0, 1e-6);
  CHECK(image::gaussian_kernel(1, 3.0).data()[0] == 1.0f);
  CHECK(image::gaussian_kernel(5, 1e-200).data()[12] == 1.0f);
  for (double sigma : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS(ValueError, image::gaussian_kernel(7, sigma));
  }
  for (Index size : {0, -1, 6, 1 << 20}) CHECK_THROWS(ValueError, image::gaussian_kernel(size, 1.0));
}

TEST(convolve_slides_the_kernel_as_printed) {
  for (const Shape& shape : {Shape{5, 7}, Shape{2, 3, 6, 33}, Shape{1, 1, 1}, Shape{40, 41}}) {
    for (const Shape& kernel_shape : {Shape{3, 3}, Shape{1, 1}, Shape{2, 5}, Shape{7, 4}}) {
      const Tensor x = integers(shape, 1), k = integers(kernel_shape, 2);
      const Index R = kernel_shape[0], S = kernel_shape[1], H = shape[-2], W = shape[-1];
      for (const bool same : {true, false}) {
        if (!same && (R > H || S > W)) continue;
        const Tensor y = image::convolve(x, k, same ? image::Padding::same : image::Padding::valid);
        Shape expected_shape = shape;
        if (!same) expected_shape[-2] = H - R + 1, expected_shape[-1] = W - S + 1;
        Tensor expected(expected_shape);
        const Index P = expected_shape[-2], Q = expected_shape[-1];
        for (Index i = 0; i < expected.size(); ++i) {
          const Index plane = i / (P * Q), p = i / Q % P, q = i % Q;
          float sum = 0;
          for (Index t = 0; t < R * S; ++t) {
            const Index h = p + t / S - (same ? (R - 1) / 2 : 0), w = q + t % S - (same ? (S - 1) / 2 : 0);
            sum += k.data()[t] * cell(x, plane, h, w);
          }
          expected.data()[i] = sum;
        }
        CHECK(equal(y, expected));
      }
    }
  }
  CHECK(image::convolve(Tensor({0, 4}), integers({3, 3}, 1)).shape() == Shape({0, 4}));
  CHECK_THROWS(ShapeError, image::convolve(integers({4}, 1), integers({3, 3}, 1)));
  CHECK_THROWS(ShapeError, image::convolve(integers({4, 4}, 1), integers({3, 3, 3}, 1)));
  CHECK_THROWS(ShapeError, image::convolve(integers({4, 4}, 1), Tensor({0, 3})));
  CHECK_THROWS(ShapeError, image::convolve(integers({2, 9}, 1), integers({3, 3}, 1), image::Padding::valid));
  CHECK_THROWS(TypeError, image::convolve(Tensor::labels({1, 2}).reshape({1, 2}), integers({3, 3}, 1)));
}

TEST(sobel_of_a_ramp_and_of_integers) {
  Tensor ramp({6, 8});
  for (Index i = 0; i < ramp.size(); ++i) ramp.data()[i] = static_cast<float>(3 * (i / 8) + 4 * (i % 8));
  const auto [magnitude, angle] = image::sobel(ramp);
  CHECK(magnitude.data()[3 * 8 + 4] == 40.0f);  // slope (4, 3), times the 8 that the weights add up to
  CHECK_NEAR(angle.data()[3 * 8 + 4], std::atan2(3.0, 4.0), 1e-7);
  CHECK(magnitude.data()[0] == 20.0f);  // edges repeat: half the slope

  const Tensor x = integers({2, 9, 11}, 3);
  const auto [m, a] = image::sobel(x);
  const int gx_weight[3][3] = {{-1, 0, 1}, {-2, 0, 2}, {-1, 0, 1}};
  for (Index i = 0; i < x.size(); ++i) {
    float gx = 0, gy = 0;
    for (int r = 0; r < 3; ++r) {
      for (int s = 0; s < 3; ++s) {
        const Index h = std::min<Index>(std::max<Index>(i / 11 % 9 + r - 1, 0), 8);
        const Index w = std::min<Index>(std::max<Index>(i % 11 + s - 1, 0), 10);
        const float value = cell(x, i / 99, h, w);
        gx += static_cast<float>(gx_weight[r][s]) * value;
        gy += static_cast<float>(gx_weight[s][r]) * value;
      }
    }
    CHECK_NEAR(m.data()[i], std::sqrt(gx * gx + gy * gy), 1e-5);
    CHECK_NEAR(a.data()[i], std::atan2(gy, gx), 1e-6);
  }
  CHECK(image::sobel(Tensor::full({1, 1}, 5.0f)).first.data()[0] == 0.0f);
  CHECK(image::sobel(Tensor({3, 0})).second.shape() == Shape({3, 0}));
  CHECK_THROWS(ShapeError, image::sobel(integers({5}, 1)));
}

struct ColumnCase {
  Shape x;
  Size2 kernel, stride, padding, dilation;
};

const ColumnCase column_cases[] = {
    {{2, 3, 9, 9}, 3, 2, 2, 1},  {{1, 2, 7, 10}, Size2(2, 3), Size2(1, 3), Size2(0, 1), Size2(2, 1)},
    {{3, 1, 5, 5}, 5, 1, 4, 1},  {{1, 1, 4, 3}, 1, 4, 0, 1},
    {{2, 2, 6, 20}, 3, 1, 1, 3}, {{1, 1, 2, 2}, 2, 1, 3, 1},
};

TEST(im2col_is_the_column_matrix) {
  for (const ColumnCase& c : column_cases) {
    const Tensor x = integers(c.x, 4);
    const Tensor columns = image::im2col(x, c.kernel, c.stride, c.padding, c.dilation);
    const Index C = c.x[1], R = c.kernel.h, S = c.kernel.w;
    const Index P = (c.x[2] + 2 * c.padding.h - c.dilation.h * (R - 1) - 1) / c.stride.h + 1;
    const Index Q = (c.x[3] + 2 * c.padding.w - c.dilation.w * (S - 1) - 1) / c.stride.w + 1;
    CHECK(columns.shape() == Shape({c.x[0], C * R * S, P * Q}));
    bool ok = true;
    for (Index i = 0; i < columns.size(); ++i) {
      const Index pixel = i % (P * Q), row = i / (P * Q);
      const Index h = pixel / Q * c.stride.h + row / S % R * c.dilation.h - c.padding.h;
      const Index w = pixel % Q * c.stride.w + row % S * c.dilation.w - c.padding.w;
      ok = ok && columns.data()[i] == cell(x, row / (R * S), h, w);
    }
    CHECK(ok);
  }
}

TEST(col2im_is_the_adjoint_of_im2col) {
  for (const ColumnCase& c : column_cases) {
    const Tensor x = integers(c.x, 5);
    const Tensor columns = image::im2col(x, c.kernel, c.stride, c.padding, c.dilation);
    const Tensor d_columns = integers(columns.shape(), 6);
    const Tensor dx = image::col2im(d_columns, {c.x[2], c.x[3]}, c.kernel, c.stride, c.padding, c.dilation);
    CHECK(dx.shape() == c.x);
    CHECK(dot(columns, d_columns) == dot(x, dx));
  }
}

TEST(column_arguments_are_checked) {
  const Tensor x = integers({1, 2, 5, 5}, 1);
  CHECK_THROWS(ShapeError, image::im2col(integers({5, 5}, 1), 3));
  CHECK_THROWS(ShapeError, image::im2col(x, 6));
  CHECK_THROWS(ShapeError, image::im2col(x, 3, 1, 0, 3));
  CHECK_THROWS(ValueError, image::im2col(x, 0));
  CHECK_THROWS(ValueError, image::im2col(x, 3, 0));
  CHECK_THROWS(ValueError, image::im2col(x, 3, 1, -1));
  CHECK_THROWS(ValueError, image::im2col(x, 3, 1, 0, 0));
  CHECK_THROWS(ValueError, image::im2col(x, Index{1} << 40));
  CHECK_THROWS(ShapeError, image::im2col(x, 1 << 20, 1, 1 << 28));  // the product of its sizes overflows
  CHECK_THROWS(ShapeError, image::col2im(integers({1, 9}, 1), 5, 3));
  CHECK_THROWS(ShapeError, image::col2im(integers({1, 10, 9}, 1), 5, 3));
  CHECK_THROWS(ShapeError, image::col2im(integers({1, 9, 8}, 1), 5, 3));
  CHECK_THROWS(ValueError, image::col2im(integers({1, 9, 9}, 1), -5, 3));
  CHECK(image::im2col(Tensor({0, 2, 5, 5}), 3).shape() == Shape({0, 18, 9}));
}

TEST(threads_change_no_bit) {
  Tensor x = integers({3, 200, 201}, 7);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] *= 0.1f;
  const Tensor k = image::gaussian_kernel();
  Tensor first;
  for (int threads : {1, 2, 3}) {
    const ThreadScope scope(threads);
    const Tensor y = image::convolve(x, k);
    if (threads == 1) first = y;
    CHECK(equal(first, y));
  }
}

}  // namespace
