// One LSTM step, pointwise: a = W_ih x + b_ih + W_hh h' + b_hh (L1) comes in,
// the projection r = W_hr h (L8) is the caller's. V is a float, a double or a
// vector of either; h' and c' are the states of the step before.
#pragma once

#include "math.h"

namespace rnnkernels::cells {

template <class V>
struct LstmGates {
  V i, f, g, o;
};

template <class V>
struct LstmForward {
  LstmGates<V> gates;  // after their nonlinearity: what backward needs
  V c, h;
};

template <class V>
struct LstmBackward {
  LstmGates<V> a;  // gradients of the pre-activations
  V c_prev;        // gradient carried to the step before
};

template <class V>
RNN_HD inline LstmGates<V> lstm_gates(const LstmGates<V>& a) {
  LstmGates<V> gates;
  gates.i = sigmoid(a.i);  // L2
  gates.f = sigmoid(a.f);  // L3
  gates.g = tanh(a.g);     // L4
  gates.o = sigmoid(a.o);  // L5
  return gates;
}

template <class V>
RNN_HD inline V lstm_cell_state(const LstmGates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * gates.g;  // L6
}

template <class V>
RNN_HD inline V lstm_hidden_state(V o, V c) {
  return o * tanh(c);  // L7
}

template <class V>
RNN_HD inline LstmForward<V> lstm_forward(const LstmGates<V>& a, V c_prev) {
  LstmForward<V> step;
  step.gates = lstm_gates(a);
  step.c = lstm_cell_state(step.gates, c_prev);
  step.h = lstm_hidden_state(step.gates.o, step.c);
  return step;
}

// dh and dc are the whole gradients of this step's h and c (without dh's share in dc).
template <class V>
RNN_HD inline LstmBackward<V> lstm_backward(V dh, V dc, const LstmGates<V>& y, V c, V c_prev) {
  const V tanh_c = tanh(c);  // recomputed: cheaper than saving it
  LstmBackward<V> grad;
  const V dc_all = dc + dh * y.o * tanh_slope(tanh_c);        // LB7
  grad.c_prev = dc_all * y.f;                                 // LB6
  grad.a.o = dh * tanh_c * sigmoid_slope(y.o);                // LB7, LB2-5
  grad.a.g = dc_all * y.i * tanh_slope(y.g);                  // LB6, LB2-5
  grad.a.f = dc_all * c_prev * sigmoid_slope(y.f);            // LB6, LB2-5
  grad.a.i = dc_all * y.g * sigmoid_slope(y.i);               // LB6, LB2-5
  return grad;
}

}  // namespace rnnkernels::cells
