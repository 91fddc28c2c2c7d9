// One SIMD vector type, as wide as the compile flags of the translation unit allow,
// on the vector extensions of GCC and Clang. Everything lives in a namespace named
// after the instruction set, so that the same source can be linked several times.
#pragma once

#include <cstdint>
#include <cstring>

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

// The sum over lanes, in a fixed order: halves onto halves.
template <class T>
RNN_INLINE T sum_lanes(Vec<T> x) {
#if defined(RNN_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_reduce_add_ps(x.v);
  else
    return _mm512_reduce_add_pd(x.v);
#else
  alignas(kVectorBytes) T lanes[Vec<T>::size];
  x.store(lanes);
  RNN_UNROLL
  for (int half = Vec<T>::size / 2; half > 0; half /= 2)
    RNN_UNROLL
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
