// How the persistent schedules are laid out, forward and backward: which thread owns which unit of which sequence, which
// warp multiplies which part of the weights, and what lies where in shared memory.
//
// A CTA has `units` hidden units of a slice of the batch. The rows of W_hh that make one block of 8 units' gates stay in
// one warp, arranged so that a lane's accumulators are all gates of its own units and sequences: with g = lane / 4 and
// t = lane % 4, unit g of each of the warp's unit groups, and the sequences 2t and 2t + 1 of each column tile.
#pragma once

#include "../arguments.h"
#include "../cells.h"
#include "../product.h"

namespace rnnkernels::cuda {

// A CTA has at most this many warps, so that each thread may have nearly all 255 registers: weights want to be in them.
inline constexpr int kMostWarps = 8;

RNN_HOST_DEVICE constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
RNN_HOST_DEVICE constexpr int least(int a, int b) { return a < b ? a : b; }

// Sizes known at compile time, since they are registers.
template <int kColumnTiles_, int kUnitGroups_, int kSplits_, int kForwardWindows_, int kBackwardTiles_, int kBackwardWindows_>
struct Tile {
  static constexpr int kColumnTiles = kColumnTiles_;          // batch rows of a slice, in eights
  static constexpr int kUnitGroups = kUnitGroups_;            // units of a warp, in eights; even for GRU
  static constexpr int kSplits = kSplits_;                    // warps that share K for the same units, forward: 1, 2, 4, 8
  static constexpr int kForwardWindows = kForwardWindows_;    // of the weights' rows in registers, forward
  static constexpr int kBackwardTiles = kBackwardTiles_;      // of 16 rows of W_hh^T in registers, backward
  static constexpr int kBackwardWindows = kBackwardWindows_;  // of those rows in registers, backward
  static constexpr int kRows = 8 * kColumnTiles;
  // All warps of a CTA share its units: each element of h is read by one warp, and need not lie in shared memory for others.
  static constexpr bool kDirect = kSplits > 2;
};

// Rows of operands are this far apart: eight lanes that read two rows at once, 16 bytes each, meet all 32 banks.
RNN_HOST_DEVICE constexpr int operand_stride(int windows) { return (windows + (windows % 2 == 0 ? 1 : 0)) * kWindowBytes; }

// Hands out shared memory; from a null base it only counts.
class Carver {
 public:
  RNN_HOST_DEVICE explicit Carver(unsigned char* base) : base_(base) {}

  template <class T>
  RNN_HOST_DEVICE T* take(int64_t count) {
    unsigned char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    if (base_ != nullptr && device::kGuardBytes > 0) device::guard(base_ + used_);
    used_ += device::kGuardBytes;
    return reinterpret_cast<T*>(piece);
  }
  RNN_HOST_DEVICE int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

// Two arrays of the same size, for even and odd steps. Not an array of pointers, which would have to lie in memory.
template <class T>
struct Alternating {
  T* first;
  int64_t distance;

  RNN_HOST_DEVICE Alternating(Carver& carver, int64_t count) {
    first = carver.template take<T>(count);
    T* second = carver.template take<T>(count);
    distance = second - first;
  }
  RNN_DEVICE T* operator[](int64_t k) const { return first + (k % 2 == 0 ? 0 : distance); }
};

// The share of a thread. Warps that share units divide the cells among them, by columns, then column tiles, then unit
// groups; where that does not go far enough the last warps have none.
template <class Cell, class Tile>
struct Ownership {
  static_assert(Cell::kGates * Tile::kUnitGroups % 2 == 0, "blocks of 8 rows come in pairs");
  static constexpr int kUnits = 8 * Tile::kUnitGroups;                        // of a warp
  static constexpr int kMatrixTiles = Cell::kGates * Tile::kUnitGroups / 2;   // of a warp: 16 rows of W_hh each
  static constexpr int kColumnOwners = Tile::kSplits == 1 ? 1 : 2;
  static constexpr int kTileOwners = least(Tile::kSplits / kColumnOwners, Tile::kColumnTiles);
  static constexpr int kRowOwners = kColumnOwners * kTileOwners;
  static constexpr int kGroupOwners = least(Tile::kSplits / kRowOwners, Tile::kUnitGroups);
  static constexpr int kOwners = kRowOwners * kGroupOwners;
  // Of a lane: its cells are these times each other.
  static constexpr int kGroups = Tile::kUnitGroups / kGroupOwners;
  static constexpr int kTiles = Tile::kColumnTiles / kTileOwners;
  static constexpr int kColumns = 2 / kColumnOwners;
  static constexpr int kStagedRows = kTiles * 8 / kColumnOwners;  // of a warp

  int warp, lane, g, t, block, split;

  RNN_DEVICE Ownership() { find(device::thread()); }
  // The same again, in a way that the compiler does not see through: what is derived from it is not kept from step to step,
  // where that needs more registers than there are.
  RNN_DEVICE void find_again() { find(device::opaque(device::thread())); }

 private:
  RNN_DEVICE void find(int thread) {
    warp = thread / kLanes;
    lane = thread % kLanes;
    g = lane / 4;
    t = lane % 4;
    block = warp / Tile::kSplits;
    split = warp % Tile::kSplits;
  }

 public:
  RNN_DEVICE bool has_cells() const { return kOwners == Tile::kSplits || split < kOwners; }
  // Of all warps' column tiles and unit groups, those of this one.
  RNN_DEVICE int column_tile(int tile) const {
    return kTileOwners == 1 ? tile : tile * kTileOwners + split / kColumnOwners % kTileOwners;
  }
  RNN_DEVICE int unit_group(int group) const { return kGroupOwners == 1 ? group : group * kGroupOwners + split / kRowOwners; }
  RNN_DEVICE int column(int column) const { return kColumnOwners == 1 ? column : split % 2; }
  // Within the CTA, within the slice.
  RNN_DEVICE int unit(int group) const {
    return block * kUnits + (kGroupOwners == 1 ? 0 : split / kRowOwners * 8) + group * (8 * kGroupOwners) + g;
  }
  RNN_DEVICE int first_row() const {
    return 2 * t + (kColumnOwners == 1 ? 0 : split % 2) + (kTileOwners == 1 ? 0 : split / 2 % kTileOwners * 8);
  }
  RNN_DEVICE static constexpr int row_after_first(int tile, int column) { return tile * (8 * kTileOwners) + column; }
  RNN_DEVICE int row(int tile, int column) const { return first_row() + row_after_first(tile, column); }

  // A warp's rows without those between them, and back.
  RNN_DEVICE int staged_row(int tile, int column) const {
    return kColumnOwners == 1 ? tile * 8 + 2 * t + column : tile * 4 + t;
  }
  RNN_DEVICE int row_of_staged(int staged) const {
    if constexpr (kColumnOwners == 1) return staged;
    return column_tile(staged / 4) * 8 + staged % 4 * 2 + split % 2;
  }

  // Element `unit` of an own row of a matrix in global memory, whose slice begins at `first`, with rows of `width` elements.
  // All threads have the same address but for one int, which the columns share: registers are scarce.
  template <class T>
  RNN_DEVICE T* at(T* first, int width, int tile, int column, int unit) const {
    return first + row_after_first(tile, column) * width + (first_row() * width + unit);
  }

  RNN_HOST_DEVICE static constexpr int warps(int units) { return units / kUnits * Tile::kSplits; }
};

// Which rows are active when, for one direction of one slice of the batch.
class Steps {
 public:
  RNN_DEVICE Steps(const Sequence& sequence, int first_row, bool reversed)
      : offsets_(sequence.offsets), steps_(sequence.steps), batch_(sequence.batch), first_row_(first_row), reversed_(reversed) {
    length_ = steps_;
    if (offsets_ == nullptr) return;
    // Steps whose rows reach into this slice come first.
    int64_t low = 0, high = steps_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (offsets_[middle + 1] - offsets_[middle] > first_row_) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    length_ = low;
  }

  RNN_DEVICE int64_t length() const { return length_; }
  // The time of the forward recurrence's i-th step.
  RNN_DEVICE int64_t time(int64_t i) const { return reversed_ ? length_ - 1 - i : i; }
  // Rows of the whole batch before step t, which may be past the end.
  RNN_DEVICE int64_t offset(int64_t t) const { return offsets_ == nullptr ? t * batch_ : offsets_[t]; }
  RNN_DEVICE StepRows rows(int64_t i) const {
    const int64_t t = time(i);
    return {offset(t) + first_row_, active(t)};
  }
  // Active rows of the slice; none outside 0 <= t < T.
  RNN_DEVICE int active(int64_t t) const {
    if (t < 0 || t >= steps_) return 0;
    const int64_t rows = (offsets_ == nullptr ? batch_ : offsets_[t + 1] - offsets_[t]) - first_row_;
    return rows < 0 ? 0 : int(rows < kMostRows ? rows : kMostRows);
  }

 private:
  static constexpr int kMostRows = 1 << 20;
  const int64_t* offsets_;
  int64_t steps_, batch_, length_;
  int first_row_;
  bool reversed_;
};

// Where a 16-byte vector of packed weights belongs: (ctas, warps, passes, windows, tiles, 2, 32).
struct PackedPlace {
  int rank, warp, pass, window, tile, block, lane;

  RNN_DEVICE PackedPlace(int64_t i, int warps, int passes, int windows, int tiles) {
    lane = take(i, kLanes);
    block = take(i, 2);
    tile = take(i, tiles);
    window = take(i, windows);
    pass = take(i, passes);
    warp = take(i, warps);
    rank = int(i);
  }

 private:
  RNN_DEVICE static int take(int64_t& i, int count) {
    const int place = int(i % count);
    i /= count;
    return place;
  }
};

// A warp's part of a weight matrix: tiles of 16 rows, as two blocks of 8, times windows of K. Of the first tiles the first
// windows are in registers, everything else in shared memory, where a window of a block is 32 lanes' 16 bytes.
template <int kTiles, int kRegisterWindows>
struct ResidentWeights {
  Vector16 registers[kTiles][kRegisterWindows][2];
  Vector16* shared;  // (passes, windows, kTiles, 2, 32) of this warp, without what is in registers
  int windows;

  // In Vector16 of one warp.
  RNN_HOST_DEVICE static int64_t shared_count(int passes, int windows) {
    const int first = windows > kRegisterWindows ? windows - kRegisterWindows : 0;
    return int64_t(first + (passes - 1) * windows) * kTiles * 2 * kLanes;
  }
  RNN_DEVICE Vector16* at(int pass, int window, int tile, int block, int lane) const {
    const int before = windows < kRegisterWindows ? windows : kRegisterWindows;
    return shared + (((pass * windows + window - before) * kTiles + tile) * 2 + block) * kLanes + lane;
  }

  // packed (passes, most_windows, kTiles, 2, 32): what this warp has, of which it uses the first windows.
  RNN_DEVICE void load(const Vector16* packed, int passes, int most_windows, int windows_, int lane) {
    windows = windows_;
    RNN_UNROLL
    for (int window = 0; window < kRegisterWindows; ++window) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int block = 0; block < 2; ++block) {
          registers[tile][window][block] = Vector16{{0, 0, 0, 0}};
          if (window < windows)
            registers[tile][window][block] = device::load16(packed + ((window * kTiles + tile) * 2 + block) * kLanes + lane);
        }
      }
    }
    RNN_NO_UNROLL
    for (int pass = 0; pass < passes; ++pass) {
      RNN_NO_UNROLL
      for (int window = pass == 0 ? kRegisterWindows : 0; window < windows; ++window) {
        RNN_UNROLL
        for (int i = 0; i < kTiles * 2; ++i)
          device::store16(at(pass, window, i / 2, i % 2, lane),
                          device::load16(packed + ((pass * most_windows + window) * kTiles * 2 + i) * kLanes + lane));
      }
    }
  }

  // sum[tile][column tile] += weights of `pass` times operand: `operand` points to this lane's 16 bytes of window 0 of row g,
  // rows are `stride` bytes apart and this warp's windows `window_stride` bytes.
  template <class Product, int kColumnTiles>
  RNN_DEVICE void multiply(int pass, const unsigned char* operand, int stride, int window_stride, int lane,
                           float (&sum)[kTiles][kColumnTiles][4]) const {
    Vector16 columns[kColumnTiles];
    if (pass == 0) {
      RNN_UNROLL
      for (int window = 0; window < kRegisterWindows; ++window) {
        if (window >= windows) break;
        load_columns(operand + window * window_stride, stride, columns);
        RNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          RNN_UNROLL
          for (int n = 0; n < kColumnTiles; ++n)
            multiply_window<Product>(sum[tile][n], registers[tile][window][0], registers[tile][window][1], columns[n]);
        }
      }
    }
    RNN_NO_UNROLL
    for (int window = pass == 0 ? kRegisterWindows : 0; window < windows; ++window) {
      load_columns(operand + window * window_stride, stride, columns);
      multiply_shared<Product>(pass, window, lane, columns, sum);
    }
  }

  // The same for an operand that is still arriving from other CTAs: kAhead windows are asked for before the first is awaited.
  template <class Product, int kAhead, int kColumnTiles, class Arriving>
  RNN_DEVICE void multiply_arriving(const Arriving& operand, int lane, float (&sum)[kTiles][kColumnTiles][4]) const {
    Vector16 columns[kAhead][kColumnTiles];
    RNN_UNROLL
    for (int window = 0; window < kAhead; ++window)
      if (window < windows) operand.ask(window, columns[window]);
    RNN_UNROLL
    for (int window = 0; window < kRegisterWindows; ++window) {
      if (window >= windows) break;
      operand.await(window, columns[window % kAhead]);
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int n = 0; n < kColumnTiles; ++n)
          multiply_window<Product>(sum[tile][n], registers[tile][window][0], registers[tile][window][1],
                                   columns[window % kAhead][n]);
      }
      if (window + kAhead < windows) operand.ask(window + kAhead, columns[window % kAhead]);
    }
    RNN_NO_UNROLL
    for (int first = kRegisterWindows; first < windows; first += kAhead) {
      RNN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int window = first + i;
        if (window >= windows) break;
        Vector16(&own)[kColumnTiles] = columns[(kRegisterWindows + i) % kAhead];
        operand.await(window, own);
        multiply_shared<Product>(0, window, lane, own, sum);
        if (window + kAhead < windows) operand.ask(window + kAhead, own);
      }
    }
  }

 private:
  template <class Product, int kColumnTiles>
  RNN_DEVICE void multiply_shared(int pass, int window, int lane, const Vector16 (&columns)[kColumnTiles],
                                  float (&sum)[kTiles][kColumnTiles][4]) const {
    RNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const Vector16 low = device::load16(at(pass, window, tile, 0, lane));
      const Vector16 high = device::load16(at(pass, window, tile, 1, lane));
      RNN_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) multiply_window<Product>(sum[tile][n], low, high, columns[n]);
    }
  }

  template <int kColumnTiles>
  RNN_DEVICE static void load_columns(const unsigned char* operand, int stride, Vector16 (&columns)[kColumnTiles]) {
    RNN_UNROLL
    for (int n = 0; n < kColumnTiles; ++n) columns[n] = device::load16(operand + n * 8 * stride);
  }
};

}  // namespace rnnkernels::cuda
