// How warps divide the backward product, the packed weights as they read them, and what lies in shared memory.
#pragma once

#include "grid.h"
#include "layout.h"

namespace rnnkernels::cuda {

// How the warps of a CTA divide the product: tiles of 16 rows of W_hh^T (units whose d(h') it is) times parts of K (gates
// of own units).
template <class Cell, class Product, class Tile>
struct BackwardDivision {
  int warps, windows;  // of K, all
  int tiles;           // all
  int parts;           // of K
  int passes;          // of Tile::kBackwardTiles tiles per warp

  RNN_HOST_DEVICE explicit BackwardDivision(const Partition& partition) {
    warps = Ownership<Cell, Tile>::warps(partition.units);
    windows = ceil_divide(Cell::kGates * partition.units, kWindow<Product>);
    tiles = ceil_divide(partition.ctas * partition.units, kTileRows);
    // Warps that have no tile of their own take another's part of K.
    const int sets = ceil_divide(tiles, Tile::kBackwardTiles);
    parts = 1;
    while (parts * 2 * sets <= warps && warps % (parts * 2) == 0 && parts * 2 <= windows) parts *= 2;
    passes = ceil_divide(sets, warps / parts);
  }
  RNN_HOST_DEVICE int most_windows() const { return ceil_divide(windows, parts); }
  RNN_DEVICE int first_tile(int warp, int pass) const { return (pass * (warps / parts) + warp / parts) * Tile::kBackwardTiles; }

  // Vectors of packed weights of a direction.
  RNN_HOST_DEVICE int64_t packed_count(int ctas) const {
    return int64_t(ctas) * warps * passes * most_windows() * Tile::kBackwardTiles * 2 * kLanes;
  }
};

// One fragment of packed weights per thread: row j of W_hh^T is unit j of all, its column gate * U + u row gate * H + own unit u
// of W_hh; the windows of warps with the same rows alternate.
template <class Cell, class Product, class Tile>
RNN_DEVICE void pack_backward(const PackArguments& p) {
  using S = typename Product::Storage;
  const BackwardDivision<Cell, Product, Tile> division(p.partition);
  const int64_t i = int64_t(device::block_x()) * device::threads() + device::thread();
  if (i >= division.packed_count(p.partition.ctas)) return;
  const int h = p.hidden, units = p.partition.units, direction = device::block_y();
  const PackedPlace place(i, division.warps, division.passes, division.most_windows(), Tile::kBackwardTiles);
  const int first_j = (division.first_tile(place.warp, place.pass) + place.tile) * kTileRows + place.lane / 4;
  const int first =
      (place.window * division.parts + place.warp % division.parts) * kWindow<Product> + place.lane % 4 * kLaneShare<Product>;
  const S* w = static_cast<const S*>(p.w_hh[direction]);
  static_cast<Vector16*>(p.packed[direction])[i] = gather_fragment<Product>(place.half, [&](int block, int k) {
    const int j = first_j + block * kBlockRows;
    const int gate = (first + k) / units, unit = (first + k) % units, u = place.rank * units + unit;
    const bool inside = gate < Cell::kGates && u < h && j < h;
    return inside ? Product::weight(device::load_constant(w + int64_t(gate * h + u) * h + j)) : Product::operand(0.0f);
  });
}

// What lies in shared memory. Sizes in comments: U units of the CTA, C CTAs, P parts.
template <class Cell, class Product, class Tile>
struct BackwardShared {
  using Operand = typename Product::Operand;
  using Own = Ownership<Cell, Tile>;
  using Division = BackwardDivision<Cell, Product, Tile>;
  using Weights = ResidentWeights<Tile::kBackwardTiles, Tile::kBackwardWindows>;

  // From one unit's rows to the next's: whole vectors of 16 bytes, and so that lanes that read two rows of many units meet few
  // banks twice.
  static constexpr int kSlotRow = Tile::kRows == 8 ? 8 : Tile::kRows + 4;

  device::Mbarrier* arrived;   // (2)
  Alternating<unsigned char>
      gradients;  // (rows, stride bytes): d(gates) of the hidden side, (G, U) of a row, as the product's operand
  Alternating<float> shares;             // (C * P, or sums of them, U, kSlotRow): shares of d(h)
  float* bias;                  // (groups, 4, threads)
  Vector16* weights;            // (warps, ...): see ResidentWeights
  int64_t bytes;

  RNN_HOST_DEVICE BackwardShared(unsigned char* base, const Partition& partition)
      : BackwardShared(Carver(base), partition, Division(partition)) {}

 private:
  RNN_HOST_DEVICE BackwardShared(Carver carver, const Partition& partition, const Division& division)
      : arrived(carver.take<device::Mbarrier>(2)),
        gradients(carver, Tile::kRows * operand_stride(division.windows)),
        shares(carver, slots(partition, division) * partition.units * kSlotRow) {
    bias = carver.template take<float>(Own::kGroups * kSavedGates * division.warps * kLanes);
    weights = carver.template take<Vector16>(division.warps * Weights::shared_count(division.passes, division.most_windows()));
    bytes = carver.used();
  }

 public:
  // Shares of one element. Those that come through global memory are added up on their way.
  RNN_HOST_DEVICE static int slots(const Partition& partition, const Division& division) {
    return Tile::kDirect ? GridScatter::folds(division.warps * kLanes, partition.units, Tile::kRows)
                         : partition.ctas * division.parts;
  }
  // Of global memory in which CTAs of a grid meet, per direction and slice.
  RNN_HOST_DEVICE static int64_t exchange_bytes(const Partition& partition) {
    return GridScatter::bytes(partition, Division(partition).parts, Tile::kRows);
  }
};

}  // namespace rnnkernels::cuda
