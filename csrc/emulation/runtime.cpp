#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"
#include "global_memory.h"

namespace rnnkernels::emulation {
namespace {

constexpr int kLanes = 32;
constexpr int kMostNamedBarriers = 16;
constexpr int64_t kMostTransactionBytes = (1 << 20) - 1;  // as in PTX

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

constexpr size_t kStackBytes = 256 * 1024;  // address space; only what is touched costs memory

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

Machine* machine = nullptr;
Thread* current = nullptr;
std::vector<void*> free_stacks;

void* take_stack() {
  if (!free_stacks.empty()) {
    void* stack = free_stacks.back();
    free_stacks.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
#endif
    return stack;
  }
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) std::abort();
  mprotect(stack, size_t(sysconf(_SC_PAGESIZE)), PROT_NONE);
  return stack;
}

// ---- Scheduling ----------------------------------------------------------------------------------------------------

void leave() {
  Thread* self = current;
  machine->scheduler_identity.enter();
  Context::change(self->context, machine->scheduler);
}

void yield() {
  machine->ready.push_back(current);
  leave();
}

void block(const char* reason, const void* object) {
  current->waits_for = reason;
  current->waits_on = object;
  leave();
}

void wake(Thread* thread) {
  thread->waits_for = nullptr;
  machine->ready.push_back(thread);
}

void thread_entry() {
  Context::entered(machine->scheduler);
  acquire(&machine->started);
  machine->kernel();
  release(&machine->ended);
  --current->cta->running;
  --machine->running;
  leave();
  std::abort();
}

std::string name_of(const Thread& thread) {
  return "block (" + std::to_string(thread.where.block_x) + ", " + std::to_string(thread.where.block_y) + ") thread " +
         std::to_string(thread.where.thread);
}

std::string describe_mbarrier(const Cta& cta, const void* object) {
  const size_t offset = size_t(static_cast<const unsigned char*>(object) - cta.shared);
  const auto found = cta.mbarriers.find(offset);
  if (found == cta.mbarriers.end()) return "";
  const Mbarrier& b = found->second;
  return " at shared offset " + std::to_string(offset) + " (" + std::to_string(b.pending) + " arrivals and " +
         std::to_string(b.bytes) + " bytes outstanding)";
}

// Threads that wait for the same thing in the same CTA, in one line.
std::string describe_deadlock() {
  std::map<std::string, std::pair<int, std::string>> groups;
  for (const auto& thread : machine->threads) {
    if (thread->waits_for == nullptr) continue;
    std::string what = "block (" + std::to_string(thread->where.block_x) + ", " + std::to_string(thread->where.block_y) +
                       ") for " + thread->waits_for + describe_mbarrier(*thread->cta, thread->waits_on);
    auto& group = groups[what];
    if (group.first++ == 0) group.second = std::to_string(thread->where.thread);
  }
  std::string text = "deadlock:";
  for (const auto& [what, group] : groups)
    text += "\n  " + std::to_string(group.first) + " threads from thread " + group.second + " of " + what;
  return text;
}

void complete_phase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
  auto waiting = std::move(barrier.waiting);
  barrier.waiting.clear();
  for (const auto& [thread, parity] : waiting) {
    if (barrier.phase != parity) {
      wake(thread);
    } else {
      barrier.waiting.push_back({thread, parity});
    }
  }
}

// Runs in the scheduler, as the sender's courier.
void deliver(size_t index) {
  std::swap(machine->in_flight[index], machine->in_flight.back());
  const Store store = std::move(machine->in_flight.back());
  machine->in_flight.pop_back();
  const std::string target = "block (" + std::to_string(store.to->block_x) + ", " + std::to_string(store.to->block_y) + ")";
  if (store.to->running == 0) {
    machine->error = "an asynchronous store of " + name_of(*store.from) + " reached " + target + " after it had ended";
    return;
  }
  const auto found = store.to->mbarriers.find(store.barrier);
  if (found == store.to->mbarriers.end()) {
    machine->error = "an asynchronous store of " + name_of(*store.from) + " completes on an mbarrier that " + target +
                     " has not initialised";
    return;
  }
  Mbarrier& barrier = found->second;
  unsigned char* destination = store.to->shared + store.destination;
  store.from->courier.enter();
  acquire(store.issued.get());
  announce_write(destination, size_t(store.bytes));
  std::memcpy(destination, store.value, size_t(store.bytes));
  release(&barrier.token[barrier.phase]);
  machine->scheduler_identity.enter();
  barrier.bytes -= store.bytes;
  if (barrier.bytes < -kMostTransactionBytes) machine->error = "the byte count of an mbarrier of " + target + " ran out of range";
  complete_phase(barrier);
}

void start(Cluster& cluster) {
  const int threads = machine->launch.threads;
  cluster.barrier.expected = threads * int(cluster.ctas.size());
  for (auto& cta : cluster.ctas) {
    cta->cluster = &cluster;
    cta->running = threads;
    cta->barrier.expected = threads;
    cta->warps.resize(size_t(threads / kLanes));
    // Of exactly the size asked for, so that AddressSanitizer sees what lies behind it.
    if (posix_memalign(reinterpret_cast<void**>(&cta->shared), 128, std::max<size_t>(machine->launch.shared_bytes, 1)) != 0)
      std::abort();
    std::memset(cta->shared, 0xff, std::max<size_t>(machine->launch.shared_bytes, 1));  // NaN in every type
    for (int t = 0; t < threads; ++t) {
      auto thread = std::make_unique<Thread>();
      thread->identity = Identity::create();
      thread->cta = cta.get();
      thread->view.cta = size_t(cta->block_y * machine->launch.grid_x + cta->block_x);
      thread->warp = &cta->warps[size_t(t / kLanes)];
      thread->warp->barrier.expected = kLanes;
      thread->lane = t % kLanes;
      thread->where = {t, threads, cta->block_x, cta->block_y, machine->launch.grid_x, machine->launch.grid_y, cta->rank};
      thread->stack = take_stack();
      thread->context.prepare(thread->stack, kStackBytes, thread_entry);
      machine->ready.push_back(thread.get());
      machine->threads.push_back(std::move(thread));
      ++machine->running;
    }
  }
}

// Until every thread started has ended, or something is wrong.
void schedule() {
  while (machine->error.empty() && (machine->running > 0 || !machine->in_flight.empty() || machine->memory.in_flight())) {
    auto& ready = machine->ready;
    const size_t stores = machine->in_flight.size(), words = machine->memory.count();
    if (stores + words > 0 && (ready.empty() || machine->random.below(2) == 0)) {
      const size_t index = machine->random.below(stores + words);
      if (index < stores) {
        deliver(index);
      } else {
        machine->memory.deliver(index - stores);
      }
      continue;
    }
    if (ready.empty()) {
      machine->error = describe_deadlock();
      return;
    }
    std::swap(ready[machine->random.below(ready.size())], ready.back());
    current = ready.back();
    ready.pop_back();
    ++machine->switches;
    Thread* next = current;
    next->identity.enter();
    Context::change(machine->scheduler, next->context);
    current = nullptr;
  }
  for (const auto& cluster : machine->clusters)
    for (const auto& cta : cluster->ctas)
      for (const auto& [offset, barrier] : cta->mbarriers)
        if (machine->error.empty() && barrier.bytes != 0)
          machine->error = "a block ended with " + std::to_string(barrier.bytes) +
                           " bytes outstanding on its mbarrier at shared offset " + std::to_string(offset);
}

void tear_down() {
  const Bookkeeping bookkeeping;
  for (auto& thread : machine->threads) {
    thread->identity.destroy();
    if (thread->has_courier) thread->courier.destroy();
    machine->used_stacks.push_back(thread->stack);
  }
  for (auto& cluster : machine->clusters)
    for (auto& cta : cluster->ctas) std::free(cta->shared);
  machine->threads.clear();
  machine->clusters.clear();
  machine->ready.clear();
  machine->in_flight.clear();
}

void wait_at(Barrier& barrier, const char* name) {
  const Bookkeeping bookkeeping;
  char* token = &barrier.token[barrier.generation & 1];
  Knowledge& known = barrier.known[barrier.generation & 1];
  release(token);
  join(known, current->view.known);
  if (++barrier.arrived < barrier.expected) {
    barrier.waiting.push_back(current);
    block(name, &barrier);
  } else {
    barrier.arrived = 0;
    ++barrier.generation;
    for (Thread* thread : barrier.waiting) wake(thread);
    barrier.waiting.clear();
    yield();
  }
  acquire(token);
  join(current->view.known, known);
  if (barrier.expected >= machine->launch.threads) ++current->view.barriers;
}

size_t offset_of(const void* address, size_t bytes, const char* what) {
  const auto* byte = static_cast<const unsigned char*>(address);
  const unsigned char* begin = current->cta->shared;
  if (byte < begin || byte + bytes > begin + machine->launch.shared_bytes)
    fail(std::string(what) + " lies outside this block's shared memory");
  return size_t(byte - begin);
}

Mbarrier& initialised(void* address) {
  const auto found = current->cta->mbarriers.find(offset_of(address, 8, "an mbarrier"));
  if (found == current->cta->mbarriers.end()) fail("an mbarrier is used before its initialisation");
  return found->second;
}

}  // namespace

Outcome run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads % kLanes != 0 || launch.threads <= 0) return {"a block must have a multiple of 32 threads", 0};
  if (launch.cluster <= 0 || launch.grid_x % launch.cluster != 0) return {"the grid must be a multiple of the cluster", 0};
  Machine here_and_now(launch, kernel);
  machine = &here_and_now;
  release(&machine->started);
  std::vector<std::pair<int, int>> first_blocks;
  for (int y = 0; y < launch.grid_y; ++y)
    for (int x = 0; x < launch.grid_x; x += launch.cluster) first_blocks.push_back({x, y});
  while (!first_blocks.empty() && machine->error.empty()) {
    do {
      std::swap(first_blocks[machine->random.below(first_blocks.size())], first_blocks.back());
      const auto [x, y] = first_blocks.back();
      first_blocks.pop_back();
      auto cluster = std::make_unique<Cluster>();
      for (int rank = 0; rank < launch.cluster; ++rank) {
        auto cta = std::make_unique<Cta>();
        cta->rank = rank;
        cta->block_x = x + rank;
        cta->block_y = y;
        cluster->ctas.push_back(std::move(cta));
      }
      start(*cluster);
      machine->clusters.push_back(std::move(cluster));
    } while (launch.cooperative && !first_blocks.empty());
    schedule();
    tear_down();
  }
  acquire(&machine->ended);
  free_stacks.insert(free_stacks.end(), machine->used_stacks.begin(), machine->used_stacks.end());
  Outcome outcome{machine->error, machine->switches};
  machine = nullptr;
  return outcome;
}

// ---- What a thread may ask for -------------------------------------------------------------------------------------

const Coordinates& here() { return current->where; }
unsigned char* shared_memory() { return current->cta->shared; }

void fail(const std::string& what) {
  machine->error = name_of(*current) + ": " + what;
  leave();
  std::abort();
}

void maybe_yield() {
  const Bookkeeping bookkeeping;
  if (machine->random.below(8) == 0) yield();
}

void spin(int64_t polls) {
  const Bookkeeping bookkeeping;
  if (polls > machine->launch.spin_bound) fail("the spin bound was exceeded");
  yield();
}

void cta_barrier() { wait_at(current->cta->barrier, "the block's barrier"); }
void warp_barrier() { wait_at(current->warp->barrier, "the warp's barrier"); }
void cluster_barrier() { wait_at(current->cta->cluster->barrier, "the cluster's barrier"); }

void named_barrier(int id, int threads) {
  const Bookkeeping bookkeeping;
  if (id <= 0 || id >= kMostNamedBarriers) fail("named barrier " + std::to_string(id) + " does not exist");
  if (threads <= 0 || threads % kLanes != 0) fail("a named barrier counts whole warps");
  Barrier& barrier = current->cta->named[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) fail("threads come to a named barrier with different counts");
  wait_at(barrier, "a named barrier");
}

void mbarrier_init(void* address, int arrivals) {
  const Bookkeeping bookkeeping;
  const size_t offset = offset_of(address, 8, "an mbarrier");
  if (offset % 8 != 0) fail("an mbarrier is not aligned to 8 bytes");
  if (arrivals <= 0) fail("an mbarrier must await an arrival");
  Mbarrier& barrier = current->cta->mbarriers[offset];
  if (barrier.arrivals != 0) fail("an mbarrier is initialised twice");
  barrier.arrivals = barrier.pending = arrivals;
  std::memset(address, 0, 8);
}

void mbarrier_expect(void* address, int bytes) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  Mbarrier& barrier = initialised(address);
  if (barrier.pending == 0) fail("more arrivals at an mbarrier than it was initialised for");
  release(&barrier.token[barrier.phase]);
  barrier.bytes += bytes;
  --barrier.pending;
  complete_phase(barrier);
}

void mbarrier_wait(void* address, unsigned parity) {
  const Bookkeeping bookkeeping;
  if (parity > 1) fail("an mbarrier's parity is 0 or 1");
  maybe_yield();
  Mbarrier& barrier = initialised(address);
  if (barrier.phase == parity) {
    barrier.waiting.push_back({current, parity});
    block("an mbarrier", address);
  }
  acquire(&barrier.token[parity]);
}

void store_async(void* destination, int rank, const void* value, int bytes, void* barrier) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  const auto& ctas = current->cta->cluster->ctas;
  if (rank < 0 || size_t(rank) >= ctas.size()) fail("an asynchronous store to CTA " + std::to_string(rank) + " of the cluster");
  Store store{current, ctas[size_t(rank)].get(), offset_of(destination, size_t(bytes), "an asynchronous store's destination"),
              offset_of(barrier, 8, "an mbarrier"), bytes, {}, std::make_unique<char>()};
  if (store.destination % size_t(bytes) != 0) fail("an asynchronous store is not aligned to its size");
  std::memcpy(store.value, value, size_t(bytes));
  if (!current->has_courier) {
    current->courier = Identity::create();
    current->has_courier = true;
  }
  release(store.issued.get());
  machine->in_flight.push_back(std::move(store));
}

void store_relaxed(void* address, const void* value, int bytes) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  uint32_t words[4];
  std::memcpy(words, value, size_t(bytes));
  for (int i = 0; i < bytes / 4; ++i) machine->memory.store(current->view, static_cast<uint32_t*>(address) + i, words[i]);
}

void load_relaxed(const void* address, void* value, int bytes) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  uint32_t words[4];
  // Of all words, of none, or of each as it comes.
  const size_t older = machine->random.below(3);
  for (int i = 0; i < bytes / 4; ++i)
    words[i] = machine->memory.load(current->view, static_cast<const uint32_t*>(address) + i,
                                    older == 0 || (older == 1 && machine->random.below(2) == 0));
  std::memcpy(value, words, size_t(bytes));
}

void store_release(uint32_t* flag, uint32_t value) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  release(flag);
  machine->memory.release(current->view, flag, value);
}

uint32_t load_acquire(const uint32_t* flag) {
  const Bookkeeping bookkeeping;
  const uint32_t value = machine->memory.acquire(current->view, flag);
  acquire(const_cast<uint32_t*>(flag));
  return value;
}

void warp_collective(Collective operation, void* argument, const char* name) {
  const Bookkeeping bookkeeping;
  maybe_yield();
  Warp& warp = *current->warp;
  if (warp.arrived > 0 && warp.operation != operation) fail(std::string("lanes of a warp are in different collectives: ") + name);
  warp.operation = operation;
  warp.arguments[current->lane] = argument;
  if (++warp.arrived < kLanes) {
    warp.waiting.push_back(current);
    block(name, &warp);
    return;
  }
  operation(warp.arguments);
  warp.arrived = 0;
  for (Thread* thread : warp.waiting) wake(thread);
  warp.waiting.clear();
}

}  // namespace rnnkernels::emulation
