// What the library decides at run time: instruction set, threads, random numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace deepnet {

/// "0.1.0"
const char* version();

/// "generic", "avx2", "avx512" or "neon": the best that machine and build have, or what the environment
/// variable DEEPNET_ISA asks for. Throws ValueError, listing what there is, where it asks for what is not.
std::string active_isa();
/// What this build has and this machine runs, best first; the last is "generic".
std::vector<std::string> available_isas();

/// Threads for native work. The default is the least of CPU affinity, cgroup quota and OMP_NUM_THREADS.
/// Results have the same bits for any number.
int get_num_threads();
/// From now on and for all threads of the caller but those within a ThreadScope. ValueError unless 1 <= n <= 1024.
void set_num_threads(int n);

/// For this thread of the caller and while it lives, n threads.
class ThreadScope {
 public:
  /// ValueError unless 1 <= n <= 1024. Scopes may be nested.
  explicit ThreadScope(int n);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int previous_;
};

/// Seeds initial weights and dropout, for all threads: the same seed and calls give the same bits.
void manual_seed(std::uint64_t seed);
/// The next 64-bit key of the global sequence that manual_seed starts.
std::uint64_t next_random_key();

/// The CPU's name, as the operating system has it; "unknown" where it has none.
std::string cpu_name();
/// A file in the user's folder for caches, named after the CPU; empty where there is no such folder.
std::string default_autotune_cache();
/// Where on, a convolution of a shape that is planned for the first time is timed with every algorithm that applies,
/// and keeps the fastest until the process ends. Choices are kept in the file `cache`, and taken from it instead of
/// timing; empty: in no file. What was planned before stays as it is. Algorithms differ in how they round; a choice
/// made, results have the same bits for any number of threads. FileError where the file cannot be written, ValueError
/// where it is none of autotune's.
void autotune(bool on = true, const std::string& cache = default_autotune_cache());

/// Version, compiler, CPU, ISA, threads: one line each.
std::string config_text();

}  // namespace deepnet
