// What the 32 lanes of a warp do together, with each lane's registers laid out as the instruction has them.
#include "device_host.h"

namespace rnnkernels::cuda::device {
namespace {

constexpr int kRows = 16, kColumns = 8, kLanes = 32;

struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

struct Product {
  float a[kRows][16], b[16][kColumns];
};

// Puts one lane's registers where they belong, for two half-precision numbers per register along K = 16.
template <class S>
void place_halves(const Fragments& lane, int g, int t, Product& p) {
  const auto number = [](uint32_t word, int index) { return to_float(S{uint16_t(word >> (16 * index))}); };
  for (int i = 0; i < 2; ++i) {
    for (int r = 0; r < 4; ++r) p.a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + i] = number(lane.a[r], i);
    for (int r = 0; r < 2; ++r) p.b[2 * t + 8 * r + i][g] = number(lane.b[r], i);
  }
}

// The tensor core reads the upper 19 bits of a tf32 operand.
void place_tf32(const Fragments& lane, int g, int t, Product& p) {
  const auto number = [](uint32_t word) { return float_of(word & ~0x1fffu); };
  for (int r = 0; r < 4; ++r) p.a[g + 8 * (r % 2)][t + 4 * (r / 2)] = number(lane.a[r]);
  for (int r = 0; r < 2; ++r) p.b[t + 4 * r][g] = number(lane.b[r]);
}

template <int kDepth, class Place>
void multiply(void* const* arguments, const Place& place) {
  Product p;
  for (int lane = 0; lane < kLanes; ++lane) place(*static_cast<const Fragments*>(arguments[lane]), lane / 4, lane % 4, p);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const Fragments*>(arguments[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += p.a[row][k] * p.b[k][column];
      d[i] += sum;
    }
  }
}

struct Exchanged {
  float value;
  int mask;
  float result;
};

struct Voted {
  bool condition, result;
};

}  // namespace

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine{d, a, b};
  emulation::warp_collective([](void* const* all) { multiply<16>(all, place_halves<BFloat16>); }, &mine, "mma_bf16");
}

void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine{d, a, b};
  emulation::warp_collective([](void* const* all) { multiply<16>(all, place_halves<Float16>); }, &mine, "mma_fp16");
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine{d, a, b};
  emulation::warp_collective([](void* const* all) { multiply<8>(all, place_tf32); }, &mine, "mma_tf32");
}

float shuffle_xor(float value, int mask) {
  Exchanged mine{value, mask, 0};
  emulation::warp_collective(
      [](void* const* all) {
        for (int lane = 0; lane < kLanes; ++lane) {
          auto* own = static_cast<Exchanged*>(all[lane]);
          own->result = static_cast<const Exchanged*>(all[lane ^ own->mask])->value;
        }
      },
      &mine, "shuffle_xor");
  return mine.result;
}

bool any(bool condition) {
  Voted mine{condition, false};
  emulation::warp_collective(
      [](void* const* all) {
        bool result = false;
        for (int lane = 0; lane < kLanes; ++lane) result = result || static_cast<const Voted*>(all[lane])->condition;
        for (int lane = 0; lane < kLanes; ++lane) static_cast<Voted*>(all[lane])->result = result;
      },
      &mine, "any");
  return mine.result;
}

}  // namespace rnnkernels::cuda::device
