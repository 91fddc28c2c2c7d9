// A large block of memory that stays from one call to the next.
//
// The C library keeps blocks of up to 32 MiB for itself at best; larger ones, and those too in a heap that it has cut back, the
// system maps anew every time, and clearing their pages takes longer than packing weights into them. Here one block stays mapped.
// While nobody uses it, it is the system's to take back whenever memory is short (MADV_FREE).
#pragma once

#include <cstdint>

namespace rnnkernels::cpu {

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Blocks start at a multiple of this, where the system can give them pages of this size.
inline constexpr int64_t kHugePage = int64_t(1) << 21;
// What is smaller has too few of them.
inline constexpr int64_t kWorthHugePages = 2 * kHugePage;

// The next multiple of `step`, for sizes and addresses.
constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A block of at least so many bytes, the one that was kept if it is large enough and free. It holds anything. No data: one so large
// would not be kept, or the system has none to give, and the caller has to get it elsewhere. Throws std::runtime_error when
// RNNKERNELS_KEPT_MEMORY_MIB, which says how large a block may be to be kept, is not a number.
Block take_memory(int64_t bytes);

// Ends the use of a block that take_memory gave. The larger of it and the one that is already kept stays.
void give_memory_back(const Block& block) noexcept;

}  // namespace rnnkernels::cpu
