// The backward recurrence of a whole sequence in one launch, in forward.h's partition: a CTA has the gates of its own
// units, takes their gradients, and multiplies them with its rows of W_hh. The product is a share of d(h') for all
// units; the shares go in float32 to the CTAs that own those units, which add them in a fixed order.
//
// A step of a CTA: wait for the shares of d(h); the cell backwards; a barrier of the CTA, since its warps divide the
// product otherwise than the cell; multiply; send. Equations: backends/reference.py.
#pragma once

#include "exchange.h"
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

// One vector of packed weights per thread: row j of W_hh^T is unit j of all, its column gate * U + u row gate * H + own unit u
// of W_hh; the windows of warps with the same rows alternate.
template <class Cell, class Product, class Tile>
RNN_DEVICE void pack_backward(const PackArguments& p) {
  using S = typename Product::Storage;
  const BackwardDivision<Cell, Product, Tile> division(p.partition);
  const int64_t i = int64_t(device::block_x()) * device::threads() + device::thread();
  if (i >= division.packed_count(p.partition.ctas)) return;
  const int h = p.hidden, units = p.partition.units, direction = device::block_y();
  const PackedPlace place(i, division.warps, division.passes, division.most_windows(), Tile::kBackwardTiles);
  const int j =
      (division.first_tile(place.warp, place.pass) + place.tile) * kTileRows + place.block * kBlockRows + place.lane / 4;
  const int first =
      (place.window * division.parts + place.warp % division.parts) * kWindow<Product> + place.lane % 4 * kLaneShare<Product>;
  const S* w = static_cast<const S*>(p.w_hh[direction]);
  static_cast<Vector16*>(p.packed[direction])[i] = gather<Product>([&](int k) {
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

  // So that lanes that send two rows of a unit, and lanes that read a row of many units, meet few banks twice.
  static constexpr int kSlotRow = Tile::kRows + 2;

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

// Bias gradients are summed over this many steps in registers, then added up: one running sum over all steps exceeds the
// error budget.
inline constexpr int kStepsPerSum = 64;

template <class Cell, class Product, class Tile, class Exchange>
class BackwardPass {
 public:
  using S = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Shared = BackwardShared<Cell, Product, Tile>;
  using Own = Ownership<Cell, Tile>;

  RNN_DEVICE explicit BackwardPass(const BackwardArguments& arguments)
      : p_(arguments),
        division_(arguments.partition),
        shared_(device::shared_memory(), arguments.partition),
        direction_(device::block_y()),
        slice_(arguments.first_slice + device::block_x() / arguments.partition.ctas),
        first_row_(slice_ * Tile::kRows),
        exchange_(exchange(arguments)),
        first_unit_(exchange_.rank() * arguments.partition.units),
        part_(own_.warp % division_.parts),
        stride_(operand_stride(division_.windows)),
        steps_(arguments.sequence, first_row_, direction_ == 1) {}

  RNN_DEVICE void run() {
    load_weights();
    load_carries();
    clear_padding();
    exchange_.start();
    const int64_t length = steps_.length();
    // Only whole blocks of 8 units are sent.
    const int bytes = p_.partition.ctas * division_.parts * p_.partition.units * Tile::kRows * int(sizeof(float));
    if (length > 0) fetch(0);
    RNN_NO_UNROLL
    for (int64_t k = 0; k < length; ++k) {
      if constexpr (Tile::kDirect) own_.find_again();
      if (k + 2 < length) prefetch(k + 2);
      if (k > 0) receive(k);
      exchange_.expect(k + 1, bytes);
      step(k);
      if ((k + 1) % kStepsPerSum == 0) add_up_bias();
      device::cta_barrier();
      if (k + 1 < length) fetch(k + 1);
      multiply_and_send(k);
    }
    if (length > 0) receive(length);
    store_initial_gradients(length);
    store_bias_gradients();
    exchange_.finish();
  }

 private:
  static constexpr int kGroups = Own::kGroups, kTiles = Own::kTiles, kColumns = Own::kColumns, kGates = Cell::kGates;

  // Of a pass, before they are sent.
  using Products = float[Tile::kBackwardTiles][Tile::kColumnTiles][4];

  // What a step reads from global memory, asked for a step ahead. S, or float for c.
  struct Element {
    S gates[kSavedGates], grad_output, h_before;
    float c_before;
  };
  // Of one unit of one sequence: d(c), c after the step at hand, and the share of d(h) that comes by no product.
  struct Carry {
    float dc, c, direct_dh;
  };

  RNN_DEVICE Exchange exchange(const BackwardArguments& p) const {
    if constexpr (Tile::kDirect) {
      const int64_t bytes = Exchange::bytes(p.partition, division_.parts, Tile::kRows), rows = p.sequence.batch - first_row_;
      const GridPlace meeting{static_cast<unsigned char*>(p.exchange) + (direction_ * slices() + slice_) * bytes, nullptr,
                              rows < Tile::kRows ? int(rows) : Tile::kRows};
      return Exchange(p.partition, meeting, division_.parts);
    } else {
      return Exchange(p.partition, shared_.arrived);
    }
  }

  // ---- Where things are in global memory -----------------------------------------------------------------------------

  RNN_DEVICE int hidden() const { return p_.sequence.hidden; }
  RNN_DEVICE int units_of_cta() const { return Tile::kDirect ? Own::kUnits : p_.partition.units; }
  RNN_DEVICE int unit(int group) const { return first_unit_ + own_.unit(group); }
  RNN_DEVICE int64_t state_index(int tile, int column, int group) const {
    return (direction_ * p_.sequence.batch + first_row_ + own_.row(tile, column)) * hidden() + unit(group);
  }
  RNN_DEVICE bool exists(int tile, int column, int group) const {
    return own_.has_cells() && first_row_ + own_.row(tile, column) < p_.sequence.batch && unit(group) < hidden();
  }
  // The k-th step goes back through the forward recurrence's k-th last.
  RNN_DEVICE int64_t forward_step(int64_t k) const { return steps_.length() - 1 - k; }

  // ---- Before the first step -----------------------------------------------------------------------------------------

  RNN_DEVICE void load_weights() {
    const int most = division_.most_windows(), own = (division_.windows - part_ + division_.parts - 1) / division_.parts;
    const auto* packed =
        static_cast<const Vector16*>(p_.packed[direction_]) +
        int64_t(exchange_.rank() * division_.warps + own_.warp) * division_.passes * most * Tile::kBackwardTiles * 2 * kLanes;
    weights_.shared = shared_.weights + own_.warp * Shared::Weights::shared_count(division_.passes, most);
    weights_.load(packed, division_.passes, most, own, own_.lane);
  }

  RNN_DEVICE void load_carries() {
    const S* grad_h_n = static_cast<const S*>(p_.grad_h_n);
    const S* grad_c_n = static_cast<const S*>(p_.grad_c_n);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) {
        bias_[group][gate] = 0.0f;
        *bias_sum(group, gate) = 0.0f;
      }
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          Carry& carry = carry_[group][tile][column];
          carry = Carry{0.0f, 0.0f, 0.0f};
          if (!exists(tile, column, group)) continue;
          const int64_t index = state_index(tile, column, group);
          if (grad_h_n != nullptr) carry.direct_dh = device::to_float(device::load_constant(grad_h_n + index));
          if constexpr (Cell::kHasCellState) {
            if (grad_c_n != nullptr) carry.dc = device::to_float(device::load_constant(grad_c_n + index));
            if (steps_.length() > 0) carry.c = cell_after(steps_.rows(forward_step(0)), tile, column, group);
          }
        }
      }
    }
  }

  // Operand columns that no unit has are zero in both buffers for good.
  RNN_DEVICE void clear_padding() const {
    const int used = kGates * p_.partition.units, padding = division_.windows * kWindow<Product> - used;
    for (int i = device::thread(); i < 2 * Tile::kRows * padding; i += device::threads()) {
      const int buffer = i / (Tile::kRows * padding), row = i / padding % Tile::kRows;
      operand_row(buffer, row)[used + i % padding] = Product::operand(0.0f);
    }
  }

  RNN_DEVICE Operand* operand_row(int64_t k, int row) const {
    return reinterpret_cast<Operand*>(shared_.gradients[k] + row * stride_);
  }

  // ---- A step --------------------------------------------------------------------------------------------------------

  // Asks for what step k reads; used after the product and the exchange, which is time enough for the L2 cache to
  // answer, where prefetch() had it brought two steps ahead.
  RNN_DEVICE void fetch(int64_t k) {
    const int64_t i = forward_step(k);
    rows_ = steps_.rows(i);
    const StepRows before = i > 0 ? steps_.rows(i - 1) : StepRows{0, 0};
    const S* gates = first_gates(rows_);
    const S* grad_output = first_grad_output(i);
    const int h = hidden();
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          Element& element = fetched_[group][tile][column];
          element = Element{};
          const int u = unit(group);
          if (!exists(tile, column, group)) continue;
          // Of a sequence that is not active, too: it may be at the next step, and this is its c then.
          if constexpr (Cell::kHasCellState) element.c_before = cell_after(before, tile, column, group);
          if (own_.row(tile, column) >= rows_.active) continue;
          RNN_UNROLL
          for (int gate = 0; gate < kSavedGates; ++gate)
            element.gates[gate] = device::load_constant(own_.at(gates + gate * h, kSavedGates * h, tile, column, u));
          if (grad_output != nullptr)
            element.grad_output = device::load_constant(own_.at(grad_output, p_.grad_output_row, tile, column, u));
          if constexpr (!Cell::kHasCellState) element.h_before = state_after(before, tile, column, group);
        }
      }
    }
  }

  RNN_DEVICE void prefetch(int64_t k) const {
    const int64_t i = forward_step(k);
    const StepRows rows = steps_.rows(i);
    const S* gates = first_gates(rows);
    const S* grad_output = first_grad_output(i);
    const int h = hidden();
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          const int u = unit(group);
          if (!own_.has_cells() || own_.row(tile, column) >= rows.active || u >= h) continue;
          RNN_UNROLL
          for (int gate = 0; gate < kSavedGates; ++gate)
            device::prefetch(own_.at(gates + gate * h, kSavedGates * h, tile, column, u));
          if (grad_output != nullptr) device::prefetch(own_.at(grad_output, p_.grad_output_row, tile, column, u));
          // Read a step later as the state before; there it is one more step ahead.
          if constexpr (Cell::kHasCellState) {
            device::prefetch(own_.at(first_cells(rows), h, tile, column, u));
          } else {
            device::prefetch(own_.at(first_output(rows), p_.sequence.directions * h, tile, column, u));
          }
        }
      }
    }
  }

  // Where the slice's rows of a step begin.
  RNN_DEVICE const S* first_gates(StepRows rows) const {
    return static_cast<const S*>(p_.gates) + (direction_ * p_.sequence.rows + rows.first) * kSavedGates * hidden();
  }
  RNN_DEVICE const float* first_cells(StepRows rows) const {
    return p_.cells + (direction_ * p_.sequence.rows + rows.first) * hidden();
  }
  RNN_DEVICE const S* first_output(StepRows rows) const {
    return static_cast<const S*>(p_.output) + (rows.first * p_.sequence.directions + direction_) * hidden();
  }
  RNN_DEVICE const S* first_grad_output(int64_t i) const {
    if (p_.grad_output == nullptr) return nullptr;
    const int64_t t = steps_.time(i);
    const int64_t step = p_.sequence.offsets == nullptr ? t * p_.grad_output_step : steps_.offset(t) * p_.grad_output_row;
    return static_cast<const S*>(p_.grad_output) + step + first_row_ * p_.grad_output_row + direction_ * hidden();
  }

  // c after a forward step with these rows, or the initial one.
  RNN_DEVICE float cell_after(StepRows rows, int tile, int column, int group) const {
    if (own_.row(tile, column) < rows.active)
      return device::load_constant(own_.at(first_cells(rows), hidden(), tile, column, unit(group)));
    return device::to_float(device::load_constant(static_cast<const S*>(p_.c0) + state_index(tile, column, group)));
  }

  // h likewise.
  RNN_DEVICE S state_after(StepRows rows, int tile, int column, int group) const {
    if (own_.row(tile, column) < rows.active)
      return device::load_constant(own_.at(first_output(rows), p_.sequence.directions * hidden(), tile, column, unit(group)));
    return device::load_constant(static_cast<const S*>(p_.h0) + state_index(tile, column, group));
  }

  // d(h) of an own element: what came by products, in the order of their sources, and what did not.
  RNN_DEVICE float gradient_of_h(int64_t k, int tile, int column, int group) const {
    float sum = carry_[group][tile][column].direct_dh;
    if (k == 0) return sum;
    const int units = units_of_cta();
    const float* share = shared_.shares[k] + own_.unit(group) * Shared::kSlotRow + own_.row(tile, column);
    const int slots = Shared::slots(p_.partition, division_);
    RNN_NO_UNROLL
    for (int slot = 0; slot < slots; ++slot) sum += share[slot * units * Shared::kSlotRow];
    return sum;
  }

  RNN_DEVICE void receive(int64_t k) const {
    if constexpr (Tile::kDirect) {
      exchange_.template receive<Own::kUnits, Tile::kRows, Shared::kSlotRow>(k, shared_.shares[k]);
    } else {
      exchange_.wait(k);
    }
  }

  RNN_DEVICE void step(int64_t k) {
    if (!own_.has_cells()) return;
    const int units = units_of_cta();
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          Carry& carry = carry_[group][tile][column];
          const Element& element = fetched_[group][tile][column];
          const int row = own_.row(tile, column), u = unit(group);
          const float dh = gradient_of_h(k, tile, column, group);
          // A sequence that is not active hands its d(h) on.
          Gradient gradient{{0.0f, 0.0f, 0.0f, 0.0f}, carry.dc, dh};
          if (row < rows_.active && u < hidden()) {
            float saved[kSavedGates];
            RNN_UNROLL
            for (int gate = 0; gate < kSavedGates; ++gate) saved[gate] = device::to_float(element.gates[gate]);
            gradient = Cell::backward(dh + device::to_float(element.grad_output), carry.dc, saved, carry.c,
                                      State{device::to_float(element.h_before), element.c_before});
            store(tile, column, u, gradient);
            RNN_UNROLL
            for (int gate = 0; gate < kSavedGates; ++gate) bias_[group][gate] += gradient.gates[gate];
          }
          carry = Carry{gradient.dc, element.c_before, gradient.direct_dh};
          RNN_UNROLL
          for (int gate = 0; gate < kGates; ++gate)
            operand_row(k, row)[gate * units + own_.unit(group)] = Product::operand(gradient.gates[Cell::hidden_side(gate)]);
        }
      }
    }
  }

  RNN_DEVICE void store(int tile, int column, int u, const Gradient& gradient) const {
    const int h = hidden();
    const int64_t first = direction_ * p_.sequence.rows + rows_.first;
    S* input_side = static_cast<S*>(p_.grad_gates) + first * kGates * h;
    RNN_UNROLL
    for (int gate = 0; gate < kGates; ++gate)
      device::store_streaming(own_.at(input_side + gate * h, kGates * h, tile, column, u),
                              device::round_to<S>(gradient.gates[gate]));
    if constexpr (!Cell::kHasCellState)
      device::store_streaming(own_.at(static_cast<S*>(p_.grad_q) + first * h, h, tile, column, u),
                              device::round_to<S>(gradient.gates[3]));
  }

  RNN_DEVICE float* bias_sum(int group, int gate) const {
    return shared_.bias + (group * kSavedGates + gate) * division_.warps * kLanes + device::thread();
  }
  RNN_DEVICE void add_up_bias() {
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) {
        *bias_sum(group, gate) += bias_[group][gate];
        bias_[group][gate] = 0.0f;
      }
    }
  }

  RNN_DEVICE void multiply_and_send(int64_t k) {
    const unsigned char* operand = shared_.gradients[k] + own_.g * stride_ + part_ * kWindowBytes + own_.t * 16;
    RNN_NO_UNROLL
    for (int pass = 0; pass < division_.passes; ++pass) {
      Products sum = {};
      weights_.template multiply<Product>(pass, operand, stride_, division_.parts * kWindowBytes, own_.lane, sum);
      const int first = division_.first_tile(own_.warp, pass) * kTileRows;
      if constexpr (Tile::kDirect) {
        send_through_memory(k + 1, first, sum);
      } else {
        send_to_owners(k + 1, first, sum);
      }
    }
  }

  // Shares for step k of the units from `first` on, by which all of them are numbered.
  RNN_DEVICE void send_to_owners(int64_t k, int first, const Products& sum) const {
    const int units = p_.partition.units, source = exchange_.rank() * division_.parts + part_;
    RNN_UNROLL
    for (int tile = 0; tile < Tile::kBackwardTiles; ++tile) {
      RNN_UNROLL
      for (int block = 0; block < 2; ++block) {
        const int unit = first + tile * kTileRows + block * kBlockRows, owner = unit / units;
        if (owner >= p_.partition.ctas) continue;
        float* slot = shared_.shares[k] + (source * units + unit % units + own_.g) * Shared::kSlotRow + 2 * own_.t;
        RNN_UNROLL
        for (int n = 0; n < Tile::kColumnTiles; ++n) {
          const Vector8 pair{{device::bits_of(sum[tile][n][2 * block]), device::bits_of(sum[tile][n][2 * block + 1])}};
          exchange_.send(k, owner, slot + n * 8, pair);
        }
      }
    }
  }

  RNN_DEVICE void send_through_memory(int64_t k, int first, const Products& sum) const {
    const int source = exchange_.rank() * division_.parts + part_, end = p_.partition.ctas * Own::kUnits - first;
    float* shares = exchange_.template shares<Own::kUnits, Tile::kRows>(k, source) + (first + own_.g) * Tile::kRows;
    RNN_UNROLL
    for (int tile = 0; tile < Tile::kBackwardTiles; ++tile) {
      RNN_UNROLL
      for (int block = 0; block < 2; ++block) {
        const int unit = tile * kTileRows + block * kBlockRows;
        if (unit >= end) continue;
        RNN_UNROLL
        for (int n = 0; n < Tile::kColumnTiles; ++n)
          exchange_.template send<Tile::kRows>(k, shares, unit, n * 8 + 2 * own_.t, sum[tile][n][2 * block],
                                               sum[tile][n][2 * block + 1]);
      }
    }
  }

  // ---- After the last step -------------------------------------------------------------------------------------------

  RNN_DEVICE void store_initial_gradients(int64_t length) const {
    S* grad_h0 = static_cast<S*>(p_.grad_h0);
    S* grad_c0 = static_cast<S*>(p_.grad_c0);
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        RNN_UNROLL
        for (int column = 0; column < kColumns; ++column) {
          if (!exists(tile, column, group)) continue;
          const int64_t index = state_index(tile, column, group);
          grad_h0[index] = device::round_to<S>(gradient_of_h(length, tile, column, group));
          if constexpr (Cell::kHasCellState) grad_c0[index] = device::round_to<S>(carry_[group][tile][column].dc);
        }
      }
    }
  }

  // The lanes of a unit differ in t, and in the warps that share the unit but not its rows: added in that order.
  RNN_DEVICE void store_bias_gradients() const {
    float* total = p_.grad_bias + (int64_t(direction_) * slices() + slice_) * kSavedGates * hidden();
    float* partial = shared_.shares[0];
    device::cta_barrier();  // The shares have been read.
    RNN_UNROLL
    for (int group = 0; group < kGroups; ++group) {
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) {
        float sum = *bias_sum(group, gate) + bias_[group][gate];
        sum += device::shuffle_xor(sum, 1);
        sum += device::shuffle_xor(sum, 2);
        const int u = unit(group);
        if constexpr (Tile::kSplits == 1) {
          if (own_.t == 0 && u < hidden()) total[gate * hidden() + u] = sum;
        } else {
          const int owner = own_.split % Own::kRowOwners;
          float* of_unit = partial + (own_.unit(group) * kSavedGates + gate) * Own::kRowOwners;
          const bool speaks = own_.has_cells() && own_.t == 0;
          if (speaks) of_unit[owner] = sum;
          device::named_barrier(1 + own_.block, Tile::kSplits * kLanes);
          if (!speaks || owner != 0 || u >= hidden()) continue;
          for (int other = 1; other < Own::kRowOwners; ++other) sum += of_unit[other];
          total[gate * hidden() + u] = sum;
        }
      }
    }
  }

  RNN_DEVICE int64_t slices() const { return (p_.sequence.batch + Tile::kRows - 1) / Tile::kRows; }

  const BackwardArguments& p_;
  Own own_;
  const BackwardDivision<Cell, Product, Tile> division_;
  const Shared shared_;
  const int direction_, slice_, first_row_;
  const Exchange exchange_;
  const int first_unit_, part_, stride_;
  const Steps steps_;

  typename Shared::Weights weights_;
  Carry carry_[kGroups][kTiles][kColumns];
  float bias_[kGroups][kSavedGates];  // since the last multiple of kStepsPerSum
  StepRows rows_;                               // of the step at hand, or to come
  Element fetched_[kGroups][kTiles][kColumns];  // what it reads
};

template <class Cell, class Product, class Tile, class Exchange>
RNN_DEVICE void backward(const BackwardArguments& arguments) {
  BackwardPass<Cell, Product, Tile, typename Exchange::Backward>(arguments).run();
}

}  // namespace rnnkernels::cuda
