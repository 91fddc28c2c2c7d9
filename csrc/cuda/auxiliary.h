// The small kernels around the recurrence: offsets of packed rows, the states steps start from, those that were projected, sums
// of bias gradients.
#pragma once

#include "arguments.h"
#include "cells.h"
#include "product.h"

namespace rnnkernels::cuda {

// Numbers of the host's, carried by the launch itself: no copy that a captured graph would repeat from memory long gone.
struct OffsetsArguments {
  static constexpr int kMost = 480;  // 4 KB of arguments

  int64_t* to;
  int count;
  int64_t values[kMost];
};

RNN_DEVICE void write_offsets(const OffsetsArguments& p) {
  for (int i = device::thread(); i < p.count; i += device::threads()) p.to[i] = p.values[i];
}

// The step of row r.
RNN_DEVICE int64_t step_of(const Sequence& s, int64_t r) {
  if (s.offsets == nullptr) return r / s.batch;
  int64_t low = 0, high = s.steps;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (s.offsets[middle] <= r) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// h before each step: what the gradient of W_hh multiplies. block_y is the direction; a warp has one row, because finding where it
// comes from takes longer than copying it.
struct StatesBeforeArguments {
  Sequence sequence;
  const void* output;  // (..., D*H) S
  const void* h0;      // (D, N, H) S
  void* before;        // (D, R, H) S
};

template <class S>
RNN_DEVICE void states_before(const StatesBeforeArguments& p) {
  const Sequence& s = p.sequence;
  const int64_t r = (int64_t(device::block_x()) * device::threads() + device::thread()) / kLanes;
  if (r >= s.rows) return;
  const int64_t t = step_of(s, r);
  const int direction = device::block_y();
  const auto offset = [&](int64_t step) { return s.offsets == nullptr ? step * s.batch : s.offsets[step]; };
  const int64_t b = r - offset(t), before = direction == 1 ? t + 1 : t - 1;
  const bool active = before >= 0 && before < s.steps && b < offset(before + 1) - offset(before);
  const S* from = active ? static_cast<const S*>(p.output) + ((offset(before) + b) * s.directions + direction) * s.hidden
                         : static_cast<const S*>(p.h0) + (direction * s.batch + b) * s.hidden;
  S* to = static_cast<S*>(p.before) + (direction * s.rows + r) * s.hidden;
  RNN_UNROLL_BY(4)
  for (int u = device::thread() % kLanes; u < s.hidden; u += kLanes) to[u] = device::load_constant(from + u);
}

// LSTM's h of all steps before its projection, from what forward saved: what the gradient of W_hr multiplies. A thread has one
// element of (D, R, H).
struct UnprojectedStatesArguments {
  int hidden;
  int64_t rows;       // D * R
  const void* gates;  // (D, R, 4, H) S
  const void* cells;  // (D, R, H) Real<S>
  void* states;       // (D, R, H) S
};

template <class S>
RNN_DEVICE void unprojected_states(const UnprojectedStatesArguments& p) {
  using R = Real<S>;
  const int64_t i = int64_t(device::block_x()) * device::threads() + device::thread();
  if (i >= p.rows * p.hidden) return;
  const S* gates = static_cast<const S*>(p.gates) + i / p.hidden * kSavedGates * p.hidden + i % p.hidden;
  const R o = load_real(gates + 3 * int64_t(p.hidden)), c = device::load_constant(static_cast<const R*>(p.cells) + i);
  static_cast<S*>(p.states)[i] = round_real<S>((GateOf<R>(o) * tanh(GateOf<R>(c))).value);  // L7
}

// Adds up the slices' bias gradients, in their order. block_y is the direction; a thread has one row of both biases.
struct BiasGradientsArguments {
  int hidden, slices;
  const float* partial;         // (D, slices, 4, H)
  void* b_ih[kMostDirections];  // (G*H) S
  void* b_hh[kMostDirections];  // (G*H) S
};

template <class Cell, class S>
RNN_DEVICE void bias_gradients(const BiasGradientsArguments& p) {
  const int i = device::block_x() * device::threads() + device::thread(), direction = device::block_y();
  if (i >= Cell::kGates * p.hidden) return;
  const auto sum = [&](int gate) {
    const float* first = p.partial + (int64_t(direction) * p.slices * kSavedGates + gate) * p.hidden + i % p.hidden;
    float total = 0.0f;
    for (int slice = 0; slice < p.slices; ++slice) total += first[int64_t(slice) * kSavedGates * p.hidden];
    return round_real<S>(total);
  };
  static_cast<S*>(p.b_ih[direction])[i] = sum(i / p.hidden);
  static_cast<S*>(p.b_hh[direction])[i] = sum(Cell::hidden_side(i / p.hidden));
}

}  // namespace rnnkernels::cuda
