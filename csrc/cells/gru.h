// One GRU step, pointwise. The input part x_* = W_i* x + b_i* and the recurrent
// part h_* = W_h* h' + b_h* come in apart, because n weighs the latter by r.
// V is a float, a double or a vector of either; h' is the state of the step before.
#pragma once

#include "math.h"

namespace rnnkernels::cells {

template <class V>
struct GruGates {
  V r, z, n, q;  // q = h_n = W_hn h' + b_hn (G3)
};

template <class V>
struct GruForward {
  GruGates<V> gates;  // r, z, n after their nonlinearity: what backward needs
  V h;
};

template <class V>
struct GruBackward {
  V r, z, n, q;  // gradients of the pre-activations; n of the input part, q of the recurrent part
  V h_prev;      // gradient carried past the gates, without the share through W_hh
};

template <class V>
RNN_HD inline V gru_gate(V x_part, V h_part) {
  return sigmoid(x_part + h_part);  // G1, G2
}

template <class V>
RNN_HD inline V gru_new(V x_n, V r, V q) {
  return tanh(x_n + r * q);  // G4
}

template <class V>
RNN_HD inline V gru_state(V z, V n, V h_prev) {
  return (V(1) - z) * n + z * h_prev;  // G5
}

template <class V>
RNN_HD inline GruForward<V> gru_forward(V x_r, V x_z, V x_n, V h_r, V h_z, V h_n, V h_prev) {
  GruForward<V> step;
  step.gates.r = gru_gate(x_r, h_r);
  step.gates.z = gru_gate(x_z, h_z);
  step.gates.q = h_n;  // G3
  step.gates.n = gru_new(x_n, step.gates.r, step.gates.q);
  step.h = gru_state(step.gates.z, step.gates.n, h_prev);
  return step;
}

template <class V>
RNN_HD inline GruBackward<V> gru_backward(V dh, const GruGates<V>& y, V h_prev) {
  GruBackward<V> grad;
  grad.h_prev = dh * y.z;                                   // GB5
  grad.n = dh * (V(1) - y.z) * tanh_slope(y.n);             // GB5, GB4
  grad.q = grad.n * y.r;                                    // GB4
  grad.z = dh * (h_prev - y.n) * sigmoid_slope(y.z);        // GB5, GB1-2
  grad.r = grad.n * y.q * sigmoid_slope(y.r);               // GB4, GB1-2
  return grad;
}

}  // namespace rnnkernels::cells
