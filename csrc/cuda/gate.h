// A float or double with the activations of a GPU: what the cells of ../cells/ are computed with here.
#pragma once

#include "../cells/math.h"
#include "device.h"

namespace rnnkernels::cuda {

// Between tensors' numbers and those computed with.
template <class S>
RNN_DEVICE Real<S> load_real(const S* address) {
  if constexpr (std::is_same_v<S, double>) {
    return device::load_constant(address);
  } else {
    return device::to_float(device::load_constant(address));
  }
}

template <class S>
RNN_DEVICE S round_real(Real<S> x) {
  if constexpr (std::is_same_v<S, double>) {
    return x;
  } else {
    return device::round_to<S>(x);
  }
}

template <class R>
struct GateOf {
  R value;

  RNN_DEVICE GateOf() {}
  RNN_DEVICE explicit GateOf(R x) : value(x) {}
};
using Gate = GateOf<float>;

template <class R>
RNN_DEVICE GateOf<R> operator+(GateOf<R> a, GateOf<R> b) {
  return GateOf<R>(a.value + b.value);
}
template <class R>
RNN_DEVICE GateOf<R> operator-(GateOf<R> a, GateOf<R> b) {
  return GateOf<R>(a.value - b.value);
}
template <class R>
RNN_DEVICE GateOf<R> operator*(GateOf<R> a, GateOf<R> b) {
  return GateOf<R>(a.value * b.value);
}

inline constexpr float kLog2E = 1.44269504088896341f;

// Two units of the special functions; exact at both ends, since 2^x overflows to infinity and 1 / infinity is zero.
RNN_DEVICE Gate sigmoid(Gate x) {
  return Gate(device::reciprocal_fast(1.0f + device::exp2_fast(-kLog2E * x.value)));
}

// 2 s(2x) - 1 loses its relative accuracy to cancellation near zero; there, Taylor's series has no more than 2e-8 left.
RNN_DEVICE Gate tanh(Gate x) {
  constexpr float kSmall = 0.3f;
  const float square = x.value * x.value;
  const float series =
      x.value +
      x.value * square *
          (-1.0f / 3 + square * (2.0f / 15 + square * (-17.0f / 315 + square * (62.0f / 2835 + square * (-1382.0f / 155925)))));
  const float far = 2.0f * device::reciprocal_fast(1.0f + device::exp2_fast(-2.0f * kLog2E * x.value)) - 1.0f;
  return Gate(square < kSmall * kSmall ? series : far);
}

RNN_DEVICE GateOf<double> sigmoid(GateOf<double> x) { return GateOf<double>(cells::sigmoid(x.value)); }
RNN_DEVICE GateOf<double> tanh(GateOf<double> x) { return GateOf<double>(cells::tanh(x.value)); }

}  // namespace rnnkernels::cuda
