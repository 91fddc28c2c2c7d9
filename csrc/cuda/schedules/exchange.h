// How the CTAs that share a direction's units hand results to each other, once per step. Step k reads what was sent for
// it during step k - 1, from buffer k % 2 in its own shared memory; what step 0 reads is there from the start.
//
// Two buffers are enough without any barrier around them: whoever sends for step k + 1 has received all of step k, and
// every warp of every CTA sends for step k only when it is done reading step k - 1, the buffer's content before.
#pragma once

#include "../arguments.h"
#include "../product.h"

namespace rnnkernels::cuda {

// One CTA has all units: a barrier of the CTA per step.
class LocalExchange {
 public:
  static constexpr bool kHasMbarriers = false;
  static constexpr bool kTakesTime = false;  // from sending to having
  using Forward = LocalExchange;
  using Backward = LocalExchange;

  RNN_DEVICE LocalExchange(const Partition&, device::Mbarrier*) {}

  RNN_DEVICE int rank() const { return 0; }
  RNN_DEVICE int copies() const { return 1; }
  // Once, after shared memory has its initial content.
  RNN_DEVICE void start() const { device::cta_barrier(); }
  // Announces, during step k - 1, the bytes that will come for step k.
  RNN_DEVICE void expect(int, int) const {}
  // Stores to CTA `rank` what is to lie at `destination` there.
  RNN_DEVICE void send(int, int, void* destination, Vector16 value) const { device::store16_shared(destination, value); }
  // Until everything sent for step k has come.
  RNN_DEVICE void wait(int) const { device::cta_barrier(); }
  RNN_DEVICE void finish() const {}
};

// A cluster has all units: asynchronous stores into each other's shared memory, counted by the receiver's mbarrier of
// the buffer. No barrier at all.
class ClusterExchange {
 public:
  static constexpr bool kHasMbarriers = true;
  static constexpr bool kTakesTime = true;  // from sending to having
  using Forward = ClusterExchange;
  using Backward = ClusterExchange;

  // arrived (2): in shared memory.
  RNN_DEVICE ClusterExchange(const Partition& partition, device::Mbarrier* arrived) : arrived_(arrived), ctas_(partition.ctas) {}

  RNN_DEVICE int rank() const { return device::cluster_rank(); }
  RNN_DEVICE int copies() const { return ctas_; }
  RNN_DEVICE void start() const {
    if (device::thread() == 0) {
      device::mbarrier_init(&arrived_[0], 1);
      device::mbarrier_init(&arrived_[1], 1);
    }
    // Nobody may send before the others' barriers and buffers are ready.
    device::cluster_barrier();
  }
  RNN_DEVICE void expect(int k, int bytes) const {
    if (device::thread() == 0) device::mbarrier_expect(&arrived_[k & 1], bytes);
  }
  RNN_DEVICE void send(int k, int rank, void* destination, Vector16 value) const {
    device::store_async(destination, rank, value, &arrived_[k & 1]);
  }
  RNN_DEVICE void wait(int k) const {
    // Step 1 is the first use of buffer 1, step 2 that of buffer 0.
    device::mbarrier_wait(&arrived_[k & 1], uint32_t(k - 1) / 2 % 2);
  }
  // A CTA may not end while others still store into it.
  RNN_DEVICE void finish() const { device::cluster_barrier(); }

 private:
  device::Mbarrier* arrived_;
  int ctas_;
};

}  // namespace rnnkernels::cuda
