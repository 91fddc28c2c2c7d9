// Memory for the CPU kernels during one call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"

namespace rnnkernels {

// That of a small layer is on the stack. A large one asks for huge pages: the system hands memory over in pieces of 4 KiB
// otherwise, and packed weights of some MiB are more of these than the processor can translate without looking them up.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    if (bytes <= int64_t(sizeof small_)) return;
    const bool huge = bytes >= 2 * kHugePage;
    const int64_t alignment = huge ? kHugePage : cpu::kWorkspaceAlignment;
    const int64_t whole = (bytes + alignment - 1) / alignment * alignment;
    large_ = std::aligned_alloc(size_t(alignment), size_t(whole));
    if (large_ == nullptr) throw std::runtime_error("not enough memory for a workspace of " + std::to_string(bytes) + " bytes");
    data_ = large_;
#if defined(__linux__)
    // Advice: where it is not taken, nothing else changes.
    if (huge) madvise(large_, size_t(whole), MADV_HUGEPAGE);
#endif
  }
  ~Workspace() { std::free(large_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr int64_t kHugePage = int64_t(1) << 21;

  alignas(cpu::kWorkspaceAlignment) char small_[65536];
  void* large_ = nullptr;
  void* data_ = small_;
};

}  // namespace rnnkernels
