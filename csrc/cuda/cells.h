// A cell as schedules see it: how many products a unit takes, what a step reads and saves, and the equations of
// ../cells/ between them. Schedules know nothing else about LSTM and GRU.
#pragma once

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "gate.h"

namespace rnnkernels::cuda {

inline constexpr int kSavedGates = 4;  // per unit, for backward; also the gradients of pre-activations per unit

// What one unit of one sequence carries from step to step; c is LSTM's. R, here and below, is float or double.
template <class R>
struct StateOf {
  R h, c;
};
using State = StateOf<float>;

// d(pre-activations), LSTM i, f, g, o; GRU r, z, n, q. dc is carried to the step before, as is the share of dh that
// does not pass through W_hh.
template <class R>
struct GradientOf {
  R gates[kSavedGates];
  R dc, direct_dh;
};
using Gradient = GradientOf<float>;

struct Lstm {
  static constexpr int kGates = 4;  // rows of w_hh per unit
  static constexpr bool kHasCellState = true;

  // b (4): i, f, g, o. Biases are (G*H) floats; `unit` is within H.
  template <class Load, class R>
  RNN_DEVICE static void biases(const Load& b_ih, const Load& b_hh, R (&b)[kSavedGates]) {
    RNN_UNROLL
    for (int gate = 0; gate < kGates; ++gate) b[gate] = b_ih(gate) + b_hh(gate);
  }

  // x and r (4): the input's and the state's products; saved (4): i, f, g, o.
  template <class R>
  RNN_DEVICE static void forward(const R (&x)[kGates], const R (&r)[kGates], const R (&b)[kSavedGates], StateOf<R>& state,
                                 R (&saved)[kSavedGates]) {
    using Gate = GateOf<R>;
    const cells::LstmGates<Gate> a{Gate(x[0] + r[0] + b[0]), Gate(x[1] + r[1] + b[1]), Gate(x[2] + r[2] + b[2]),
                                   Gate(x[3] + r[3] + b[3])};  // L1
    const auto step = cells::lstm_forward(a, Gate(state.c));
    saved[0] = step.gates.i.value;
    saved[1] = step.gates.f.value;
    saved[2] = step.gates.g.value;
    saved[3] = step.gates.o.value;
    state.c = step.c.value;
    state.h = step.h.value;
  }

  template <class R>
  RNN_DEVICE static GradientOf<R> backward(R dh, R dc, const R (&saved)[kSavedGates], R c, StateOf<R> before) {
    using Gate = GateOf<R>;
    const cells::LstmGates<Gate> y{Gate(saved[0]), Gate(saved[1]), Gate(saved[2]), Gate(saved[3])};
    const auto step = cells::lstm_backward(Gate(dh), Gate(dc), y, Gate(c), Gate(before.c));
    return {{step.a.i.value, step.a.f.value, step.a.g.value, step.a.o.value}, step.c_prev.value, R(0)};
  }

  // Which of the four gradients meets rows gate * H.. of w_hh.
  RNN_DEVICE static constexpr int hidden_side(int gate) { return gate; }
};

struct Gru {
  static constexpr int kGates = 3;
  static constexpr bool kHasCellState = false;

  // b (4): r, z, the input side of n, its hidden side.
  template <class Load, class R>
  RNN_DEVICE static void biases(const Load& b_ih, const Load& b_hh, R (&b)[kSavedGates]) {
    b[0] = b_ih(0) + b_hh(0);
    b[1] = b_ih(1) + b_hh(1);
    b[2] = b_ih(2);
    b[3] = b_hh(2);
  }

  // saved (4): r, z, n, q.
  template <class R>
  RNN_DEVICE static void forward(const R (&x)[kGates], const R (&r)[kGates], const R (&b)[kSavedGates], StateOf<R>& state,
                                 R (&saved)[kSavedGates]) {
    using Gate = GateOf<R>;
    const auto step = cells::gru_forward(Gate(x[0] + b[0]), Gate(x[1] + b[1]), Gate(x[2] + b[2]), Gate(r[0]), Gate(r[1]),
                                         Gate(r[2] + b[3]), Gate(state.h));
    saved[0] = step.gates.r.value;
    saved[1] = step.gates.z.value;
    saved[2] = step.gates.n.value;
    saved[3] = step.gates.q.value;
    state.h = step.h.value;
  }

  template <class R>
  RNN_DEVICE static GradientOf<R> backward(R dh, R, const R (&saved)[kSavedGates], R, StateOf<R> before) {
    using Gate = GateOf<R>;
    const cells::GruGates<Gate> y{Gate(saved[0]), Gate(saved[1]), Gate(saved[2]), Gate(saved[3])};
    const auto step = cells::gru_backward(Gate(dh), y, Gate(before.h));
    return {{step.r.value, step.z.value, step.n.value, step.q.value}, R(0), step.h_prev.value};
  }

  RNN_DEVICE static constexpr int hidden_side(int gate) { return gate == 2 ? 3 : gate; }
};

}  // namespace rnnkernels::cuda
