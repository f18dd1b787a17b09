// What the optimizers share: checks of their settings, and how they go through a gradient.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include <deepnet/error.hpp>
#include <deepnet/optimizer.hpp>

#include "ops/blocking.hpp"
#include "parallel.hpp"

namespace deepnet {

inline void check_at_least_0(const Optimizer& optimizer, const char* name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError("[" + optimizer.kind() + "] expected a finite " + name + " >= 0, got " + std::to_string(value));
}

/// For the share of an average that is kept from step to step.
inline void check_below_1(const Optimizer& optimizer, const char* name, double value) {
  if (value >= 0.0 && value < 1.0) return;
  throw ValueError("[" + optimizer.kind() + "] expected " + name + " in [0, 1), got " + std::to_string(value));
}

/// A buffer's elements; null where the settings need none of that name.
inline float* elements_of(Optimizer::Buffers& buffers, const char* name, bool needed) {
  return needed ? buffers.at(name).data() : nullptr;
}

/// Calls fn(begin, end, grad) for even pieces of the parameter's elements, `grad` being dE/dW from `begin` on. Small
/// ones, so that each core updates what it reads where a convolution of few images deals its filters to cores.
template <class Fn>
void for_gradient(const Tensor& gradient, double work_per_element, Fn fn) {
  const float* grad = gradient.data();
  parallel_for(gradient.size(), paired_piece(gradient.size(), grain_for(4.0 * work_per_element, 16)),
               [&](Index begin, Index end) { fn(begin, end, grad + begin); });
}

/// The same of a gradient that is known by its factors: pieces that stay in the first-level cache.
template <class Fn>
void for_gradient(const Shape& shape, const Parameter::Factors& factors, double work_per_element, Fn fn) {
  constexpr Index piece = 4096;
  const Index rows_at_once = std::max<Index>(piece / shape[1], 1), columns_at_once = std::min(shape[1], piece);
  const Index grain = grain_for(work_per_element * static_cast<double>(shape[1]));
  parallel_for(shape[0], paired_piece(shape[0], grain, 4), [&](Index first, Index last) {
    float* grad = thread_scratch(Scratch::tile, static_cast<std::size_t>(rows_at_once * columns_at_once));
    for (Index row = first; row < last; row += rows_at_once) {
      const Index rows = std::min(rows_at_once, last - row);
      for (Index column = 0; column < shape[1]; column += columns_at_once) {
        const Index columns = std::min(columns_at_once, shape[1] - column), begin = row * shape[1] + column;
        factors.multiply(row, rows, column, columns, grad);
        fn(begin, begin + rows * columns, grad);
      }
    }
  });
}

/// Whichever of the two it is.
template <class Fn>
void for_gradient(Parameter& parameter, double work_per_element, Fn fn) {
  {
    const Parameter::Factors factors(parameter);
    if (factors.known()) return for_gradient(parameter.data.shape(), factors, work_per_element, fn);
  }
  for_gradient(parameter.grad(), work_per_element, fn);
}

}  // namespace deepnet
