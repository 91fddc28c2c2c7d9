// Element types of tensors in GPU memory.
#pragma once

#include <cstdint>

namespace rnnkernels::cuda {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// 16 bytes that move as one.
struct alignas(16) Vector16 {
  uint32_t words[4];
};

struct alignas(8) Vector8 {
  uint32_t words[2];
};

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

}  // namespace rnnkernels::cuda
