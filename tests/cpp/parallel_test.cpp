// parallel_for, and what threads must not disturb.
#include "parallel.hpp"

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include <deepnet/runtime.hpp>

#include "check.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace deepnet;

namespace {

double alternating_sum(Index n) {
  return parallel_sum(n, 1000, [](Index begin, Index end) {
    double sum = 0.0;
    for (Index i = begin; i < end; ++i) sum += (i % 2 ? -1.0 : 1.0) / static_cast<double>(i + 1);
    return sum;
  });
}

}  // namespace

TEST(every_item_is_visited_once) {
  const ThreadScope scope(3);
  for (const Index n : {0, 1, 7, 1000, 1001}) {
    std::vector<std::atomic<int>> visits(static_cast<std::size_t>(n));
    parallel_for(n, 10, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
    });
    int wrong = 0;
    for (const auto& count : visits) wrong += count != 1;
    CHECK(wrong == 0);
  }
}

TEST(sums_have_the_same_bits_for_any_number_of_threads) {
  const double expected = [] {
    const ThreadScope scope(1);
    return alternating_sum(1'000'003);
  }();
  for (const int threads : {2, 3, 8}) {
    const ThreadScope scope(threads);
    CHECK(alternating_sum(1'000'003) == expected);
  }
}

TEST(exceptions_arrive) {
  const ThreadScope scope(4);
  CHECK_THROWS(std::out_of_range, parallel_for(100, 1, [](Index begin, Index) {
                 if (begin == 57) throw std::out_of_range("57");
               }));
}

TEST(a_piece_may_call_parallel_for) {
  const ThreadScope scope(3);
  std::atomic<int> visits{0};
  parallel_for(20, 1, [&](Index, Index) {
    parallel_for(50, 5, [&](Index begin, Index end) { visits += static_cast<int>(end - begin); });
  });
  CHECK(visits == 20 * 50);
}

TEST(several_callers_may_work_at_once) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  const double expected = alternating_sum(100'003);
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      const ThreadScope scope(3);
      for (int i = 0; i < 200; ++i) wrong += alternating_sum(100'003) != expected;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(sleeping_threads_wake_up) {
  const ThreadScope scope(4);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> visits{0};
    parallel_for(1000, 1, [&](Index, Index) { ++visits; });
    CHECK(visits == 1000);
  }
}

// A walk that writes numbers into memory for four, and jobs that read them; what both touch is plain memory.
TEST(side_jobs_are_done_once_and_in_order_with_or_without_a_companion) {
  constexpr Index count = 50, in_flight = 4;
  for (const int threads : {1, 2, 4}) {
    const ThreadScope scope(threads);
    for (int repeat = 0; repeat < 200; ++repeat) {
      SideJobs jobs;
      Index ring[in_flight] = {}, done = 0, wrong = 0;
      const auto job = [&](Index i) {
        wrong += i != done || ring[i % in_flight] != 10 * i;
        ++done;
      };
      parallel_for(2, 1, [&](Index task, Index) {
        if (task == 1) return jobs.help(count, job);
        for (Index i = 0; i < count; ++i) {
          jobs.finish(i + 1 - in_flight, job);
          ring[i % in_flight] = 10 * i;
          jobs.allow(i + 1);
        }
        jobs.finish(count, job);
      });
      CHECK(done == count && wrong == 0);
    }
  }
}

TEST(denormals_are_flushed_only_inside) {
  volatile float tiny = 1e-30f;
  {
    const FlushDenormals flush;
    CHECK(tiny * 1e-10f == 0.0f);
  }
  CHECK(tiny * 1e-10f != 0.0f);
}

TEST(thread_numbers_are_scoped) {
  set_num_threads(2);
  {
    const ThreadScope scope(5);
    CHECK(get_num_threads() == 5);
  }
  CHECK(get_num_threads() == 2);
  CHECK_THROWS(std::exception, set_num_threads(0));
}

#if defined(__unix__) || defined(__APPLE__)
TEST(a_forked_child_works_alone) {
  const ThreadScope scope(4);
  const double expected = alternating_sum(1'000'003);
  const pid_t child = fork();
  if (child == 0) _exit(alternating_sum(1'000'003) == expected ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
#endif
