// Losses against double precision and central differences, and their checks.
#include <cmath>
#include <functional>

#include <deepnet/deepnet.hpp>

#include "check.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "random.hpp"

using namespace deepnet;

namespace {

Tensor random_tensor(const Shape& shape, std::uint64_t key, double low = -3, double high = 3) {
  Tensor t(shape);
  for (Index i = 0; i < t.size(); ++i) {
    const auto word = philox(key, static_cast<std::uint64_t>(i))[0];
    t.data()[i] = static_cast<float>(low + (high - low) * philox_uniform(word));
  }
  return t;
}

Tensor random_labels(const Shape& shape, Index classes) {
  Tensor t(shape, DType::int64);
  for (Index i = 0; i < t.size(); ++i) t.labels()[i] = philox(99, static_cast<std::uint64_t>(i))[0] % classes;
  return t;
}

// One-hot rows of y's shape.
Tensor one_hot(const Shape& shape, const Tensor& labels) {
  Tensor t = Tensor::zeros(shape);
  const Index positions = shape.size(2, shape.rank());
  for (Index i = 0; i < labels.size(); ++i) {
    t.data()[(i / positions * shape[1] + labels.labels()[i]) * positions + i % positions] = 1.0f;
  }
  return t;
}

// Positive, summing to 1 over axis 1.
Tensor probabilities(const Shape& shape) {
  Tensor t = random_tensor(shape, 3, 0.1, 1.0);
  const Index positions = shape.size(2, shape.rank());
  for (Index n = 0; n < shape[0]; ++n) {
    for (Index p = 0; p < positions; ++p) {
      float* first = t.data() + n * shape[1] * positions + p;
      float sum = 0;
      for (Index c = 0; c < shape[1]; ++c) sum += first[c * positions];
      for (Index c = 0; c < shape[1]; ++c) first[c * positions] /= sum;
    }
  }
  return t;
}

// Cross entropy of soft labels (N, C, ...) as written in loss.hpp.
double cross_entropy(const Tensor& y, const Tensor& t) {
  const Shape& s = y.shape();
  const Index positions = s.size(2, s.rank()), rows = s[0] * positions;
  double total = 0;
  for (Index r = 0; r < rows; ++r) {
    const Index first = r / positions * s[1] * positions + r % positions;
    double sum = 0;
    for (Index c = 0; c < s[1]; ++c) sum += std::exp(static_cast<double>(y.data()[first + c * positions]));
    for (Index c = 0; c < s[1]; ++c) {
      const Index at = first + c * positions;
      total -= static_cast<double>(t.data()[at]) * (static_cast<double>(y.data()[at]) - std::log(sum));
    }
  }
  return total / static_cast<double>(rows);
}

double mean_squared(const Tensor& y, const Tensor& t) {
  double total = 0;
  for (Index i = 0; i < y.size(); ++i) total += std::pow(static_cast<double>(y.data()[i]) - t.data()[i], 2);
  return total / static_cast<double>(y.size());
}

double binary_cross_entropy(const Tensor& y, const Tensor& t) {
  double total = 0;
  for (Index i = 0; i < y.size(); ++i) {
    const double p = 1 / (1 + std::exp(-static_cast<double>(y.data()[i])));
    total -= t.data()[i] * std::log(p) + (1 - t.data()[i]) * std::log(1 - p);
  }
  return total / static_cast<double>(y.size());
}

// The loss and its gradient against a double function of y.
void compare(const Loss& loss, const Tensor& y, const Tensor& target, const std::function<double(const Tensor&)>& f) {
  Tensor d(y.shape());
  loss.check(y, target);
  const double value = loss.evaluate(y, target, &d);
  CHECK_NEAR(value, f(y), 1e-6 * std::fabs(f(y)));
  CHECK(loss.evaluate(y, target, nullptr) == value);
  const float h = 1.0f / 64;
  const Index step = std::max<Index>(1, y.size() / 40);
  for (Index i = 0; i < y.size(); i += step) {
    Tensor above = y.clone(), below = y.clone();
    above.data()[i] += h;
    below.data()[i] -= h;
    const double width = static_cast<double>(above.data()[i]) - below.data()[i];
    CHECK_NEAR(d.data()[i], (f(above) - f(below)) / width, 1e-4 / static_cast<double>(y.shape()[0]));
  }
}

const Shape shapes[] = {{1, 2}, {5, 3}, {8, 10}, {7, 16}, {6, 17}, {3, 100}, {4, 3, 5}, {2, 5, 9, 17}, {1, 21, 400}};

}  // namespace

TEST(cross_entropy_of_labels) {
  for (const Shape& shape : shapes) {
    Shape label_shape{shape[0]};
    for (int axis = 2; axis < shape.rank(); ++axis) label_shape.push_back(shape[axis]);
    const Tensor labels = random_labels(label_shape, shape[1]), hot = one_hot(shape, labels);
    compare(CrossEntropyLoss(), random_tensor(shape, 1), labels,
            [&](const Tensor& y) { return cross_entropy(y, hot); });
  }
}

TEST(cross_entropy_of_soft_labels) {
  for (const Shape& shape : shapes) {
    const Tensor soft = probabilities(shape);
    compare(CrossEntropyLoss(), random_tensor(shape, 1), soft, [&](const Tensor& y) { return cross_entropy(y, soft); });
  }
}

TEST(nll) {
  for (const Shape& shape : shapes) {
    Shape label_shape{shape[0]};
    for (int axis = 2; axis < shape.rank(); ++axis) label_shape.push_back(shape[axis]);
    const Tensor labels = random_labels(label_shape, shape[1]), hot = one_hot(shape, labels);
    compare(NLLLoss(), random_tensor(shape, 1), labels, [&](const Tensor& y) {
      double sum = 0;
      for (Index i = 0; i < y.size(); ++i) sum -= static_cast<double>(y.data()[i]) * hot.data()[i];
      return sum / static_cast<double>(labels.size());
    });
  }
}

TEST(mse_and_bce) {
  for (const Shape& shape : shapes) {
    const Tensor y = random_tensor(shape, 1), t = random_tensor(shape, 2, 0, 1);
    compare(MSELoss(), y, t, [&](const Tensor& v) { return mean_squared(v, t); });
    compare(BCEWithLogitsLoss(), y, t, [&](const Tensor& v) { return binary_cross_entropy(v, t); });
  }
}

TEST(integers_are_numbers_where_no_class_is_meant) {
  const Tensor y = Tensor::from({0.5f, -1.0f}, {2}), whole = Tensor::labels({1, 0});
  const Tensor same = Tensor::from({1.0f, 0.0f}, {2});
  CHECK(BCEWithLogitsLoss().evaluate(y, whole, nullptr) == BCEWithLogitsLoss().evaluate(y, same, nullptr));
  CHECK(MSELoss().evaluate(y, whole, nullptr) == MSELoss().evaluate(y, same, nullptr));
}

TEST(extreme_logits) {
  const CrossEntropyLoss loss;
  Tensor d({1, 2});
  CHECK(loss.evaluate(Tensor::from({1e4f, -1e4f}, {1, 2}), Tensor::labels({1}), &d) == 2e4);
  CHECK(d.data()[0] == 1.0f && d.data()[1] == -1.0f);
  CHECK(loss.evaluate(Tensor::from({1e4f, -1e4f}, {1, 2}), Tensor::labels({0}), nullptr) == 0.0);
  CHECK(std::isnan(loss.evaluate(Tensor::from({NAN, 0.0f}, {1, 2}), Tensor::labels({1}), nullptr)));
  const BCEWithLogitsLoss bce;
  CHECK(bce.evaluate(Tensor::from({-200.0f, 200.0f}, {2}), Tensor::from({1, 0}, {2}), nullptr) == 200.0);
}

TEST(every_isa_agrees) {
  const Tensor y = random_tensor({33, 10}, 1), labels = random_labels({33}, 10);
  double reference = 0;
  for (const KernelTable* k : available_kernels()) {
    Tensor d(y.shape());
    const double sum = k->cross_entropy_labels(33, 10, y.data(), labels.labels(), 1.0f, d.data());
    if (reference == 0) reference = sum;
    CHECK_NEAR(sum, reference, 1e-5);
    Tensor in_place = y.clone();
    k->cross_entropy_labels(33, 10, in_place.data(), labels.labels(), 1.0f, in_place.data());
    for (Index i = 0; i < d.size(); ++i) CHECK(in_place.data()[i] == d.data()[i]);
  }
}

TEST(threads_change_no_bit) {
  const Shape shape{700, 40};
  const Tensor y = random_tensor(shape, 1), labels = random_labels({700}, 40), t = random_tensor(shape, 2);
  const auto losses = [&](int n) {
    ThreadScope scope(n);
    Tensor d(shape);
    const double e = CrossEntropyLoss().evaluate(y, labels, &d), m = MSELoss().evaluate(y, t, nullptr);
    return std::make_tuple(e, m, d.data()[12345]);
  };
  CHECK(losses(1) == losses(2));
  CHECK(losses(1) == losses(5));
}

TEST(bad_targets) {
  const CrossEntropyLoss loss;
  const Tensor y({4, 10});
  CHECK_THROWS(ShapeError, loss.check(Tensor({4}), Tensor::labels({1})));
  CHECK_THROWS(ShapeError, loss.check(y, Tensor::labels({1, 2, 3})));
  CHECK_THROWS(ShapeError, loss.check(y, Tensor({4, 9})));
  CHECK_THROWS(TypeError, loss.check(y, Tensor({4})));
  CHECK_THROWS(ValueError, loss.check(y, Tensor::labels({0, 1, 2, 10})));
  CHECK_THROWS(ValueError, loss.check(y, Tensor::labels({0, -1, 2, 3})));
  CHECK_THROWS(ValueError, loss.check(Tensor({0, 10}), Tensor({0}, DType::int64)));
  CHECK_THROWS(TypeError, loss.check(Tensor({4, 10}, DType::int64), Tensor::labels({1, 2, 3, 4})));
  CHECK_THROWS(TypeError, NLLLoss().check(y, Tensor({4, 10})));
  CHECK_THROWS(ShapeError, MSELoss().check(Tensor({4, 1}), Tensor({4})));
  CHECK_THROWS(ValueError, MSELoss().check(Tensor({0, 1}), Tensor({0, 1})));
  CHECK_THROWS(ShapeError, BCEWithLogitsLoss().check(y, Tensor({4, 1})));
  try {
    loss.check(y, Tensor::labels({0, 1, 2, 12}));
  } catch (const ValueError& error) {
    CHECK(std::string(error.what()) == "[CrossEntropyLoss] expected labels in [0, 10), got 12 at position 3");
  }
}

TEST(counting) {
  const Tensor y = Tensor::from({1, 2, 2, 5, 4, 3, NAN, 1, 9}, {3, 3});
  CHECK(count_correct(y, Tensor::labels({1, 0, 2})) == 2);  // the first of equals; NaN is largest
  CHECK(count_correct(y, Tensor::labels({2, 0, 0})) == 2);
  const Tensor map = Tensor::from({1, 5, 2, 3}, {1, 2, 2});  // (N, C, positions)
  Tensor labels({1, 2}, DType::int64);
  labels.labels()[0] = 1;
  labels.labels()[1] = 0;
  CHECK(count_correct(map, labels) == 2);
  CHECK_THROWS(ShapeError, count_correct(y, Tensor::labels({1, 0})));
}
