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
RNN_HD inline LstmForward<V> lstm_forward(const LstmGates<V>& a, V c_prev) {
  LstmForward<V> step;
  step.gates.i = sigmoid(a.i);                           // L2
  step.gates.f = sigmoid(a.f);                           // L3
  step.gates.g = tanh(a.g);                              // L4
  step.gates.o = sigmoid(a.o);                           // L5
  step.c = step.gates.f * c_prev + step.gates.i * step.gates.g;  // L6
  step.h = step.gates.o * tanh(step.c);                  // L7
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
