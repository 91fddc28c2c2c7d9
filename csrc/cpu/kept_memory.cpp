#include "kept_memory.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnkernels::cpu {

#if defined(__linux__) && defined(MADV_FREE)

namespace {

// Null while it is in use, or before there is one. Not freed at exit: threads may still compute.
std::atomic<Block*> kept{nullptr};

// Both weights of a layer of 2048 units, packed, in float32.
constexpr int64_t kMostMebibytes = 256;

int64_t most_bytes() {
  static const int64_t most = [] {
    const char* text = std::getenv("RNNKERNELS_KEPT_MEMORY_MIB");
    int64_t mebibytes = kMostMebibytes;
    if (text != nullptr && *text != '\0') {
      const std::string digits(text);
      if (digits.find_first_not_of("0123456789") != std::string::npos || digits.size() > 9)
        throw std::runtime_error("RNNKERNELS_KEPT_MEMORY_MIB=" + digits + ": not a number of mebibytes");
      mebibytes = std::stoll(digits);
    }
    return mebibytes << 20;
  }();
  return most;
}

void unmap(const Block& block) { munmap(block.data, size_t(block.bytes)); }

Block map(int64_t bytes) {
  const int64_t size = round_up(bytes, kHugePage);
  // The system chooses addresses that are multiples of a small page: what is before and after a huge one goes back.
  const int64_t mapped = size + kHugePage;
  void* const all = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return {};
  char* const start = static_cast<char*>(all);
  const auto address = reinterpret_cast<intptr_t>(all);
  const int64_t before = round_up(address, kHugePage) - address;
  char* const data = start + before;
  if (before > 0) munmap(start, size_t(before));
  munmap(data + size, size_t(kHugePage - before));
  // Advice: where it is not taken, nothing else changes.
  madvise(data, size_t(size), MADV_HUGEPAGE);
  return {data, size};
}

}  // namespace

Block take_memory(int64_t bytes) {
  if (bytes > most_bytes()) return {};
  if (Block* const own = kept.exchange(nullptr, std::memory_order_acq_rel)) {
    const Block block = *own;
    delete own;
    if (block.bytes >= bytes) return block;
    unmap(block);
  }
  return map(bytes);
}

void give_memory_back(const Block& block) noexcept {
  // A process that has locked its memory cannot give pages up; then none are kept from others.
  Block* const own = madvise(block.data, size_t(block.bytes), MADV_FREE) == 0 ? new (std::nothrow) Block(block) : nullptr;
  if (own == nullptr) return unmap(block);
  Block* other = kept.exchange(own, std::memory_order_acq_rel);  // from here on, own may be someone else's
  if (other != nullptr && other->bytes > block.bytes) other = kept.exchange(other, std::memory_order_acq_rel);
  if (other == nullptr) return;
  unmap(*other);
  delete other;
}

#else

Block take_memory(int64_t) { return {}; }
void give_memory_back(const Block&) noexcept {}

#endif

}  // namespace rnnkernels::cpu
