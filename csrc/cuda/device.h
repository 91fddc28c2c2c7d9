// The machine, as kernels see it. Here for nvcc, as PTX, which appears in no other file; for a host compiler the same
// names come from ../emulation/device_host.h, where every thread is a fiber.
//
// Shared memory is addressed by ordinary pointers; "rank" is that of a CTA in its cluster. Operations on clusters
// and mbarriers with transaction counts need compute capability 9.0; below it they trap.
#pragma once

#if !defined(__CUDACC__)

#include "../emulation/device_host.h"

#else

#include <cstdint>

#include "numbers.h"

#define RNN_DEVICE __device__ __forceinline__
#define RNN_HOST_DEVICE __host__ __device__ __forceinline__
#define RNN_UNROLL _Pragma("unroll")
#define RNN_PRAGMA(text) _Pragma(#text)
#define RNN_UNROLL_BY(count) RNN_PRAGMA(unroll(count))
#define RNN_NO_UNROLL _Pragma("unroll 1")  // where more iterations at once cost more registers than there are

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define RNN_HAS_CLUSTERS 1
#else
#define RNN_HAS_CLUSTERS 0
#endif

namespace rnnkernels::cuda::device {

// Between two arrays in shared memory. The emulation leaves room there, to see who strays.
inline constexpr int kGuardBytes = 0;
RNN_HOST_DEVICE void guard(unsigned char*) {}

// What lies `bytes` after `base`; null is what only counts. In a kernel nothing is null, and need not be compared to it.
RNN_HOST_DEVICE unsigned char* piece(unsigned char* base, int64_t bytes) {
#if defined(__CUDA_ARCH__)
  return base + bytes;
#else
  return base == nullptr ? nullptr : base + bytes;
#endif
}

// ---- Where am I ----------------------------------------------------------------------------------------------------

RNN_DEVICE int thread() { return int(threadIdx.x); }
RNN_DEVICE int threads() { return int(blockDim.x); }
RNN_DEVICE int block_x() { return int(blockIdx.x); }
RNN_DEVICE int block_y() { return int(blockIdx.y); }
RNN_DEVICE int grid_x() { return int(gridDim.x); }

RNN_DEVICE int cluster_rank() {
#if RNN_HAS_CLUSTERS
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
#else
  return 0;
#endif
}

RNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// A spinning thread gives up after this long: a hang costs seconds, and names its kernel.
inline constexpr uint64_t kMostNanoseconds = 10'000'000'000ull;

RNN_DEVICE uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// ---- Barriers ------------------------------------------------------------------------------------------------------

RNN_DEVICE void cta_barrier() { __syncthreads(); }
RNN_DEVICE void warp_barrier() { __syncwarp(); }

// Among `threads` threads, whole warps, that come to the same id in 1..15.
RNN_DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

RNN_DEVICE void cluster_barrier() {
#if RNN_HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

struct alignas(8) Mbarrier {
  uint64_t state;
};

RNN_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

RNN_DEVICE void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#if RNN_HAS_CLUSTERS
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Arrives, announcing bytes that asynchronous stores will bring in this phase.
RNN_DEVICE void mbarrier_expect(Mbarrier* barrier, int bytes) {
#if RNN_HAS_CLUSTERS
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

RNN_DEVICE bool mbarrier_try_wait(Mbarrier* barrier, uint32_t parity) {
#if RNN_HAS_CLUSTERS
  uint32_t complete;
  asm volatile(
      "{\n\t.reg .pred complete;\n\t"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 complete, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, complete;\n\t}"
      : "=r"(complete)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return complete != 0;
#else
  __trap();
  return true;
#endif
}

// Waits until the phase of this parity has completed.
RNN_DEVICE void mbarrier_wait(Mbarrier* barrier, uint32_t parity) {
  if (mbarrier_try_wait(barrier, parity)) return;
  const uint64_t start = nanoseconds();
  while (!mbarrier_try_wait(barrier, parity))
    if (nanoseconds() - start > kMostNanoseconds) __trap();
}

// ---- Shared memory of other CTAs of the cluster --------------------------------------------------------------------

// The address, in CTA `rank`, of what `pointer` is here.
RNN_DEVICE uint32_t remote_address(const void* pointer, int rank) {
  uint32_t address = 0;
#if RNN_HAS_CLUSTERS
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
#endif
  return address;
}

// Stores 16 bytes to where `destination` lies in CTA `rank`; its arrival counts there on `barrier`.
RNN_DEVICE void store_async(void* destination, int rank, Vector16 value, Mbarrier* barrier) {
#if RNN_HAS_CLUSTERS
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   remote_address(destination, rank)),
               "r"(value.words[0]), "r"(value.words[1]), "r"(value.words[2]), "r"(value.words[3]),
               "r"(remote_address(barrier, rank))
               : "memory");
#else
  __trap();
#endif
}

// ---- Flags between CTAs of a grid that is resident as a whole --------------------------------------------------------

RNN_DEVICE void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

RNN_DEVICE uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Bounds a loop that polls what others write.
class Patience {
 public:
  RNN_DEVICE void poll() {
    if (++polls_ % kPollsPerLook != 0) return;
    const uint64_t now = nanoseconds();
    if (start_ == 0) start_ = now;
    if (now - start_ > kMostNanoseconds) __trap();
  }

 private:
  static constexpr uint32_t kPollsPerLook = 64;
  uint32_t polls_ = 0;
  uint64_t start_ = 0;
};

// Waits until *flag has reached `value`, counting modulo 2^32.
RNN_DEVICE void wait_for_flag(const uint32_t* flag, uint32_t value) {
  Patience patience;
  while (int32_t(load_acquire(flag) - value) < 0) patience.poll();
}

// Of global memory that other CTAs write and read meanwhile. Each 4 bytes arrive whole, in no order with any others.
RNN_DEVICE Vector16 load16_relaxed(const void* address) {
  Vector16 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
               : "l"(address));
  return v;
}
RNN_DEVICE void store16_relaxed(void* address, Vector16 v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.words[0]), "r"(v.words[1]),
               "r"(v.words[2]), "r"(v.words[3]));
}
RNN_DEVICE void store8_relaxed(void* address, Vector8 v) {
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(v.words[0]), "r"(v.words[1]));
}

// ---- Memory --------------------------------------------------------------------------------------------------------

RNN_DEVICE Vector16 load16(const void* address) {
  const uint4 v = *static_cast<const uint4*>(address);
  return {{v.x, v.y, v.z, v.w}};
}

// Of shared memory, by 32-bit addresses. Of ordinary loads and stores the compiler does not always see that they are to shared
// memory; then they are generic ones, whose addresses take 64-bit arithmetic, and come later.
RNN_DEVICE Vector16 load16_shared(const void* address) {
  Vector16 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
               : "r"(shared_address(address)));
  return v;
}
RNN_DEVICE float load_shared(const float* address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(shared_address(address)));
  return v;
}
RNN_DEVICE void store16_shared(void* address, Vector16 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(address)), "r"(v.words[0]), "r"(v.words[1]),
               "r"(v.words[2]), "r"(v.words[3])
               : "memory");
}
RNN_DEVICE void store_shared(float* address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared_address(address)), "f"(v) : "memory");
}
RNN_DEVICE void store_shared(BFloat16* address, BFloat16 v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared_address(address)), "h"(v.bits) : "memory");
}
RNN_DEVICE void store_shared(Float16* address, Float16 v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared_address(address)), "h"(v.bits) : "memory");
}

// From memory that no kernel writes while this one runs.
RNN_DEVICE int64_t load_constant(const int64_t* address) { return __ldg(reinterpret_cast<const long long*>(address)); }
RNN_DEVICE double load_constant(const double* address) { return __ldg(address); }
RNN_DEVICE float load_constant(const float* address) { return __ldg(address); }
RNN_DEVICE BFloat16 load_constant(const BFloat16* address) { return {__ldg(&address->bits)}; }
RNN_DEVICE Float16 load_constant(const Float16* address) { return {__ldg(&address->bits)}; }

// Has the L2 cache fetch what lies there; costs no register.
RNN_DEVICE void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// To memory that is not read again soon.
RNN_DEVICE void store_streaming(double* address, double value) { __stcs(address, value); }
RNN_DEVICE void store_streaming(float* address, float value) { __stcs(address, value); }
RNN_DEVICE void store_streaming(BFloat16* address, BFloat16 value) { __stcs(&address->bits, value.bits); }
RNN_DEVICE void store_streaming(Float16* address, Float16 value) { __stcs(&address->bits, value.bits); }

// ---- Numbers -------------------------------------------------------------------------------------------------------

RNN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
RNN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

RNN_DEVICE float to_float(float x) { return x; }
RNN_DEVICE float to_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
RNN_DEVICE float to_float(Float16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

// Round to nearest, ties to even.
template <class S>
RNN_DEVICE S round_to(float x);
template <>
RNN_DEVICE float round_to<float>(float x) {
  return x;
}
template <>
RNN_DEVICE BFloat16 round_to<BFloat16>(float x) {
  BFloat16 narrow;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
#else
  const uint32_t bits = bits_of(x);
  narrow.bits = uint16_t(x != x ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
  return narrow;
}
template <>
RNN_DEVICE Float16 round_to<Float16>(float x) {
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
}

// To the nearest number with tf32's 10 bits of mantissa, ties away from zero. Volatile, or the compiler takes the halves
// of weights out of the time loop, where they need more registers than there are.
RNN_DEVICE float round_to_tf32(float x) {
  uint32_t narrow;
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(narrow) : "f"(x));
  return __uint_as_float(narrow);
}

// 2^x and 1/x to about two units in the last place; subnormal results are zero.
RNN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
RNN_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Matrix products of a warp -------------------------------------------------------------------------------------

// d (16, 8) += a (16, K) b (K, 8), in the fragments of mma.sync: with g = lane / 4 and t = lane % 4,
//   d: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//   half types, K = 16, two neighbours along K per register: a: (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8); b: (2t, g), (2t+8, g)
//   tf32, K = 8: a: (g, t), (g+8, t), (g, t+4), (g+8, t+4); b: (t, g), (t+4, g)
#define RNN_MMA(name, shape_and_types)                                                                                  \
  RNN_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                                 \
    asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"  \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                   \
  }
RNN_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RNN_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
RNN_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef RNN_MMA

// The value of the lane whose number differs in the bits of `mask`; all lanes call it.
RNN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Whether the condition holds in any lane; all lanes call it.
RNN_DEVICE bool any(bool condition) { return __any_sync(0xffffffffu, condition); }

}  // namespace rnnkernels::cuda::device

#endif
