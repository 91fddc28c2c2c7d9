// Runs the body of a CUDA kernel on the host: every thread is a fiber, and fibers of all CTAs that can be resident
// together are interleaved at random, by seed, at every point where threads of a GPU may overtake each other.
//
// What a kernel asks of its machine arrives here through device_host.h. The runtime knows the rules of each
// mechanism and reports the first breach of one: a barrier not everybody comes to, lanes of a warp in different
// collectives, an mbarrier used before its initialisation or completing with other bytes than expected, a store into
// a CTA that has ended, a deadlock with who waits for what. Shared memory starts out as NaN. Under ThreadSanitizer
// only the mechanisms order memory accesses, as on the GPU; the scheduling itself orders nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace rnnkernels::emulation {

struct Launch {
  int grid_x, grid_y;
  int threads;                 // per CTA, a multiple of 32
  int cluster;                 // CTAs per cluster, along x
  size_t shared_bytes;         // dynamic shared memory per CTA
  bool cooperative;            // all CTAs resident at once; otherwise clusters run one after another in random order
  uint64_t seed;               // of the interleaving
  int64_t spin_bound = 200000; // polls after which a spinning thread counts as hung
};

struct Outcome {
  std::string error;  // empty when the launch ended well
  int64_t switches;   // between fibers

  bool ok() const { return error.empty(); }
};

// Runs kernel() once per thread. After an error the launch is abandoned where it stands.
Outcome run(const Launch& launch, const std::function<void()>& kernel);

// ---- What device_host.h calls, in the thread that is running ------------------------------------------------------

struct Coordinates {
  int thread, threads, block_x, block_y, grid_x, grid_y, cluster_rank;
};
const Coordinates& here();

// Dynamic shared memory of this CTA.
unsigned char* shared_memory();
// Ends the launch with an error.
[[noreturn]] void fail(const std::string& what);
// Lets other threads overtake, now and then (by seed) or certainly.
void maybe_yield();
void spin(int64_t polls);

void cta_barrier();
void named_barrier(int id, int threads);
void warp_barrier();
void cluster_barrier();

void mbarrier_init(void* barrier, int arrivals);
void mbarrier_expect(void* barrier, int bytes);  // one arrival that announces bytes
void mbarrier_wait(void* barrier, unsigned parity);
// Copies bytes (4, 8 or 16) to where `destination` lies in the shared memory of CTA `rank` of the cluster and counts
// them there on `barrier`; some time later, and in no order with other such stores.
void store_async(void* destination, int rank, const void* value, int bytes, void* barrier);

// Words of global memory that other CTAs write and read meanwhile, as global_memory.h has it; bytes: 4, 8 or 16.
void store_relaxed(void* address, const void* value, int bytes);
void load_relaxed(const void* address, void* value, int bytes);
void store_release(uint32_t* flag, uint32_t value);
uint32_t load_acquire(const uint32_t* flag);

// All 32 lanes call this with the same operation, each with its own argument; when the last one is there,
// operation(arguments) sees those of all lanes. Orders nothing in memory.
using Collective = void (*)(void* const* arguments);
void warp_collective(Collective operation, void* argument, const char* name);

}  // namespace rnnkernels::emulation
