// Element types of tensors, as seen by every part of the CPU backend.
#pragma once

#include <cstdint>

namespace rnnkernels::cpu {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace rnnkernels::cpu
