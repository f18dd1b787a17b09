// Initial weights: a stream of random numbers (init::uniform, init::normal) scaled by the fans of each weight.
#include <deepnet/init.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <deepnet/runtime.hpp>

#include "parallel.hpp"
#include "random.hpp"

namespace deepnet::init {
namespace {

constexpr double pi = 3.14159265358979323846;

// four(words, values) makes elements 4 i ... 4 i + 3 of the stream from the words of counter i.
template <class Four>
void generate(Tensor& tensor, Four four) {
  const std::uint64_t key = next_random_key();
  const Index n = tensor.size();
  float* data = tensor.data();
  parallel_for((n + 3) / 4, grain_for(100.0), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      double values[4];
      four(philox(key, static_cast<std::uint64_t>(i)), values);
      const Index count = std::min<Index>(4, n - 4 * i);
      for (Index j = 0; j < count; ++j) data[4 * i + j] = static_cast<float>(values[j]);
    }
  });
}

struct Fans {
  double in, out;
};

// Of a weight (K, C, ...): the inputs that reach one output, and the outputs that one input reaches.
Fans fans(const Tensor& weight) {
  const Shape& s = weight.shape();
  const double receptive_field = static_cast<double>(s.size(2, s.rank()));
  return {static_cast<double>(s[1]) * receptive_field, static_cast<double>(s[0]) * receptive_field};
}

template <class Fill>
void for_each_weight(Layer& layer, Fill fill) {
  for (auto& [name, parameter] : layer.parameters()) {
    if (parameter->data.shape().rank() >= 2 && parameter->data.size() > 0) fill(parameter->data);
  }
}

// Takes from `row` its components along the `count` orthonormal rows before it. Twice is enough for orthogonality to
// rounding (Kahan and Parlett; Parlett, "The Symmetric Eigenvalue Problem", 1980, section 6.9).
void orthogonalise(const std::vector<double>& rows, Index count, Index length, double* row) {
  for (int pass = 0; pass < 2; ++pass) {
    for (Index r = 0; r < count; ++r) {
      const double* other = rows.data() + r * length;
      double dot = 0.0;
      for (Index i = 0; i < length; ++i) dot += row[i] * other[i];
      for (Index i = 0; i < length; ++i) row[i] -= dot * other[i];
    }
  }
}

// Gram-Schmidt on normal numbers gives rows distributed evenly over all orthonormal sets (Saxe et al. 2014).
void fill_orthogonal(Tensor& weight) {
  const Index k = weight.shape()[0], columns = weight.size() / k;
  const Index count = std::min(k, columns), length = std::max(k, columns);
  Tensor start(Shape{count, length});
  normal(start, 0.0, 1.0);
  std::vector<double> rows(start.data(), start.data() + count * length);
  for (Index r = 0; r < count; ++r) {
    double* row = rows.data() + r * length;
    orthogonalise(rows, r, length, row);
    double square = 0.0;
    for (Index i = 0; i < length; ++i) square += row[i] * row[i];
    const double inverse = 1.0 / std::sqrt(square);
    for (Index i = 0; i < length; ++i) row[i] *= inverse;
  }
  float* w = weight.data();
  for (Index i = 0; i < k; ++i) {
    for (Index j = 0; j < columns; ++j) {
      const Index from = k <= columns ? i * length + j : j * length + i;
      w[i * columns + j] = static_cast<float>(rows[static_cast<std::size_t>(from)]);
    }
  }
}

}  // namespace

void uniform(Tensor& tensor, double low, double high) {
  // Rounding to float may reach `high`, which is not in [low, high).
  const double below_high = std::max(low, static_cast<double>(std::nextafter(static_cast<float>(high), -INFINITY)));
  generate(tensor, [=](const PhiloxWords& words, double* values) {
    for (int j = 0; j < 4; ++j) values[j] = std::min(low + (high - low) * philox_uniform(words[j]), below_high);
  });
}

// Box and Muller (1958): two uniform numbers make two normal ones.
void normal(Tensor& tensor, double mean, double std) {
  generate(tensor, [=](const PhiloxWords& words, double* values) {
    for (int j = 0; j < 4; j += 2) {
      const double radius = std * std::sqrt(-2.0 * std::log(philox_uniform(words[j])));
      const double angle = 2.0 * pi * philox_uniform(words[j + 1]);
      values[j] = mean + radius * std::cos(angle);
      values[j + 1] = mean + radius * std::sin(angle);
    }
  });
}

void kaiming_normal(Layer& layer) {
  for_each_weight(layer, [](Tensor& w) { normal(w, 0.0, std::sqrt(2.0 / fans(w).in)); });
}

void kaiming_uniform(Layer& layer) {
  for_each_weight(layer, [](Tensor& w) {
    const double bound = std::sqrt(6.0 / fans(w).in);
    uniform(w, -bound, bound);
  });
}

void xavier_normal(Layer& layer) {
  for_each_weight(layer, [](Tensor& w) { normal(w, 0.0, std::sqrt(2.0 / (fans(w).in + fans(w).out))); });
}

void xavier_uniform(Layer& layer) {
  for_each_weight(layer, [](Tensor& w) {
    const double bound = std::sqrt(6.0 / (fans(w).in + fans(w).out));
    uniform(w, -bound, bound);
  });
}

void orthogonal(Layer& layer) { for_each_weight(layer, fill_orthogonal); }

}  // namespace deepnet::init
