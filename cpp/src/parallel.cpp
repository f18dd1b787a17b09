#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <new>
#include <sstream>

#include <deepnet/error.hpp>
#include <deepnet/runtime.hpp>

#include "thread_pool.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#else
#include <thread>
#endif
#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace deepnet {
namespace {

// After fork() only the forking thread lives on: the pool has lost its threads.
std::atomic<bool> in_forked_child{false};

int cores_of_affinity() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
#if defined(__unix__) || defined(__APPLE__)
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n > 0 ? static_cast<int>(n) : 1;
#else
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
#endif
}

// Cores that the control group grants: cgroup v2's "quota period" in cpu.max, or v1's two files. 0: no limit.
int cores_of_cgroup() {
#if defined(__linux__)
  double quota = -1, period = -1;
  std::string word;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> word >> period && word != "max") {
    quota = std::atof(word.c_str());
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  if (quota > 0 && period > 0) return static_cast<int>(std::ceil(quota / period));
#endif
  return 0;
}

int default_threads() {
  int n = cores_of_affinity();
  if (const int granted = cores_of_cgroup(); granted > 0 && granted < n) n = granted;
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int asked = std::atoi(text);  // "4,2" asks for 4 at the outermost level
    if (asked > 0 && asked < n) n = asked;
  }
  return std::clamp(n, 1, ThreadPool::most_threads);
}

std::atomic<int>& global_threads() {
  static std::atomic<int> threads = [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif
    return default_threads();
  }();
  return threads;
}

thread_local int threads_here = 0;  // 0: the global number
thread_local bool inside_piece = false;

void check_threads(const char* function, int n) {
  if (n < 1) {
    throw ValueError(std::string("[") + function + "] expected at least 1 thread, got " + std::to_string(n));
  }
  if (n > ThreadPool::most_threads) {
    throw ValueError(std::string("[") + function + "] expected at most " + std::to_string(ThreadPool::most_threads) +
                     " threads, got " + std::to_string(n));
  }
}

}  // namespace

int get_num_threads() {
  const int global = global_threads();
  return threads_here > 0 ? threads_here : global;
}

void set_num_threads(int n) {
  check_threads("set_num_threads", n);
  global_threads() = n;
}

ThreadScope::ThreadScope(int n) : previous_(threads_here) {
  check_threads("threads", n);
  threads_here = n;
}

ThreadScope::~ThreadScope() { threads_here = previous_; }

int threads_for_this_call() {
  if (in_forked_child || inside_piece) return 1;
#if defined(_OPENMP)
  if (omp_in_parallel()) return 1;  // the host's region has its threads already
#endif
  return get_num_threads();
}

FlushDenormals::FlushDenormals() {
#if defined(__SSE2__) || defined(_M_X64)
  constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x0040;
  saved_ = _mm_getcsr();
  _mm_setcsr(static_cast<unsigned>(saved_) | flush_to_zero | denormals_are_zero);
#elif defined(__aarch64__)
  constexpr std::uint64_t flush_to_zero = std::uint64_t{1} << 24;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(saved_));
  const std::uint64_t flushing = saved_ | flush_to_zero;
  __asm__ __volatile__("msr fpcr, %0" : : "r"(flushing));
#else
  saved_ = 0;
#endif
}

FlushDenormals::~FlushDenormals() {
#if defined(__SSE2__) || defined(_M_X64)
  _mm_setcsr(static_cast<unsigned>(saved_));
#elif defined(__aarch64__)
  __asm__ __volatile__("msr fpcr, %0" : : "r"(saved_));
#endif
}

namespace detail {

void run_pieces(Index pieces, void (*piece)(void*, Index), void* context) {
  const int threads = static_cast<int>(std::min<Index>(threads_for_this_call(), pieces));
  struct Work {
    void (*piece)(void*, Index);
    void* context;
    std::mutex mutex;
    std::exception_ptr error;
  } work = {piece, context, {}, nullptr};
  const auto run_piece = [](void* w, Index i) {
    Work& work = *static_cast<Work*>(w);
    inside_piece = true;
    try {
      work.piece(work.context, i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(work.mutex);
      if (!work.error) work.error = std::current_exception();
    }
    inside_piece = false;
  };
  if (threads > 1) {
    const FlushDenormals flush;  // as the pool's threads do
    if (ThreadPool::instance().run(pieces, threads - 1, run_piece, &work)) {
      if (work.error) std::rethrow_exception(work.error);
      return;
    }
  }
  for (Index i = 0; i < pieces; ++i) piece(context, i);
}

}  // namespace detail

Index grain_for(double work_per_item, Index multiple, double work_per_piece) {
  const double items = std::ceil(work_per_piece / std::fmax(work_per_item, 1e-3));
  const Index grain = static_cast<Index>(std::fmin(items, 1e15));
  return (grain + multiple - 1) / multiple * multiple;
}

float* thread_scratch(Scratch slot, std::size_t floats) {
  struct Buffer {
    float* data = nullptr;
    std::size_t floats = 0;
    ~Buffer() { ::operator delete(data, std::align_val_t{64}); }
  };
  thread_local Buffer buffers[static_cast<int>(Scratch::count)];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.floats < floats) {
    ::operator delete(buffer.data, std::align_val_t{64});
    buffer.data = nullptr;
    buffer.floats = 0;
    buffer.data = static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64}));
    buffer.floats = floats;
  }
  return buffer.data;
}

}  // namespace deepnet
