// The threads that parallel_for spreads work over: started when first wanted, asleep when there is none.
//
// A team whose members meet at a barrier, as OpenMP's do, waits for its slowest thread even where that thread had
// nothing to do; on a machine shared with other programs it is often not running, and a call of 50 us took up to 28 ms.
// Here the caller takes pieces itself and waits only for pieces that another thread has begun.
//
// Pieces are dealt out in runs, one a thread, the same from call to call, so that a thread finds in its caches what it
// wrote before: the same rows of the weights, the same images. Who is done with its own run goes on with the others',
// but not at once with the last pieces of a run that is being worked at: fetching what a piece works on from another
// core's cache, and back in the next call, takes longer than waiting a little.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include <deepnet/tensor.hpp>

namespace deepnet {

class ThreadPool {
 public:
  /// That one call may use: more cores than any machine of today has.
  static constexpr int most_threads = 1024;

  /// The one pool of this process. It is never destroyed: its threads may outlive main().
  static ThreadPool& instance();

  /// Calls piece(context, i) for every i in [0, pieces), on this thread and up to `helpers` others; piece must not
  /// throw. Another caller's work is not waited for: false, and nothing done, where the pool is busy.
  bool run(Index pieces, int helpers, void (*piece)(void*, Index), void* context);

 private:
  ThreadPool() = default;
  void start(int threads);
  void work(int thread);
  bool join(std::uint64_t& seen);
  void take_pieces(int thread);
  void sleep(std::uint64_t seen);

  std::mutex busy_;  // held by the caller whose work is on
  int threads_ = 0;

  // The work that is on. Written while the gate is shut and nobody is inside.
  void (*piece_)(void*, Index) = nullptr;
  void* context_ = nullptr;
  int runs_ = 0;
  struct alignas(64) Run {
    std::atomic<Index> next{0};
    Index begin = 0, end = 0;
    Index left() const { return end - next.load(std::memory_order_relaxed); }
    bool half_done() const { return 2 * left() <= end - begin; }
  };
  Run run_[most_threads];

  // Which work, how many threads may still join it, how many are inside: see the fields in thread_pool.cpp.
  alignas(64) std::atomic<std::uint64_t> gate_{0};

  alignas(64) std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

}  // namespace deepnet
