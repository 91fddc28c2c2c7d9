// The kernels of a step, between the library's products: a thread has one unit of one row, block_y is the direction. Threads
// share nothing, and what they read was written by launches before. Equations: backends/reference.py.
#pragma once

#include "../cells.h"
#include "../stepwise.h"

namespace rnnkernels::cuda {

// A thread's row and unit. The binding keeps N * H within an int.
struct StepPlace {
  int direction, row, unit;
  int64_t index;  // in (D, N, width)

  RNN_DEVICE StepPlace(const Sequence& s) {
    const unsigned i = unsigned(device::block_x()) * unsigned(device::threads()) + unsigned(device::thread());
    const unsigned width = unsigned(s.hidden);
    direction = device::block_y();
    row = int(i / width);
    unit = int(i % width);
    index = (direction * s.batch + row) * s.hidden + unit;
  }
};

template <class Cell, class S>
RNN_DEVICE void step_forward(const StepForwardArguments& p) {
  using R = Real<S>;
  constexpr int kGates = Cell::kGates;
  const Sequence& s = p.sequence;
  const StepPlace at(s);
  const StepRows step = p.step[at.direction];
  if (at.row >= step.active) return;
  const int64_t h = s.hidden, row = step.first + at.row;  // of all steps' rows

  const R* projected = static_cast<const R*>(p.projected[at.direction]) + row * kGates * h + at.unit;
  const R* product = static_cast<const R*>(p.product) + (at.direction * s.batch + at.row) * kGates * h + at.unit;
  R x[kGates], r[kGates], b[kSavedGates], saved[kSavedGates];
  RNN_UNROLL
  for (int gate = 0; gate < kGates; ++gate) {
    x[gate] = device::load_constant(projected + gate * h);
    r[gate] = device::load_constant(product + gate * h);
  }
  const auto bias = [&](const void* of) {
    const S* values = static_cast<const S*>(of);
    return [=](int gate) { return values != nullptr ? load_real(values + gate * h + at.unit) : R(0); };
  };
  Cell::biases(bias(p.b_ih[at.direction]), bias(p.b_hh[at.direction]), b);

  R& carry = static_cast<R*>(p.carry)[at.index];
  StateOf<R> state{carry, carry};  // the cell takes the one that it has
  Cell::forward(x, r, b, state, saved);
  carry = Cell::kHasCellState ? state.c : state.h;
  static_cast<S*>(p.state)[at.index] = round_real<S>(state.h);
  if (p.output != nullptr)
    device::store_streaming(static_cast<S*>(p.output) + (row * s.directions + at.direction) * h + at.unit,
                            round_real<S>(state.h));
  if (p.gates == nullptr) return;
  const int64_t place = at.direction * s.rows + row;
  RNN_UNROLL
  for (int gate = 0; gate < kSavedGates; ++gate)
    device::store_streaming(static_cast<S*>(p.gates) + (place * kSavedGates + gate) * h + at.unit, round_real<S>(saved[gate]));
  if constexpr (Cell::kHasCellState) device::store_streaming(static_cast<R*>(p.cells) + place * h + at.unit, state.c);
}

template <class S>
RNN_DEVICE void step_projection(const StepProjectionArguments& p) {
  const Sequence& s = p.sequence;
  const StepPlace at(s);
  const StepRows step = p.step[at.direction];
  if (at.row >= step.active) return;
  const S h = round_real<S>(device::load_constant(static_cast<const Real<S>*>(p.product) + at.index));  // L8
  static_cast<S*>(p.state)[at.index] = h;
  static_cast<S*>(p.output)[((step.first + at.row) * s.directions + at.direction) * s.hidden + at.unit] = h;
}

// d(h) of a place, active or not.
template <class S>
RNN_DEVICE Real<S> hidden_gradient(const StepHiddenGradient& p, const Sequence& s, const StepPlace& at, bool active) {
  using R = Real<S>;
  R dh = p.direct != nullptr ? static_cast<const R*>(p.direct)[at.index] : R(0);
  if (at.row < p.known[at.direction]) dh += device::load_constant(static_cast<const R*>(p.product) + at.index);
  if (active && p.grad_output != nullptr)
    dh += load_real(static_cast<const S*>(p.grad_output) + p.output_first[at.direction] + at.row * p.output_row +
                    int64_t(at.direction) * s.hidden + at.unit);
  return dh;
}

template <class Cell, class S>
RNN_DEVICE void step_backward(const StepBackwardArguments& p) {
  using R = Real<S>;
  constexpr int kGates = Cell::kGates;
  const Sequence& s = p.sequence;
  const StepPlace at(s);
  const StepRows step = p.step[at.direction], before = p.before[at.direction];
  const bool active = at.row < step.active;
  if (!active && at.row >= p.dh.known[at.direction]) return;
  const R dh = hidden_gradient<S>(p.dh, s, at, active);
  R* direct = static_cast<R*>(p.dh.direct);
  if (!active) {
    if (direct != nullptr) direct[at.index] = dh;
    return;
  }

  const int64_t h = s.hidden, place = at.direction * s.rows + step.first + at.row;
  R saved[kSavedGates];
  RNN_UNROLL
  for (int gate = 0; gate < kSavedGates; ++gate)
    saved[gate] = load_real(static_cast<const S*>(p.gates) + (place * kSavedGates + gate) * h + at.unit);
  const bool has_before = at.row < before.active;
  const int64_t row_before = before.first + at.row;
  GradientOf<R> gradient;
  if constexpr (Cell::kHasCellState) {
    const R* cells = static_cast<const R*>(p.cells);
    const R c_before = has_before ? device::load_constant(cells + (at.direction * s.rows + row_before) * h + at.unit)
                                  : load_real(static_cast<const S*>(p.c0) + at.index);
    R& carry = static_cast<R*>(p.carry)[at.index];
    gradient = Cell::backward(dh, carry, saved, device::load_constant(cells + place * h + at.unit), StateOf<R>{R(0), c_before});
    carry = gradient.dc;
  } else {
    const S* h_before = has_before ? static_cast<const S*>(p.output) + (row_before * s.directions + at.direction) * h + at.unit
                                   : static_cast<const S*>(p.h0) + at.index;
    gradient = Cell::backward(dh, R(0), saved, R(0), StateOf<R>{load_real(h_before), R(0)});
    device::store_streaming(static_cast<S*>(p.grad_q) + place * h + at.unit, round_real<S>(gradient.gates[3]));
  }
  if (direct != nullptr) direct[at.index] = gradient.direct_dh;
  S* operand = static_cast<S*>(p.operand) + (at.direction * s.batch + at.row) * kGates * h + at.unit;
  S* grad_gates = static_cast<S*>(p.grad_gates) + place * kGates * h + at.unit;
  RNN_UNROLL
  for (int gate = 0; gate < kGates; ++gate) {
    device::store_streaming(grad_gates + gate * h, round_real<S>(gradient.gates[gate]));
    operand[gate * h] = round_real<S>(gradient.gates[Cell::hidden_side(gate)]);
  }
}

template <class S>
RNN_DEVICE void step_projection_backward(const StepProjectionBackwardArguments& p) {
  using R = Real<S>;
  const Sequence& s = p.sequence;
  const StepPlace at(s);
  const StepRows step = p.step[at.direction];
  const bool active = at.row < step.active;
  if (!active && at.row >= p.dh.known[at.direction]) return;
  const R dh = hidden_gradient<S>(p.dh, s, at, active);
  static_cast<R*>(p.dh.direct)[at.index] = active ? R(0) : dh;
  if (!active) return;
  static_cast<S*>(p.operand)[at.index] = round_real<S>(dh);  // LB8
  const int64_t place = at.direction * s.rows + step.first + at.row;
  device::store_streaming(static_cast<S*>(p.grad_projected) + place * s.hidden + at.unit, round_real<S>(dh));
}

}  // namespace rnnkernels::cuda
