// The forward recurrence of a whole sequence in one launch: W_hh stays in registers and shared memory, the state of a
// slice of the batch goes round through shared memory, once per step. One direction of one slice per CTA or group of
// CTAs: block_x is slice * ctas + rank, block_y the direction.
//
// A step of a warp: wait for h; multiply its weights with it; add the projected input, fetched a step ahead; the cell;
// send the new h of its units to everybody. In a direct tile (the grid's) all warps of a CTA share its units, each multiplies a
// part of h as it arrives, and a barrier of the CTA lies between the product and the cell. Equations: backends/reference.py.
#pragma once

#include "exchange.h"
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
      : arrived(carver.take<device::Mbarrier>(2)), h(carver, Tile::kDirect ? 0 : Tile::kRows * operand_stride(all_windows(partition))) {
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

// One vector of packed weights per thread: the rows of a warp's blocks are the gates of its first unit group, then those of
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
  const int index = 2 * place.tile + place.block, group = index / Cell::kGates, gate = index % Cell::kGates;
  const int split = place.warp % Tile::kSplits, block = place.warp / Tile::kSplits;
  const int unit = place.rank * p.partition.units + block * Own::kUnits + group * kBlockRows + place.lane / 4;
  const int first = (place.window * Tile::kSplits + split) * kWindow<Product> + place.lane % 4 * kLaneShare<Product>;
  const S* row = static_cast<const S*>(p.w_hh[direction]) + int64_t(gate * h + unit) * h;
  static_cast<Vector16*>(p.packed[direction])[i] = gather<Product>([&](int k) {
    return unit < h && first + k < h ? Product::weight(device::load_constant(row + first + k)) : Product::operand(0.0f);
  });
}

template <class Cell, class Product, class Tile, class Exchange>
class ForwardPass {
 public:
  using S = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Shared = ForwardShared<Cell, Product, Tile>;
  using Own = Ownership<Cell, Tile>;

  RNN_DEVICE explicit ForwardPass(const ForwardArguments& arguments)
      : p_(arguments),
        shared_(device::shared_memory(), arguments.partition),
        slice_(arguments.first_slice + device::block_x() / arguments.partition.ctas),
        direction_(device::block_y()),
        first_row_(slice_ * Tile::kRows),
        windows_(Shared::all_windows(arguments.partition)),
        stride_(operand_stride(windows_)),
        exchange_(exchange(arguments)),
        first_unit_(exchange_.rank() * arguments.partition.units),
        steps_(arguments.sequence, first_row_, direction_ == 1) {}

  RNN_DEVICE void run() {
    load_weights();
    load_biases();
    load_states();
    exchange_.start();
    if constexpr (Tile::kDirect) {
      stage(0);
      send(0);
    }
    const int64_t length = steps_.length();
    const int bytes = p_.partition.ctas * p_.partition.units * Tile::kRows * int(sizeof(Operand));
    if (length > 0) fetch(0);
    RNN_NO_UNROLL
    for (int64_t k = 0; k < length; ++k) {
      const bool last = k + 1 == length;
      if constexpr (Tile::kDirect) own_.find_again();
      if (k + 2 < length) prefetch(k + 2);
      if (k > 0) exchange_.wait(k);
      if (!last) exchange_.expect(k + 1, bytes);
      Products products;
      multiply(k, products);
      step(products);
      if (last) break;
      stage(k + 1);
      send(k + 1);
      fetch(k + 1);
    }
    store_final_states();
    exchange_.finish();
  }

 private:
  static constexpr int kGroups = Own::kGroups, kTiles = Own::kTiles, kColumns = Own::kColumns, kGates = Cell::kGates;
  static constexpr int kMatrixTiles = Own::kMatrixTiles, kColumnTiles = Tile::kColumnTiles;
  static constexpr int kAhead = ceil_divide(4, kColumnTiles);  // windows of an arriving operand

  // W_hh h of own cells.
  using Products = float[kGroups][kTiles][kColumns][kGates];

  RNN_DEVICE Exchange exchange(const ForwardArguments& p) const {
    if constexpr (Tile::kDirect) {
      const int64_t slices = (p.sequence.batch + Tile::kRows - 1) / Tile::kRows, place = direction_ * slices + slice_;
      const int64_t rows = p.sequence.batch - first_row_;
      const GridPlace meeting{static_cast<unsigned char*>(p.exchange) + place * Exchange::bytes(kColumnTiles, windows_),
                              p.flags + place * p.partition.ctas, rows < Tile::kRows ? int(rows) : Tile::kRows};
      return Exchange(p.partition, meeting, kColumnTiles, windows_,
                      p.partition.ctas * p.partition.units * int(sizeof(Operand)));
    } else {
      return Exchange(p.partition, shared_.arrived);
    }
  }

  // ---- Where things are in global memory; d the direction, n the batch row, r the row of all steps' ------------------

  RNN_DEVICE int hidden() const { return p_.sequence.hidden; }
  RNN_DEVICE int unit(int group) const { return first_unit_ + own_.unit(group); }
  RNN_DEVICE int64_t state_index(int tile, int column, int group) const {
    return (direction_ * p_.sequence.batch + first_row_ + own_.row(tile, column)) * hidden() + unit(group);
  }
  RNN_DEVICE bool exists(int tile, int column, int group) const {
    return own_.has_cells() && first_row_ + own_.row(tile, column) < p_.sequence.batch && unit(group) < hidden();
  }

  // ---- Before the first step -----------------------------------------------------------------------------------------

  RNN_DEVICE void load_weights() {
    const int most = Shared::most_windows(p_.partition), warps = Own::warps(p_.partition.units);
    const int own = (windows_ - own_.split + Tile::kSplits - 1) / Tile::kSplits;
    const auto* packed = static_cast<const Vector16*>(p_.packed[direction_]) +
                         int64_t(exchange_.rank() * warps + own_.warp) * most * kMatrixTiles * 2 * kLanes;
    weights_.shared = shared_.weights + own_.warp * Shared::Weights::shared_count(1, most);
    weights_.load(packed, 1, most, own, own_.lane);
  }

  RNN_DEVICE void load_biases() {
    const S* ih = static_cast<const S*>(p_.b_ih[direction_]);
    const S* hh = static_cast<const S*>(p_.b_hh[direction_]);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      const int u = unit(group);
      const auto load = [&](const S* bias) {
        return [=](int gate) {
          return bias != nullptr && u < hidden() ? device::to_float(device::load_constant(bias + gate * hidden() + u)) : 0.0f;
        };
      };
      Cell::biases(load(ih), load(hh), bias_[group]);
    }
  }

  // Own states to registers; unless it is sent, everybody's h0 to the first buffer, and zeros where both have no unit.
  RNN_DEVICE void load_states() {
    const S* h0 = static_cast<const S*>(p_.h0);
    const S* c0 = static_cast<const S*>(p_.c0);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          State& state = state_[group][tile][column];
          state = State{0.0f, 0.0f};
          if (!exists(tile, column, group)) continue;
          const int64_t index = state_index(tile, column, group);
          state.h = device::to_float(device::load_constant(h0 + index));
          if constexpr (Cell::kHasCellState) state.c = device::to_float(device::load_constant(c0 + index));
        }
      }
    }
    if constexpr (Tile::kDirect) return;
    const int width = windows_ * kWindow<Product>;
    RNN_NO_UNROLL
    for (int i = device::thread(); i < Tile::kRows * width; i += device::threads()) {
      const int row = i / width, u = i % width;
      const int64_t n = first_row_ + row;
      const bool inside = n < p_.sequence.batch && u < hidden();
      const float value =
          inside ? device::to_float(device::load_constant(h0 + (direction_ * p_.sequence.batch + n) * hidden() + u)) : 0.0f;
      operand_row(0, row)[u] = Product::operand(value);
      if (u >= p_.partition.ctas * p_.partition.units) operand_row(1, row)[u] = Product::operand(0.0f);
    }
  }

  RNN_DEVICE Operand* operand_row(int64_t k, int row) const {
    return reinterpret_cast<Operand*>(shared_.h[k] + row * stride_);
  }

  // ---- A step --------------------------------------------------------------------------------------------------------

  // Asks for the projected input of step k; what is not there is zero. It is used after the next product, which is time
  // enough for the L2 cache to answer, where prefetch() had it brought two steps ahead.
  RNN_DEVICE void fetch(int64_t k) {
    rows_ = steps_.rows(k);
    each_input(rows_, [&](int group, int tile, int column, int gate, const float* x) {
      fetched_[group][tile][column][gate] = x != nullptr ? device::load_constant(x) : 0.0f;
    });
  }

  RNN_DEVICE void prefetch(int64_t k) const {
    each_input(steps_.rows(k), [&](int, int, int, int, const float* x) {
      if (x != nullptr) device::prefetch(x);
    });
  }

  template <class Use>
  RNN_DEVICE void each_input(StepRows rows, const Use& use) const {
    const float* first = p_.projected[direction_] + rows.first * kGates * hidden();
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          const int u = unit(group);
          const bool inside = own_.has_cells() && own_.row(tile, column) < rows.active && u < hidden();
          RNN_UNROLL
          for (int gate = 0; gate < kGates; ++gate)
            use(group, tile, column, gate,
                inside ? own_.at(first + gate * hidden(), kGates * hidden(), tile, column, u) : nullptr);
        }
      }
    }
  }

  RNN_DEVICE void multiply(int64_t k, Products& products) {
    float sum[kMatrixTiles][kColumnTiles][4] = {};
    if constexpr (Tile::kDirect) {
      const typename Exchange::template Arriving<Tile::kSplits> h(exchange_, k, own_.split, own_.g, own_.t);
      weights_.template multiply_arriving<Product, kAhead>(h, own_.lane, sum);
      gather_parts(k, sum, products);
      return;
    }
    const unsigned char* operand = shared_.h[k] + own_.g * stride_ + own_.split * kWindowBytes + own_.t * 16;
    weights_.template multiply<Product>(0, operand, stride_, Tile::kSplits * kWindowBytes, own_.lane, sum);
    if constexpr (Tile::kSplits == 2) exchange_halves(k, sum);
    each_product(products, [&](int matrix_tile, int tile, int row_block, int column, float& product) {
      product = sum[matrix_tile][tile][2 * row_block + (Tile::kSplits == 2 ? 0 : column)];
    });
  }

  // use(tile of 16 rows, column tile, block of its rows, column, product) for the products of own cells.
  template <class Use>
  RNN_DEVICE void each_product(Products& products, const Use& use) const {
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          RNN_UNROLL
          for (int gate = 0; gate < kGates; ++gate) {
            const int block = own_.unit_group(group) * kGates + gate;
            use(block / 2, own_.column_tile(tile), block % 2, own_.column(column), products[group][tile][column][gate]);
          }
        }
      }
    }
  }

  // The other warp of the block gets its columns' sums over our half of K, we get ours over its half; ours come first then in
  // each pair. Two buffers: nobody writes one again before the other has passed the next step's barrier.
  RNN_DEVICE void exchange_halves(int64_t k, float (&sum)[kMatrixTiles][kColumnTiles][4]) const {
    float* mine = partial(own_.warp, k);
    const float* other = partial(own_.warp ^ 1, k);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 2; ++i)
      mine[i * kLanes] = own_.split == 0 ? pair(sum, i)[1] : pair(sum, i)[0];
    device::named_barrier(1 + own_.block, 2 * kLanes);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 2; ++i) {
      const float theirs = other[i * kLanes];
      // In the order of K's halves, whoever adds.
      pair(sum, i)[0] = own_.split == 0 ? pair(sum, i)[0] + theirs : theirs + pair(sum, i)[1];
    }
  }

  // Likewise among all warps of the CTA, whoever has cells: the sums over K's parts in their order.
  RNN_DEVICE void gather_parts(int64_t k, const float (&sum)[kMatrixTiles][kColumnTiles][4], Products& products) const {
    float* mine = partial(own_.warp, k);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 4; ++i) mine[i * kLanes] = sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4];
    device::cta_barrier();
    exchange_.release(k);
    if (own_.has_cells()) {
      each_product(products, [&](int matrix_tile, int tile, int row_block, int column, float& product) {
        const float* part = partial(0, k) + ((matrix_tile * kColumnTiles + tile) * 4 + 2 * row_block + column) * kLanes;
        product = part[0];
        RNN_UNROLL
        for (int split = 1; split < Tile::kSplits; ++split) product += part[split * Shared::kPartials * Shared::kPartial];
      });
    }
    if constexpr (Shared::kPartials == 1) device::cta_barrier();
  }

  RNN_DEVICE float* partial(int warp, int64_t k) const {
    return shared_.partial + (warp * Shared::kPartials + k % Shared::kPartials) * Shared::kPartial + own_.lane;
  }
  // The i-th pair of sums that differ in the column only.
  RNN_DEVICE static float* pair(float (&sum)[kMatrixTiles][kColumnTiles][4], int i) {
    return &sum[i / 2 / kColumnTiles][i / 2 % kColumnTiles][i % 2 * 2];
  }

  RNN_DEVICE void step(const Products& products) {
    if (!own_.has_cells()) return;
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          State& state = state_[group][tile][column];
          const int u = unit(group);
          if (own_.row(tile, column) < rows_.active && u < hidden()) {
            float saved[kSavedGates];
            Cell::forward(fetched_[group][tile][column], products[group][tile][column], bias_[group], state, saved);
            store(tile, column, u, saved, state);
          }
          // Of sequences that are not active the state stays as it is: they may become so.
        }
      }
    }
  }

  RNN_DEVICE void store(int tile, int column, int u, const float (&saved)[kSavedGates], const State& state) const {
    const int h = hidden(), directions = p_.sequence.directions;
    S* output = static_cast<S*>(p_.output) + (rows_.first * directions + direction_) * h;
    device::store_streaming(own_.at(output, directions * h, tile, column, u), device::round_to<S>(state.h));
    if (p_.gates == nullptr) return;
    const int64_t first = direction_ * p_.sequence.rows + rows_.first;
    S* gates = static_cast<S*>(p_.gates) + first * kSavedGates * h;
    RNN_UNROLL
    for (int gate = 0; gate < kSavedGates; ++gate)
      device::store_streaming(own_.at(gates + gate * h, kSavedGates * h, tile, column, u), device::round_to<S>(saved[gate]));
    if constexpr (Cell::kHasCellState) device::store_streaming(own_.at(p_.cells + first * h, h, tile, column, u), state.c);
  }

  // ---- The new h to everybody ----------------------------------------------------------------------------------------

  // Through the warp's staging rows, so that 16 bytes go at a time. Two of them alternate: when a lane passes the next
  // step's barrier, all lanes have read this step's.
  RNN_DEVICE Operand* staging(int64_t k) const { return shared_.staging + (own_.warp * 2 + k % 2) * Shared::kStaged; }

  RNN_DEVICE void stage(int64_t k) const {
    if (!own_.has_cells()) return;
    Operand* staged = staging(k);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column)
          staged[own_.staged_row(tile, column) * (kGroups * 8) + group * 8 + own_.g] =
              Product::operand(state_[group][tile][column].h);
      }
    }
  }

  RNN_DEVICE void send(int64_t k) {
    if (!own_.has_cells()) return;
    constexpr int kGroupBytes = 8 * int(sizeof(Operand)), kRowBytes = kGroups * kGroupBytes;
    constexpr int kChunks = Own::kStagedRows * kRowBytes / 16;
    const auto* staged = reinterpret_cast<const unsigned char*>(staging(k));
    device::warp_barrier();
    RNN_NO_UNROLL
    for (int i = own_.lane; i < kChunks * exchange_.copies(); i += kLanes) {
      const int chunk = i % kChunks, row = own_.row_of_staged(chunk / (kRowBytes / 16)), staged_byte = chunk * 16 % kRowBytes;
      const int group = own_.unit_group(staged_byte / kGroupBytes);
      const int first = first_unit_ + own_.block * Own::kUnits;
      const int byte = first * int(sizeof(Operand)) + group * kGroupBytes + staged_byte % kGroupBytes;
      const Vector16 value = device::load16(staged + chunk * 16);
      if constexpr (Tile::kDirect) {
        exchange_.send(k, row, byte, value);
      } else {
        exchange_.send(k, i / kChunks, shared_.h[k] + row * stride_ + byte, value);
      }
    }
  }

  RNN_DEVICE void store_final_states() const {
    S* h_n = static_cast<S*>(p_.h_n);
    S* c_n = static_cast<S*>(p_.c_n);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          if (!exists(tile, column, group)) continue;
          const int64_t index = state_index(tile, column, group);
          h_n[index] = device::round_to<S>(state_[group][tile][column].h);
          if constexpr (Cell::kHasCellState) c_n[index] = device::round_to<S>(state_[group][tile][column].c);
        }
      }
    }
  }

  const ForwardArguments& p_;
  Own own_;
  const Shared shared_;
  const int slice_, direction_, first_row_, windows_, stride_;
  const Exchange exchange_;
  const int first_unit_;
  const Steps steps_;

  typename Shared::Weights weights_;
  float bias_[kGroups][kSavedGates];
  State state_[kGroups][kTiles][kColumns];
  StepRows rows_;                                  // of the step at hand, or to come
  float fetched_[kGroups][kTiles][kColumns][kGates];  // its projected input
};

template <class Cell, class Product, class Tile, class Exchange>
RNN_DEVICE void forward(const ForwardArguments& arguments) {
  ForwardPass<Cell, Product, Tile, typename Exchange::Forward>(arguments).run();
}

}  // namespace rnnkernels::cuda
