// The matrix products of the recurrence: what is multiplied, how it lies in memory, and by which instruction.
//
// Along K, operands are cut into windows of 64 bytes, 16 for each of the four lanes that share a row: a lane's share
// is one vector load and holds two steps of the tensor core's instruction. Which element of a row the instruction calls
// the k-th does not matter to a sum, as long as both operands agree; so both keep their rows in natural order.
#pragma once

#include "device.h"

namespace rnnkernels::cuda {

inline constexpr int kWindowBytes = 64;
inline constexpr int kTileRows = 16, kTileColumns = 8;  // of an accumulator tile
inline constexpr int kBlockRows = 8;                    // a lane has rows of two such blocks
inline constexpr int kLanes = 32;

// Storage: the type of tensors. Operand: what is multiplied, in registers and shared memory. kAddsApart: whether a window's product
// is summed by itself and then added in float32. Tensor cores cut sums off where float32 rounds them, and over a long row of W_hh
// that is more than products of this precision are off by.
struct BFloat16Product {
  using Storage = BFloat16;
  using Operand = BFloat16;
  static constexpr bool kAddsApart = false;
  RNN_DEVICE static Operand operand(float x) { return device::round_to<BFloat16>(x); }
  RNN_DEVICE static Operand weight(Storage w) { return w; }
  RNN_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { device::mma_bf16(d, a, b); }
};

struct Float16Product {
  using Storage = Float16;
  using Operand = Float16;
  static constexpr bool kAddsApart = false;
  RNN_DEVICE static Operand operand(float x) { return device::round_to<Float16>(x); }
  RNN_DEVICE static Operand weight(Storage w) { return w; }
  RNN_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { device::mma_fp16(d, a, b); }
};

// float32 by one product of numbers with 10 bits of mantissa.
struct Tf32Product {
  using Storage = float;
  using Operand = float;
  static constexpr bool kAddsApart = false;
  RNN_DEVICE static Operand operand(float x) { return device::round_to_tf32(x); }
  RNN_DEVICE static Operand weight(Storage w) { return device::round_to_tf32(w); }
  RNN_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { device::mma_tf32(d, a, b); }
};

// float32 by three of them: each operand is the sum of two, and the product of the small parts is left out (2^-22).
struct Tf32x3Product {
  using Storage = float;
  using Operand = float;
  static constexpr bool kAddsApart = true;
  RNN_DEVICE static Operand operand(float x) { return x; }
  RNN_DEVICE static Operand weight(Storage w) { return w; }

  template <int kCount>
  RNN_DEVICE static void split(const uint32_t (&x)[kCount], uint32_t (&large)[kCount], uint32_t (&small)[kCount]) {
    RNN_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float whole = device::float_of(x[i]), head = device::round_to_tf32(whole);
      large[i] = device::bits_of(head);
      small[i] = device::bits_of(device::round_to_tf32(whole - head));
    }
  }

  RNN_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint32_t a_large[4], a_small[4], b_large[2], b_small[2];
    split(a, a_large, a_small);
    split(b, b_large, b_small);
    // The small contributions first, so that they are not lost one by one.
    device::mma_tf32(d, a_small, b_large);
    device::mma_tf32(d, a_large, b_small);
    device::mma_tf32(d, a_large, b_large);
  }
};

template <class Product>
inline constexpr int kWindow = kWindowBytes / int(sizeof(typename Product::Operand));  // elements
template <class Product>
inline constexpr int kLaneShare = 16 / int(sizeof(typename Product::Operand));  // elements of a window in one lane

// d (16, 8) += a (16, window) b (window, 8). Lane (g, t) passes its share of b's column g, the 16 bytes at 16 t of the window, and
// two fragments of a, in the order of the instruction's registers. Fragment `half` has words 2 half and 2 half + 1 of the lane's
// share of row g and of row g + 8: (g, 2 half), (g + 8, 2 half), (g, 2 half + 1), (g + 8, 2 half + 1).
template <class Product>
RNN_DEVICE void multiply_window(float (&d)[4], const Vector16 (&rows)[2], const Vector16& column) {
  float apart[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  RNN_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint32_t b[2] = {column.words[2 * half], column.words[2 * half + 1]};
    Product::multiply(Product::kAddsApart ? apart : d, rows[half].words, b);
  }
  if constexpr (Product::kAddsApart) {
    RNN_UNROLL
    for (int i = 0; i < 4; ++i) d[i] += apart[i];
  }
}

RNN_DEVICE uint32_t pack_word(float x) { return device::bits_of(x); }
RNN_DEVICE uint32_t pack_word(BFloat16 low, BFloat16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }
RNN_DEVICE uint32_t pack_word(Float16 low, Float16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }

// A fragment: of lane t's share of a row's window element(block, k) is the k-th, in row g of block 0 or in row g + 8, block 1.
template <class Product, class Element>
RNN_DEVICE Vector16 gather_fragment(int half, const Element& element) {
  Vector16 result;
  RNN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int block = i % 2, word = 2 * half + i / 2;
    if constexpr (sizeof(typename Product::Operand) == 2) {
      result.words[i] = pack_word(element(block, 2 * word), element(block, 2 * word + 1));
    } else {
      result.words[i] = pack_word(element(block, word));
    }
  }
  return result;
}

}  // namespace rnnkernels::cuda
