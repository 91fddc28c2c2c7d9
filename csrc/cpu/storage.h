// The element types tensors are stored in, and their way to and from the type that
// is computed in: float for float, bfloat16 and float16; double for double.
#pragma once

#include <type_traits>

#include "simd.h"
#include "types.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace rnnkernels::cpu::RNNKERNELS_ISA {

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// What a product multiplies weights with, states, inputs or gate gradients: bfloat16 itself where the processor has dot
// products of it (they sum up in float), otherwise the compute type.
#if defined(RNN_NATIVE_BFLOAT16)
template <class S>
using Operand = std::conditional_t<std::is_same_v<S, BFloat16>, BFloat16, Compute<S>>;
#else
template <class S>
using Operand = Compute<S>;
#endif

inline constexpr int kFloats = Vec<float>::size;
typedef uint16_t Half16 __attribute__((vector_size(2 * kFloats)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

RNN_INLINE Half16 load_bits(const uint16_t* p) {
  Half16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

// The first n of them, and zeros.
RNN_INLINE Half16 load_bits(const uint16_t* p, int64_t n) {
  if (n >= kFloats) return load_bits(p);
#if defined(RNN_AVX512)
  return Half16(_mm256_maskz_loadu_epi16(__mmask16(n > 0 ? (1u << n) - 1 : 0), p));
#else
  Half16 bits{};
  if (n > 0) std::memcpy(&bits, p, size_t(n) * sizeof *p);
  return bits;
#endif
}

// By instruction: compilers take the halves of a vector apart for __builtin_convertvector.
RNN_INLINE Bits32 widen_bits(Half16 bits) {
#if defined(RNN_AVX512)
  return Bits32(_mm512_cvtepu16_epi32(__m256i(bits)));
#elif defined(__AVX2__)
  return Bits32(_mm256_cvtepu16_epi32(__m128i(bits)));
#else
  return __builtin_convertvector(bits, Bits32);
#endif
}

// bfloat16 is the upper half of a float.
RNN_INLINE Vec<float> widen(Half16 bits, BFloat16) {
  return Vec<float>(Vec<float>::Raw(widen_bits(bits) << 16));
}

// A vector of pairs as the vector of their first elements and that of their second ones.
RNN_INLINE void load_pairs(const BFloat16* p, Vec<float>::Raw& first, Vec<float>::Raw& second) {
  Bits32 bits;
  std::memcpy(&bits, p, sizeof bits);
  first = Vec<float>::Raw(bits << 16);
#if defined(__AVX2__) && !defined(RNN_AVX512)
  // The zeros that a mask would leave are in the other vector: it would take a register, and a tile has none to spare.
  second = Vec<float>::Raw(_mm256_blend_epi16(__m256i(first), __m256i(bits), 0xaa));
#else
  second = Vec<float>::Raw(bits & 0xffff0000u);
#endif
}

// Round to nearest even; a NaN keeps its upper bits and turns quiet.
RNN_INLINE Half16 narrow(Vec<float> x, BFloat16) {
  const Bits32 bits = Bits32(x.v);
  const Bits32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Bits32 chosen = x.v == x.v ? rounded : (bits | 0x400000u);
  return __builtin_convertvector(chosen >> 16, Half16);
}

#if defined(RNN_AVX512)

RNN_INLINE Vec<float> widen(Half16 bits, Float16) {
  return Vec<float>(Vec<float>::Raw(_mm512_maskz_cvtph_ps(0xffff, __m256i(bits))));
}
RNN_INLINE Half16 narrow(Vec<float> x, Float16) {
  return Half16(_mm512_maskz_cvtps_ph(0xffff, x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__F16C__) && defined(__AVX2__)

RNN_INLINE Vec<float> widen(Half16 bits, Float16) {
  return Vec<float>(Vec<float>::Raw(_mm256_cvtph_ps(__m128i(bits))));
}
RNN_INLINE Half16 narrow(Vec<float> x, Float16) {
  return Half16(_mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__aarch64__)

RNN_INLINE Vec<float> widen(Half16 bits, Float16) {
  return Vec<float>(Vec<float>::Raw(vcvt_f32_f16(float16x4_t(bits))));
}
RNN_INLINE Half16 narrow(Vec<float> x, Float16) { return Half16(vcvt_f16_f32(float32x4_t(x.v))); }

#else

RNN_INLINE Vec<float> widen(Half16 bits, Float16) {
  using Raw = Vec<float>::Raw;
  const Bits32 wide = __builtin_convertvector(bits, Bits32);
  const Bits32 magnitude = wide & 0x7fffu;
  // Moving the exponent up by 112 as a product makes subnormal halves come out right too.
  const Bits32 finite = Bits32(Raw(magnitude << 13) * 0x1p112f);
  const Bits32 special = (magnitude << 13) | 0x7f800000u;
  const Bits32 value = magnitude >= 0x7c00u ? special : finite;
  return Vec<float>(Raw(value | ((wide & 0x8000u) << 16)));
}

RNN_INLINE Half16 narrow(Vec<float> x, Float16) {
  using Raw = Vec<float>::Raw;
  const Bits32 bits = Bits32(x.v);
  const Bits32 magnitude = bits & 0x7fffffffu;
  // Adding 0.5 lets the adder round a subnormal half at the right bit.
  const Bits32 subnormal = Bits32(Raw(magnitude) + 0.5f) - 0x3f000000u;
  const Bits32 normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits32 nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  Bits32 value = magnitude < 0x38800000u ? subnormal : normal;
  value = magnitude >= 0x47800000u ? Bits32{} + 0x7c00u : value;
  value = magnitude > 0x7f800000u ? nan : value;
  return __builtin_convertvector(value | ((bits >> 16) & 0x8000u), Half16);
}

#endif

// A vector of the compute type from and to storage.
RNN_INLINE Vec<float> load(const float* p) { return Vec<float>::load(p); }
RNN_INLINE Vec<double> load(const double* p) { return Vec<double>::load(p); }
template <class S>
RNN_INLINE Vec<float> load(const S* p) {
  return widen(load_bits(&p->bits), S{});
}

RNN_INLINE void store(float* p, Vec<float> x) { x.store(p); }
RNN_INLINE void store(double* p, Vec<double> x) { x.store(p); }
template <class S>
RNN_INLINE void store(S* p, Vec<float> x) {
  const Half16 bits = narrow(x, S{});
  std::memcpy(p, &bits, sizeof bits);
}

// Its first n lanes, 0 < n <= size; lanes beyond n load as zero. A full vector
// takes the plain instruction: it is the common case, and the cheaper one.
template <class S>
RNN_INLINE Vec<Compute<S>> load(const S* p, int64_t n) {
  if (n >= Vec<Compute<S>>::size) return load(p);
  if constexpr (sizeof(S) > 2) {
    return Vec<S>::load(p, n);
  } else {
    return widen(load_bits(&p->bits, n), S{});
  }
}

template <class S>
RNN_INLINE void store(S* p, Vec<Compute<S>> x, int64_t n) {
  if (n >= Vec<Compute<S>>::size) return store(p, x);
  if constexpr (sizeof(S) > 2) {
    x.store(p, n);
  } else {
    const Half16 bits = narrow(x, S{});
    std::memcpy(p, &bits, size_t(n) * sizeof(S));
  }
}

// to[0..n) = from[0..n) in the other type, and zeros up to to[padded).
template <class S>
inline void widen_row(Compute<S>* to, const S* from, int64_t n, int64_t padded) {
  constexpr int64_t lanes = Vec<Compute<S>>::size;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) load(from + i).store(to + i);
  if (i < n) {
    load(from + i, n - i).store(to + i, n - i);
    i = n;
  }
  for (; i < padded; ++i) to[i] = 0;
}

// The same, in the same type.
template <class S>
inline void copy_row(S* to, const S* from, int64_t n, int64_t padded) {
  constexpr int64_t lanes = kVectorBytes / int64_t(sizeof(S));
  int64_t i = 0;
  // Vectors, not a call for each row: rows may be as short as two of them.
  for (; i + lanes <= n; i += lanes) {
    Bits32 bits;
    std::memcpy(&bits, from + i, sizeof bits);
    std::memcpy(to + i, &bits, sizeof bits);
  }
  if (i < n) std::memcpy(to + i, from + i, size_t(n - i) * sizeof(S));
  for (i = n; i < padded; ++i) to[i] = S{};
}

// The same into rows of operands.
template <class S>
inline void load_row(Operand<S>* to, const S* from, int64_t n, int64_t padded) {
  if constexpr (std::is_same_v<S, Operand<S>>) {
    copy_row(to, from, n, padded);
  } else {
    widen_row(to, from, n, padded);
  }
}

template <class S>
inline void narrow_row(S* to, const Compute<S>* from, int64_t n) {
  constexpr int64_t lanes = Vec<Compute<S>>::size;
  for (int64_t i = 0; i < n; i += lanes) store(to + i, load(from + i, n - i), n - i);
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
