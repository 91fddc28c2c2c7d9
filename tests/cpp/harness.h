// The few lines a test needs: CHECK prints and counts, main.cpp reports.
#pragma once

#include <cstdint>
#include <string>

namespace harness {

// Prints the first failures and counts all of them.
void record(bool passed, const char* file, int line, const std::string& what);

// A small generator of its own, so that a failure repeats on every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2862933555777941757ull + 3037000493ull) {}

  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  double uniform(double low, double high) { return low + (high - low) * double(bits() >> 11) * 0x1p-53; }
  int64_t integer(int64_t low, int64_t high) { return low + int64_t(bits() % uint64_t(high - low + 1)); }

 private:
  uint64_t state_;
};

}  // namespace harness

#define CHECK(condition, what) harness::record((condition), __FILE__, __LINE__, (what))

// Defined by each test program.
void run_tests();
