// The forward recurrence of a whole sequence in one launch: W_hh stays in registers and shared memory, the state of a
// slice of the batch goes round through shared memory, once per step. One direction of one slice per CTA or group of
// CTAs: block_x is slice * ctas + rank, block_y the direction.
//
// A step of a warp: wait for h; multiply its weights with it; add the projected input, fetched a step ahead; the cell;
// send the new h of its units to everybody. In a direct tile (the grid's) all warps of a CTA share its units, each multiplies a
// part of h as it arrives, and a barrier of the CTA lies between the product and the cell. Equations: backends/reference.py.
#pragma once

#include "exchange.h"
#include "forward_layout.h"
#include "grid.h"

namespace rnnkernels::cuda {

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
        slice_((Tile::kDirect ? arguments.first_slice : 0) + device::block_x() / arguments.partition.ctas),
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
    const int length = steps_.length();
    const int bytes = p_.partition.ctas * p_.partition.units * Tile::kRows * int(sizeof(Operand));
    if (length > 0) fetch(0);
    RNN_NO_UNROLL
    for (int k = 0; k < length; ++k) {
      const bool last = k + 1 == length;
      if (k + 2 < length) prefetch(k + 2);
      if (k > 0) exchange_.wait(k);
      if (!last) exchange_.expect(k + 1, bytes);
      Products products;
      multiply(k, products);
      Saved saved;
      step(products, saved);
      // Others wait for the new h: everything else comes after it.
      if (!last) {
        stage(k + 1);
        send(k + 1);
      }
      store(saved);
      if (!last) fetch(k + 1);
    }
    store_final_states();
    exchange_.finish();
  }

 private:
  static constexpr int kGroups = Own::kGroups, kTiles = Own::kTiles, kColumns = Own::kColumns, kGates = Cell::kGates;
  static constexpr int kMatrixTiles = Own::kMatrixTiles, kColumnTiles = Tile::kColumnTiles;
  static constexpr int kAhead = ceil_divide(4, kColumnTiles);  // windows of the operand that are on their way

  // W_hh h of own cells.
  using Products = float[kGroups][kTiles][kColumns][kGates];
  // What backward will need of them.
  using Saved = S[kGroups][kTiles][kColumns][kSavedGates];

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
    Own::each_cell([&](int group, int tile, int column) {
      State& state = state_[group][tile][column];
      state = State{0.0f, 0.0f};
      RNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate) fetched_[group][tile][column][gate] = 0.0f;
      if (!exists(tile, column, group)) return;
      const int64_t index = state_index(tile, column, group);
      state.h = device::to_float(device::load_constant(h0 + index));
      if constexpr (Cell::kHasCellState) state.c = device::to_float(device::load_constant(c0 + index));
    });
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

  // Whether the step at hand has this cell.
  RNN_DEVICE bool is_active(int tile, int column, int group) const {
    return own_.row(tile, column) < rows_.active && unit(group) < hidden();
  }

  RNN_DEVICE Operand* operand_row(int k, int row) const {
    return reinterpret_cast<Operand*>(shared_.h[k] + row * stride_);
  }

  // ---- A step --------------------------------------------------------------------------------------------------------

  // Asks for the projected input of step k. It is used after the next product, which is time enough for the L2 cache to answer,
  // where prefetch() had it brought two steps ahead.
  RNN_DEVICE void fetch(int k) {
    rows_ = steps_.rows(k);
    if (!own_.has_cells()) return;
    const int h = hidden(), width = kGates * h;
    const float* first = own_.first_of(p_.projected[direction_] + first_unit_, rows_.first, width);
    Own::each_cell([&](int group, int tile, int column) {
      if (!is_active(tile, column, group)) return;
      RNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate)
        fetched_[group][tile][column][gate] =
            device::load_constant(first + (own_.after_first(width, tile, column, group) + gate * h));
    });
  }

  RNN_DEVICE void prefetch(int k) const {
    if (!own_.has_cells()) return;
    const SliceRows rows = steps_.rows(k);
    const int h = hidden(), width = kGates * h;
    const float* first = p_.projected[direction_] + (int64_t(rows.first) * width + first_unit_);
    own_.template each_block<kGates>([&](int row, int unit, int gate) {
      if (row < rows.active && first_unit_ + unit < h) device::prefetch(first + (row * width + gate * h + unit));
    });
  }

  RNN_DEVICE void multiply(int k, Products& products) {
    float sum[kMatrixTiles][kColumnTiles][4] = {};
    if constexpr (Tile::kDirect) {
      const typename Exchange::template Arriving<Tile::kSplits> h(exchange_, k, own_.split, own_.g, own_.t);
      weights_.template multiply_arriving<Product, kAhead>(h, own_.lane, sum);
      gather_parts(k, sum, products);
      return;
    }
    const unsigned char* operand = shared_.h[k] + own_.g * stride_ + own_.split * kWindowBytes + own_.t * 16;
    weights_.template multiply<Product, kAhead>(0, operand, stride_, Tile::kSplits * kWindowBytes, own_.lane, sum);
    if constexpr (Tile::kSplits == 2) exchange_halves(k, sum);
    each_product(products, [&](int matrix_tile, int tile, int row_block, int column, float& product) {
      product = sum[matrix_tile][tile][2 * row_block + (Tile::kSplits == 2 ? 0 : column)];
    });
  }

  // use(tile of 16 rows, column tile, block of its rows, column, product) for the products of own cells.
  template <class Use>
  RNN_DEVICE void each_product(Products& products, const Use& use) const {
    Own::each_cell([&](int group, int tile, int column) {
      RNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate) {
        const int block = own_.unit_group(group) * kGates + gate;
        use(block / 2, own_.column_tile(tile), block % 2, own_.column(column), products[group][tile][column][gate]);
      }
    });
  }

  // The other warp of the block gets its columns' sums over our half of K, we get ours over its half; ours come first then in
  // each pair. Two buffers: nobody writes one again before the other has passed the next step's barrier.
  RNN_DEVICE void exchange_halves(int k, float (&sum)[kMatrixTiles][kColumnTiles][4]) const {
    float* mine = partial(own_.warp, k);
    const float* other = partial(own_.warp ^ 1, k);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 2; ++i)
      device::store_shared(mine + i * kLanes, own_.split == 0 ? pair(sum, i)[1] : pair(sum, i)[0]);
    device::named_barrier(1 + own_.block, 2 * kLanes);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 2; ++i) {
      const float theirs = device::load_shared(other + i * kLanes);
      // In the order of K's halves, whoever adds.
      pair(sum, i)[0] = own_.split == 0 ? pair(sum, i)[0] + theirs : theirs + pair(sum, i)[1];
    }
  }

  // Likewise among all warps of the CTA, whoever has cells: the sums over K's parts in their order.
  RNN_DEVICE void gather_parts(int k, const float (&sum)[kMatrixTiles][kColumnTiles][4], Products& products) const {
    float* mine = partial(own_.warp, k);
    RNN_UNROLL
    for (int i = 0; i < kMatrixTiles * kColumnTiles * 4; ++i)
      device::store_shared(mine + i * kLanes, sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4]);
    device::cta_barrier();
    exchange_.release(k);
    if (own_.has_cells()) {
      each_product(products, [&](int matrix_tile, int tile, int row_block, int column, float& product) {
        const float* part = partial(0, k) + ((matrix_tile * kColumnTiles + tile) * 4 + 2 * row_block + column) * kLanes;
        product = device::load_shared(part);
        RNN_UNROLL
        for (int split = 1; split < Tile::kSplits; ++split)
          product += device::load_shared(part + split * Shared::kPartials * Shared::kPartial);
      });
    }
    if constexpr (Shared::kPartials == 1) device::cta_barrier();
  }

  RNN_DEVICE float* partial(int warp, int k) const {
    return shared_.partial + (warp * Shared::kPartials + k % Shared::kPartials) * Shared::kPartial + own_.lane;
  }
  // The i-th pair of sums that differ in the column only.
  RNN_DEVICE static float* pair(float (&sum)[kMatrixTiles][kColumnTiles][4], int i) {
    return &sum[i / 2 / kColumnTiles][i / 2 % kColumnTiles][i % 2 * 2];
  }

  RNN_DEVICE void step(const Products& products, Saved& saved) {
    if (!own_.has_cells()) return;
    Own::each_cell([&](int group, int tile, int column) {
      // All cells are computed, active or not, without a branch between them: then their latencies pass side by side.
      State& state = state_[group][tile][column];
      State next = state;
      float gates[kSavedGates];
      Cell::forward(fetched_[group][tile][column], products[group][tile][column], bias_[group], next, gates);
      // Of sequences that are not active the state stays as it is: they may become so.
      const bool active = is_active(tile, column, group);
      state.h = active ? next.h : state.h;
      state.c = active ? next.c : state.c;
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) saved[group][tile][column][gate] = device::round_to<S>(gates[gate]);
    });
  }

  RNN_DEVICE void store(const Saved& saved) const {
    if (!own_.has_cells()) return;
    const int h = hidden(), width = p_.sequence.directions * h;
    S* output = own_.first_of(static_cast<S*>(p_.output) + (direction_ * h + first_unit_), rows_.first, width);
    const bool saves = p_.gates != nullptr;
    S* gates = nullptr;
    float* cells = nullptr;
    if (saves) {
      const int row = direction_ * int(p_.sequence.rows) + rows_.first;
      gates = own_.first_of(static_cast<S*>(p_.gates) + first_unit_, row, kSavedGates * h);
      if constexpr (Cell::kHasCellState) cells = own_.first_of(p_.cells + first_unit_, row, h);
    }
    Own::each_cell([&](int group, int tile, int column) {
      if (!is_active(tile, column, group)) return;
      const State& state = state_[group][tile][column];
      device::store_streaming(output + own_.after_first(width, tile, column, group), device::round_to<S>(state.h));
      if (!saves) return;
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate)
        device::store_streaming(gates + (own_.after_first(kSavedGates * h, tile, column, group) + gate * h),
                                saved[group][tile][column][gate]);
      if constexpr (Cell::kHasCellState)
        device::store_streaming(cells + own_.after_first(h, tile, column, group), state.c);
    });
  }

  // ---- The new h to everybody ----------------------------------------------------------------------------------------

  // Through the warp's staging rows, so that 16 bytes go at a time. Two of them alternate: when a lane passes the next
  // step's barrier, all lanes have read this step's.
  RNN_DEVICE Operand* staging(int k) const { return shared_.staging + (own_.warp * 2 + k % 2) * Shared::kStaged; }

  RNN_DEVICE void stage(int k) const {
    if (!own_.has_cells()) return;
    Operand* staged = staging(k);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column)
          device::store_shared(staged + (own_.staged_row(tile, column) * (kGroups * 8) + group * 8 + own_.g),
                               Product::operand(state_[group][tile][column].h));
      }
    }
  }

  RNN_DEVICE void send(int k) {
    if (!own_.has_cells()) return;
    constexpr int kGroupBytes = 8 * int(sizeof(Operand)), kRowBytes = kGroups * kGroupBytes;
    constexpr int kChunks = Own::kStagedRows * kRowBytes / 16, kLanesOfCopy = least(kChunks, kLanes);
    static_assert(kChunks % kLanesOfCopy == 0 && kLanes % kLanesOfCopy == 0, "lanes divide the copies evenly");
    const auto* staged = reinterpret_cast<const unsigned char*>(staging(k));
    const int first = (first_unit_ + own_.block * Own::kUnits) * int(sizeof(Operand));
    device::warp_barrier();
    RNN_UNROLL
    for (int i = 0; i < kChunks; i += kLanesOfCopy) {
      const int chunk = i + own_.lane % kLanesOfCopy;
      const int row = own_.row_of_staged(chunk / (kRowBytes / 16)), staged_byte = chunk * 16 % kRowBytes;
      const int group = own_.unit_group(staged_byte / kGroupBytes);
      const int byte = first + group * kGroupBytes + staged_byte % kGroupBytes;
      const Vector16 value = device::load16_shared(staged + chunk * 16);
      if constexpr (Tile::kDirect) {
        if (own_.lane < kLanesOfCopy) exchange_.send(k, row, byte, value);
      } else {
        unsigned char* destination = shared_.h[k] + row * stride_ + byte;
        for (int rank = own_.lane / kLanesOfCopy; rank < exchange_.copies(); rank += kLanes / kLanesOfCopy)
          exchange_.send(k, rank, destination, value);
      }
    }
  }

  RNN_DEVICE void store_final_states() const {
    S* h_n = static_cast<S*>(p_.h_n);
    S* c_n = static_cast<S*>(p_.c_n);
    Own::each_cell([&](int group, int tile, int column) {
      if (!exists(tile, column, group)) return;
      const int64_t index = state_index(tile, column, group);
      h_n[index] = device::round_to<S>(state_[group][tile][column].h);
      if constexpr (Cell::kHasCellState) c_n[index] = device::round_to<S>(state_[group][tile][column].c);
    });
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
  SliceRows rows_;                                 // of the step at hand, or to come
  float fetched_[kGroups][kTiles][kColumns][kGates];  // its projected input
};

template <class Cell, class Product, class Tile, class Exchange>
RNN_DEVICE void forward(const ForwardArguments& arguments) {
  ForwardPass<Cell, Product, Tile, typename Exchange::Forward>(arguments).run();
}

}  // namespace rnnkernels::cuda
