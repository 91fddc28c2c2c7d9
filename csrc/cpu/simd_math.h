// exp, sigmoid and tanh on vectors. Bounds (tests/cpp asserts them): exp 2 ulp,
// sigmoid 3 ulp, tanh 4 ulp in float and in double; NaN stays NaN, +-inf saturates.
#pragma once

#include "simd.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float kLog2E = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = -2.1219444005469058e-4f;
  static constexpr float kHighest = 88.7228317f;  // largest x with finite exp(x)
  static constexpr float kLowest = -87.3365402f;  // smallest x with normal exp(x)
  static constexpr float kTanhIsOne = 10.0f;      // tanh rounds to 1 from here on
  // Minimax of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2, relative error of exp 3.1e-9; highest power first.
  static constexpr float kTail[] = {1.3814540176801306e-3f, 8.3687451089425907e-3f, 4.1668390783547913e-2f,
                                    1.6666520399042531e-1f, 4.9999993432129290e-1f};
};

template <>
struct ExpConstants<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2E = 1.442695040888963407;
  static constexpr double kLn2High = 0.6931471803691238;
  static constexpr double kLn2Low = 1.908214929270587816e-10;
  static constexpr double kHighest = 709.782712893383973;
  static constexpr double kLowest = -708.396418532264106;
  static constexpr double kTanhIsOne = 20.0;
  // 1/13!, 1/12!, ..., 1/2!: the Taylor series leaves 4e-18 on |r| <= ln(2)/2.
  static constexpr double kTail[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                     1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                     1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
};

// x = n ln(2) + r with |r| <= ln(2)/2.
template <class T>
struct Reduced {
  typename Vec<T>::Bits exponent;  // n, shifted to where a floating-point number keeps its exponent
  typename Vec<T>::Raw expm1;      // exp(r) - 1, with full relative accuracy
};

template <class T>
RNN_INLINE Reduced<T> reduce_exp(typename Vec<T>::Raw x) {
  using K = ExpConstants<T>;
  using Raw = typename Vec<T>::Raw;
  using Bits = typename Vec<T>::Bits;
  const Raw shifted = x * K::kLog2E + K::kRound;
  const Raw n = shifted - K::kRound;
  const Raw r = (x - n * K::kLn2High) - n * K::kLn2Low;
  Raw tail = K::kTail[0] - Raw{};
  RNN_UNROLL
  for (int i = 1; i < int(sizeof(K::kTail) / sizeof(T)); ++i) tail = tail * r + K::kTail[i];
  return {Bits(shifted) << K::kMantissaBits, tail * (r * r) + r};
}

template <class T>
RNN_INLINE Vec<T> exp(Vec<T> x) {
  using K = ExpConstants<T>;
  using Raw = typename Vec<T>::Raw;
  using Bits = typename Vec<T>::Bits;
  Raw clamped = x.v > K::kHighest ? K::kHighest - Raw{} : x.v;
  clamped = clamped < K::kLowest ? K::kLowest - Raw{} : clamped;
  const Reduced<T> part = reduce_exp<T>(clamped);
  Raw y = Raw(Bits(part.expm1 + T(1)) + part.exponent);
  y = x.v > K::kHighest ? T(__builtin_inf()) - Raw{} : y;
  y = x.v < K::kLowest ? Raw{} : y;
  return x.v == x.v ? y : x.v;
}

// 1 / (1 + exp(-x))
template <class T>
RNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using K = ExpConstants<T>;
  using Raw = typename Vec<T>::Raw;
  using Bits = typename Vec<T>::Bits;
  const Raw minus_x = -x.v;
  Raw clamped = minus_x > K::kHighest ? K::kHighest - Raw{} : minus_x;
  clamped = clamped < K::kLowest ? K::kLowest - Raw{} : clamped;
  const Reduced<T> part = reduce_exp<T>(clamped);
  const Raw y = T(1) / (T(1) + Raw(Bits(part.expm1 + T(1)) + part.exponent));
  return minus_x > K::kHighest ? Raw{} : y;
}

// expm1(2x) / (expm1(2x) + 2): no cancellation near 0, where n = 0 and expm1 is the polynomial itself.
template <class T>
RNN_INLINE Vec<T> tanh(Vec<T> x) {
  using K = ExpConstants<T>;
  using Raw = typename Vec<T>::Raw;
  using Bits = typename Vec<T>::Bits;
  Raw clamped = x.v > K::kTanhIsOne ? K::kTanhIsOne - Raw{} : x.v;
  clamped = clamped < -K::kTanhIsOne ? -K::kTanhIsOne - Raw{} : clamped;
  const Reduced<T> part = reduce_exp<T>(clamped + clamped);
  const Raw scale = Raw(Bits(T(1) - Raw{}) + part.exponent);  // 2^n
  const Raw expm1 = scale * part.expm1 + (scale - T(1));
  return expm1 / (expm1 + T(2));
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
