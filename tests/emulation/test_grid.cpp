// CTAs of a whole grid: forward and backward, both cells, against the numbered equations, with rings so short that every word
// is used again and again; and what numbers become on their way from CTA to CTA.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "../../csrc/cuda/tiles.h"
#include "parity.h"

using namespace emulated;

namespace {

// The shipped exchange but for the slots of its ring.
struct ShortRing {
  static constexpr bool kHasMbarriers = false;
  using Forward = cuda::GridGather<6>;
  using Backward = cuda::GridScatter;
};

// Column tiles, unit groups, splits, forward windows, backward tiles, backward windows. Four warps are quicker to run than eight.
using Small = cuda::Tile<1, 1, 4, 1, 2, 1>;
using Large = cuda::Tile<2, 2, 4, 1, 2, 1>;

// hidden, directions, steps, batch, packed, CTAs
#ifdef RNNKERNELS_TEST_FEW  // Of ThreadSanitizer a thread takes a millisecond.
const Shape kManySteps{21, 1, 15, 3, false, 3}, kLengths{20, 1, 7, 3, true, 2};
#else
const Shape kManySteps{21, 1, 20, 3, false, 3}, kLengths{35, 2, 7, 11, true, 3};
#endif

#ifndef RNNKERNELS_TEST_FEW  // Sanitizers see the same mechanisms in any shape and product.
void check_shapes() {
  using Product = cuda::BFloat16Product;
  Shape two_launches{21, 1, 5, 19, true, 3};
  two_launches.slices_at_once = 2;
  check<cuda::Lstm, Product, Small, ShortRing>(two_launches, "grid");
  check<cuda::Lstm, Product, Large, ShortRing>({60, 1, 8, 10, true, 4}, "grid");
  check<cuda::Gru, Product, Large, ShortRing>({16, 1, 3, 5, false, 1}, "grid");
  check<cuda::Lstm, Product, Small, ShortRing>({8, 2, 1, 1, false, 1, false, false}, "grid");
}

template <class Cell, class Product>
void check_shipped() {
  using Shipped = cuda::Tiles<Cell, Product>;
  using Exchange = cuda::GridExchange;
  if constexpr (Shipped::kHasThin) check<Cell, Product, typename Shipped::Thin, Exchange>({37, 1, 3, 7, true, 5}, "grid, thin");
  check<Cell, Product, typename Shipped::Even, Exchange>({39, 1, 2, 13, false, 3}, "grid, even");
  if constexpr (Shipped::kHasWide) check<Cell, Product, typename Shipped::Wide, Exchange>({59, 1, 2, 6, true, 2}, "grid, wide");
}
#endif

// A state may be a NaN of all bits, which is how a word looks that has not come; it stays in its row.
void a_nan_of_all_bits_arrives() {
  using Product = cuda::Tf32x3Product;
  using Run = Layer<cuda::Gru, Product, cuda::Tile<1, 2, 4, 1, 2, 1>, ShortRing>;
  const Shape shape{20, 1, 9, 3, true, 2};
  const Problem p = problem<float>(false, shape, 3);
  Tensors<Product> clean(p, Run::slices(shape)), poisoned_row(p, Run::slices(shape));
  std::memset(&poisoned_row.h0[size_t(shape.hidden)], 0xff, sizeof(float) * size_t(shape.hidden));
  CHECK(Run::forward(shape, p, clean, 1).ok(), "without a NaN");
  const auto outcome = Run::forward(shape, p, poisoned_row, 2);
  CHECK(outcome.ok(), "with a NaN: " + outcome.error);
  bool others_same = true, own_nan = true;
  for (int64_t t = 0; t < shape.steps; ++t) {
    for (int64_t b = 0; b < p.active(t); ++b) {
      const size_t first = size_t((p.offset(t) + b) * shape.hidden);
      for (size_t u = first; u < first + size_t(shape.hidden); ++u) {
        if (b == 1) own_nan = own_nan && std::isnan(poisoned_row.output[u]);
        if (b != 1) others_same = others_same && poisoned_row.output[u] == clean.output[u];
      }
    }
  }
  CHECK(own_nan, "the row of the NaN is NaN");
  CHECK(others_same, "other rows are as they were");
}

// What two CTAs send each other of shares arrives, all kinds of numbers, in every use of both slots.
void shares_keep_their_value() {
  const float infinity = std::numeric_limits<float>::infinity();
  const float sent[] = {1.5f, -0.0f, 3e38f, infinity, -infinity, NAN, 0x1p-149f, 1.0f + 0x1p-23f};
  const cuda::Partition partition{2, 8};
  std::vector<cuda::Vector16> exchange(size_t(cuda::GridScatter::bytes(partition, 1, 8) / 16));
  std::vector<char> right(2 * 64, 1);  // of each thread
  const auto outcome = rnnkernels::emulation::run({2, 1, 64, 1, 4096, true, 1, kSpinBound}, [&] {
    const cuda::GridScatter scatter(partition, {reinterpret_cast<unsigned char*>(exchange.data()), nullptr, 8}, 1);
    auto* shares = reinterpret_cast<float*>(device::shared_memory());
    const int lane = device::thread(), unit = lane / 4 % 8, row = lane % 4 * 2;
    for (int64_t k = 1; k <= 7; ++k) {
      if (lane < 32)
        for (int owner = 0; owner < 2; ++owner)
          scatter.send<8>(k, scatter.shares<8, 8>(k, scatter.rank()), owner * 8 + unit, row,
                          scatter.rank() == 0 ? 0.0f : sent[unit], float(k));
      scatter.receive<8, 8, 8>(k, shares);
      float low = 0, high = 0;
      for (int fold = 0; fold < cuda::GridScatter::folds(64, 8, 8); ++fold) {
        low += shares[(fold * 8 + unit) * 8 + row];
        high += shares[(fold * 8 + unit) * 8 + row + 1];
      }
      const double off = std::fabs(double(low) - sent[unit]);
      const bool close = std::isfinite(sent[unit]) ? off <= 0x1p-23 * std::fabs(sent[unit]) + 0x1p-149
                                                   : low == sent[unit] || (std::isnan(low) && std::isnan(sent[unit]));
      const bool other = std::fabs(high - 2 * float(k)) <= 0x1p-22f * float(k);
      if (!close || !other) right[size_t(device::block_x() * 64 + lane)] = 0;
      device::cta_barrier();
    }
  });
  const bool all = std::all_of(right.begin(), right.end(), [](char x) { return x != 0; });
  CHECK(outcome.ok() && all, "shares are what was sent, but for the last bit: " + outcome.error);
}

}  // namespace

void run_tests() {
  a_nan_of_all_bits_arrives();
  shares_keep_their_value();
  check<cuda::Lstm, cuda::BFloat16Product, Small, ShortRing>(kManySteps, "grid");
  check<cuda::Gru, cuda::BFloat16Product, Large, ShortRing>(kLengths, "grid");
#ifndef RNNKERNELS_TEST_FEW
  check_shapes();
  check<cuda::Lstm, cuda::Float16Product, Small, ShortRing>(kManySteps, "grid");
  check<cuda::Lstm, cuda::Tf32x3Product, Small, ShortRing>(kManySteps, "grid");
  check<cuda::Gru, cuda::Tf32Product, Large, ShortRing>(kLengths, "grid");
  check_shipped<cuda::Lstm, cuda::BFloat16Product>();
  check_shipped<cuda::Gru, cuda::BFloat16Product>();
  check_shipped<cuda::Gru, cuda::Tf32x3Product>();
#endif
  std::printf("largest excess over twice a plain evaluation's error: %.2f units of roundoff\n", worst_excess);
}
