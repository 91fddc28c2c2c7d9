#include "kernels.h"

#include <cstring>

#include "dispatch.h"

namespace rnnkernels::cpu {

// Defined by lstm.cpp and gru.cpp, once per instruction set.
#define RNN_DECLARE_KERNELS(isa)  \
  namespace isa {                 \
  extern const CellKernels kLstm; \
  extern const CellKernels kGru;  \
  }
RNN_DECLARE_KERNELS(baseline)
RNN_DECLARE_KERNELS(avx2)
RNN_DECLARE_KERNELS(avx512)
RNN_DECLARE_KERNELS(avx512_bf16)
#undef RNN_DECLARE_KERNELS

namespace {

Kernels with_memory(const CellKernels& lstm, const CellKernels& gru) { return {&lstm, &gru, take_memory, give_memory_back}; }

Kernels choose() {
  const char* isa = chosen_isa();
#ifdef RNNKERNELS_WITH_AVX512_BF16
  if (std::strcmp(isa, "avx512_bf16") == 0) return with_memory(avx512_bf16::kLstm, avx512_bf16::kGru);
#endif
#ifdef RNNKERNELS_WITH_AVX512
  if (std::strcmp(isa, "avx512") == 0) return with_memory(avx512::kLstm, avx512::kGru);
#endif
#ifdef RNNKERNELS_WITH_AVX2
  if (std::strcmp(isa, "avx2") == 0) return with_memory(avx2::kLstm, avx2::kGru);
#endif
  (void)isa;
  return with_memory(baseline::kLstm, baseline::kGru);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace rnnkernels::cpu
