// Random numbers from a key and a position: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011). No state, so any part of a stream can be made alone. kernels/random.inl has its vectors.
#pragma once

#include <array>
#include <cstdint>

namespace deepnet {

using PhiloxWords = std::array<std::uint32_t, 4>;

inline PhiloxWords philox(std::uint64_t key, PhiloxWords c) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{c[0]} * 0xD2511F53u, p1 = std::uint64_t{c[2]} * 0xCD9E8D57u;
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

inline PhiloxWords philox(std::uint64_t key, std::uint64_t counter) {
  return philox(key, {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0});
}

/// A number in (0, 1): never 0, whose logarithm has no value.
inline double philox_uniform(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

}  // namespace deepnet
