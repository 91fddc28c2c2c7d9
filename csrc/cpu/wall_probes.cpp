// The probes of wall.h; compiled once per instruction set.
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "simd_math.h"
#include "wall.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {
namespace {

using V = Vec<float>;

// Two units of latency four or five need ten chains; operands must stay in registers, too.
constexpr int kChains = 12;

// Keeps the compiler from computing at compile time, or dropping, what goes through it.
template <class T>
RNN_INLINE void opaque(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

double multiply_add(int64_t rounds) {
  float near_one = 0.999f, small = 1e-3f;  // far from overflow and from denormals, which some processors are slow at
  opaque(near_one);
  opaque(small);
  const V factor(near_one), summand(small);
  V sums[kChains];
  RNN_UNROLL
  for (int i = 0; i < kChains; ++i) sums[i] = V(float(i));
  for (int64_t round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + summand;
  }
  for (V& sum : sums) opaque(sum);
  return 2.0 * kChains * V::size * double(rounds);
}

#if defined(RNN_NATIVE_BFLOAT16)
double bfloat16_dot(int64_t rounds) {
  int pair = 0x3f003f00;  // 0.5, 0.5
  opaque(pair);
  const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
  __m512 sums[kChains];
  RNN_UNROLL
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
    RNN_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], factor, factor);
  }
  for (__m512& sum : sums) opaque(sum);
  return 4.0 * kChains * V::size * double(rounds);
}
#endif

void read(const float* from, int64_t count) {
  V sums[kChains];
  RNN_UNROLL
  for (int i = 0; i < kChains; ++i) sums[i] = V(0.0f);
  for (int64_t at = 0; at + kChains * V::size <= count; at += kChains * V::size) {
    RNN_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] + V::load(from + at + i * V::size);
  }
  for (V& sum : sums) opaque(sum);
}

void lstm_chain(int64_t steps) {
  float weight = 0.5f, input = 0.1f;
  opaque(weight);
  opaque(input);
  const V w(weight), x(input);
  V h(0.0f), c(0.0f);
  for (int64_t step = 0; step < steps; ++step) {
    // Each gate its own sum: four equal ones would be computed once.
    const V a = w * h;
    const auto next = cells::lstm_forward<V>({a + x, a - x, x - a, a + w}, c);
    c = next.c;
    h = next.h;
  }
  opaque(h);
}

void gru_chain(int64_t steps) {
  float weight = 0.5f, input = 0.1f;
  opaque(weight);
  opaque(input);
  const V w(weight), x(input);
  V h(0.0f);
  for (int64_t step = 0; step < steps; ++step) {
    const V a = w * h;
    h = cells::gru_forward<V>(x, w, x, a, x - a, a + w, h).h;
  }
  opaque(h);
}

}  // namespace

extern const WallProbes kWallProbes;
#if defined(RNN_NATIVE_BFLOAT16)
const WallProbes kWallProbes{multiply_add, bfloat16_dot, read, lstm_chain, gru_chain};
#else
const WallProbes kWallProbes{multiply_add, nullptr, read, lstm_chain, gru_chain};
#endif

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
