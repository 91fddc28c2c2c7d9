// Every schedule, forward and backward, both cells, against the numbered equations in double: odd sizes, tails, lengths,
// both directions, several seeds of the interleaving, which may not change a bit.
#include <cstdio>

#include "../../csrc/cuda/tiles.h"
#include "parity.h"

using namespace emulated;

namespace {

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
