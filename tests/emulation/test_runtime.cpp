// The emulation itself: each rule of the machine that a kernel can break is broken once, and the breach is named.
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.h"
#include "../cpp/harness.h"

namespace device = rnnkernels::cuda::device;
using namespace rnnkernels::cuda;
using rnnkernels::emulation::Launch;
using rnnkernels::emulation::Outcome;

namespace {

constexpr int kThreads = 64;

Launch launch(int grid, int cluster, uint64_t seed = 1) { return {grid, 1, kThreads, cluster, 1024, false, seed, 1000}; }

void expect_error(const std::string& name, const std::string& part, const Outcome& outcome) {
  CHECK(outcome.error.find(part) != std::string::npos, name + ": expected \"" + part + "\", got \"" + outcome.error + "\"");
}

device::Mbarrier* barrier() { return reinterpret_cast<device::Mbarrier*>(device::shared_memory()); }
unsigned char* buffer() { return device::shared_memory() + 64; }

// Rank 0 gets `stored` bytes from rank 1 and expects `announced`.
void transfer(int announced, int stores, bool initialise, bool together, unsigned parity) {
  if (initialise && device::thread() == 0) device::mbarrier_init(barrier(), 1);
  if (together) device::cluster_barrier();
  if (device::cluster_rank() == 0) {
    if (device::thread() == 0) device::mbarrier_expect(barrier(), announced);
    device::mbarrier_wait(barrier(), parity);
  } else if (device::thread() < stores) {
    device::store_async(buffer() + 16 * device::thread(), 0, Vector16{{1, 2, 3, uint32_t(device::thread())}}, barrier());
  }
  if (together) device::cluster_barrier();
}

void transfers() {
  bool arrived = true;
  const Outcome outcome = rnnkernels::emulation::run(launch(2, 2), [&] {
    transfer(4 * 16, 4, true, true, 0);
    if (device::cluster_rank() == 0)
      for (int i = 0; i < 4; ++i) arrived = arrived && device::load16(buffer() + 16 * i).words[3] == uint32_t(i);
  });
  CHECK(outcome.ok() && arrived, "asynchronous stores arrive: " + outcome.error);
  const auto broken = [](int announced, int stores, bool initialise, unsigned parity) {
    return rnnkernels::emulation::run(launch(2, 2), [=] { transfer(announced, stores, initialise, true, parity); });
  };
  expect_error("too few bytes", "16 bytes outstanding", broken(5 * 16, 4, true, 0));
  expect_error("too many bytes", "bytes outstanding", broken(3 * 16, 4, true, 0));
  expect_error("no initialisation", "before its initialisation", broken(4 * 16, 4, false, 0));
  // The phase of parity 1 counts as complete before the first: the wait falls through, and bytes meet a block that has ended.
  const Outcome parity = rnnkernels::emulation::run(launch(2, 2), [] {
    if (device::thread() == 0) device::mbarrier_init(barrier(), 1);
    device::cluster_barrier();
    if (device::cluster_rank() == 0) {
      if (device::thread() == 0) device::mbarrier_expect(barrier(), 16);
      device::mbarrier_wait(barrier(), 1);
    } else if (device::thread() == 0) {
      for (int i = 0; i < 200; ++i) rnnkernels::emulation::spin(0);
      device::store_async(buffer(), 0, Vector16{{1, 2, 3, 4}}, barrier());
    }
  });
  expect_error("wrong parity and no barrier at the end", "after it had ended", parity);
}

void barriers() {
  expect_error("a barrier that half the threads miss", "deadlock",
               rnnkernels::emulation::run(launch(1, 1), [] {
                 if (device::thread() < 32) device::cta_barrier();
               }));
  const Outcome named = rnnkernels::emulation::run(launch(1, 1), [] {
    if (device::thread() == 0) device::mbarrier_init(barrier(), 1);
    device::cta_barrier();
    device::mbarrier_wait(barrier(), 0);
  });
  expect_error("who waits for what", "64 threads from thread 0 of block (0, 0) for an mbarrier at shared offset 0 (1 arrivals",
               named);
  expect_error("different counts at a named barrier", "different counts", rnnkernels::emulation::run(launch(1, 1), [] {
                 device::named_barrier(1, device::thread() < 32 ? 32 : 64);
                 device::named_barrier(1, 64);
               }));
  expect_error("lanes in different collectives", "different collectives", rnnkernels::emulation::run(launch(1, 1), [] {
                 if (device::thread() % 2 == 0) {
                   device::shuffle_xor(1.0f, 1);
                 } else {
                   float d[4] = {};
                   const uint32_t a[4] = {}, b[2] = {};
                   device::mma_bf16(d, a, b);
                 }
               }));
  uint32_t flag = 0;
  expect_error("a flag nobody raises", "spin bound",
               rnnkernels::emulation::run(launch(1, 1), [&] { device::wait_for_flag(&flag, 1); }));
}

void memory() {
  bool poisoned = true;
  CHECK(rnnkernels::emulation::run(launch(1, 1), [&] {
          float x;
          std::memcpy(&x, device::shared_memory() + 4 * device::thread(), sizeof x);
          poisoned = poisoned && std::isnan(x);
        }).ok(),
        "reading shared memory");
  CHECK(poisoned, "shared memory starts as NaN");
  expect_error("a misaligned vector", "not aligned",
               rnnkernels::emulation::run(launch(1, 1), [] { device::load16(buffer() + 4); }));
  expect_error("a store outside shared memory", "outside this block's shared memory",
               rnnkernels::emulation::run(launch(2, 2), [] {
                 if (device::thread() == 0) device::mbarrier_init(barrier(), 1);
                 device::cluster_barrier();
                 device::store_async(device::shared_memory() + 1024, 0, Vector16{}, barrier());
               }));
}

// What a flag orders is seen, in blocks that run at the same time.
void flags() {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    uint32_t flag = 0, value = 0, seen = 0;
    Launch together = launch(2, 1, seed);
    together.cooperative = true;
    together.spin_bound = 100000;
    const Outcome outcome = rnnkernels::emulation::run(together, [&] {
      if (device::thread() != 0) return;
      if (device::block_x() == 0) {
        value = 42;
        device::store_release(&flag, 1);
      } else {
        device::wait_for_flag(&flag, 1);
        seen = value;
      }
    });
    CHECK(outcome.ok() && seen == 42, "a flag between blocks: " + outcome.error);
  }
}

// Two words, written in this order by one block and read the other way round by another, which has read both before: how often
// it finds the second written and the first as it was.
int overtaken(bool release, bool barrier) {
  int times = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    alignas(16) uint32_t first[4] = {}, second[4] = {};
    uint32_t flag = 0;
    Launch together = launch(2, 1, seed);
    together.cooperative = true;
    const Outcome outcome = rnnkernels::emulation::run(together, [&] {
      if (device::block_x() == 0) {
        if (device::thread() == 0) device::store16_relaxed(first, Vector16{{1, 1, 1, 1}});
        if (barrier) device::cta_barrier();
        if (device::thread() != 33) return;
        if (release) device::store_release(&flag, 1);
        device::store16_relaxed(second, Vector16{{1, 1, 1, 1}});
      } else if (device::thread() == 0) {
        if (release) device::wait_for_flag(&flag, 1);
        while (device::load16_relaxed(second).words[3] == 0) rnnkernels::emulation::spin(0);
        times += device::load16_relaxed(first).words[0] == 0;
      }
    });
    CHECK(outcome.ok(), "two words: " + outcome.error);
  }
  return times;
}

void words_in_no_order() {
  CHECK(overtaken(false, true) > 0, "words overtake each other");
  CHECK(overtaken(true, false) > 0, "a release says nothing of what another thread did since the last barrier");
  CHECK(overtaken(true, true) == 0, "a release and an acquire order what lies before and behind");
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

// d = a b by fragments, against the product of whole matrices.
template <class Place>
void check_product(const char* name, int depth, const Place& place) {
  harness::Random random(3);
  std::vector<float> a(size_t(16 * depth)), b(size_t(depth * 8)), d(16 * 8);
  for (float& x : a) x = float(random.integer(-8, 8));
  for (float& x : b) x = float(random.integer(-8, 8));
  CHECK(rnnkernels::emulation::run({1, 1, 32, 1, 0, false, 1}, [&] {
          const int g = device::thread() / 4, t = device::thread() % 4;
          float sum[4] = {1, 1, 1, 1};
          place(a, b, g, t, sum);
          for (int i = 0; i < 4; ++i) d[size_t((g + 8 * (i / 2)) * 8 + 2 * t + i % 2)] = sum[i];
        }).ok(),
        std::string(name) + " runs");
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float exact = 1;
      for (int k = 0; k < depth; ++k) exact += a[size_t(row * depth + k)] * b[size_t(k * 8 + column)];
      CHECK(d[size_t(row * 8 + column)] == exact, std::string(name) + " differs");
    }
  }
}

template <class S>
uint32_t two(float low, float high) {
  return uint32_t(device::round_to<S>(low).bits) | uint32_t(device::round_to<S>(high).bits) << 16;
}

template <class S, class Multiply>
void check_halves(const char* name, const Multiply& multiply) {
  check_product(name, 16, [&](const std::vector<float>& a, const std::vector<float>& b, int g, int t, float (&sum)[4]) {
    const auto pair_a = [&](int row, int k) { return two<S>(a[size_t(row * 16 + k)], a[size_t(row * 16 + k + 1)]); };
    const auto pair_b = [&](int k) { return two<S>(b[size_t(k * 8 + g)], b[size_t((k + 1) * 8 + g)]); };
    const uint32_t of_a[4] = {pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, 2 * t + 8), pair_a(g + 8, 2 * t + 8)};
    const uint32_t of_b[2] = {pair_b(2 * t), pair_b(2 * t + 8)};
    multiply(sum, of_a, of_b);
  });
}

void products() {
  check_halves<BFloat16>("mma_bf16", device::mma_bf16);
  check_halves<Float16>("mma_fp16", device::mma_fp16);
  check_product("mma_tf32", 8, [&](const std::vector<float>& a, const std::vector<float>& b, int g, int t, float (&sum)[4]) {
    const auto bits = [](float x) { return device::bits_of(x); };
    const uint32_t of_a[4] = {bits(a[size_t(g * 8 + t)]), bits(a[size_t((g + 8) * 8 + t)]), bits(a[size_t(g * 8 + t + 4)]),
                              bits(a[size_t((g + 8) * 8 + t + 4)])};
    const uint32_t of_b[2] = {bits(b[size_t(t * 8 + g)]), bits(b[size_t((t + 4) * 8 + g)])};
    device::mma_tf32(sum, of_a, of_b);
  });
}

void numbers() {
  bool exact = true;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{uint16_t(bits)};
    const float wide = device::to_float(half);
    if (!std::isnan(wide)) exact = exact && device::round_to<Float16>(wide).bits == half.bits;
    const BFloat16 brain{uint16_t(bits)};
    const float wider = device::to_float(brain);
    if (!std::isnan(wider)) exact = exact && device::round_to<BFloat16>(wider).bits == brain.bits;
  }
  CHECK(exact, "16-bit numbers survive the way to float and back");
  CHECK(device::round_to<Float16>(1.0f + 0x1p-11f).bits == 0x3c00, "ties go to even");
  CHECK(device::round_to<Float16>(1.0f + 0x3p-11f).bits == 0x3c02, "ties go to even");
  CHECK(device::round_to<Float16>(0x1p-25f).bits == 0 && device::round_to<Float16>(0x1.8p-25f).bits == 1, "subnormal numbers");
  CHECK(device::round_to<Float16>(65519.0f).bits == 0x7bff && device::round_to<Float16>(65520.0f).bits == 0x7c00, "overflow");
  CHECK(device::round_to_tf32(1.0f + 0x1p-11f) == 1.0f + 0x1p-10f, "tf32 rounds ties away from zero");
}

// Different seeds interleave differently, equal ones alike.
void seeds() {
  const auto order = [](uint64_t seed) {
    std::vector<int> ended;
    (void)rnnkernels::emulation::run(launch(4, 2, seed), [&] { ended.push_back(device::thread()); });
    return ended;
  };
  CHECK(order(1) == order(1), "a seed repeats itself");
  CHECK(order(1) != order(2), "seeds differ");
}

}  // namespace

void run_tests() {
  transfers();
  barriers();
  memory();
  flags();
  words_in_no_order();
  products();
  numbers();
  seeds();
}
