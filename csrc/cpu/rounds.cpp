#include "rounds.h"

#include <chrono>
#include <thread>

namespace rnnkernels::cpu {
namespace {

// Waking a pool takes tens of microseconds at worst; after this, its threads have other things to do.
constexpr std::chrono::microseconds kPatience(100);
constexpr int kSpinsBetweenLooks = 64;    // at the clock
constexpr int kSpinsBeforeYield = 4096;   // who waits so long waits for a thread that is not running

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Meeting::Role Meeting::arrive(int64_t* part) {
  *part = arrived_.fetch_add(1, std::memory_order_acq_rel);
  if (*part == parts_ - 1) decide(Mode::kTogether);
  const auto patience_ends = std::chrono::steady_clock::now() + kPatience;
  for (int spins = 1; mode_.load(std::memory_order_acquire) == Mode::kUndecided; ++spins) {
    relax();
    if (spins % kSpinsBetweenLooks == 0 && std::chrono::steady_clock::now() > patience_ends && decide(Mode::kAlone))
      return Role::kAlone;
  }
  return mode_.load(std::memory_order_acquire) == Mode::kTogether ? Role::kOneOfAll : Role::kNone;
}

void Meeting::finish(int64_t round) {
  // Counts on from round to round: nobody has to set it back while others read it.
  const int64_t all = (round + 1) * parts_;
  finished_.fetch_add(1, std::memory_order_acq_rel);
  for (int spins = 1; finished_.load(std::memory_order_acquire) < all; ++spins) {
    if (spins % kSpinsBeforeYield == 0)
      std::this_thread::yield();
    else
      relax();
  }
}

bool Meeting::decide(Mode mode) {
  Mode expected = Mode::kUndecided;
  return mode_.compare_exchange_strong(expected, mode, std::memory_order_acq_rel);
}

}  // namespace rnnkernels::cpu
