// Vector activations against long double, and half types over all their bit patterns.
#include <cmath>
#include <limits>

#include "../../csrc/cpu/simd_math.h"
#include "../../csrc/cpu/storage.h"
#include "harness.h"

using namespace rnnkernels::cpu;
using namespace rnnkernels::cpu::RNNKERNELS_ISA;
using harness::Random;

namespace {

// One lane at a time differs: a kernel that mixes lanes up is caught.
template <class T, class F>
T in_some_lane(const F& f, T x, int lane) {
  T lanes[Vec<T>::size];
  for (int i = 0; i < Vec<T>::size; ++i) lanes[i] = T(0.25) * T(i);
  lanes[lane] = x;
  f(Vec<T>::load(lanes)).store(lanes);
  return lanes[lane];
}

// Distance from the exact value in units of its last place.
template <class T>
double ulps(T actual, long double exact) {
  if (actual == exact) return 0;
  const T rounded = T(exact);
  const int exponent = rounded == 0 ? std::numeric_limits<T>::min_exponent : std::ilogb(rounded);
  const int smallest = std::numeric_limits<T>::min_exponent - 1;
  const int place = (exponent < smallest ? smallest : exponent) - (std::numeric_limits<T>::digits - 1);
  return double(std::fabs((static_cast<long double>(actual) - exact) / std::ldexp(1.0L, place)));
}

template <class T, class F, class G>
void check_ulps(const char* name, const F& f, const G& exact, double low, double high, double bound) {
  Random random(3);
  double worst = 0;
  T worst_at = 0;
  for (int i = 0; i < 400000; ++i) {
    // Half of the points evenly spread, half evenly over magnitudes: the neighbourhood of 0 matters.
    T x = T(random.uniform(low, high));
    if (i % 2) x = T(std::ldexp(x, -int(random.integer(0, 60))));
    const double distance = ulps(in_some_lane<T>(f, x, i % Vec<T>::size), exact(static_cast<long double>(x)));
    if (!(distance <= worst)) worst = distance, worst_at = x;
  }
  CHECK(worst <= bound, std::string(name) + ": " + std::to_string(worst) + " ulp at " + std::to_string(worst_at));
}

template <class T>
void activations_are_accurate() {
  const auto exact_sigmoid = [](long double x) { return 1 / (1 + std::exp(-x)); };
  const double lowest = ExpConstants<T>::kLowest, highest = ExpConstants<T>::kHighest;
  check_ulps<T>("exp", [](Vec<T> x) { return exp(x); }, [](long double x) { return std::exp(x); }, lowest, highest, 2);
  check_ulps<T>("sigmoid", [](Vec<T> x) { return sigmoid(x); }, exact_sigmoid, lowest, highest, 3);
  check_ulps<T>("tanh", [](Vec<T> x) { return tanh(x); }, [](long double x) { return std::tanh(x); }, -25, 25, 4);
}

template <class T>
void activations_saturate() {
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto exp_of = [](T x) { return in_some_lane<T>([](Vec<T> v) { return exp(v); }, x, 1); };
  const auto sigmoid_of = [](T x) { return in_some_lane<T>([](Vec<T> v) { return sigmoid(v); }, x, 0); };
  const auto tanh_of = [](T x) { return in_some_lane<T>([](Vec<T> v) { return tanh(v); }, x, 1); };
  for (const T large : {T(1e4), std::numeric_limits<T>::max(), infinity}) {
    CHECK(exp_of(large) == infinity && exp_of(-large) == 0, "exp saturates");
    CHECK(sigmoid_of(large) == 1 && sigmoid_of(-large) == 0, "sigmoid saturates");
    CHECK(tanh_of(large) == 1 && tanh_of(-large) == -1, "tanh saturates");
  }
  CHECK(std::isnan(exp_of(nan)) && std::isnan(sigmoid_of(nan)) && std::isnan(tanh_of(nan)), "NaN stays NaN");
  CHECK(exp_of(0) == 1 && sigmoid_of(0) == T(0.5) && tanh_of(0) == 0, "values at 0");
  const T tiny = std::numeric_limits<T>::min();
  CHECK(tanh_of(tiny) == tiny, "tanh x = x for tiny x");
}

// The value of a half pattern with `exponent_bits`, by definition.
double value_of(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1), mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

template <class S>
float widen_lane(uint16_t bits) {
  S storage[Vec<float>::size] = {};
  float lanes[Vec<float>::size];
  storage[Vec<float>::size - 1].bits = bits;
  load(storage).store(lanes);
  return lanes[Vec<float>::size - 1];
}

template <class S>
uint16_t narrow_lane(float x) {
  S storage[Vec<float>::size];
  float lanes[Vec<float>::size] = {};
  lanes[1] = x;
  store(storage, Vec<float>::load(lanes));
  return storage[1].bits;
}

template <class S>
void every_half_survives_the_round_trip(int exponent_bits) {
  for (int pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t bits = uint16_t(pattern);
    const double exact = value_of(bits, exponent_bits);
    const float wide = widen_lane<S>(bits);
    if (std::isnan(exact)) {
      CHECK(std::isnan(wide), "a NaN half widens to NaN");
      CHECK(std::isnan(value_of(narrow_lane<S>(wide), exponent_bits)), "and narrows to NaN again");
    } else {
      CHECK(double(wide) == exact && std::signbit(wide) == bool(bits & 0x8000), "halves widen exactly");
      CHECK(narrow_lane<S>(wide) == bits, "and come back");
    }
  }
}

template <class S>
void narrowing_rounds_to_nearest_even(int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  // Every pair of neighbours: the middle goes to the even one, anything off the middle to the nearer one.
  for (int pattern = 0; pattern < ((1 << exponent_bits) - 1) << mantissa_bits; ++pattern) {
    const uint16_t bits = uint16_t(pattern), next = uint16_t(pattern + 1);
    const double low = value_of(bits, exponent_bits);
    const double high = std::isinf(value_of(next, exponent_bits))
                            ? std::ldexp(1.0, 1 << (exponent_bits - 1))
                            : value_of(next, exponent_bits);
    const float middle = float((low + high) / 2);
    if (double(middle) != (low + high) / 2) continue;  // beyond float's own subnormals
    const uint16_t even = bits & 1 ? next : bits;
    CHECK(narrow_lane<S>(middle) == even, "a tie goes to even");
    CHECK(narrow_lane<S>(-middle) == (even | 0x8000), "with either sign");
    CHECK(narrow_lane<S>(std::nextafterf(middle, 0)) == bits, "below the middle goes down");
    CHECK(narrow_lane<S>(std::nextafterf(middle, INFINITY)) == next, "above the middle goes up");
  }
  CHECK(std::isinf(value_of(narrow_lane<S>(INFINITY), exponent_bits)), "infinity stays");
  CHECK(std::isinf(value_of(narrow_lane<S>(3.4e38f), exponent_bits)) || exponent_bits == 8, "overflow is infinite");
}

template <class S>
void partial_vectors_touch_only_their_lanes(S sample) {
  constexpr int lanes = Vec<Compute<S>>::size;
  for (int n = 1; n <= lanes; ++n) {
    S from[lanes + 1], to[lanes + 1];
    std::memset(from, 0, sizeof from);
    for (int i = 0; i < n; ++i) from[i] = sample;
    std::memset(to, 0x55, sizeof to);
    Compute<S> wide[lanes];
    load(from, n).store(wide);
    for (int i = n; i < lanes; ++i) CHECK(wide[i] == 0, "lanes beyond the count load as zero");
    store(to, load(from, n), n);
    CHECK(std::memcmp(to, from, size_t(n) * sizeof(S)) == 0, "the first lanes are stored");
    unsigned char untouched[sizeof(S)];
    std::memset(untouched, 0x55, sizeof untouched);
    CHECK(std::memcmp(to + n, untouched, sizeof untouched) == 0, "and nothing beyond them");
  }
}

}  // namespace

void run_tests() {
  activations_are_accurate<float>();
  activations_are_accurate<double>();
  activations_saturate<float>();
  activations_saturate<double>();
  every_half_survives_the_round_trip<BFloat16>(8);
  every_half_survives_the_round_trip<Float16>(5);
  narrowing_rounds_to_nearest_even<BFloat16>(8);
  narrowing_rounds_to_nearest_even<Float16>(5);
  partial_vectors_touch_only_their_lanes<float>(1.5f);
  partial_vectors_touch_only_their_lanes<double>(1.5);
  partial_vectors_touch_only_their_lanes<BFloat16>({0x3fc0});
  partial_vectors_touch_only_their_lanes<Float16>({0x3e00});
}
