// A float with the activations of a GPU: what the cells of ../cells/ are computed with here.
#pragma once

#include "device.h"

namespace rnnkernels::cuda {

struct Gate {
  float value;

  RNN_DEVICE Gate() {}
  RNN_DEVICE explicit Gate(float x) : value(x) {}
};

RNN_DEVICE Gate operator+(Gate a, Gate b) { return Gate(a.value + b.value); }
RNN_DEVICE Gate operator-(Gate a, Gate b) { return Gate(a.value - b.value); }
RNN_DEVICE Gate operator*(Gate a, Gate b) { return Gate(a.value * b.value); }

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

}  // namespace rnnkernels::cuda
