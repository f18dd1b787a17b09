// Losses, the mean over the batch of an error E(y, target), and dE/dy; the equations are in loss.hpp. y and d_y may be
// the same memory.
//
// (N, C, ...) logits keep a row's classes one image apart; they are brought side by side, a tile of positions at a
// time, so that the kernels see rows only. Kernels are called for runs of rows between those that are ignored.
#include <deepnet/loss.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace deepnet {
namespace {

constexpr double exp_cost = 6.0;  // of an element with an exponential, in moved elements

std::string opening(const Loss& loss) { return "[" + loss.kind() + "] expected "; }

void check_float(const Loss& loss, const Tensor& y) {
  if (y.dtype() != DType::float32) throw TypeError(opening(loss) + "y of type float32, got " + name_of(y.dtype()));
}

void check_not_empty(const Loss& loss, const Tensor& y) {
  if (y.size() == 0) throw ValueError(opening(loss) + "a batch of 1 or more, got y of shape " + y.shape().str());
}

// --- classes: y (N, C, ...), or classes along another axis, labels (N, ...) --------------------------------------

bool has_axis(const Shape& y, int axis) { return y.rank() >= 2 && axis >= -y.rank() && axis < y.rank(); }

// y as (images, classes, positions).
struct Classes {
  Classes(const Shape& y, int axis) : Classes(y, axis < 0 ? axis + y.rank() : axis, y.rank()) {}
  Index rows() const { return images * positions; }

  Index images, classes, positions;

 private:
  Classes(const Shape& y, int axis, int rank)
      : images(y.size(0, axis)), classes(y[axis]), positions(y.size(axis + 1, rank)) {}
};

Shape without_classes(const Shape& y, int class_axis) {
  Shape s;
  for (int axis = 0; axis < y.rank(); ++axis)
    if (axis != class_axis && axis != class_axis + y.rank()) s.push_back(y[axis]);
  return s;
}

void check_classes(const Loss& loss, const Tensor& y) {
  check_float(loss, y);
  const int axis = loss.label_options().axis;
  if (!has_axis(y.shape(), axis)) {
    const std::string shape =
        axis == 1 ? "shape (N, C) or (N, C, ...)" : "2 or more axes with classes along axis " + std::to_string(axis);
    throw ShapeError(opening(loss) + "y of " + shape + ", got " + y.shape().str());
  }
  check_not_empty(loss, y);
}

void check_labels(const Loss& loss, const Tensor& y, const Tensor& labels) {
  const LabelOptions options = loss.label_options();
  const Shape expected = without_classes(y.shape(), options.axis);
  if (labels.shape() != expected) {
    throw ShapeError(opening(loss) + "labels of shape " + expected.str() + " for y of shape " + y.shape().str() +
                     ", got " + labels.shape().str());
  }
  const Index classes = y.shape()[options.axis];
  for (Index i = 0; i < labels.size(); ++i) {
    const Index label = labels.labels()[i];
    if ((label >= 0 && label < classes) || label == options.ignore_index) continue;
    throw ValueError(opening(loss) + "labels in [0, " + std::to_string(classes) + "), got " + std::to_string(label) +
                     " at position " + std::to_string(i));
  }
  if (count_labels(labels, options) == 0) {
    throw ValueError(opening(loss) + "at least one label other than ignore_index " +
                     std::to_string(options.ignore_index) + ", got none");
  }
}

// kernel(first, count) for every run of rows in [first, first + rows) that are not ignored, summed; zero(row) for the
// others.
template <class Kernel, class Zero>
double sum_runs(Index first, Index rows, const Index* labels, Index ignored, Kernel kernel, Zero zero) {
  double sum = 0.0;
  const Index end = first + rows;
  for (Index row = first; row < end;) {
    Index run = row;
    while (run < end && labels[run] != ignored) ++run;
    if (run > row) sum += kernel(row, run - row);
    for (row = run; row < end && labels[row] == ignored; ++row) zero(row);
  }
  return sum;
}

constexpr Index tile_positions = 128;

struct Tile {
  Index image, first, count;  // positions [first, first + count) of an image
};

// fn(tile) for every tile of positions, summed.
template <class Fn>
double sum_tiles(const Classes& shape, Fn fn) {
  const Index tiles = (shape.positions + tile_positions - 1) / tile_positions;
  const double work = exp_cost * static_cast<double>(shape.classes * std::min(tile_positions, shape.positions));
  return parallel_sum(shape.images * tiles, grain_for(work), [&](Index begin, Index end) {
    double sum = 0.0;
    for (Index i = begin; i < end; ++i) {
      const Index first = i % tiles * tile_positions;
      sum += fn(Tile{i / tiles, first, std::min(tile_positions, shape.positions - first)});
    }
    return sum;
  });
}

// kernel(first_row, rows, y, t, d) sums the errors of rows of classes side by side, t being the soft target's rows or
// null, and writes gradients to d unless that is null.
template <class Kernel>
double sum_rows(const Classes& shape, const float* y, const float* target, float* d_y, Kernel kernel) {
  const Index classes = shape.classes;
  if (shape.positions == 1) {
    const auto at = [=](auto* p, Index row) { return p ? p + row * classes : nullptr; };
    return parallel_sum(shape.images, grain_for(exp_cost * static_cast<double>(classes)), [&](Index begin, Index end) {
      return kernel(begin, end - begin, y + begin * classes, at(target, begin), at(d_y, begin));
    });
  }
  return sum_tiles(shape, [&](const Tile& tile) {
    const Index offset = tile.image * classes * shape.positions + tile.first;
    const auto size = static_cast<std::size_t>(classes * tile_positions);
    float* rows = thread_scratch(Scratch::tile, 2 * size);
    float* t = target ? rows + size : nullptr;
    kernels().transpose(y + offset, shape.positions, classes, tile.count, rows, classes, 0);
    if (target) kernels().transpose(target + offset, shape.positions, classes, tile.count, t, classes, 0);
    const Index first_row = tile.image * shape.positions + tile.first;
    const double sum = kernel(first_row, tile.count, rows, t, d_y ? rows : nullptr);
    if (d_y) kernels().transpose(rows, classes, tile.count, classes, d_y + offset, shape.positions, 0);
    return sum;
  });
}

// --- elements: y and target of one shape --------------------------------------------------------------------------

void check_elements(const Loss& loss, const Tensor& y, const Tensor& target) {
  check_float(loss, y);
  if (y.shape() != target.shape()) {
    throw ShapeError(opening(loss) + "target of y's shape " + y.shape().str() + ", got " + target.shape().str());
  }
  check_not_empty(loss, y);
}

// Integers, such as labels of 0 and 1, count as numbers where the target is not a class.
Tensor as_float(const Tensor& target) {
  if (target.dtype() == DType::float32) return target;
  Tensor converted(target.shape());
  std::transform(target.labels(), target.labels() + target.size(), converted.data(),
                 [](Index value) { return static_cast<float>(value); });
  return converted;
}

using ElementKernel = double (*)(std::int64_t n, const float* y, const float* target, float scale, float* d);

double mean_of_elements(ElementKernel kernel, double cost, const Tensor& y, const Tensor& target, Tensor* d_y) {
  FlushDenormals flush;
  const Tensor t = as_float(target);
  const Index n = y.size();
  const float scale = static_cast<float>(1.0 / static_cast<double>(n));
  float* d = d_y ? d_y->data() : nullptr;
  const double sum = parallel_sum(n, grain_for(cost, 64), [&](Index begin, Index end) {
    return kernel(end - begin, y.data() + begin, t.data() + begin, scale, d ? d + begin : nullptr);
  });
  return sum / static_cast<double>(n);
}

// The first of the largest of n values `stride` apart; a NaN counts as largest, as in NumPy.
Index argmax(const float* y, Index n, Index stride) {
  Index best = 0;
  for (Index c = 1; c < n && !std::isnan(y[best * stride]); ++c) {
    if (!(y[c * stride] <= y[best * stride])) best = c;
  }
  return best;
}

}  // namespace

void CrossEntropyLoss::check(const Tensor& y, const Tensor& target) const {
  check_classes(*this, y);
  if (target.dtype() == DType::int64) {
    check_labels(*this, y, target);
  } else if (target.shape() != y.shape()) {
    const std::string got = std::string(", got ") + name_of(target.dtype()) + " of shape " + target.shape().str();
    const Shape labels = without_classes(y.shape(), options.axis);
    if (target.shape() == labels) {
      throw TypeError(opening(*this) + "labels of an integer type (class indices), or soft labels of shape " +
                      y.shape().str() + got);
    }
    throw ShapeError(opening(*this) + "integer labels of shape " + labels.str() + " or soft labels of shape " +
                     y.shape().str() + got);
  }
}

double CrossEntropyLoss::evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const {
  FlushDenormals flush;
  const Classes shape(y.shape(), options.axis);
  const bool soft = target.dtype() == DType::float32;
  const double mean = 1.0 / static_cast<double>(soft ? shape.rows() : count_labels(target, options));
  const float scale = static_cast<float>(mean);
  const auto kernel = [&](Index first, Index rows, const float* row, const float* t, float* d) {
    if (soft) return kernels().cross_entropy_soft(rows, shape.classes, row, t, scale, d);
    const auto at = [&](auto* p, Index i) { return p ? p + (i - first) * shape.classes : nullptr; };
    const auto of_labels = [&](Index begin, Index count) {
      return kernels().cross_entropy_labels(count, shape.classes, at(row, begin), target.labels() + begin, scale,
                                            at(d, begin));
    };
    const auto zero = [&](Index i) {
      if (d) std::fill_n(at(d, i), shape.classes, 0.0f);
    };
    return sum_runs(first, rows, target.labels(), options.ignore_index, of_labels, zero);
  };
  return mean * sum_rows(shape, y.data(), soft ? target.data() : nullptr, d_y ? d_y->data() : nullptr, kernel);
}

void NLLLoss::check(const Tensor& y, const Tensor& target) const {
  check_classes(*this, y);
  if (target.dtype() != DType::int64) {
    throw TypeError(opening(*this) + "labels of an integer type (class indices), got " + name_of(target.dtype()) +
                    " of shape " + target.shape().str());
  }
  check_labels(*this, y, target);
}

double NLLLoss::evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const {
  const Classes shape(y.shape(), options.axis);
  const double mean = 1.0 / static_cast<double>(count_labels(target, options));
  const auto at_label = [&](Index row) {
    const Index image = row / shape.positions, position = row % shape.positions;
    return (image * shape.classes + target.labels()[row]) * shape.positions + position;
  };
  double sum = 0.0;
  const auto counts = [&](Index row) { return target.labels()[row] != options.ignore_index; };
  for (Index row = 0; row < shape.rows(); ++row)
    if (counts(row)) sum -= static_cast<double>(y.data()[at_label(row)]);
  if (d_y) {
    d_y->fill(0.0f);
    for (Index row = 0; row < shape.rows(); ++row)
      if (counts(row)) d_y->data()[at_label(row)] = static_cast<float>(-mean);
  }
  return mean * sum;
}

void MSELoss::check(const Tensor& y, const Tensor& target) const { check_elements(*this, y, target); }

double MSELoss::evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const {
  return mean_of_elements(kernels().mse, 1.5, y, target, d_y);
}

void BCEWithLogitsLoss::check(const Tensor& y, const Tensor& target) const { check_elements(*this, y, target); }

double BCEWithLogitsLoss::evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const {
  return mean_of_elements(kernels().bce_with_logits, exp_cost, y, target, d_y);
}

Index count_correct(const Tensor& y, const Tensor& labels, const LabelOptions& options) {
  if (!has_axis(y.shape(), options.axis) || labels.dtype() != DType::int64 ||
      labels.shape() != without_classes(y.shape(), options.axis)) {
    throw ShapeError("[count_correct] expected y with classes along axis " + std::to_string(options.axis) +
                     " and int64 labels of its shape without that axis, got " + y.shape().str() + " and " +
                     name_of(labels.dtype()) + " of shape " + labels.shape().str());
  }
  const Classes shape(y.shape(), options.axis);
  if (shape.classes == 0) return 0;
  Index correct = 0;
  for (Index row = 0; row < shape.rows(); ++row) {
    const Index image = row / shape.positions, position = row % shape.positions;
    const float* first = y.data() + image * shape.classes * shape.positions + position;
    const Index label = labels.labels()[row];
    correct += label != options.ignore_index && argmax(first, shape.classes, shape.positions) == label;
  }
  return correct;
}

Index count_labels(const Tensor& labels, const LabelOptions& options) {
  return labels.size() - std::count(labels.labels(), labels.labels() + labels.size(), options.ignore_index);
}

}  // namespace deepnet
