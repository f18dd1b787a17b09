#include <deepnet/runtime.hpp>

#include <atomic>

namespace deepnet {
namespace {

std::atomic<std::uint64_t> random_state{0};

// SplitMix64 (Steele, Lea and Flood 2014, fig. 13): neighbouring counts give unrelated keys.
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

#if defined(__clang__)
const char compiler[] = "clang " __clang_version__;
#elif defined(__GNUC__)
const char compiler[] = "gcc " __VERSION__;
#else
const char compiler[] = "unknown";
#endif

}  // namespace

const char* version() { return DEEPNET_VERSION; }

void manual_seed(std::uint64_t seed) { random_state = mix(seed + 0x9e3779b97f4a7c15u); }

std::uint64_t next_random_key() { return mix(random_state.fetch_add(0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u); }

std::string config_text() {
  std::string isas;
  for (const std::string& name : available_isas()) isas += (isas.empty() ? "" : ", ") + name;
  return std::string("deepnet   ") + version() + "\ncompiler  " + compiler + "\nCPU       " + cpu_name() +
         "\nISA       " + active_isa() + " (available: " + isas + ")\nthreads   " + std::to_string(get_num_threads()) +
         "\n";
}

}  // namespace deepnet
