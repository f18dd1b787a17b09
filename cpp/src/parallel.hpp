// Threads. parallel_for is the only way work is spread; the threads themselves are in thread_pool.cpp.
//
// Work is cut into pieces by its shape, and by the number of threads only where no result depends on the cut; pieces
// share nothing that is written: the same bits come out for any number of threads. Every thread flushes denormals while
// it works.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <type_traits>

#include <deepnet/tensor.hpp>

namespace deepnet {

/// Threads that a call made now, by this thread, may use.
int threads_for_this_call();

/// Sets flush-to-zero and denormals-are-zero on this thread for its lifetime, then restores the old state.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  std::uint64_t saved_;
};

namespace detail {
void run_pieces(Index pieces, void (*piece)(void* context, Index index), void* context);
/// Between two looks at what another thread does: some cycles at first, later, in case it waits for this core, longer.
void wait_a_little(unsigned tries);
}  // namespace detail

/// Calls fn(begin, end) for [0, n) in pieces of `grain` items, the last one shorter, on several threads where
/// there is more than one piece. Choose the grain by the work: a piece should cost 5 us or more (see
/// grain_for), or 1.5 us where products follow each other (see product_grain in ops/blocking.hpp). The first
/// exception thrown is rethrown here.
template <class Fn>
void parallel_for(Index n, Index grain, Fn&& fn) {
  if (n <= 0) return;
  if (grain >= n) {
    fn(Index{0}, n);
    return;
  }
  struct Context {
    Index n, grain;
    std::remove_reference_t<Fn>* fn;
  } context{n, grain, &fn};
  detail::run_pieces((n + grain - 1) / grain,
                     [](void* c, Index index) {
                       auto& it = *static_cast<Context*>(c);
                       const Index begin = index * it.grain;
                       (*it.fn)(begin, begin + it.grain < it.n ? begin + it.grain : it.n);
                     },
                     &context);
}

/// Items a piece: as many as make up about `work_per_piece` units (an element moved, or 16 multiply-adds), rounded
/// up to a multiple of `multiple`.
Index grain_for(double work_per_item, Index multiple = 1, double work_per_piece = 32768);

/// Sums fn(begin, end) (a double) over the pieces of [0, n), always in the same order.
template <class Fn>
double parallel_sum(Index n, Index grain, Fn&& fn) {
  constexpr Index max_pieces = 64;
  if (n <= 0) return 0.0;
  if (grain * max_pieces < n) grain = (n + max_pieces - 1) / max_pieces;
  double part[max_pieces] = {};
  parallel_for(n, grain, [&](Index begin, Index end) { part[begin / grain] = fn(begin, end); });
  double sum = 0.0;
  for (double p : part) sum += p;
  return sum;
}

/// Jobs 0, 1, ... beside a walk that needs them done by and by: done one at a time, in their order, by a companion of
/// the walk on another core, where there is one, and by the walk itself where none has begun them in time. Job i is
/// job(i) for whoever does it, and must not throw.
class SideJobs {
 public:
  /// From the walk: jobs below `end` may be done.
  void allow(Index end) { allowed_.store(end, std::memory_order_release); }

  /// From the walk: returns when jobs below `end` are done.
  template <class Job>
  void finish(Index end, Job&& job) {
    wait_until(end, [&] { return do_next(end, job); });
  }

  /// From the companion: returns when jobs below `end`, all there are, are done. The walk must have begun, or be begun
  /// by somebody who waits for nothing.
  template <class Job>
  void help(Index end, Job&& job) {
    wait_until(end, [&] { return do_next(allowed_.load(std::memory_order_acquire), job); });
  }

 private:
  template <class Try>
  void wait_until(Index end, Try&& try_next) {
    for (unsigned tries = 0; done_.load(std::memory_order_acquire) < end;) {
      if (try_next()) {
        tries = 0;
      } else {
        detail::wait_a_little(tries++);
      }
    }
  }

  template <class Job>
  bool do_next(Index end, Job&& job) {
    if (done_.load(std::memory_order_relaxed) >= end || taken_.exchange(true, std::memory_order_acquire)) return false;
    const Index next = done_.load(std::memory_order_relaxed);
    if (next < end) {
      job(next);
      done_.store(next + 1, std::memory_order_release);
    }
    taken_.store(false, std::memory_order_release);
    return next < end;
  }

  alignas(64) std::atomic<Index> done_{0};
  std::atomic<bool> taken_{false};
  alignas(64) std::atomic<Index> allowed_{0};
};

/// Memory of this thread that stays allocated between calls: 64-byte aligned, uninitialised, growing as asked.
/// Each slot is one buffer; a function and those it calls must use different slots.
enum class Scratch { pack, tile, columns, streamed, count };
float* thread_scratch(Scratch slot, std::size_t floats);

}  // namespace deepnet
