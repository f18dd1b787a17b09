// What the optimizers share: checks of their settings.
#pragma once

#include <cmath>
#include <string>

#include <deepnet/error.hpp>
#include <deepnet/optimizer.hpp>

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

}  // namespace deepnet
