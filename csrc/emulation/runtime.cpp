#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "machine.h"

namespace rnnkernels::emulation {

Machine* machine = nullptr;
Thread* current = nullptr;

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

std::string name_of(const Thread& thread) {
  return "block (" + std::to_string(thread.where.block_x) + ", " + std::to_string(thread.where.block_y) + ") thread " +
         std::to_string(thread.where.thread);
}

namespace {

constexpr int64_t kMostTransactionBytes = (1 << 20) - 1;  // as in PTX
constexpr size_t kStackBytes = 256 * 1024;  // address space; only what is touched costs memory

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

}  // namespace rnnkernels::emulation
