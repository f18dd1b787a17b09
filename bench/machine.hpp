// What this machine can do at most, measured: multiply-adds a second out of registers, and bytes a second from and to
// memory, each on a given number of threads at once. Free of the library, so that one compiler call builds it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#endif

// All turns of the loop behind it, early enough that arrays become registers.
#if defined(__clang__)
#define MACHINE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MACHINE_UNROLL _Pragma("GCC unroll 24")
#endif

namespace machine {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of one call: the least of several blocks, each of about `block` seconds, because all that disturbs adds.
template <class Fn>
double seconds_per_call(Fn&& call, double block = 0.02, int blocks = 7) {
  double best = 1e30;
  long count = 1;
  for (int i = 0; i < blocks;) {
    const double begin = now();
    for (long j = 0; j < count; ++j) call();
    const double elapsed = now() - begin;
    if (elapsed < block / 2) {
      count = std::max(count * 2, static_cast<long>(static_cast<double>(count) * block / std::max(elapsed, 1e-9)) / 2);
      continue;
    }
    best = std::min(best, elapsed / static_cast<double>(count));
    ++i;
  }
  return best;
}

// --- multiply-adds: more sums in flight than latency times units, in the widest vectors there are -----------------
// Each function runs `rounds` rounds and returns something that depends on all of them.
struct FmaLoop {
  const char* name;
  double flops_per_round;
  float (*run)(long rounds);
};

#if defined(__x86_64__) || defined(_M_X64)
__attribute__((target("avx512f"))) inline float fma_avx512(long rounds) {
  constexpr int sums = 12;
  __m512 sum[sums];
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (long r = 0; r < rounds; ++r) {
    MACHINE_UNROLL
    for (int i = 0; i < sums; ++i) sum[i] = _mm512_fmadd_ps(sum[i], a, b);
  }
  float out[16], total = 0;
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) {
    _mm512_storeu_ps(out, sum[i]);
    total += out[0];
  }
  return total;
}

__attribute__((target("avx2,fma"))) inline float fma_avx2(long rounds) {
  constexpr int sums = 12;
  __m256 sum[sums];
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (long r = 0; r < rounds; ++r) {
    MACHINE_UNROLL
    for (int i = 0; i < sums; ++i) sum[i] = _mm256_fmadd_ps(sum[i], a, b);
  }
  float out[8], total = 0;
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) {
    _mm256_storeu_ps(out, sum[i]);
    total += out[0];
  }
  return total;
}
#elif defined(__aarch64__) || defined(_M_ARM64)
inline float fma_neon(long rounds) {
  constexpr int sums = 24;
  float32x4_t sum[sums];
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) sum[i] = vdupq_n_f32(static_cast<float>(i));
  const float32x4_t a = vdupq_n_f32(0.999f), b = vdupq_n_f32(0.001f);
  for (long r = 0; r < rounds; ++r) {
    MACHINE_UNROLL
    for (int i = 0; i < sums; ++i) sum[i] = vfmaq_f32(b, sum[i], a);
  }
  float total = 0;
  MACHINE_UNROLL
  for (int i = 0; i < sums; ++i) total += vgetq_lane_f32(sum[i], 0);
  return total;
}
#endif

inline float multiply_and_add(long rounds) {
  constexpr int sums = 16;
  float sum[sums];
  for (int i = 0; i < sums; ++i) sum[i] = static_cast<float>(i);
  for (long r = 0; r < rounds; ++r) {
    for (int i = 0; i < sums; ++i) sum[i] = sum[i] * 0.999f + 0.001f;
  }
  float total = 0;
  for (float s : sum) total += s;
  return total;
}

inline FmaLoop widest_fma_loop() {
#if defined(__x86_64__) || defined(_M_X64)
  if (__builtin_cpu_supports("avx512f")) return {"avx512", 12 * 16 * 2.0, fma_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", 12 * 8 * 2.0, fma_avx2};
#elif defined(__aarch64__) || defined(_M_ARM64)
  return {"neon", 24 * 4 * 2.0, fma_neon};
#endif
  return {"scalar", 16 * 2.0, multiply_and_add};
}

// Runs fn(thread) on `threads` threads and waits for all.
inline void on_threads(int threads, const std::function<void(int)>& fn) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(fn, t);
  fn(0);
  for (std::thread& thread : others) thread.join();
}

/// GFLOP/s of all threads together, a multiply-add counted as two.
inline double peak_gflops(int threads) {
  const FmaLoop loop = widest_fma_loop();
  constexpr long rounds = 1 << 24;  // tens of milliseconds, beside which starting threads is nothing
  volatile float sink = 0;
  const double seconds = seconds_per_call([&] {
    on_threads(threads, [&](int t) {
      const float result = loop.run(rounds);
      if (t == 0) sink = result;
    });
  });
  static_cast<void>(sink);
  return static_cast<double>(threads) * static_cast<double>(rounds) * loop.flops_per_round / seconds / 1e9;
}

/// GB/s, bytes read plus bytes written, over 256 MB: the better of a copy and of a = b + 3 c (STREAM's triad).
inline double bandwidth_gbs(int threads) {
  const std::size_t floats = (256u << 20) / sizeof(float) / 3;
  std::vector<float> a(floats, 1.0f), b(floats, 2.0f), c(floats, 3.0f);
  const auto over_threads = [&](const std::function<void(std::size_t, std::size_t)>& part) {
    on_threads(threads, [&](int t) {
      const std::size_t size = static_cast<std::size_t>(threads), at = static_cast<std::size_t>(t);
      part(floats * at / size, floats * (at + 1) / size);
    });
  };
  const double copy = seconds_per_call([&] {
    over_threads([&](std::size_t i, std::size_t end) { std::memcpy(&a[i], &b[i], (end - i) * sizeof(float)); });
  });
  const double triad = seconds_per_call([&] {
    over_threads([&](std::size_t i, std::size_t end) {
      for (; i < end; ++i) a[i] = b[i] + 3.0f * c[i];
    });
  });
  const double bytes = static_cast<double>(floats) * sizeof(float);
  return std::max(2 * bytes / copy, 3 * bytes / triad) / 1e9;
}

}  // namespace machine
