#include "dispatch.hpp"

#include <cstdlib>
#include <string>

#include <deepnet/error.hpp>
#include <deepnet/runtime.hpp>

extern const KernelTable deepnet_kernels_generic;
#if defined(DEEPNET_HAVE_AVX2)
extern const KernelTable deepnet_kernels_avx2;
#endif
#if defined(DEEPNET_HAVE_AVX512)
extern const KernelTable deepnet_kernels_avx512;
#endif
#if defined(DEEPNET_HAVE_NEON)
extern const KernelTable deepnet_kernels_neon;
#endif

namespace deepnet {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports reads cpuid and, for the wide registers, XCR0: whether the system saves them.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

const KernelTable& choose() {
  const auto tables = available_kernels();
  const char* asked = std::getenv("DEEPNET_ISA");
  if (asked == nullptr || *asked == '\0') return *tables.front();
  std::string names;
  for (const KernelTable* table : tables) {
    if (std::string(table->name) == asked) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw ValueError("[DEEPNET_ISA] expected one of " + names + " on this machine, got " + asked);
}

}  // namespace

std::vector<const KernelTable*> available_kernels() {
  std::vector<const KernelTable*> tables;
#if defined(DEEPNET_HAVE_AVX512)
  if (has_avx512()) tables.push_back(&deepnet_kernels_avx512);
#endif
#if defined(DEEPNET_HAVE_AVX2)
  if (has_avx2()) tables.push_back(&deepnet_kernels_avx2);
#endif
#if defined(DEEPNET_HAVE_NEON)
  tables.push_back(&deepnet_kernels_neon);  // every AArch64 machine has Advanced SIMD
#endif
  tables.push_back(&deepnet_kernels_generic);
  return tables;
}

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

std::string active_isa() { return kernels().name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
  return names;
}

}  // namespace deepnet
