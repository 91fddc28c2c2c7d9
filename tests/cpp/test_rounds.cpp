// Rounds of work by several threads: on pools that run all tasks at once, one after another, or late.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "../../csrc/cpu/rounds.h"
#include "harness.h"

using namespace rnnkernels::cpu;

namespace {

using Task = void (*)(void*, int64_t);

void one_after_another(void*, int64_t count, Task task, void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

void at_once(void*, int64_t count, Task task, void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, context, i);
  for (std::thread& thread : threads) thread.join();
}

// The first task alone for longer than it has patience.
void late(void*, int64_t count, Task task, void* context) {
  std::thread first(task, context, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  for (int64_t i = 1; i < count; ++i) task(context, i);
  first.join();
}

// Two of `count` tasks at a time.
void by_twos(void* pool, int64_t count, Task task, void* context) {
  for (int64_t i = 0; i < count; i += 2) at_once(pool, count - i < 2 ? count - i : 2, task, context);
}

// Every part of every round runs once, and sees all parts of the round before.
void each_part_once_and_in_order(void (*run)(void*, int64_t, Task, void*), int64_t parts, int64_t rounds) {
  std::vector<int64_t> done(size_t(parts * rounds), 0);  // not atomic: the rounds order what is read and written
  std::atomic<int> wrong{0};
  const Parallel parallel{int(parts), run, nullptr};
  run_rounds(parallel, parts, rounds, [&](int64_t round, int64_t part) {
    for (int64_t other = 0; round > 0 && other < parts; ++other)
      if (done[size_t((round - 1) * parts + other)] != 1) ++wrong;
    ++done[size_t(round * parts + part)];
  });
  int64_t ran = 0;
  for (const int64_t times : done) ran += times == 1;
  CHECK(wrong == 0, "a part ran before the round before it had ended");
  CHECK(ran == parts * rounds, std::to_string(ran) + " of " + std::to_string(parts * rounds) + " parts ran once");
}

}  // namespace

void run_tests() {
  for (const auto run : {one_after_another, at_once, late, by_twos})
    for (const int64_t parts : {1, 2, 3, 5})
      for (const int64_t rounds : {1, 2, 7, 400}) each_part_once_and_in_order(run, parts, rounds);
  for (int repeat = 0; repeat < 200; ++repeat) each_part_once_and_in_order(at_once, 2, 3);
  each_part_once_and_in_order(at_once, 2, 0);
}
