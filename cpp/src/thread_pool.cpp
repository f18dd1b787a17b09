#include "thread_pool.hpp"

#include <chrono>
#include <system_error>
#include <thread>

#include "parallel.hpp"

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace deepnet {
namespace {

// Fields of the gate: threads inside (low 16 bits), seats left (next 16), and the number of the work (high 32).
constexpr std::uint64_t one_inside = 1, inside_mask = 0xffff;
constexpr std::uint64_t one_seat = 1 << 16, seats_mask = std::uint64_t{0xffff} << 16;
constexpr std::uint64_t one_work = std::uint64_t{1} << 32;

static_assert(ThreadPool::most_threads <= inside_mask && ThreadPool::most_threads <= seats_mask / one_seat,
              "every thread has a seat and may be inside");

std::uint64_t work_of(std::uint64_t gate) { return gate / one_work; }

// How long a thread looks for more work before it sleeps: longer than the pauses between the regions of a training
// step, shorter than anybody notices. Waking a sleeper takes some 50 us.
constexpr auto patience = std::chrono::microseconds(100);

// How long the second half of another thread's run is left to that thread. LeNet's step on one image took 215 us with
// none, 200 us with 10 us, and 187 us with 20 or 40.
constexpr auto courtesy = std::chrono::microseconds(20);

void pause() {
#if defined(__SSE2__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Waits for done(); true if that came true within `limit`.
template <class Done>
bool spin(std::chrono::microseconds limit, Done&& done) {
  const auto begin = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - begin < limit);
  return done();
}

}  // namespace

void detail::wait_a_little(unsigned tries) {
  if (tries < 1000) {
    pause();
  } else {
    std::this_thread::yield();
  }
}

ThreadPool& ThreadPool::instance() {
  static ThreadPool& pool = *new ThreadPool;
  return pool;
}

bool ThreadPool::run(Index pieces, int helpers, void (*piece)(void*, Index), void* context) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) return false;
  start(helpers);
  piece_ = piece;
  context_ = context;
  runs_ = helpers + 1;
  for (int r = 0; r < runs_; ++r) {
    run_[r].begin = r * pieces / runs_;
    run_[r].end = (r + 1) * pieces / runs_;
    run_[r].next.store(run_[r].begin, std::memory_order_relaxed);
  }
  const std::uint64_t work = (work_of(gate_.load()) + 1) * one_work;
  gate_.store(work + static_cast<std::uint64_t>(helpers) * one_seat);
  for (int asleep = sleepers_.load(), n = asleep < helpers ? asleep : helpers; n > 0; --n) {
    const std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
    wake_.notify_one();
  }
  take_pieces(0);
  gate_.fetch_and(~seats_mask);
  const auto empty = [&] { return (gate_.load(std::memory_order_acquire) & inside_mask) == 0; };
  // A thread that has not come back yet may be waiting for this very core.
  while (!spin(std::chrono::microseconds(20), empty)) std::this_thread::yield();
  return true;
}

void ThreadPool::start(int threads) {
  try {
    for (; threads_ < threads; ++threads_) std::thread([this, thread = threads_ + 1] { work(thread); }).detach();
  } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
  }
}

void ThreadPool::work(int thread) {
  const FlushDenormals flush;
  for (std::uint64_t seen = 0;;) {
    if (!spin(patience, [&] { return join(seen); })) {
      sleep(seen);
      continue;
    }
    take_pieces(thread);
    gate_.fetch_sub(one_inside, std::memory_order_release);
  }
}

// Takes a seat, if there is one at work that this thread has not seen.
bool ThreadPool::join(std::uint64_t& seen) {
  std::uint64_t gate = gate_.load(std::memory_order_acquire);
  while (work_of(gate) != seen && (gate & seats_mask) != 0) {
    if (gate_.compare_exchange_weak(gate, gate - one_seat + one_inside, std::memory_order_acq_rel)) {
      seen = work_of(gate);
      return true;
    }
  }
  return false;
}

void ThreadPool::take_pieces(int thread) {
  bool courteous = true;
  for (int i = 0; i < runs_; ++i) {
    Run& run = run_[(thread + i) % runs_];
    while (run.left() > 0) {
      if (i > 0 && courteous && run.half_done()) {
        courteous = spin(courtesy, [&] { return run.left() <= 0; });
        continue;
      }
      const Index piece = run.next.fetch_add(1, std::memory_order_relaxed);
      if (piece < run.end) piece_(context_, piece);
    }
  }
}

// Until there is a seat. Both this and run() first write what the other reads next, so that one of them sees the other.
void ThreadPool::sleep(std::uint64_t seen) {
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  sleepers_.fetch_add(1);
  wake_.wait(lock, [&] {
    const std::uint64_t gate = gate_.load();
    return work_of(gate) != seen && (gate & seats_mask) != 0;
  });
  sleepers_.fetch_sub(1);
}

}  // namespace deepnet
