#include "wall.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dispatch.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace rnnkernels::cpu {

// Defined by wall_probes.cpp, once per instruction set.
#define RNN_DECLARE_PROBES(isa)         \
  namespace isa {                       \
  extern const WallProbes kWallProbes; \
  }
RNN_DECLARE_PROBES(baseline)
RNN_DECLARE_PROBES(avx2)
RNN_DECLARE_PROBES(avx512)
RNN_DECLARE_PROBES(avx512_bf16)
#undef RNN_DECLARE_PROBES

namespace {

using Clock = std::chrono::steady_clock;

// An interrupt spoils a window, not the measurement.
constexpr int kWindows = 10;

const WallProbes& probes() {
  const char* isa = chosen_isa();
#ifdef RNNKERNELS_WITH_AVX512_BF16
  if (std::strcmp(isa, "avx512_bf16") == 0) return avx512_bf16::kWallProbes;
#endif
#ifdef RNNKERNELS_WITH_AVX512
  if (std::strcmp(isa, "avx512") == 0) return avx512::kWallProbes;
#endif
#ifdef RNNKERNELS_WITH_AVX2
  if (std::strcmp(isa, "avx2") == 0) return avx2::kWallProbes;
#endif
  (void)isa;
  return baseline::kWallProbes;
}

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

void check_threads(int threads) {
  if (threads < 1 || threads > processors())
    throw std::invalid_argument("threads must be between 1 and " + std::to_string(processors()) +
                                ", the processors of this process");
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Runs body(thread) on every thread, all beginning at once.
template <class Body>
void on_threads(int threads, const Body& body) {
  std::atomic<int> missing{threads};
  const auto run = [&](int thread) {
    --missing;
    while (missing.load() > 0) std::this_thread::yield();
    body(thread);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
}

// The best window's sum over threads of work per second; work(thread) does a short piece and returns how much it was.
template <class Work>
double best_rate(int threads, double seconds, const Work& work) {
  double best = 0;
  for (int window = 0; window < kWindows; ++window) {
    std::vector<double> rates(size_t(threads), 0.0);
    on_threads(threads, [&](int thread) {
      const auto begin = Clock::now();
      double done = 0, elapsed = 0;
      do {
        done += work(thread);
        elapsed = seconds_since(begin);
      } while (elapsed < seconds / kWindows);
      rates[size_t(thread)] = done / elapsed;
    });
    double sum = 0;
    for (const double rate : rates) sum += rate;
    best = std::max(best, sum);
  }
  return best;
}

}  // namespace

double multiply_add_rate(int threads, double seconds) {
  check_threads(threads);
  const WallProbes& probe = probes();
  return best_rate(threads, seconds, [&](int) { return probe.multiply_add(10000); });
}

std::optional<double> bfloat16_dot_rate(int threads, double seconds) {
  check_threads(threads);
  const WallProbes& probe = probes();
  if (probe.bfloat16_dot == nullptr) return std::nullopt;
  return best_rate(threads, seconds, [&](int) { return probe.bfloat16_dot(10000); });
}

double read_rate(int64_t bytes, int threads, double seconds) {
  check_threads(threads);
  const int64_t share = bytes / int64_t(sizeof(float)) / threads;
  if (share < 1024) throw std::invalid_argument("bytes must be at least 4096 per thread");
  const WallProbes& probe = probes();
  std::vector<std::vector<float>> parts;
  for (int thread = 0; thread < threads; ++thread) parts.emplace_back(size_t(share), 1.0f);
  // Small parts several times between two looks at the clock.
  const int64_t repeats = std::max<int64_t>(1, (int64_t(1) << 18) / share);
  return best_rate(threads, seconds, [&](int thread) {
    for (int64_t i = 0; i < repeats; ++i) probe.read(parts[size_t(thread)].data(), share);
    return double(repeats * share) * sizeof(float);
  });
}

double step_latency(bool lstm, double seconds) {
  const WallProbes& probe = probes();
  const auto chain = lstm ? probe.lstm_chain : probe.gru_chain;
  constexpr int64_t steps = 1000;
  return 1 / best_rate(1, seconds, [&](int) {
    chain(steps);
    return double(steps);
  });
}

double handover_latency(double seconds) {
  check_threads(2);
  constexpr int64_t turns = 1000;
  alignas(128) std::atomic<int64_t> ball{0};
  double best = 0;
  for (int window = 0; window < kWindows; ++window) {
    const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(seconds / kWindows));
    do {
      ball = 0;
      double elapsed = 0;
      on_threads(2, [&](int thread) {
        const auto begin = Clock::now();
        for (int64_t turn = thread; turn < turns; turn += 2) {
          while (ball.load(std::memory_order_acquire) != turn) {
          }
          ball.store(turn + 1, std::memory_order_release);
        }
        if (thread == 0) elapsed = seconds_since(begin);
      });
      const double one = elapsed / turns;
      best = best == 0 ? one : std::min(best, one);
    } while (Clock::now() < until);
  }
  return best;
}

}  // namespace rnnkernels::cpu
