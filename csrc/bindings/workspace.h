// Memory for the CPU kernels during one call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

#include "../cpu/kernels.h"

namespace rnnkernels {

// For memory that is about to be written for the first time: the system hands it over in pieces of 4 KiB otherwise, which takes
// longer than writing to them. Advice: where it is not taken, nothing else changes.
inline void ask_for_huge_pages(void* data, int64_t bytes) {
  if (bytes < cpu::kWorthHugePages) return;
#if defined(__linux__)
  // The system takes addresses of small pages.
  constexpr int64_t kPage = 4096;
  const auto address = reinterpret_cast<intptr_t>(data);
  const int64_t first = cpu::round_up(address, kPage), last = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), size_t(last - first), MADV_HUGEPAGE);
#else
  (void)data;
#endif
}

// That of a small layer is on the stack. A large one is the block that the kernels' library keeps (kept_memory.h). Everything else is
// the caller's to allocate, through torch, whose allocator then accounts for it and says what it cannot do. From some MiB on it is in
// huge pages: packed weights are more pages of 4 KiB than the processor can translate without looking them up.
class Workspace {
 public:
  // allocate(size) gives that many bytes, at any address, for as long as this lives.
  template <class Allocate>
  Workspace(const cpu::Kernels& library, int64_t bytes, const Allocate& allocate) : give_memory_back_(library.give_memory_back) {
    if (bytes <= int64_t(sizeof small_)) return;
    const bool huge = bytes >= cpu::kWorthHugePages;
    if (huge) block_ = library.take_memory(bytes);
    if (block_.data != nullptr) {
      data_ = block_.data;
      return;
    }
    const int64_t alignment = huge ? cpu::kHugePage : cpu::kWorkspaceAlignment;
    data_ = reinterpret_cast<void*>(cpu::round_up(reinterpret_cast<intptr_t>(allocate(bytes + alignment)), alignment));
    ask_for_huge_pages(data_, bytes);
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
