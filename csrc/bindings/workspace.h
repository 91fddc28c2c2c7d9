// Memory for the CPU kernels during one call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "../cpu/kernels.h"

namespace rnnkernels {

// That of a small layer is on the stack. A large one is the caller's to allocate, through torch, whose allocator then accounts for
// it; and it asks for huge pages: the system hands memory over in pieces of 4 KiB otherwise, and packed weights of some MiB are
// more of these than the processor can translate without looking them up.
class Workspace {
 public:
  // allocate(size) gives that many bytes, at any address, for as long as this lives.
  template <class Allocate>
  Workspace(int64_t bytes, const Allocate& allocate) {
    if (bytes <= int64_t(sizeof small_)) return;
    const bool huge = bytes >= 2 * kHugePage;
    const int64_t alignment = huge ? kHugePage : cpu::kWorkspaceAlignment;
    const auto address = reinterpret_cast<uintptr_t>(allocate(bytes + alignment)) + uintptr_t(alignment) - 1;
    data_ = reinterpret_cast<void*>(address / uintptr_t(alignment) * uintptr_t(alignment));
#if defined(__linux__)
    // Advice: where it is not taken, nothing else changes.
    if (huge) madvise(data_, size_t(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr int64_t kHugePage = int64_t(1) << 21;

  alignas(cpu::kWorkspaceAlignment) char small_[65536];
  void* data_ = small_;
};

}  // namespace rnnkernels
