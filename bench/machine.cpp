// Prints what this machine can do at most, on each number of threads that is asked for:
//
//   $ bench_machine 1 2
//   threads 1  peak_gflops 123.4  bandwidth_gbs 12.3
//
// table.py compiles and runs this file where no numbers are given to it.
#include "machine.hpp"

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  for (int i = argc > 1 ? 1 : 0; i < argc; ++i) {
    const int threads = argc > 1 ? std::atoi(argv[i]) : 1;
    if (threads < 1) {
      std::fprintf(stderr, "expected numbers of threads, got %s\n", argv[i]);
      return 1;
    }
    std::printf("threads %d  peak_gflops %.1f  bandwidth_gbs %.1f\n", threads, machine::peak_gflops(threads),
                machine::bandwidth_gbs(threads));
  }
}
