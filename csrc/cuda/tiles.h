// The tiles that are compiled, by cell and product. The registers of a thread decide: with 8 warps it may have 255, and W_hh
// takes 8 of them per window and tile of 16 rows, forward 8 * windows * gates * groups / 2, backward 8 * windows * tiles.
// Thin, even and wide tiles are the grid's: all warps share the units, and K has as many parts.
#pragma once

#include "schedules/layout.h"

namespace rnnkernels::cuda {

template <class Cell, class Product>
struct Tiles;

// Registers in which 3xtf32 splits its operands, in windows of weights.
template <class Product>
inline constexpr int kSplitting = 0;
template <>
inline constexpr int kSplitting<Tf32x3Product> = 1;

// Weights of float32 are too large for the grid's widest tile.
template <class Product>
inline constexpr bool kIsHalf = sizeof(typename Product::Operand) == 2;

//                 column tiles, unit groups, splits, forward windows, backward tiles, backward windows
template <class Product>
struct Tiles<Lstm, Product> {
  static constexpr int s = kSplitting<Product>;
  using Narrow = Tile<1, 1, 1, 8 - s, 2, 7 - s>;  // 8 sequences, up to 64 units per CTA
  using Broad = Tile<1, 2, 1, 3 - s, 2, 5>;       // 8 sequences, up to 128
  using Tall = Tile<2, 1, 1, 7 - 2 * s, 2, 6 - 4 * s>;  // 16 sequences, up to 64
  using Deep = Tile<1, 1, 2, 8, 2, 6 - s>;        // 8 sequences, up to 32 units, each by two warps: for long rows of W_hh
  using Thin = Tile<1, 1, 8, 5 + s, 8 - 4 * s, 1 + s>;  // 8 sequences, 8 units per CTA: the shortest step
  using Even = Tile<1, 2, 8, 3 - s, 4, 2>;              // 8 sequences, 16 units: twice as many slices at once
  using Wide = Tile<1, 4, 8, 1, 4, 3>;                  // 8 sequences, 32 units: four times
  static constexpr bool kHasThin = true, kHasWide = kIsHalf<Product>;
};

template <class Product>
struct Tiles<Gru, Product> {
  static constexpr int s = kSplitting<Product>;
  using Narrow = Tile<1, 2, 1, 4 - s, 2, 6 - 2 * s>;  // up to 128
  using Broad = Narrow;
  using Tall = Tile<2, 2, 1, 3 - 2 * s, 2, 2 - s>;
  using Deep = Tile<1, 2, 2, 4, 2, 4>;  // up to 64
  using Even = Tile<1, 2, 8, 4 - s, 4, 2>;  // 8 sequences, 16 units
  using Wide = Tile<1, 4, 8, 2, 4, 3>;      // 8 sequences, 32 units
  using Thin = Even;                        // 8 units would not come in pairs of blocks
  static constexpr bool kHasThin = false, kHasWide = kIsHalf<Product>;
};

}  // namespace rnnkernels::cuda
