// The emulated machine's parts, known to runtime.cpp, which schedules its threads, and mechanisms.cpp, what they may ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "global_memory.h"
#include "runtime.h"

namespace rnnkernels::emulation {

inline constexpr int kLanes = 32;
inline constexpr int kMostNamedBarriers = 16;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2862933555777941757ull + 3037000493ull) {}
  size_t below(size_t count) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return size_t(state_ % count);
  }

 private:
  uint64_t state_;
};

struct Thread;

// Everybody waits until all have come. Two generations may be in flight, hence two objects to synchronise on.
struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
  Knowledge known[2];  // of those who came
  char token[2] = {};
  std::vector<Thread*> waiting;
};

struct Mbarrier {
  int arrivals = 0;  // 0: not initialised
  int pending = 0;
  int64_t bytes = 0;  // announced and not yet come
  unsigned phase = 0;
  char token[2] = {};
  std::vector<std::pair<Thread*, unsigned>> waiting;  // for the phase of this parity
};

struct Warp {
  int arrived = 0;
  Collective operation = nullptr;
  void* arguments[kLanes] = {};
  std::vector<Thread*> waiting;
  Barrier barrier;
};

struct Cluster;

struct Cta {
  int rank, block_x, block_y;
  Cluster* cluster;
  unsigned char* shared;
  int running;
  Barrier barrier;
  Barrier named[kMostNamedBarriers];
  std::vector<Warp> warps;
  std::map<size_t, Mbarrier> mbarriers;  // by offset in shared memory
};

struct Store {
  Thread* from;
  Cta* to;
  size_t destination, barrier;  // offsets in shared memory
  int bytes;
  unsigned char value[16];
  std::unique_ptr<char> issued;  // what the sender did before lies behind this
};

struct Cluster {
  std::vector<std::unique_ptr<Cta>> ctas;
  Barrier barrier;
};

struct Thread {
  Context context;
  Identity identity = Identity::current();
  Identity courier = Identity::current();  // its asynchronous stores happen on this one, once it has any
  bool has_courier = false;
  Coordinates where;
  Cta* cta;
  View view;  // of global memory
  Warp* warp;
  int lane;
  void* stack;
  const char* waits_for = nullptr;  // null: ready or ended
  const void* waits_on = nullptr;
};

struct Machine {
  Machine(const Launch& asked, const std::function<void()>& body) : launch(asked), kernel(body), random(asked.seed) {}

  const Launch& launch;
  const std::function<void()>& kernel;
  Random random;
  Context scheduler;
  Identity scheduler_identity = Identity::current();
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Thread*> ready;
  std::vector<Store> in_flight;
  GlobalMemory memory;
  // Of threads that have ended. Not for others of the same launch: nothing orders them after the first's.
  std::vector<void*> used_stacks;
  size_t running = 0;
  std::string error;
  int64_t switches = 0;
  char started = 0, ended = 0;
};

extern Machine* machine;  // of the launch at hand
extern Thread* current;   // null while the scheduler runs

// Of the current thread: back to the scheduler, with or without standing in line again.
void leave();
void yield();
void block(const char* reason, const void* object);
void wake(Thread* thread);

std::string name_of(const Thread& thread);
// Lets those go on that wait for the phase, if everything it awaits has come.
void complete_phase(Mbarrier& barrier);

}  // namespace rnnkernels::emulation
