// What the forward pass has on chip: the packed weights as its warps read them, and what lies in shared memory.
#pragma once

#include "grid.h"
#include "layout.h"

namespace rnnkernels::cuda {

// What lies in shared memory. Sizes in comments: W windows, U units of the CTA.
template <class Cell, class Product, class Tile>
struct ForwardShared {
  using Operand = typename Product::Operand;
  using Own = Ownership<Cell, Tile>;
  using Weights = ResidentWeights<Own::kMatrixTiles, Tile::kForwardWindows>;

  static constexpr int kStaged = Own::kStagedRows * Own::kGroups * 8;  // of a warp

  device::Mbarrier* arrived;  // (2)
  Alternating<unsigned char> h;  // (rows, stride bytes): h of all units, as the product's operand; none in a direct tile
  Operand* staging;           // (warps, 2, staged rows, own units): the warp's new h
  float* partial;             // (warps, kPartials, tiles, column tiles, 2 or 4, 32): sums for the warps that share the units
  Vector16* weights;          // (warps, ...): see ResidentWeights
  int64_t bytes;

  RNN_HOST_DEVICE ForwardShared(unsigned char* base, const Partition& partition) : ForwardShared(Carver(base), partition) {}

 private:
  RNN_HOST_DEVICE ForwardShared(Carver carver, const Partition& partition)
      : arrived(carver.take<device::Mbarrier>(2)),
        h(carver, Tile::kDirect ? 0 : Tile::kRows * operand_stride(all_windows(partition))) {
    const int warps = Own::warps(partition.units);
    staging = carver.template take<Operand>(warps * 2 * kStaged);
    partial = carver.template take<float>(Tile::kSplits == 1 ? 0 : warps * kPartial * kPartials);
    weights = carver.template take<Vector16>(warps * Weights::shared_count(1, most_windows(partition)));
    bytes = carver.used();
  }

 public:
  // Of two warps each has the other's half of the sums, of more each has all.
  // Two take turns, where there is room for two: one costs a second barrier per step.
  static constexpr int kPartials = Tile::kDirect && Tile::kUnitGroups >= 4 ? 1 : 2;
  static constexpr int kPartial = Own::kMatrixTiles * Tile::kColumnTiles * (Tile::kDirect ? 4 : 2) * kLanes;

  RNN_HOST_DEVICE static int all_windows(const Partition& partition) {
    return ceil_divide(partition.ctas * partition.units, kWindow<Product>);
  }
  // Of a warp.
  RNN_HOST_DEVICE static int most_windows(const Partition& partition) {
    return ceil_divide(all_windows(partition), Tile::kSplits);
  }

  // Of global memory in which CTAs of a grid meet, per direction and slice.
  template <class Exchange = GridExchange>
  RNN_HOST_DEVICE static int64_t exchange_bytes(const Partition& partition) {
    return Exchange::Forward::bytes(Tile::kColumnTiles, all_windows(partition));
  }

  // Vectors of packed weights of a direction.
  RNN_HOST_DEVICE static int64_t packed_count(const Partition& partition) {
    return int64_t(partition.ctas) * Own::warps(partition.units) * most_windows(partition) * (Own::kMatrixTiles * 2) * kLanes;
  }
};

// One fragment of packed weights per thread: the rows of a warp's blocks are the gates of its first unit group, then those of
// the next; the windows of a warp that shares its units alternate with the other's.
template <class Cell, class Product, class Tile>
RNN_DEVICE void pack_forward(const PackArguments& p) {
  using S = typename Product::Storage;
  using Own = Ownership<Cell, Tile>;
  using Shared = ForwardShared<Cell, Product, Tile>;
  const int64_t i = int64_t(device::block_x()) * device::threads() + device::thread();
  if (i >= Shared::packed_count(p.partition)) return;
  const int h = p.hidden, direction = device::block_y();
  const PackedPlace place(i, Own::warps(p.partition.units), 1, Shared::most_windows(p.partition), Own::kMatrixTiles);
  const int split = place.warp % Tile::kSplits;
  const int first_unit = place.rank * p.partition.units + place.warp / Tile::kSplits * Own::kUnits;
  const int first = (place.window * Tile::kSplits + split) * kWindow<Product> + place.lane % 4 * kLaneShare<Product>;
  const S* w = static_cast<const S*>(p.w_hh[direction]);
  static_cast<Vector16*>(p.packed[direction])[i] = gather_fragment<Product>(place.half, [&](int block, int k) {
    const int index = 2 * place.tile + block, group = index / Cell::kGates, gate = index % Cell::kGates;
    const int unit = first_unit + group * kBlockRows + place.lane / 4;
    const bool inside = unit < h && first + k < h;
    return inside ? Product::weight(device::load_constant(w + (int64_t(gate * h + unit) * h + first + k))) : Product::operand(0.0f);
  });
}

}  // namespace rnnkernels::cuda
