// One SIMD vector type, as wide as the compile flags of the translation unit allow,
// on the vector extensions of GCC and Clang. Everything lives in a namespace named
// after the instruction set, so that the same source can be linked several times.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef RNNKERNELS_ISA
#define RNNKERNELS_ISA baseline
#endif

// Loops over registers: unrolled in full, or the arrays they index would live on the stack.
#if defined(__clang__)
#define RNN_UNROLL _Pragma("unroll")
#else
#define RNN_UNROLL _Pragma("GCC unroll 32")
#endif
#define RNN_INLINE inline __attribute__((always_inline))

namespace rnnkernels::cpu::RNNKERNELS_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define RNN_AVX512 1
#if defined(__AVX512BF16__)
#define RNN_NATIVE_BFLOAT16 1  // dot products of bfloat16 pairs
#endif
inline constexpr int kVectorBytes = 64;
inline constexpr int kRegisters = 32;
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kRegisters = 16;
#else
inline constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif
#endif

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

// A plain vector of T: comparisons give all-ones masks, `mask ? a : b` selects lanes.
template <class T>
struct RawVector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // May sit at any address and alias any type: for loads and stores only.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
};

// All ones in the first n lanes.
template <class T, int... kLane>
RNN_INLINE auto first_lanes(int64_t n, std::integer_sequence<int, kLane...>) {
  using Integer = typename IntegerOf<T>::type;
  using Bits = typename RawVector<Integer>::type;
  return Bits{kLane...} < Bits{} + Integer(n);
}
template <class T>
RNN_INLINE auto first_lanes(int64_t n) {
  return first_lanes<T>(n, std::make_integer_sequence<int, kVectorBytes / int(sizeof(T))>{});
}

template <class T>
struct Vec {
  using Raw = typename RawVector<T>::type;
  using Bits = typename RawVector<typename IntegerOf<T>::type>::type;
  static constexpr int size = kVectorBytes / int(sizeof(T));

  Raw v;

  Vec() = default;
  RNN_INLINE Vec(Raw raw) : v(raw) {}
  RNN_INLINE Vec(T scalar) : v(scalar - Raw{}) {}  // minus zero keeps the sign of -0

  RNN_INLINE static Vec load(const T* p) {
    return Raw(*reinterpret_cast<const typename RawVector<T>::unaligned*>(p));
  }
  RNN_INLINE void store(T* p) const {
    *reinterpret_cast<typename RawVector<T>::unaligned*>(p) = v;
  }

  // The first n lanes, 0 < n <= size; lanes beyond n load as zero.
  RNN_INLINE static Vec load(const T* p, int64_t n) {
#if defined(RNN_AVX512)
    if constexpr (sizeof(T) == 4)
      return Raw(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
    else
      return Raw(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return Raw(_mm256_maskload_ps(p, __m256i(first_lanes<T>(n))));
    else
      return Raw(_mm256_maskload_pd(p, __m256i(first_lanes<T>(n))));
#else
    alignas(kVectorBytes) T lanes[size] = {};
    std::memcpy(lanes, p, size_t(n) * sizeof(T));
    return load(lanes);
#endif
  }
  RNN_INLINE void store(T* p, int64_t n) const {
#if defined(RNN_AVX512)
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
    else
      _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
#else
    alignas(kVectorBytes) T lanes[size];
    store(lanes);
    std::memcpy(p, lanes, size_t(n) * sizeof(T));
#endif
  }
};

template <class T>
RNN_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return a.v + b.v;
}
template <class T>
RNN_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return a.v - b.v;
}
template <class T>
RNN_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return a.v * b.v;
}
template <class T>
RNN_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return a.v / b.v;
}

// Lane i of the result is lane kIndex[i] of a and b, read as one row of lanes.
template <int... kIndex, class Raw>
RNN_INLINE Raw shuffle(Raw a, Raw b) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, kIndex...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, typename RawVector<Index>::type{kIndex...});
#endif
}

// Sums the halves of every run of 2 * kRun lanes: those of a, then those of b.
template <int kRun, class Raw, int... kLane>
RNN_INLINE Raw add_halves(Raw a, Raw b, std::integer_sequence<int, kLane...>) {
  constexpr int half = int(sizeof...(kLane)) / 2;
  return shuffle<(kLane / half * 2 * half + kLane % half / kRun * 2 * kRun + kLane % kRun)...>(a, b) +
         shuffle<(kLane / half * 2 * half + kLane % half / kRun * 2 * kRun + kLane % kRun + kRun)...>(a, b);
}

template <int kRun, class Raw, class Lanes>
RNN_INLINE Raw add_runs(Raw x, Lanes lanes) {
  if constexpr (kRun == 0)
    return x;
  else
    return add_runs<kRun / 2>(add_halves<kRun>(x, x, lanes), lanes);
}

// Halves of two vectors onto each other until one is left, then the halves of its runs.
template <int kRun, int kCount, class T>
RNN_INLINE Vec<T> sum_runs_of(Vec<T> (&x)[kCount]) {
  constexpr std::make_integer_sequence<int, Vec<T>::size> all{};
  if constexpr (kCount == 1) {
    return add_runs<kRun>(x[0].v, all);
  } else {
    Vec<T> halves[kCount / 2];
    RNN_UNROLL
    for (int i = 0; i < kCount / 2; ++i) halves[i] = add_halves<kRun>(x[2 * i].v, x[2 * i + 1].v, all);
    return sum_runs_of<kRun / 2>(halves);
  }
}

// The sums over lanes of kCount vectors, in the first kCount lanes; each adds up halves onto halves.
template <int kCount, class T>
RNN_INLINE Vec<T> sum_lanes_of(Vec<T> (&x)[kCount]) {
  static_assert(kCount <= Vec<T>::size && Vec<T>::size % kCount == 0);
  return sum_runs_of<Vec<T>::size / 2>(x);
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
