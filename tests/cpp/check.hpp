// A test program's frame:
//
//   #include "check.hpp"
//   TEST(adds) {
//     CHECK(1 + 1 == 2);
//     CHECK_NEAR(0.1f + 0.2f, 0.3f, 1e-6);
//     CHECK_THROWS(std::out_of_range, std::vector<int>().at(1));
//   }
//
// A failed check is printed and the test goes on. The program closes with "N passed, N failed", counting checks.
// Arguments choose tests: ./conv_test adds
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test> tests;
inline int passed = 0, failed = 0;

inline bool add(const char* name, void (*run)()) {
  tests.push_back({name, run});
  return true;
}

inline void record(bool ok, const char* file, int line, const char* text) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("%s:%d: %s\n", file, line, text);
}

inline void record_near(double got, double expected, double tolerance, const char* file, int line, const char* text) {
  const bool ok = std::fabs(got - expected) <= tolerance;  // false for NaN
  record(ok, file, line, text);
  if (!ok) std::printf("  got %.9g, expected %.9g +- %.3g\n", got, expected, tolerance);
}

inline bool chosen(const char* name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(name, argv[i]) == 0) return true;
  }
  return argc == 1;
}

inline int run_all(int argc, char** argv) {
  for (const Test& test : tests) {
    if (!chosen(test.name, argc, argv)) continue;
    const int before = failed;
    try {
      test.run();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("%s: threw: %s\n", test.name, error.what());
    }
    std::printf("%s %s\n", failed == before ? "ok    " : "FAILED", test.name);
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                 \
  static void test_##name();                                       \
  static const bool added_##name = check::add(#name, test_##name); \
  static void test_##name()

#define CHECK(...) check::record(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)

#define CHECK_NEAR(got, expected, tolerance) \
  check::record_near((got), (expected), (tolerance), __FILE__, __LINE__, #got " near " #expected)

/// The rest of the arguments is an expression that must throw an Exception (or one derived from it).
#define CHECK_THROWS(Exception, ...)                                               \
  do {                                                                             \
    bool thrown = false;                                                           \
    try {                                                                          \
      static_cast<void>(__VA_ARGS__);                                              \
    } catch (const Exception&) {                                                   \
      thrown = true;                                                               \
    }                                                                              \
    check::record(thrown, __FILE__, __LINE__, #__VA_ARGS__ " throws " #Exception); \
  } while (false)

int main(int argc, char** argv) { return check::run_all(argc, argv); }
