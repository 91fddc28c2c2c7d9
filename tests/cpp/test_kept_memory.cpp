// The block that stays from call to call: reused, replaced by a larger one, never given to two at once.
#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kept_memory.h"
#include "harness.h"

using namespace rnnkernels::cpu;

namespace {

constexpr int64_t kMebibyte = int64_t(1) << 20;

void fill(const Block& block, int value) { std::memset(block.data, value, size_t(block.bytes)); }

bool holds(const Block& block, int value) {
  const char* const data = static_cast<const char*>(block.data);
  for (int64_t i = 0; i < block.bytes; ++i)
    if (data[i] != char(value)) return false;
  return true;
}

void the_block_stays_until_a_larger_one_is_needed() {
  const Block first = take_memory(5 * kMebibyte);
  CHECK(first.data != nullptr && first.bytes >= 5 * kMebibyte, "5 MiB");
  CHECK(reinterpret_cast<uintptr_t>(first.data) % kHugePage == 0, "begins a huge page");
  fill(first, 1);
  give_memory_back(first);

  const Block smaller = take_memory(4 * kMebibyte);
  CHECK(smaller.data == first.data && smaller.bytes == first.bytes, "less is wanted: the same block");
  fill(smaller, 2);
  CHECK(holds(smaller, 2), "what was given back can be written again");
  give_memory_back(smaller);

  const Block larger = take_memory(9 * kMebibyte);
  CHECK(larger.data != nullptr && larger.bytes >= 9 * kMebibyte, "more is wanted: a larger block");
  fill(larger, 3);
  give_memory_back(larger);
  const Block again = take_memory(5 * kMebibyte);
  CHECK(again.data == larger.data && again.bytes == larger.bytes, "which takes the other's place");
  give_memory_back(again);
}

void the_larger_of_two_in_use_stays(bool larger_first) {
  const Block small = take_memory(10 * kMebibyte), large = take_memory(20 * kMebibyte);
  CHECK(small.data != large.data, "two at once are two blocks");
  fill(small, 1);
  fill(large, 2);
  CHECK(holds(small, 1), "apart from each other");
  give_memory_back(larger_first ? large : small);
  give_memory_back(larger_first ? small : large);
  const Block kept = take_memory(4 * kMebibyte);
  CHECK(kept.data == large.data && kept.bytes == large.bytes, "the larger one stays");
  give_memory_back(kept);
}

void what_is_too_large_is_not_kept() {
  CHECK(take_memory(kMebibyte << 10).data == nullptr, "1 GiB");
  CHECK(take_memory(INT64_MAX / 2).data == nullptr, "more than there is");
}

void threads_never_share_a_block() {
  std::vector<std::thread> threads;
  for (int thread = 1; thread <= 4; ++thread)
    threads.emplace_back([thread] {
      for (int round = 0; round < 200; ++round) {
        const Block block = take_memory((4 + (round * thread) % 5) * kMebibyte);
        int64_t* const own = static_cast<int64_t*>(block.data);
        own[0] = own[block.bytes / 8 - 1] = thread;
        std::this_thread::yield();
        CHECK(own[0] == thread && own[block.bytes / 8 - 1] == thread, "another thread wrote to the block");
        give_memory_back(block);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void run_tests() {
#if defined(__linux__)
  the_block_stays_until_a_larger_one_is_needed();
  the_larger_of_two_in_use_stays(true);
  the_larger_of_two_in_use_stays(false);
  threads_never_share_a_block();
  what_is_too_large_is_not_kept();
#else
  CHECK(take_memory(kMebibyte).data == nullptr, "only Linux takes memory back from those who keep it");
#endif
}
