// The backward recurrence of a whole sequence in one launch, in forward.h's partition: a CTA has the gates of its own
// units, takes their gradients, and multiplies them with its rows of W_hh. The product is a share of d(h') for all
// units; the shares go in float32 to the CTAs that own those units, which add them in a fixed order.
//
// A step of a CTA: wait for the shares of d(h); the cell backwards; a barrier of the CTA, since its warps divide the
// product otherwise than the cell; multiply; send. Equations: backends/reference.py.
#pragma once

#include "backward_layout.h"
#include "exchange.h"
#include "grid.h"

namespace rnnkernels::cuda {

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
        slice_((Tile::kDirect ? arguments.first_slice : 0) + device::block_x() / arguments.partition.ctas),
        first_row_(slice_ * Tile::kRows),
        exchange_(exchange(arguments)),
        first_unit_(exchange_.rank() * arguments.partition.units),
        part_(own_.warp % division_.parts),
        first_product_(division_.first_tile(own_.warp, 0) * kTileRows),
        products_of_pass_(division_.warps / division_.parts * Tile::kBackwardTiles * kTileRows),
        first_place_(place_of(first_product_)),
        pass_distance_(place_of(products_of_pass_)),
        stride_(operand_stride(division_.windows)),
        steps_(arguments.sequence, first_row_, direction_ == 1) {}

  RNN_DEVICE void run() {
    load_weights();
    load_carries();
    clear_padding();
    exchange_.start();
    const int length = steps_.length();
    // Only whole blocks of 8 units are sent.
    const int bytes = p_.partition.ctas * division_.parts * p_.partition.units * Tile::kRows * int(sizeof(float));
    if (length > 0) fetch(0);
    RNN_NO_UNROLL
    for (int k = 0; k < length; ++k) {
      if (k + 2 < length) prefetch(k + 2);
      if (k > 0) receive(k);
      exchange_.expect(k + 1, bytes);
      Stored stored;
      step(k, stored);
      device::cta_barrier();
      // Others wait for the products: what can be done meanwhile comes after them. Without others there is no waiting, and what
      // the next step reads is asked for before.
      if constexpr (!kStoresLate) store(stored);
      if constexpr (Exchange::kTakesTime) multiply_and_send(k);
      if constexpr (kStoresLate) store(stored);
      if (k + 1 < length) fetch(k + 1);
      if constexpr (!Exchange::kTakesTime) multiply_and_send(k);
      if ((k + 1) % kStepsPerSum == 0) add_up_bias();
    }
    if (length > 0) receive(length);
    store_initial_gradients(length);
    store_bias_gradients();
    exchange_.finish();
  }

 private:
  static constexpr int kGroups = Own::kGroups, kTiles = Own::kTiles, kColumns = Own::kColumns, kGates = Cell::kGates;

  static constexpr int kCells = kGroups * kTiles * kColumns;  // of a lane
  static constexpr int kAhead = 2;                            // windows of the operand that are on their way
  // Shares of each d(h) that are asked for before the first is added.
  static constexpr int kSlotsAtOnce = kCells > 4 ? 1 : kCells > 2 ? 2 : 4;
  // Whether results wait in registers while the product is computed.
  static constexpr bool kStoresLate = Exchange::kTakesTime && kCells * int(sizeof(S)) <= 16;

  // Of a pass, before they are sent.
  using Products = float[Tile::kBackwardTiles][Tile::kColumnTiles][4];

  // What a step reads from global memory, asked for a step ahead. S, or float for c.
  struct Element {
    S gates[kSavedGates], grad_output, h_before;
    float c_before;
  };
  // The results of a step in global memory: d(a), and GRU's d(q).
  using Stored = S[kGroups][kTiles][kColumns][kSavedGates];
  // Of all units one: the CTA that owns it, and which of that CTA's it is.
  struct UnitPlace {
    int owner, unit;
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
  RNN_DEVICE int forward_step(int k) const { return steps_.length() - 1 - k; }

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
    }
    Own::each_cell([&](int group, int tile, int column) {
      Carry& carry = carry_[group][tile][column];
      carry = Carry{0.0f, 0.0f, 0.0f};
      fetched_[group][tile][column] = Element{};
      if (!exists(tile, column, group)) return;
      const int64_t index = state_index(tile, column, group);
      if (grad_h_n != nullptr) carry.direct_dh = device::to_float(device::load_constant(grad_h_n + index));
      if constexpr (Cell::kHasCellState) {
        if (grad_c_n != nullptr) carry.dc = device::to_float(device::load_constant(grad_c_n + index));
        if (steps_.length() > 0) {
          const SliceRows rows = steps_.rows(forward_step(0));
          carry.c = own_.row(tile, column) < rows.active
                        ? device::load_constant(first_cell(rows) + own_.after_first(hidden(), tile, column, group))
                        : device::to_float(initial(p_.c0, tile, column, group));
        }
      }
    });
  }

  // Operand columns that no unit has are zero in both buffers for good.
  RNN_DEVICE void clear_padding() const {
    const int used = kGates * p_.partition.units, padding = division_.windows * kWindow<Product> - used;
    for (int i = device::thread(); i < 2 * Tile::kRows * padding; i += device::threads()) {
      const int buffer = i / (Tile::kRows * padding), row = i / padding % Tile::kRows;
      device::store_shared(operand_row(buffer, row) + (used + i % padding), Product::operand(0.0f));
    }
  }

  RNN_DEVICE Operand* operand_row(int k, int row) const {
    return reinterpret_cast<Operand*>(shared_.gradients[k] + row * stride_);
  }

  // ---- A step --------------------------------------------------------------------------------------------------------

  // Asks for what step k reads; used after the product and the exchange, which is time enough for the L2 cache to
  // answer, where prefetch() had it brought two steps ahead.
  RNN_DEVICE void fetch(int k) {
    const int i = forward_step(k), h = hidden();
    rows_ = steps_.rows(i);
    if (!own_.has_cells()) return;
    const SliceRows before = i > 0 ? steps_.rows(i - 1) : SliceRows{0, 0};
    const int output_width = p_.sequence.directions * h;
    const S* gates = own_.first_of(static_cast<const S*>(p_.gates) + first_unit_, in_direction(rows_), kSavedGates * h);
    const S* grad_output = p_.grad_output == nullptr ? nullptr : own_.first_of(grad_output_of(i), 0, p_.grad_output_row);
    const float* cells = Cell::kHasCellState ? first_cell(before) : nullptr;
    const S* output = Cell::kHasCellState ? nullptr : own_.first_of(all_output() + first_unit_, before.first, output_width);
    Own::each_cell([&](int group, int tile, int column) {
      Element& element = fetched_[group][tile][column];
      if (!exists(tile, column, group)) return;
      const bool follows = own_.row(tile, column) < before.active;
      // Of a sequence that is not active, too: it may be at the next step, and this is its c then.
      if constexpr (Cell::kHasCellState) {
        if (follows) {
          element.c_before = device::load_constant(cells + own_.after_first(h, tile, column, group));
        } else {
          element.c_before = device::to_float(initial(p_.c0, tile, column, group));
        }
      }
      if (!is_active(tile, column, group)) return;
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate)
        element.gates[gate] = device::load_constant(gates + (own_.after_first(kSavedGates * h, tile, column, group) + gate * h));
      if (grad_output != nullptr)
        element.grad_output = device::load_constant(grad_output + own_.after_first(p_.grad_output_row, tile, column, group));
      if constexpr (!Cell::kHasCellState) {
        if (follows) {
          element.h_before = device::load_constant(output + own_.after_first(output_width, tile, column, group));
        } else {
          element.h_before = initial(p_.h0, tile, column, group);
        }
      }
    });
  }

  RNN_DEVICE void prefetch(int k) const {
    if (!own_.has_cells()) return;
    const int i = forward_step(k), h = hidden(), u = first_unit_;
    const SliceRows rows = steps_.rows(i);
    const auto is_inside = [=](int row, int unit) { return row < rows.active && u + unit < h; };
    const S* gates = static_cast<const S*>(p_.gates) + (int64_t(in_direction(rows)) * (kSavedGates * h) + u);
    own_.template each_block<kSavedGates>([&](int row, int unit, int gate) {
      if (is_inside(row, unit)) device::prefetch(gates + (row * (kSavedGates * h) + gate * h + unit));
    });
    const S* grad_output = p_.grad_output == nullptr ? nullptr : grad_output_of(i);
    // Read a step later as the state before; there it is one more step ahead.
    const int output_width = p_.sequence.directions * h;
    const float* cells = Cell::kHasCellState ? p_.cells + (int64_t(in_direction(rows)) * h + u) : nullptr;
    const S* output = Cell::kHasCellState ? nullptr : all_output() + (int64_t(rows.first) * output_width + u);
    own_.template each_block<1>([&](int row, int unit, int) {
      if (!is_inside(row, unit)) return;
      if (grad_output != nullptr) device::prefetch(grad_output + (row * p_.grad_output_row + unit));
      if constexpr (Cell::kHasCellState) {
        device::prefetch(cells + (row * h + unit));
      } else {
        device::prefetch(output + (row * output_width + unit));
      }
    });
  }

  // Whether the step at hand has this cell.
  RNN_DEVICE bool is_active(int tile, int column, int group) const {
    return own_.row(tile, column) < rows_.active && unit(group) < hidden();
  }
  // Where a step's rows are in a tensor that has all rows of each direction.
  RNN_DEVICE int in_direction(SliceRows rows) const { return direction_ * int(p_.sequence.rows) + rows.first; }
  RNN_DEVICE const S* all_output() const { return static_cast<const S*>(p_.output) + direction_ * hidden(); }
  RNN_DEVICE const float* first_cell(SliceRows rows) const {
    return own_.first_of(p_.cells + first_unit_, in_direction(rows), hidden());
  }
  // The slice's first row of the gradient of the output after the forward recurrence's i-th step, from the CTA's first unit on.
  RNN_DEVICE const S* grad_output_of(int i) const {
    const int t = steps_.time(i);
    const int64_t step = p_.sequence.offsets == nullptr ? t * p_.grad_output_step : steps_.offset(t) * p_.grad_output_row;
    const int64_t row = int64_t(first_row_) * p_.grad_output_row;
    return static_cast<const S*>(p_.grad_output) + (step + row + direction_ * hidden() + first_unit_);
  }
  RNN_DEVICE S initial(const void* states, int tile, int column, int group) const {
    return device::load_constant(static_cast<const S*>(states) + state_index(tile, column, group));
  }

  // d(h) of own elements: what came by products, in the order of their sources, and what did not.
  using HiddenGradients = float[kGroups][kTiles][kColumns];

  RNN_DEVICE void gradients_of_h(int k, HiddenGradients& dh) const {
    Own::each_cell([&](int group, int tile, int column) { dh[group][tile][column] = carry_[group][tile][column].direct_dh; });
    if (k == 0) return;
    const float* first = shared_.shares[k] + (own_.unit(0) * Shared::kSlotRow + own_.first_row());
    const int slots = Shared::slots(p_.partition, division_), distance = units_of_cta() * Shared::kSlotRow;
    RNN_UNROLL_BY(kSlotsAtOnce)
    for (int slot = 0; slot < slots; ++slot) {
      const float* share = first + slot * distance;
      Own::each_cell([&](int group, int tile, int column) {
        const int place = Own::unit_after_first(group) * Shared::kSlotRow + Own::row_after_first(tile, column);
        dh[group][tile][column] += device::load_shared(share + place);
      });
    }
  }

  RNN_DEVICE void receive(int k) const {
    if constexpr (Tile::kDirect) {
      exchange_.template receive<Own::kUnits, Tile::kRows, Shared::kSlotRow>(k, shared_.shares[k]);
    } else {
      exchange_.wait(k);
    }
  }

  RNN_DEVICE void step(int k, Stored& stored) {
    if (!own_.has_cells()) return;
    const int units = units_of_cta();
    HiddenGradients dh;
    gradients_of_h(k, dh);
    Operand* operand = operand_row(k, own_.first_row()) + own_.unit(0);
    const int row_distance = stride_ / int(sizeof(Operand));
    Own::each_cell([&](int group, int tile, int column) {
      Carry& carry = carry_[group][tile][column];
      const Element& element = fetched_[group][tile][column];
      float saved[kSavedGates];
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) saved[gate] = device::to_float(element.gates[gate]);
      // All cells are computed, active or not, without a branch between them: then their latencies pass side by side.
      Gradient gradient =
          Cell::backward(dh[group][tile][column] + device::to_float(element.grad_output), carry.dc, saved, carry.c,
                         State{device::to_float(element.h_before), element.c_before});
      // A sequence that is not active hands its d(h) on.
      const bool active = is_active(tile, column, group);
      gradient.dc = active ? gradient.dc : carry.dc;
      gradient.direct_dh = active ? gradient.direct_dh : dh[group][tile][column];
      RNN_UNROLL
      for (int gate = 0; gate < kSavedGates; ++gate) {
        gradient.gates[gate] = active ? gradient.gates[gate] : 0.0f;
        bias_[group][gate] += gradient.gates[gate];
        stored[group][tile][column][gate] = device::round_to<S>(gradient.gates[gate]);
      }
      carry = Carry{gradient.dc, element.c_before, gradient.direct_dh};
      RNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate)
        device::store_shared(operand + (own_.after_first(row_distance, tile, column, group) + gate * units),
                             Product::operand(gradient.gates[Cell::hidden_side(gate)]));
    });
  }

  RNN_DEVICE void store(const Stored& stored) const {
    if (!own_.has_cells()) return;
    const int h = hidden();
    const int row = in_direction(rows_);
    S* grad_gates = own_.first_of(static_cast<S*>(p_.grad_gates) + first_unit_, row, kGates * h);
    S* grad_q = nullptr;
    if constexpr (!Cell::kHasCellState) grad_q = own_.first_of(static_cast<S*>(p_.grad_q) + first_unit_, row, h);
    Own::each_cell([&](int group, int tile, int column) {
      if (!is_active(tile, column, group)) return;
      const S(&values)[kSavedGates] = stored[group][tile][column];
      RNN_UNROLL
      for (int gate = 0; gate < kGates; ++gate)
        device::store_streaming(grad_gates + (own_.after_first(kGates * h, tile, column, group) + gate * h), values[gate]);
      if constexpr (!Cell::kHasCellState)
        device::store_streaming(grad_q + own_.after_first(h, tile, column, group), values[3]);
    });
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

  RNN_DEVICE void multiply_and_send(int k) {
    const unsigned char* operand = shared_.gradients[k] + own_.g * stride_ + part_ * kWindowBytes + own_.t * 16;
    UnitPlace place = first_place_;
    RNN_NO_UNROLL
    for (int pass = 0; pass < division_.passes; ++pass) {
      Products sum = {};
      weights_.template multiply<Product, kAhead>(pass, operand, stride_, division_.parts * kWindowBytes, own_.lane, sum);
      if constexpr (Tile::kDirect) {
        send_through_memory(k + 1, first_product_ + pass * products_of_pass_, sum);
      } else {
        send_to_owners(k + 1, place, sum);
        place.owner += pass_distance_.owner;
        place.unit += pass_distance_.unit;
        if (place.unit >= p_.partition.units) {
          place.unit -= p_.partition.units;
          ++place.owner;
        }
      }
    }
  }

  // Shares for step k of the units from `place` on.
  RNN_DEVICE void send_to_owners(int k, UnitPlace place, const Products& sum) const {
    const int units = p_.partition.units, source = exchange_.rank() * division_.parts + part_;
    // What costs is the number of stores. A lane has two rows of a unit in each block; with its neighbour's it has four in one.
    const bool odd = own_.t % 2 == 1;
    float* slots = shared_.shares[k] + (source * units + own_.g) * Shared::kSlotRow + own_.t / 2 * 4;
    RNN_UNROLL
    for (int tile = 0; tile < Tile::kBackwardTiles; ++tile) {
      const UnitPlace low = place, high = next_block(low);
      place = next_block(high);
      const UnitPlace own = odd ? high : low;
      RNN_UNROLL
      for (int n = 0; n < Tile::kColumnTiles; ++n) {
        const float(&d)[4] = sum[tile][n];
        const uint32_t first = device::bits_of(device::shuffle_xor(odd ? d[0] : d[2], 1));
        const uint32_t second = device::bits_of(device::shuffle_xor(odd ? d[1] : d[3], 1));
        const Vector16 four =
            odd ? Vector16{{first, second, device::bits_of(d[2]), device::bits_of(d[3])}}
                : Vector16{{device::bits_of(d[0]), device::bits_of(d[1]), first, second}};
        if (own.owner < p_.partition.ctas) exchange_.send(k, own.owner, slots + own.unit * Shared::kSlotRow + n * 8, four);
      }
    }
  }

  RNN_DEVICE void send_through_memory(int k, int first, const Products& sum) const {
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

  RNN_DEVICE void store_initial_gradients(int length) const {
    S* grad_h0 = static_cast<S*>(p_.grad_h0);
    S* grad_c0 = static_cast<S*>(p_.grad_c0);
    HiddenGradients dh;
    gradients_of_h(length, dh);
    Own::each_cell([&](int group, int tile, int column) {
      if (!exists(tile, column, group)) return;
      const int64_t index = state_index(tile, column, group);
      grad_h0[index] = device::round_to<S>(dh[group][tile][column]);
      if constexpr (Cell::kHasCellState) grad_c0[index] = device::round_to<S>(carry_[group][tile][column].dc);
    });
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

  // A CTA has whole blocks of units.
  RNN_DEVICE UnitPlace next_block(UnitPlace place) const {
    place.unit += kBlockRows;
    const bool last = place.unit == p_.partition.units;
    return {place.owner + (last ? 1 : 0), last ? 0 : place.unit};
  }
  RNN_DEVICE UnitPlace place_of(int unit) const {
    return {unit / p_.partition.units, unit % p_.partition.units};
  }
  RNN_DEVICE int64_t slices() const { return (p_.sequence.batch + Tile::kRows - 1) / Tile::kRows; }

  const BackwardArguments& p_;
  Own own_;
  const BackwardDivision<Cell, Product, Tile> division_;
  const Shared shared_;
  const int direction_, slice_, first_row_;
  const Exchange exchange_;
  const int first_unit_, part_;
  const int first_product_, products_of_pass_;   // units whose d(h') the warp's products are shares of
  const UnitPlace first_place_, pass_distance_;  // the same as places
  const int stride_;
  const Steps steps_;

  typename Shared::Weights weights_;
  Carry carry_[kGroups][kTiles][kColumns];
  float bias_[kGroups][kSavedGates];  // since the last multiple of kStepsPerSum
  SliceRows rows_;                              // of the step at hand, or to come
  Element fetched_[kGroups][kTiles][kColumns];  // what it reads
};

template <class Cell, class Product, class Tile, class Exchange>
RNN_DEVICE void backward(const BackwardArguments& arguments) {
  BackwardPass<Cell, Product, Tile, typename Exchange::Backward>(arguments).run();
}

}  // namespace rnnkernels::cuda
