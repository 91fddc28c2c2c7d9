// What a thread may ask of its machine.
#include <cstdlib>
#include <cstring>
#include <utility>

#include "machine.h"

namespace rnnkernels::emulation {

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

namespace {

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
