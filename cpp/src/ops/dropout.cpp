#include "dropout.hpp"

#include <cmath>
#include <cstring>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace deepnet {

void apply_dropout(double p, std::uint64_t key, Index first, Index n, const float* x, float* y) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  const double threshold = std::round(p * 0x1p32);
  if (threshold == 0.0) {
    if (x != y) std::memcpy(y, x, bytes);
  } else if (threshold >= 0x1p32) {
    std::memset(y, 0, bytes);
  } else {
    constexpr double cost = 12.0;  // an element's random bits, in moved elements
    const float scale = static_cast<float>(1.0 / (1.0 - p));
    parallel_for(n, grain_for(cost, 64), [&](Index begin, Index end) {
      kernels().dropout(key, first + begin, end - begin, static_cast<std::uint32_t>(threshold), scale, x + begin,
                        y + begin);
    });
  }
}

}  // namespace deepnet
