// Dropout of a stream of elements whose random bits depend on key and position alone.
#pragma once

#include <cstdint>

#include <deepnet/tensor.hpp>

namespace deepnet {

/// y = x m / (1 - p), each m 0 with probability p, else 1; the elements are numbers first, first + 1, ... of the
/// stream. y may be x.
void apply_dropout(double p, std::uint64_t key, Index first, Index n, const float* x, float* y);

}  // namespace deepnet
