// How CTAs spread over a whole grid hand results to each other, once per step, through the L2 cache: without a barrier, and
// without a fence or a flag in the way. Every 4 bytes say by themselves whether they have come, so that no two stores need an
// order; who needs them loads them until they have.
//
// forward: h of all units goes to everybody (GridGather). A word that has not come is kEmpty, which no number is sent as. Words
// are used again, round a ring of slots: whoever wrote one empties it, when all have read it.
// backward: each CTA has a float32 share of d(h) for each unit (GridScatter). A share's last bit says which of a slot's uses it
// belongs to, so that nothing needs emptying: that would double the bytes of a step.
#pragma once

#include "exchange.h"
#include "layout.h"

namespace rnnkernels::cuda {

// Where the CTAs of one direction of one slice of the batch meet in global memory.
struct GridPlace {
  unsigned char* exchange;  // GridGather::bytes or GridScatter::bytes
  uint32_t* flags;          // (CTAs), GridGather only
  int rows;                 // of the slice that the batch has
};

// Forward. The content of a slot: (column tiles, windows, 8, 64 bytes), so that what a warp loads at once is 512 adjacent bytes.
//
// Step k reads slot k % kSlots. A CTA sends for step k when it has read all of step k - 1; so when all of step k has come, slot
// k - 1 can be emptied. A slot's next use is kSlots steps later, and until then everybody must know that it was emptied: a
// reader may not find what it read the last time. Of two words written by another CTA one is not known to be written because the
// other is; that takes a release and an acquire, here once in half a round, long after and long before they matter.
template <int kSlots_>
class GridGather {
 public:
  static constexpr bool kHasMbarriers = false;
  static constexpr int kSlots = kSlots_, kPeriod = kSlots / 2;
  static constexpr int kReleasePhase = 2;  // step of a period, whose slots' content dates from the one before
  static_assert(kPeriod > kReleasePhase && kSlots % 2 == 0, "a period has a step that releases");

  RNN_HOST_DEVICE static int64_t slot_bytes(int column_tiles, int windows) {
    return int64_t(column_tiles) * windows * kBlockRows * kWindowBytes;
  }
  RNN_HOST_DEVICE static int64_t bytes(int column_tiles, int windows) { return kSlots * slot_bytes(column_tiles, windows); }

  RNN_DEVICE GridGather(const Partition& partition, const GridPlace& place, int column_tiles, int windows, int row_bytes)
      : place_(place), ctas_(partition.ctas), windows_(windows), row_bytes_(row_bytes),
        slot_bytes_(int(slot_bytes(column_tiles, windows))) {}

  RNN_DEVICE int rank() const { return device::block_x() % ctas_; }
  RNN_DEVICE int copies() const { return 1; }
  RNN_DEVICE void start() const { device::cta_barrier(); }
  RNN_DEVICE void expect(int, int) const {}
  RNN_DEVICE void finish() const {}

  // Before step k reads: what was released in the period before is known to a thread from here on, and to all from step k's
  // barrier on. Step k itself reads a slot that the acquire before this one was about.
  RNN_DEVICE void wait(int k) const {
    if (k % kPeriod != 0) return;
    for (int i = device::thread(); i < ctas_; i += device::threads())
      device::wait_for_flag(&place_.flags[i], uint32_t(k / kPeriod));
  }
  // When all warps have passed step k's barrier, and emptied the slots up to that of step k - 2 before it: says so.
  RNN_DEVICE void release(int k) const {
    // The last warp has no cells where any has none.
    if (k % kPeriod == kReleasePhase && device::thread() == device::threads() - 1)
      device::store_release(&place_.flags[rank()], uint32_t(k / kPeriod + 1));
  }

  // 16 bytes of a row of h for step k; the same lane always has the same bytes, so that it empties what it wrote.
  RNN_DEVICE void send(int k, int row, int byte, Vector16 value) const {
    if (row >= place_.rows) return;
    RNN_UNROLL
    for (int i = 0; i < 4; ++i)
      if (value.words[i] == kEmpty) value.words[i] = kOtherNan;
    device::store16_relaxed(at(k, row, byte), value);
    if (k >= 2) device::store16_relaxed(at(k - 2, row, byte), Vector16{{kEmpty, kEmpty, kEmpty, kEmpty}});
  }

  // A lane's vectors of h: of row g of each column tile, 16 bytes of every kSplits-th window.
  template <int kSplits>
  class Arriving {
   public:
    RNN_DEVICE Arriving(const GridGather& from, int k, int split, int g, int t)
        : first_(from.at(k, g, split * kWindowBytes + t * 16)),
          tile_bytes_(from.windows_ * kBlockRows * kWindowBytes),
          rows_(from.place_.rows - g),
          bytes_(from.row_bytes_ - split * kWindowBytes - t * 16) {}

    template <int kColumnTiles>
    RNN_DEVICE void ask(int window, Vector16 (&columns)[kColumnTiles]) const {
      RNN_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        columns[n] = Vector16{{0, 0, 0, 0}};
        if (n * kBlockRows < rows_ && window * (kSplits * kWindowBytes) < bytes_)
          columns[n] = device::load16_relaxed(first_ + n * tile_bytes_ + window * (kSplits * kBlockRows * kWindowBytes));
      }
    }
    // All lanes together, so that they go on to a product together.
    template <int kColumnTiles>
    RNN_DEVICE void await(int window, Vector16 (&columns)[kColumnTiles]) const {
      device::Patience patience;
      while (device::any(!whole(columns))) {
        patience.poll();
        ask(window, columns);
      }
    }

   private:
    template <int kColumnTiles>
    RNN_DEVICE static bool whole(const Vector16 (&columns)[kColumnTiles]) {
      bool empty = false;
      RNN_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        RNN_UNROLL
        for (int i = 0; i < 4; ++i) empty = empty || columns[n].words[i] == kEmpty;
      }
      return !empty;
    }

    const unsigned char* first_;
    int tile_bytes_, rows_, bytes_;
  };

 private:
  static constexpr uint32_t kEmpty = 0xffffffffu, kOtherNan = 0x7fffffffu;

  RNN_DEVICE unsigned char* at(int k, int row, int byte) const {
    const int window = byte / kWindowBytes;
    return place_.exchange + int(uint32_t(k) % kSlots) * slot_bytes_ +
           ((row / kBlockRows * windows_ + window) * kBlockRows + row % kBlockRows) * kWindowBytes + byte % kWindowBytes;
  }

  const GridPlace place_;
  const int ctas_, windows_, row_bytes_, slot_bytes_;
};

// Backward. The content of one of two slots: (sources, units of all, rows). Whoever sends for step k + 1 has received all
// of step k, which its sources sent when they had read step k - 1, the slot's content before.
class GridScatter {
 public:
  static constexpr bool kHasMbarriers = false;
  static constexpr bool kTakesTime = true;

  RNN_HOST_DEVICE static int64_t bytes(const Partition& partition, int parts, int rows) {
    return 2 * int64_t(partition.ctas) * partition.ctas * parts * partition.units * rows * int64_t(sizeof(float));
  }
  // Sums of sources that a CTA's threads leave in shared memory.
  RNN_HOST_DEVICE static int folds(int threads, int units, int rows) {
    return threads * 4 > units * rows ? threads * 4 / (units * rows) : 1;
  }

  RNN_DEVICE GridScatter(const Partition& partition, const GridPlace& place, int parts)
      : place_(place), ctas_(partition.ctas), sources_(partition.ctas * parts) {}

  RNN_DEVICE int rank() const { return device::block_x() % ctas_; }
  RNN_DEVICE void start() const { device::cta_barrier(); }
  RNN_DEVICE void expect(int, int) const {}
  RNN_DEVICE void finish() const {}

  // Where a source's shares for step k begin, and two of them: of a unit of all for two neighbouring rows of the slice.
  // kUnits, kRows: of a CTA, of a slice.
  template <int kUnits, int kRows>
  RNN_DEVICE float* shares(int k, int source) const {
    const int place = (k & 1) * sources_ + source;
    return reinterpret_cast<float*>(place_.exchange) + place * (ctas_ * kUnits * kRows);
  }
  template <int kRows>
  RNN_DEVICE void send(int k, float* shares, int unit, int row, float low, float high) const {
    if (row < place_.rows) device::store8_relaxed(shares + unit * kRows + row, Vector8{{tagged(k, low), tagged(k, high)}});
  }

  // Adds up the shares of own units, every folds-th source at a time: shares (folds, units, kSlotRow).
  template <int kUnits, int kRows, int kSlotRow>
  RNN_DEVICE void receive(int k, float* shares) const {
    constexpr int kVectors = kUnits * kRows / 4;
    const int sums = folds(device::threads(), kUnits, kRows);
    RNN_NO_UNROLL
    for (int i = device::thread(); i < kVectors * sums; i += device::threads()) {
      const int fold = i / kVectors, unit = i % kVectors / (kRows / 4), row = i % (kRows / 4) * 4;
      float sum[4] = {};
      const int element = (rank() * kUnits + unit) * kRows + row;
      add_up<kUnits, kRows>(k, fold, sums, element, place_.rows + place_.rows % 2 - row, sum);
      float* to = shares + (fold * kUnits + unit) * kSlotRow + row;
      device::store16_shared(to, Vector16{{device::bits_of(sum[0]), device::bits_of(sum[1]), device::bits_of(sum[2]),
                                           device::bits_of(sum[3])}});
    }
    device::cta_barrier();
  }

 private:
  static constexpr int kAhead = 4;  // loads in flight

  // words: of the four, that are sent, since pairs of rows are.
  template <int kUnits, int kRows>
  RNN_DEVICE void add_up(int k, int first, int stride, int element, int words, float (&sum)[4]) const {
    if (words <= 0) return;
    RNN_NO_UNROLL
    for (int source = first; source < sources_; source += kAhead * stride) {
      Vector16 shares[kAhead];
      RNN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        shares[i] = Vector16{{0, 0, 0, 0}};
        if (source + i * stride < sources_)
          shares[i] = device::load16_relaxed(this->shares<kUnits, kRows>(k, source + i * stride) + element);
      }
      RNN_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (source + i * stride >= sources_) break;
        device::Patience patience;
        while (!whole(k, shares[i], words)) {
          patience.poll();
          shares[i] = device::load16_relaxed(this->shares<kUnits, kRows>(k, source + i * stride) + element);
        }
        RNN_UNROLL
        for (int j = 0; j < 4; ++j) sum[j] += j < words ? device::float_of(shares[i].words[j] & ~1u) : 0.0f;
      }
    }
  }

  // Slots are zero at first, and uses of a slot alternate.
  RNN_DEVICE static uint32_t tag(int k) { return 1 - uint32_t(k - 1) / 2 % 2; }
  // Rounds towards zero by the last bit, less than float32's own products are off by. An infinite share with the bit set reads as
  // a NaN until it is taken off again.
  RNN_DEVICE static uint32_t tagged(int k, float x) { return (device::bits_of(x) & ~1u) | tag(k); }
  RNN_DEVICE static bool whole(int k, const Vector16& shares, int words) {
    bool result = true;
    RNN_UNROLL
    for (int j = 0; j < 4; ++j) result = result && (j >= words || (shares.words[j] & 1u) == tag(k));
    return result;
  }

  const GridPlace place_;
  const int ctas_, sources_;
};

struct GridExchange {
  static constexpr bool kHasMbarriers = false;
  using Forward = GridGather<32>;
  using Backward = GridScatter;
};

}  // namespace rnnkernels::cuda
