// What the program of mechanisms times on a GPU ends, by any order of events, and hands over what it should.
#include <string>
#include <vector>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/mechanisms.h"
#include "../cpp/harness.h"

namespace mechanisms = rnnkernels::cuda::mechanisms;
using namespace rnnkernels::cuda;
using rnnkernels::emulation::Launch;
using rnnkernels::emulation::Outcome;

namespace {

constexpr size_t kShared = 4096;

Outcome run(int grid, int threads, int cluster, uint64_t seed, const std::function<void()>& kernel) {
  return rnnkernels::emulation::run({grid, 1, threads, cluster, kShared, cluster == 1, seed}, kernel);
}

void between_ctas(uint64_t seed) {
  constexpr int kRounds = 7, kCtas = 4, kVectors = 4, kWarps = 2;
  uint32_t returns = 0;
  Outcome outcome = run(kCtas, 32, kCtas, seed, [&] { mechanisms::throw_async(kRounds, &returns); });
  CHECK(outcome.ok() && returns == kRounds, "an asynchronous store, there and back: " + outcome.error);

  std::vector<uint32_t> sums(2 * kCtas);
  outcome = run(2 * kCtas, kWarps * 32, kCtas, seed,
                [&] { mechanisms::exchange_in_cluster(kCtas, kVectors, kRounds, sums.data()); });
  constexpr uint32_t kExpected = kVectors * (kRounds * (kRounds + 1) / 2) * (kCtas * (kCtas + 1) / 2);
  for (const uint32_t sum : sums) CHECK(outcome.ok() && sum == kExpected, "exchange in a cluster: " + outcome.error);

  alignas(16) uint32_t lines[2 * mechanisms::kFlagStride] = {};
  outcome = run(2, 32, 1, seed, [&] { mechanisms::throw_flags(kRounds, lines); });
  CHECK(outcome.ok() && lines[0] == kRounds && lines[mechanisms::kFlagStride] == kRounds, "flags: " + outcome.error);

  alignas(16) uint32_t words[2 * mechanisms::kFlagStride] = {};
  outcome = run(2, 32, 1, seed, [&] { mechanisms::throw_words(kRounds, words); });
  CHECK(outcome.ok() && words[3] == kRounds && words[mechanisms::kFlagStride + 3] == kRounds, "words: " + outcome.error);

  uint32_t flags[3 * mechanisms::kFlagStride] = {};
  outcome = run(3, 64, 1, seed, [&] { mechanisms::meet_by_flags(kRounds, flags); });
  CHECK(outcome.ok() && flags[2 * mechanisms::kFlagStride] == kRounds, "meeting by flags: " + outcome.error);
}

void within_a_cta() {
  std::vector<float> out(64);
  std::vector<uint32_t> read(3 * 64);
  CHECK(run(1, 64, 1, 1, [] { mechanisms::meet_in_cta(3); }).ok(), "a barrier of a CTA");
  CHECK(run(1, 64, 1, 1, [&] { mechanisms::multiply<BFloat16Product, 2>(3, out.data()); }).ok(), "products");
  CHECK(run(1, 64, 1, 1, [&] { mechanisms::step_cell<Lstm>(3, out.data()); }).ok() && out[0] > 0 && out[0] < 1, "an LSTM's cell");
  CHECK(run(1, 64, 1, 1, [&] { mechanisms::step_cell<Gru>(3, out.data()); }).ok() && out[0] > 0 && out[0] < 1, "a GRU's cell");
  CHECK(run(1, 64, 1, 1, [&] { mechanisms::read_shared(2, 128, read.data()); }).ok(), "reading shared memory");

  // The places of a ring are all visited, and those of memory at large are within it.
  std::vector<Vector16> memory(256);
  for (uint32_t i = 0; i < 256; ++i) memory[i].words[0] = (i + 101) % 256;
  CHECK(run(3, 64, 1, 1, [&] { mechanisms::read_global(9, memory.data(), 256, read.data()); }).ok(), "reading global memory");
  uint32_t last = 1;
  CHECK(run(1, 32, 1, 1, [&] {
          if (device::thread() == 0) mechanisms::chase(256, memory.data(), &last);
        }).ok() && last == 0,
        "a ring of 256 places is back at its first after 256");
}

}  // namespace

void run_tests() {
  for (uint64_t seed = 1; seed <= 8; ++seed) between_ctas(seed);
  within_a_cta();
}
