// What the schedules are made of, one thing at a time and over and over, so that its cost can be read off: mechanisms.cu times
// these on a GPU, tests/emulation/test_mechanisms.cpp shows that they end and hand over what they should.
#pragma once

#include <cstdint>

#include "cells.h"
#include "product.h"
#include "schedules/exchange.h"

namespace rnnkernels::cuda::mechanisms {

inline constexpr int kBarrierBytes = 128;  // of shared memory, before any buffer
inline constexpr int kFlagStride = 32;     // words between flags: a cache line each

// Two CTAs of a cluster throw a vector to and fro. out: how many times it came back.
RNN_DEVICE void throw_async(int rounds, uint32_t* out) {
  auto* arrived = reinterpret_cast<device::Mbarrier*>(device::shared_memory());
  auto* ball = reinterpret_cast<Vector16*>(device::shared_memory() + kBarrierBytes);
  const int rank = device::cluster_rank();
  if (device::thread() == 0) {
    device::mbarrier_init(arrived, 1);
    *ball = Vector16{};
  }
  device::cluster_barrier();
  if (device::thread() == 0 && rank < 2) {
    for (int round = 0; round < rounds; ++round) {
      device::mbarrier_expect(arrived, int(sizeof(Vector16)));
      if (rank == 0) device::store_async(ball, 1, *ball, arrived);
      device::mbarrier_wait(arrived, uint32_t(round % 2));
      if (rank == 1) device::store_async(ball, 0, Vector16{{ball->words[0] + 1, 0, 0, 0}}, arrived);
    }
    if (rank == 0) *out = ball->words[0];
  }
  device::warp_barrier();
  device::cluster_barrier();
}

// A step of a cluster without its computing: every CTA hands `vectors` vectors of its own to all, at least one from each warp,
// without which a warp could be overtaken (exchange.h), and reads what came. out (CTAs of the grid): the sum over rounds of the
// first word of all that came.
RNN_DEVICE void exchange_in_cluster(int ctas, int vectors, int rounds, uint32_t* out) {
  auto* arrived = reinterpret_cast<device::Mbarrier*>(device::shared_memory());
  auto* buffers = reinterpret_cast<Vector16*>(device::shared_memory() + kBarrierBytes);  // (2, ctas * vectors)
  const ClusterExchange exchange(Partition{ctas, 0}, arrived);
  const int rank = exchange.rank(), all = ctas * vectors, warps = device::threads() / kLanes;
  const int first = device::thread() % kLanes * warps + device::thread() / kLanes;
  exchange.start();
  uint32_t sum = 0;
  for (int64_t k = 1; k <= rounds; ++k) {
    Vector16* buffer = buffers + k % 2 * all;
    exchange.expect(k, all * int(sizeof(Vector16)));
    for (int i = first; i < vectors; i += device::threads())
      for (int to = 0; to < ctas; ++to)
        exchange.send(k, to, buffer + rank * vectors + i, Vector16{{uint32_t(k) * uint32_t(rank + 1), 0, 0, 0}});
    exchange.wait(k);
    for (int i = device::thread(); i < all; i += device::threads()) sum += buffer[i].words[0];
    device::warp_barrier();  // as products are: a warp that sends has read
  }
  // As a float, which is what lanes can hand each other; tests keep the sums small.
  float total = float(sum);
  for (int mask = 1; mask < kLanes; mask *= 2) total += device::shuffle_xor(total, mask);
  exchange.finish();
  auto* sums = reinterpret_cast<float*>(buffers);
  if (device::thread() % kLanes == 0) sums[device::thread() / kLanes] = total;
  device::cta_barrier();
  if (device::thread() != 0) return;
  float whole = 0;
  for (int warp = 0; warp < warps; ++warp) whole += sums[warp];
  out[device::block_x()] = uint32_t(whole);
}

// Two CTAs raise flags for each other. flags (2 lines): zero before.
RNN_DEVICE void throw_flags(int rounds, uint32_t* flags) {
  const int own = device::block_x();
  if (device::thread() != 0 || own > 1) return;
  uint32_t* const mine = flags + own * kFlagStride;
  const uint32_t* const other = flags + (1 - own) * kFlagStride;
  for (uint32_t round = 1; round <= uint32_t(rounds); ++round) {
    if (own == 1) device::wait_for_flag(other, round);
    device::store_release(mine, round);
    if (own == 0) device::wait_for_flag(other, round);
  }
}

// Two CTAs send each other words that say themselves that they have come, as the grid schedule does. words (2 lines): zero
// before.
RNN_DEVICE void throw_words(int rounds, uint32_t* words) {
  const int own = device::block_x();
  if (device::thread() != 0 || own > 1) return;
  uint32_t* const mine = words + own * kFlagStride;
  const uint32_t* const other = words + (1 - own) * kFlagStride;
  const auto await = [&](uint32_t round) {
    device::Patience patience;
    while (device::load16_relaxed(other).words[3] != round) patience.poll();
  };
  for (uint32_t round = 1; round <= uint32_t(rounds); ++round) {
    if (own == 1) await(round);
    device::store16_relaxed(mine, Vector16{{round, round, round, round}});
    if (own == 0) await(round);
  }
}

// All CTAs of a grid meet: each raises its flag and waits for all. flags (grid lines): zero before.
RNN_DEVICE void meet_by_flags(int rounds, uint32_t* flags) {
  for (uint32_t round = 1; round <= uint32_t(rounds); ++round) {
    device::cta_barrier();
    if (device::thread() == 0) device::store_release(flags + device::block_x() * kFlagStride, round);
    for (int i = device::thread(); i < device::grid_x(); i += device::threads())
      device::wait_for_flag(flags + i * kFlagStride, round);
  }
  device::cta_barrier();
}

RNN_DEVICE void meet_in_cta(int rounds) {
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) device::cta_barrier();
}

// Each warp multiplies into kChains accumulators in turn. out (threads): something that depends on all of them.
template <class Product, int kChains>
RNN_DEVICE void multiply(int rounds, float* out) {
  float d[kChains][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = uint32_t(device::thread() + i);  // tiny numbers, which cost what others do
  for (int i = 0; i < 2; ++i) b[i] = uint32_t(device::thread() - i);
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int chain = 0; chain < kChains; ++chain) Product::multiply(d[chain], a, b);
  }
  float sum = 0;
  RNN_UNROLL
  for (int chain = 0; chain < kChains; ++chain) sum += d[chain][0] + d[chain][1] + d[chain][2] + d[chain][3];
  out[device::block_x() * device::threads() + device::thread()] = sum;
}

// A thread's cell, each step waiting for the one before. out (threads).
template <class Cell>
RNN_DEVICE void step_cell(int rounds, float* out) {
  State state{0.1f, 0.2f};
  float x[Cell::kGates], r[Cell::kGates], b[kSavedGates], saved[kSavedGates];
  for (int gate = 0; gate < Cell::kGates; ++gate) x[gate] = 0.1f * float(gate + 1);
  for (int gate = 0; gate < kSavedGates; ++gate) b[gate] = 0.01f * float(device::thread() % 8);
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int gate = 0; gate < Cell::kGates; ++gate) r[gate] = state.h;
    Cell::forward(x, r, b, state, saved);
  }
  out[device::block_x() * device::threads() + device::thread()] = state.h;
}

// All threads read shared memory in vectors. out (threads).
RNN_DEVICE void read_shared(int rounds, int vectors, uint32_t* out) {
  auto* memory = reinterpret_cast<Vector16*>(device::shared_memory());
  for (int i = device::thread(); i < vectors; i += device::threads()) memory[i] = Vector16{{uint32_t(i), 1, 2, 3}};
  device::cta_barrier();
  uint32_t sum = 0;
  int place = device::thread();
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Vector16 v = device::load16(memory + place);
      sum += v.words[0] ^ v.words[1] ^ v.words[2] ^ v.words[3];
      place = place + device::threads() < vectors ? place + device::threads() : device::thread();
    }
  }
  out[device::block_x() * device::threads() + device::thread()] = sum;
}

// All threads of a grid read the same memory past the L1 cache, each CTA beginning somewhere else. out (threads).
RNN_DEVICE void read_global(int rounds, const Vector16* memory, int64_t vectors, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t stride = device::threads();
  int64_t place = (int64_t(device::block_x()) * 7 * stride + device::thread()) % vectors;
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Vector16 v = device::load16_relaxed(memory + place);
      sum += v.words[0] ^ v.words[1] ^ v.words[2] ^ v.words[3];
      place = place + stride < vectors ? place + stride : place + stride - vectors;
    }
  }
  out[device::block_x() * device::threads() + device::thread()] = sum;
}

// Each load's address is what the load before brought, past the L1 cache. memory (vectors): a ring of places. out (1).
RNN_DEVICE void chase(int rounds, const Vector16* memory, uint32_t* out) {
  uint32_t place = 0;
  RNN_NO_UNROLL
  for (int round = 0; round < rounds; ++round) place = device::load16_relaxed(memory + place).words[0];
  *out = place;
}

}  // namespace rnnkernels::cuda::mechanisms
