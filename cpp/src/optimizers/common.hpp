// What the optimizers share: checks of their settings, and how they go through a gradient.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include <deepnet/error.hpp>
#include <deepnet/optimizer.hpp>

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

/// Calls fn(begin, end, grad) for pieces of the parameter's elements, `grad` being dE/dW from `begin` on; of a gradient
/// that is known by its factors, pieces that stay in the first-level cache.
template <class Fn>
void for_gradient(Parameter& parameter, double work_per_element, Fn fn) {
  if (!parameter.is_factored()) {
    const float* grad = parameter.grad().data();
    parallel_for(parameter.data.size(), grain_for(work_per_element, 16),
                 [&](Index begin, Index end) { fn(begin, end, grad + begin); });
    return;
  }
  constexpr Index piece = 4096;
  const Index rows = parameter.data.shape()[0], columns = parameter.data.shape()[1];
  const Index rows_at_once = std::max<Index>(piece / columns, 1), columns_at_once = std::min(columns, piece);
  parallel_for(rows, grain_for(work_per_element * static_cast<double>(columns)), [&](Index first, Index last) {
    float* grad = thread_scratch(Scratch::tile, static_cast<std::size_t>(rows_at_once * columns_at_once));
    for (Index row = first; row < last; row += rows_at_once) {
      const Index rows_here = std::min(rows_at_once, last - row);
      for (Index column = 0; column < columns; column += columns_at_once) {
        const Index columns_here = std::min(columns_at_once, columns - column);
        parameter.multiply_factors(row, rows_here, column, columns_here, grad);
        const Index begin = row * columns + column;
        fn(begin, begin + rows_here * columns_here, grad);
      }
    }
  });
}

}  // namespace deepnet
