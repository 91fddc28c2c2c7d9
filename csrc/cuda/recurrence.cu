// The kernels of one cell and product: compiled once for each, with RNNKERNELS_CELL and RNNKERNELS_PRODUCT.
#include "recurrence.h"

#include "kernels.cuh"
#include "tiles.h"

namespace rnnkernels::cuda {
namespace {

template <class Cell, class Product, class Tile>
TileKernels packing() {
  TileKernels k{};
  k.pack[0] = reinterpret_cast<const void*>(&pack_forward_kernel<Cell, Product, Tile>);
  k.pack[1] = reinterpret_cast<const void*>(&pack_backward_kernel<Cell, Product, Tile>);
  k.packed_count[0] = [](const Partition& p) { return ForwardShared<Cell, Product, Tile>::packed_count(p); };
  k.packed_count[1] = [](const Partition& p) { return BackwardDivision<Cell, Product, Tile>(p).packed_count(p.ctas); };
  return k;
}

template <class Cell, class Product, class Tile, bool kOneCta, bool kCluster>
TileKernels tile() {
  TileKernels k = packing<Cell, Product, Tile>();
  if constexpr (kOneCta) {
    k.one_cta[0] = reinterpret_cast<const void*>(&forward_kernel<Cell, Product, Tile, LocalExchange>);
    k.one_cta[1] = reinterpret_cast<const void*>(&backward_kernel<Cell, Product, Tile, LocalExchange>);
  }
  if constexpr (kCluster) {
    k.cluster[0] = reinterpret_cast<const void*>(&forward_kernel<Cell, Product, Tile, ClusterExchange>);
    k.cluster[1] = reinterpret_cast<const void*>(&backward_kernel<Cell, Product, Tile, ClusterExchange>);
  }
  return k;
}

template <class Cell, class Product, class Tile, bool kExists>
TileKernels grid_tile() {
  TileKernels k{};
  if constexpr (kExists) {
    k = packing<Cell, Product, Tile>();
    k.grid[0] = reinterpret_cast<const void*>(&forward_kernel<Cell, Product, Tile, GridExchange>);
    k.grid[1] = reinterpret_cast<const void*>(&backward_kernel<Cell, Product, Tile, GridExchange>);
    k.exchange_bytes[0] = [](const Partition& p) { return ForwardShared<Cell, Product, Tile>::exchange_bytes(p); };
    k.exchange_bytes[1] = [](const Partition& p) { return BackwardShared<Cell, Product, Tile>::exchange_bytes(p); };
  }
  return k;
}

}  // namespace

template <class Cell, class Product>
const TileKernels* tile_kernels() {
  using Shipped = Tiles<Cell, Product>;
  // As plan.cpp's is_compiled() and is_compiled_for_grid() have it.
  static const TileKernels kernels[] = {
      tile<Cell, Product, typename Shipped::Narrow, true, true>(),
      tile<Cell, Product, typename Shipped::Broad, true, false>(),
      tile<Cell, Product, typename Shipped::Tall, false, true>(),
      tile<Cell, Product, typename Shipped::Deep, false, true>(),
      grid_tile<Cell, Product, typename Shipped::Thin, Shipped::kHasThin>(),
      grid_tile<Cell, Product, typename Shipped::Even, true>(),
      grid_tile<Cell, Product, typename Shipped::Wide, Shipped::kHasWide>(),
  };
  return kernels;
}

template const TileKernels* tile_kernels<RNNKERNELS_CELL, RNNKERNELS_PRODUCT>();

}  // namespace rnnkernels::cuda
