// Every schedule, forward and backward, both cells, against the numbered equations in double: odd sizes, tails, lengths,
// both directions, several seeds of the interleaving, which may not change a bit.
#include <cstdio>

#include "../../csrc/cuda/tiles.h"
#include "layer.h"

using namespace emulated;

namespace {

// Of our error: the plain evaluation's own may be smaller by luck. In units of the storage's roundoff; the largest
// excess over twice the plain error that was measured here is 1.3 (3xtf32, whose sums are in another order).
constexpr double kFloor = 4;

template <class V>
bool same_bits(const V& a, const V& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
}

std::string describe(const Shape& s) {
  return "H " + std::to_string(s.hidden) + " D " + std::to_string(s.directions) + " T " + std::to_string(s.steps) + " N " +
         std::to_string(s.batch) + (s.packed ? " packed" : "") + " CTAs " + std::to_string(s.ctas);
}

double worst_excess = 0;

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

// Column tiles, unit groups, splits, forward windows, backward tiles, backward windows. GRU's groups come in pairs.
template <class Cell>
inline constexpr int kGroups = Cell::kGates == 3 ? 2 : 1;
template <class Cell>
using Narrow = cuda::Tile<1, kGroups<Cell>, 1, 4, 2, 4>;
template <class Cell>
using Wide = cuda::Tile<2, kGroups<Cell>, 1, 4, 2, 4>;
template <class Cell>
using Split = cuda::Tile<1, kGroups<Cell>, 2, 2, 4, 2>;
// Half as many warps; so few registers that most weights are in shared memory.
template <class Cell>
using Scarce = cuda::Tile<2, 2 * kGroups<Cell>, 1, 1, 1, 1>;

// What is shipped.
template <class Cell, class Product>
using Shipped = cuda::Tiles<Cell, Product>;

template <class Cell, class Product>
void check_all() {
  using cuda::ClusterExchange;
  using cuda::LocalExchange;
  // hidden, directions, steps, batch, packed, CTAs
  check<Cell, Product, Narrow<Cell>, LocalExchange>({5, 1, 4, 3, false, 1}, "one CTA");
  check<Cell, Product, Scarce<Cell>, LocalExchange>({43, 1, 3, 17, true, 1}, "one CTA");
  check<Cell, Product, Narrow<Cell>, ClusterExchange>({9, 1, 3, 2, false, 2}, "cluster");
  check<Cell, Product, Wide<Cell>, ClusterExchange>({50, 2, 5, 18, true, 2}, "cluster");
  check<Cell, Product, Split<Cell>, ClusterExchange>({28, 1, 4, 3, true, 2}, "cluster");
#ifndef RNNKERNELS_TEST_FEW  // For other products, and ThreadSanitizer, to which a thread costs a millisecond.
  check<Cell, Product, Narrow<Cell>, LocalExchange>({24, 2, 5, 11, true, 1}, "one CTA");
  check<Cell, Product, Split<Cell>, LocalExchange>({40, 2, 4, 5, true, 1}, "one CTA");
  check<Cell, Product, Narrow<Cell>, ClusterExchange>({37, 1, 4, 9, true, 4}, "cluster");
  check<Cell, Product, Scarce<Cell>, ClusterExchange>({70, 1, 3, 5, false, 4}, "cluster");
  check<Cell, Product, Split<Cell>, ClusterExchange>({52, 1, 5, 8, true, 4}, "cluster");
  check<Cell, Product, Narrow<Cell>, ClusterExchange>({61, 1, 3, 1, false, 8}, "cluster");
  check<Cell, Product, Narrow<Cell>, LocalExchange>({16, 1, 130, 2, false, 1}, "one CTA");
  check<Cell, Product, Narrow<Cell>, LocalExchange>({16, 1, 1, 1, false, 1, false, false}, "one CTA");
  check<Cell, Product, typename Shipped<Cell, Product>::Narrow, LocalExchange>({64, 1, 2, 3, false, 1}, "one CTA");
  check<Cell, Product, typename Shipped<Cell, Product>::Broad, LocalExchange>({100, 1, 2, 9, false, 1}, "one CTA");
  check<Cell, Product, typename Shipped<Cell, Product>::Narrow, ClusterExchange>({120, 1, 3, 5, true, 2}, "cluster");
  check<Cell, Product, typename Shipped<Cell, Product>::Tall, ClusterExchange>({90, 1, 3, 20, true, 2}, "cluster");
  check<Cell, Product, typename Shipped<Cell, Product>::Deep, ClusterExchange>({125, 1, 3, 6, false, 4}, "cluster");
#endif
}

template <class Product>
void check_cells() {
  check_all<cuda::Lstm, Product>();
  check_all<cuda::Gru, Product>();
}

}  // namespace

void run_tests() {
  check_cells<RNNKERNELS_TESTED_PRODUCT>();
  std::printf("largest excess over twice a plain evaluation's error: %.2f units of roundoff\n", worst_excess);
}
