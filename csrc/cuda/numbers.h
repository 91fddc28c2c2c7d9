// Element types of tensors in GPU memory.
#pragma once

#include <cstdint>
#include <type_traits>

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

// What is computed in, and the type of what is carried from step to step, where tensors are of type S.
template <class S>
using Real = std::conditional_t<std::is_same_v<S, double>, double, float>;

}  // namespace rnnkernels::cuda
