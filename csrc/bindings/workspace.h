// Memory for the CPU kernels during one call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "../cpu/kernels.h"

namespace rnnkernels {

// That of a small layer is on the stack. A large one is the block that the kernels' library keeps (kept_memory.h), in huge pages: the
// system hands memory over in pieces of 4 KiB otherwise, and packed weights of some MiB are more of these than the processor can
// translate without looking them up. Everything else is the caller's to allocate, through torch, whose allocator then accounts for
// it and says what it cannot do.
class Workspace {
 public:
  // allocate(size) gives that many bytes, at any address, for as long as this lives.
  template <class Allocate>
  Workspace(const cpu::Kernels& library, int64_t bytes, const Allocate& allocate) : give_memory_back_(library.give_memory_back) {
    if (bytes <= int64_t(sizeof small_)) return;
    const bool huge = bytes >= 2 * cpu::kHugePage;
    if (huge) block_ = library.take_memory(bytes);
    if (block_.data != nullptr) {
      data_ = block_.data;
      return;
    }
    const int64_t alignment = huge ? cpu::kHugePage : cpu::kWorkspaceAlignment;
    const auto address = reinterpret_cast<uintptr_t>(allocate(bytes + alignment)) + uintptr_t(alignment) - 1;
    data_ = reinterpret_cast<void*>(address / uintptr_t(alignment) * uintptr_t(alignment));
#if defined(__linux__)
    // Advice: where it is not taken, nothing else changes.
    if (huge) madvise(data_, size_t(bytes / cpu::kHugePage * cpu::kHugePage), MADV_HUGEPAGE);
#endif
  }
  ~Workspace() {
    if (block_.data != nullptr) give_memory_back_(block_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void (*give_memory_back_)(const cpu::Block&);
  cpu::Block block_;
  alignas(cpu::kWorkspaceAlignment) char small_[65536];
  void* data_ = small_;
};

}  // namespace rnnkernels
