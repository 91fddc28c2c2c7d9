// csrc/cuda/device.h for a host compiler: the same names, on the runtime of runtime.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../cuda/numbers.h"
#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define RNN_DEVICE inline
#define RNN_HOST_DEVICE inline
#define RNN_UNROLL
#define RNN_UNROLL_BY(count)
#define RNN_NO_UNROLL

namespace rnnkernels::cuda::device {

// Memory between two arrays in shared memory that nobody may touch.
#if defined(RNNKERNELS_EMULATION_GUARDS)
inline constexpr int kGuardBytes = 32;
#else
inline constexpr int kGuardBytes = 0;  // sizes are those of the device
#endif
inline void guard([[maybe_unused]] unsigned char* begin) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, kGuardBytes);
#endif
}

inline unsigned char* piece(unsigned char* base, int64_t bytes) { return base == nullptr ? nullptr : base + bytes; }

// ---- Where am I ----------------------------------------------------------------------------------------------------

inline int thread() { return emulation::here().thread; }
inline int threads() { return emulation::here().threads; }
inline int block_x() { return emulation::here().block_x; }
inline int block_y() { return emulation::here().block_y; }
inline int grid_x() { return emulation::here().grid_x; }
inline int cluster_rank() { return emulation::here().cluster_rank; }
inline unsigned char* shared_memory() { return emulation::shared_memory(); }

inline void check_aligned(const void* address, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) emulation::fail("a vector access is not aligned to its size");
}

// ---- Barriers ------------------------------------------------------------------------------------------------------

inline void cta_barrier() { emulation::cta_barrier(); }
inline void warp_barrier() { emulation::warp_barrier(); }
inline void named_barrier(int id, int threads) { emulation::named_barrier(id, threads); }
inline void cluster_barrier() { emulation::cluster_barrier(); }

struct alignas(8) Mbarrier {
  uint64_t state;
};
inline void mbarrier_init(Mbarrier* barrier, int arrivals) { emulation::mbarrier_init(barrier, arrivals); }
inline void mbarrier_expect(Mbarrier* barrier, int bytes) { emulation::mbarrier_expect(barrier, bytes); }
inline void mbarrier_wait(Mbarrier* barrier, uint32_t parity) { emulation::mbarrier_wait(barrier, parity); }

// ---- Shared memory of other CTAs of the cluster --------------------------------------------------------------------

inline void store_async(void* destination, int rank, Vector16 value, Mbarrier* barrier) {
  emulation::store_async(destination, rank, &value, 16, barrier);
}

// ---- Flags between CTAs of a grid that is resident as a whole --------------------------------------------------------

inline void store_release(uint32_t* flag, uint32_t value) { emulation::store_release(flag, value); }
inline uint32_t load_acquire(const uint32_t* flag) { return emulation::load_acquire(flag); }

class Patience {
 public:
  void poll() { emulation::spin(polls_++); }

 private:
  int64_t polls_ = 0;
};

inline void wait_for_flag(const uint32_t* flag, uint32_t value) {
  Patience patience;
  while (int32_t(load_acquire(flag) - value) < 0) patience.poll();
}

inline Vector16 load16_relaxed(const void* address) {
  check_aligned(address, 16);
  Vector16 value;
  emulation::load_relaxed(address, &value, 16);
  return value;
}
inline void store16_relaxed(void* address, Vector16 value) {
  check_aligned(address, 16);
  emulation::store_relaxed(address, &value, 16);
}
inline void store8_relaxed(void* address, Vector8 value) {
  check_aligned(address, 8);
  emulation::store_relaxed(address, &value, 8);
}

// ---- Memory --------------------------------------------------------------------------------------------------------

inline Vector16 load16(const void* address) {
  check_aligned(address, 16);
  return *static_cast<const Vector16*>(address);
}

inline Vector16 load16_shared(const void* address) { return load16(address); }
inline float load_shared(const float* address) { return *address; }
inline void store16_shared(void* address, Vector16 value) {
  check_aligned(address, 16);
  *static_cast<Vector16*>(address) = value;
}
template <class S>
inline void store_shared(S* address, S value) {
  *address = value;
}

template <class S>
inline S load_constant(const S* address) {
  return *address;
}
inline void prefetch(const void*) {}
template <class S>
inline void store_streaming(S* address, S value) {
  *address = value;
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
inline float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
  const float magnitude = std::ldexp(float(exponent == 0 ? mantissa : mantissa + 1024), int(exponent == 0 ? 1 : exponent) - 25);
  return sign != 0 ? -magnitude : magnitude;
}

template <class S>
inline S round_to(float x);
template <>
inline float round_to<float>(float x) {
  return x;
}
template <>
inline BFloat16 round_to<BFloat16>(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t bits = bits_of(x);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline Float16 round_to<Float16>(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  int exponent = -13;
  if (magnitude != 0) std::frexp(magnitude, &exponent);
  // In units of the last place, which are those of the smallest normal number below it; nearbyint rounds ties to even.
  const int unit = (exponent < -13 ? -13 : exponent) - 11;
  const auto count = uint32_t(std::nearbyint(std::ldexp(magnitude, -unit)));
  // The carry out of the mantissa is the exponent's.
  return {uint16_t(sign | (count + (uint32_t(unit + 24) << 10)))};
}

inline float round_to_tf32(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  return float_of((bits + 0x1000u) & ~0x1fffu);
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1 / x; }

// ---- Matrix products of a warp -------------------------------------------------------------------------------------

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
float shuffle_xor(float value, int mask);
bool any(bool condition);

}  // namespace rnnkernels::cuda::device
