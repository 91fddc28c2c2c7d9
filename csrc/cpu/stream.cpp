#include "stream.h"

#include <cstring>
#include <stdexcept>

#include "dispatch.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnkernels::cpu {

// Defined by stream_kernels.cpp, once per instruction set.
#define RNN_DECLARE_STREAMS(isa)        \
  namespace isa {                       \
  extern const StreamTable kLstmStream; \
  extern const StreamTable kGruStream;  \
  }
RNN_DECLARE_STREAMS(baseline)
RNN_DECLARE_STREAMS(avx2)
RNN_DECLARE_STREAMS(avx512)
RNN_DECLARE_STREAMS(avx512_bf16)
#undef RNN_DECLARE_STREAMS

namespace {

constexpr size_t kLargePage = size_t(1) << 21;

const StreamTable& table(bool lstm) {
  const char* isa = chosen_isa();
#ifdef RNNKERNELS_WITH_AVX512_BF16
  if (std::strcmp(isa, "avx512_bf16") == 0) return lstm ? avx512_bf16::kLstmStream : avx512_bf16::kGruStream;
#endif
#ifdef RNNKERNELS_WITH_AVX512
  if (std::strcmp(isa, "avx512") == 0) return lstm ? avx512::kLstmStream : avx512::kGruStream;
#endif
#ifdef RNNKERNELS_WITH_AVX2
  if (std::strcmp(isa, "avx2") == 0) return lstm ? avx2::kLstmStream : avx2::kGruStream;
#endif
  (void)isa;
  return lstm ? baseline::kLstmStream : baseline::kGruStream;
}

const StreamShape& checked(const StreamShape& s) {
  // Products of sizes stay far from overflow.
  constexpr int64_t most = int64_t(1) << 24;
  const bool sizes = s.batch >= 0 && s.batch < most && s.input_size >= 0 && s.input_size < most &&
                     s.hidden_size >= 0 && s.hidden_size < most && s.state_size >= 0 && s.layers >= 1;
  const bool projection = s.has_projection ? s.lstm && s.state_size < most : s.state_size == s.hidden_size;
  const bool weights = !s.bfloat16_weights || s.dtype == Dtype::kFloat32 || s.dtype == Dtype::kBFloat16;
  if (!sizes || !projection || !weights) throw std::invalid_argument("a stream cannot have this shape");
  return s;
}

StreamKernels choose(const StreamShape& shape) {
  const StreamTable& all = table(shape.lstm);
  if (shape.bfloat16_weights) return all.bfloat16_weights;
  return shape.dtype == Dtype::kFloat64 ? all.double_weights : all.float_weights;
}

}  // namespace

Stream::Stream(const StreamShape& shape) : shape_(checked(shape)), kernels_(choose(shape)) {
  const auto size = size_t(kernels_.memory_size(shape_));
  const bool large = size >= 4 * kLargePage;
  const auto alignment = std::align_val_t(large ? kLargePage : size_t(kWorkspaceAlignment));
  memory_ = {::operator new(size, alignment), Free{alignment}};
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A step reads all of it: 1024 units took up to twice as long on small pages. The kernel may decline.
  if (large) madvise(memory(), size / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  kernels_.create(shape_, memory());
}

int64_t Stream::work() const {
  const StreamShape& s = shape_;
  const int64_t above = s.layers - 1, gate_rows = (s.lstm ? 4 : 3) * s.hidden_size;
  const int64_t gates = gate_rows * (s.input_size + above * s.state_size + s.layers * s.state_size);
  return s.batch * (gates + (s.has_projection ? s.layers * s.state_size * s.hidden_size : 0));
}

}  // namespace rnnkernels::cpu
