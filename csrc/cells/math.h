// Scalar activations for the cell equations. A vector type brings its own
// overloads of sigmoid() and tanh(), found by argument-dependent lookup.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define RNN_HD __host__ __device__
#elif defined(__GNUC__)
// A call would pass a step's vectors through memory.
#define RNN_HD __attribute__((always_inline))
#else
#define RNN_HD
#endif

namespace rnnkernels::cells {

// exp() is only ever taken of a negative number, so nothing overflows at any x.
RNN_HD inline float sigmoid(float x) {
  const float e = ::expf(-::fabsf(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

RNN_HD inline double sigmoid(double x) {
  const double e = ::exp(-::fabs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

RNN_HD inline float tanh(float x) { return ::tanhf(x); }
RNN_HD inline double tanh(double x) { return ::tanh(x); }

// Derivatives in terms of the activation itself, which is what forward saves.
template <class V>
RNN_HD inline V sigmoid_slope(V y) {
  return y * (V(1) - y);
}

template <class V>
RNN_HD inline V tanh_slope(V y) {
  return V(1) - y * y;
}

}  // namespace rnnkernels::cells
