// Holds a schedule's kernels to the numbered equations in double, and to the same bits whatever the interleaving.
#pragma once

#include <cstdio>

#include "layer.h"

namespace emulated {

// Of our error: the plain evaluation's own may be smaller by luck. In units of the storage's roundoff; the largest
// excess over twice the plain error that was measured here is 1.3 (3xtf32, whose sums are in another order).
constexpr double kFloor = 4;

template <class V>
bool same_bits(const V& a, const V& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
}

inline std::string describe(const Shape& s) {
  return "H " + std::to_string(s.hidden) + " D " + std::to_string(s.directions) + " T " + std::to_string(s.steps) + " N " +
         std::to_string(s.batch) + (s.packed ? " packed" : "") + " CTAs " + std::to_string(s.ctas);
}

inline double worst_excess = 0;

template <class Cell, class Product, class Tile, class Exchange>
void check(const Shape& shape, const char* schedule) {
  using Run = Layer<Cell, Product, Tile, Exchange>;
  const bool lstm = Cell::kHasCellState;
  const std::string name =
      std::string(schedule) + " " + (lstm ? "LSTM " : "GRU ") + Precision<Product>::name + " " + describe(shape);
  const Problem p = problem<typename Product::Storage>(lstm, shape, 17);
  Tensors<Product> first(p, Run::slices(shape));
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    Tensors<Product> data(p, Run::slices(shape));
    const auto forward = Run::forward(shape, p, data, seed);
    CHECK(forward.ok(), name + " forward: " + forward.error);
    if (!forward.ok()) return;
    const auto backward = Run::backward(shape, p, data, seed);
    CHECK(backward.ok(), name + " backward: " + backward.error);
    if (!backward.ok()) return;
    if (seed == 1) {
      first = data;
      continue;
    }
    CHECK(same_bits(data.output, first.output) && same_bits(data.h_n, first.h_n) && same_bits(data.gates, first.gates) &&
              same_bits(data.grad_gates, first.grad_gates) && same_bits(data.grad_bias, first.grad_bias) &&
              same_bits(data.grad_h0, first.grad_h0),
          name + ": the interleaving changes bits");
  }
  for (const Compared& c : compare(p, first, Run::slices(shape))) {
    const double floor = kFloor * Precision<Product>::storage;
    worst_excess = std::max(worst_excess, (c.ours - 2 * c.plain) / Precision<Product>::storage);
    CHECK(c.ours <= 2 * c.plain + floor,
          name + ": " + c.name + " is off by " + std::to_string(c.ours) + ", a plain evaluation by " + std::to_string(c.plain));
  }
}

}  // namespace emulated
