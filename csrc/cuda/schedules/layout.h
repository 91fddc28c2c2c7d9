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
    unsigned char* piece = device::piece(base_, used_);
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
  int distance;

  RNN_HOST_DEVICE Alternating(Carver& carver, int64_t count) {
    const int64_t begin = carver.used();
    first = carver.template take<T>(count);
    distance = int((carver.used() - begin) / int64_t(sizeof(T)));
    carver.template take<T>(count);
  }
  RNN_DEVICE T* operator[](int k) const { return first + (k & 1) * distance; }
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

  const int warp, lane, g, t, block, split;

  RNN_DEVICE Ownership()
      : warp(device::thread() / kLanes),
        lane(device::thread() % kLanes),
        g(lane / 4),
        t(lane % 4),
        block(warp / Tile::kSplits),
        split(warp % Tile::kSplits) {}

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
  RNN_DEVICE static constexpr int unit_after_first(int group) { return group * (8 * kGroupOwners); }
  RNN_DEVICE int row(int tile, int column) const { return first_row() + row_after_first(tile, column); }

  // A warp's rows without those between them, and back.
  RNN_DEVICE int staged_row(int tile, int column) const {
    return kColumnOwners == 1 ? tile * 8 + 2 * t + column : tile * 4 + t;
  }
  RNN_DEVICE int row_of_staged(int staged) const {
    if constexpr (kColumnOwners == 1) return staged;
    return column_tile(staged / 4) * 8 + staged % 4 * 2 + split % 2;
  }

  // Of a matrix in global memory with rows of `width` elements, whose row 0 of the slice is `row` and whose column 0 is the CTA's
  // first unit: the first own element, and how far from there the others are. The distance is the same for all threads, and for
  // all steps, so that an element costs one addition.
  template <class T>
  RNN_DEVICE T* first_of(T* matrix, int row, int width) const {
    return matrix + (int64_t(row + first_row()) * width + unit(0));
  }
  RNN_DEVICE static int after_first(int width, int tile, int column, int group) {
    return row_after_first(tile, column) * width + unit_after_first(group);
  }

  // use(group, tile, column) for each cell of a lane.
  template <class Use>
  RNN_DEVICE static void each_cell(const Use& use) {
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) use(group, tile, column);
      }
    }
  }

  // use(row, unit, field) for each block of 8 neighbouring units in own rows, `fields` times; of a warp's blocks each lane has
  // others. Rows within the slice, units within the CTA.
  template <int kFields, class Use>
  RNN_DEVICE void each_block(const Use& use) const {
    constexpr int kBlocks = kStagedRows * kGroups * kFields;
    RNN_UNROLL
    for (int first = 0; first < kBlocks; first += kLanes) {
      const int i = first + lane;
      if (i < kBlocks) use(row_of_staged(i % kStagedRows), unit(i / kStagedRows % kGroups) - g, i / (kStagedRows * kGroups));
    }
  }

  RNN_HOST_DEVICE static constexpr int warps(int units) { return units / kUnits * Tile::kSplits; }
};

// A step's rows of a slice of the batch: where the first lies among all steps' rows, and how many are active; that may be more
// than the slice has.
struct SliceRows {
  int first, active;
};

// Which rows are active when, for one direction of one slice of the batch. Steps and rows are counted in int: a launch has fewer
// than 2^31 (kMostPersistentRows), and 64-bit arithmetic would take longer than the cells.
class Steps {
 public:
  RNN_DEVICE Steps(const Sequence& sequence, int first_row, bool reversed)
      : offsets_(sequence.offsets), batch_(int(sequence.batch)), length_(int(sequence.steps)), first_row_(first_row) {
    if (offsets_ != nullptr) {
      // Steps whose rows reach into this slice come first.
      int low = 0, high = length_;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (offsets_[middle + 1] - offsets_[middle] > first_row_) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      length_ = low;
    }
    first_time_ = reversed ? length_ - 1 : 0;
    direction_ = reversed ? -1 : 1;
  }

  RNN_DEVICE int length() const { return length_; }
  // The time of the forward recurrence's i-th step.
  RNN_DEVICE int time(int i) const { return first_time_ + direction_ * i; }
  // Rows of the whole batch before step t.
  RNN_DEVICE int64_t offset(int t) const { return offsets_ == nullptr ? int64_t(t) * batch_ : device::load_constant(offsets_ + t); }
  // For 0 <= i < length().
  RNN_DEVICE SliceRows rows(int i) const {
    const int t = time(i);
    if (offsets_ == nullptr) return {t * batch_ + first_row_, batch_ - first_row_};
    const int begin = int(device::load_constant(offsets_ + t)), end = int(device::load_constant(offsets_ + t + 1));
    return {begin + first_row_, end - begin - first_row_};
  }

 private:
  const int64_t* offsets_;
  int batch_, length_, first_row_, first_time_, direction_;
};

// Where a 16-byte fragment of packed weights belongs: (ctas, warps, passes, windows, tiles, 2, 32).
struct PackedPlace {
  int rank, warp, pass, window, tile, half, lane;

  RNN_DEVICE PackedPlace(int64_t i, int warps, int passes, int windows, int tiles) {
    lane = take(i, kLanes);
    half = take(i, 2);
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

// A warp's part of a weight matrix: tiles of 16 rows times windows of K, each as the two fragments of multiply_window. Of the first
// tiles the first windows are in registers, everything else in shared memory, where a fragment is 32 lanes' 16 bytes.
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
  // The first of a window's kTiles * 2 fragments of this lane; the next is kLanes further.
  RNN_DEVICE Vector16* at(int pass, int window, int lane) const {
    const int before = windows < kRegisterWindows ? windows : kRegisterWindows;
    return shared + (pass * windows + window - before) * (kTiles * 2 * kLanes) + lane;
  }

  // packed (passes, most_windows, kTiles, 2, 32): what this warp has, of which it uses the first windows.
  RNN_DEVICE void load(const Vector16* packed, int passes, int most_windows, int windows_, int lane) {
    windows = windows_;
    RNN_UNROLL
    for (int window = 0; window < kRegisterWindows; ++window) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int half = 0; half < 2; ++half) {
          registers[tile][window][half] = Vector16{{0, 0, 0, 0}};
          if (window < windows)
            registers[tile][window][half] = device::load16(packed + ((window * kTiles + tile) * 2 + half) * kLanes + lane);
        }
      }
    }
    RNN_NO_UNROLL
    for (int pass = 0; pass < passes; ++pass) {
      RNN_NO_UNROLL
      for (int window = pass == 0 ? kRegisterWindows : 0; window < windows; ++window) {
        RNN_UNROLL
        for (int i = 0; i < kTiles * 2; ++i)
          device::store16_shared(at(pass, window, lane) + i * kLanes,
                                 device::load16(packed + ((pass * most_windows + window) * kTiles * 2 + i) * kLanes + lane));
      }
    }
  }

  // sum[tile][column tile] += weights of `pass` times operand: `operand` points to this lane's 16 bytes of window 0 of row g,
  // rows are `stride` bytes apart and this warp's windows `window_stride` bytes. Of the operand kAhead windows are asked for
  // before the first is multiplied.
  template <class Product, int kAhead, int kColumnTiles>
  RNN_DEVICE void multiply(int pass, const unsigned char* operand, int stride, int window_stride, int lane,
                           float (&sum)[kTiles][kColumnTiles][4]) const {
    // An instruction waits for the one whose sum it adds to. Where a warp has few sums, every other window goes to a second one.
    constexpr bool kHasOdd = kTiles * kColumnTiles <= 2 && !Product::kAddsApart;
    static_assert(kAhead % 2 == 0, "windows ahead are even and odd in turn");
    float more[kTiles][kColumnTiles][4] = {};
    float(&odd)[kTiles][kColumnTiles][4] = kHasOdd ? more : sum;
    Vector16 columns[kAhead][kColumnTiles];
    RNN_UNROLL
    for (int window = 0; window < kAhead; ++window)
      if (window < windows) load_columns(operand + window * window_stride, stride, columns[window]);
    if (pass == 0) {
      RNN_UNROLL
      for (int window = 0; window < kRegisterWindows; ++window) {
        if (window >= windows) break;
        RNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          RNN_UNROLL
          for (int n = 0; n < kColumnTiles; ++n)
            multiply_window<Product>((window % 2 == 0 ? sum : odd)[tile][n], registers[tile][window], columns[window % kAhead][n]);
        }
        if (window + kAhead < windows)
          load_columns(operand + (window + kAhead) * window_stride, stride, columns[window % kAhead]);
      }
      multiply_rest<Product, kRegisterWindows>(pass, operand, stride, window_stride, lane, columns, sum, odd);
    } else {
      multiply_rest<Product, 0>(pass, operand, stride, window_stride, lane, columns, sum, odd);
    }
    if constexpr (kHasOdd) {
      RNN_UNROLL
      for (int i = 0; i < kTiles * kColumnTiles * 4; ++i)
        sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4] += more[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4];
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
          multiply_window<Product>(sum[tile][n], registers[tile][window], columns[window % kAhead][n]);
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
  // From window kFirst on, with weights from shared memory.
  template <class Product, int kFirst, int kAhead, int kColumnTiles>
  RNN_DEVICE void multiply_rest(int pass, const unsigned char* operand, int stride, int window_stride, int lane,
                                Vector16 (&columns)[kAhead][kColumnTiles], float (&sum)[kTiles][kColumnTiles][4],
                                float (&odd)[kTiles][kColumnTiles][4]) const {
    RNN_NO_UNROLL
    for (int first = kFirst; first < windows; first += kAhead) {
      RNN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int window = first + i;
        if (window >= windows) break;
        Vector16(&own)[kColumnTiles] = columns[(kFirst + i) % kAhead];
        multiply_shared<Product>(pass, window, lane, own, (kFirst + i) % 2 == 0 ? sum : odd);
        if (window + kAhead < windows) load_columns(operand + (window + kAhead) * window_stride, stride, own);
      }
    }
  }

  template <class Product, int kColumnTiles>
  RNN_DEVICE void multiply_shared(int pass, int window, int lane, const Vector16 (&columns)[kColumnTiles],
                                  float (&sum)[kTiles][kColumnTiles][4]) const {
    const Vector16* fragments = at(pass, window, lane);
    RNN_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const Vector16 rows[2] = {device::load16_shared(fragments + tile * 2 * kLanes),
                                device::load16_shared(fragments + (tile * 2 + 1) * kLanes)};
      RNN_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) multiply_window<Product>(sum[tile][n], rows, columns[n]);
    }
  }

  template <int kColumnTiles>
  RNN_DEVICE static void load_columns(const unsigned char* operand, int stride, Vector16 (&columns)[kColumnTiles]) {
    RNN_UNROLL
    for (int n = 0; n < kColumnTiles; ++n) columns[n] = device::load16_shared(operand + n * 8 * stride);
  }
};

}  // namespace rnnkernels::cuda
