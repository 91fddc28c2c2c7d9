// Many short rounds of work on the same threads: a step of a recurrence takes less time than waking a pool.
//
// A pool may run its tasks one after another, nested in another region or limited to fewer threads, and then a task that waited
// for the next would wait forever. So tasks first meet. If all arrive, they do their parts at once and wait for each other after
// every round; if not, the first to lose patience does all parts alone and those that come later have nothing to do.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels.h"

namespace rnnkernels::cpu {

// Where the tasks of one call meet. Compiled once, with the flags of the baseline.
class Meeting {
 public:
  enum class Role { kOneOfAll, kAlone, kNone };

  explicit Meeting(int64_t parts) : parts_(parts) {}

  // To be called by each task, once. *part: which part is the caller's, if it is one of all.
  Role arrive(int64_t* part);
  // Returns when all have finished round `round`; rounds count from 0.
  void finish(int64_t round);

 private:
  enum class Mode { kUndecided, kTogether, kAlone };

  bool decide(Mode mode);

  const int64_t parts_;
  std::atomic<Mode> mode_{Mode::kUndecided};
  // Not on the cache line of what the body reads.
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> finished_{0};  // parts, of all rounds
};

// Runs body(round, part) for every part of a round before the next round begins, the parts of a round on as many threads where
// the pool has them free. The same parts in any case: results do not depend on who met.
template <class Body>
void run_rounds(const Parallel& parallel, int64_t parts, int64_t rounds, const Body& body) {
  struct Context {
    Meeting meeting;
    int64_t parts, rounds;
    const Body& body;

    void alone() const {
      for (int64_t round = 0; round < rounds; ++round)
        for (int64_t part = 0; part < parts; ++part) body(round, part);
    }
    void take_part() {
      int64_t part;
      const Meeting::Role role = meeting.arrive(&part);
      if (role == Meeting::Role::kAlone) alone();
      if (role != Meeting::Role::kOneOfAll) return;
      for (int64_t round = 0; round < rounds; ++round) {
        body(round, part);
        if (round + 1 < rounds) meeting.finish(round);
      }
    }
  } context{Meeting(parts), parts, rounds, body};
  if (parts <= 1 || parallel.threads < parts) return context.alone();
  parallel.run(
      parallel.pool, parts, [](void* all, int64_t) { static_cast<Context*>(all)->take_part(); }, &context);
}

}  // namespace rnnkernels::cpu
