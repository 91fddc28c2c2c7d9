// What backward.h takes from the gate gradients dG of a chunk: dx, and sums for the weights and biases.
#pragma once

#include "backward.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

template <class S>
void add_rounded(S* to, const Compute<S>* from, int64_t width, bool accumulate) {
  for (int64_t j = 0; j < width; j += kLanes<Compute<S>>) {
    Vec<Compute<S>> value = load(from + j, width - j);
    if (accumulate) value = value + load(to + j, width - j);
    store(to + j, value, width - j);
  }
}

// Where a thread packs panels for itself.
template <class Cell>
auto Backward<Cell>::panel_memory(int d, int64_t part, int64_t parts) const -> S* {
  if (!panel_in_gradient_) return memory_of(part).panel;
  const int64_t first = share(kGates * layer_.hidden_size, part, parts).first * layer_.input_size;
  const auto address = reinterpret_cast<uintptr_t>(static_cast<S*>(arguments_->grad_weights[d].w_ih) + first);
  return reinterpret_cast<S*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment);
}

// One panel of W_ih or W_hh, packed where and when it is used: it meets hundreds of rows, and all panels at once would be as large
// as the weights.
template <class Cell>
auto Backward<Cell>::pack_own(const void* weights, int64_t width, int64_t panel, S* packed) const -> ColumnPanels<S> {
  const int64_t gate_rows = kGates * layer_.hidden_size;
  pack_column_panel<S>(packed, static_cast<const S*>(weights), gate_rows, width, panel);
  return {packed - panel * ColumnWeights<S>::panel_size(gate_rows), packed};  // panels are addressed from the first one on
}

// dh' of a single step (carry), on part of the state.
template <class Cell>
void Backward<Cell>::carry_at_once(int d, int64_t part, int64_t parts) const {
  const Direction& direction = directions_[d];
  const int64_t width = layer_.state_size;
  const Range panels = share(ColumnWeights<S>::panel_count(width), part, parts);
  const void* w_hh = arguments_->weights[d].w_hh;
  S* const memory = panel_memory(d, part, parts);
  for (int64_t panel = panels.first; panel < panels.last; ++panel)
    multiply_gradient(pack_own(w_hh, width, panel, memory), w_hh, width, Cell::kRecurrentSegments, {panel, panel + 1},
                      constant(direction.dg, 0), layer_.rows, direction.dh, Cell::kCarriesPastGates);
}

// dx = dG W_ih. With two directions whichever comes to a chunk second adds to what the first left.
template <class Cell>
void Backward<Cell>::input_gradient(int d, int64_t turn, int64_t part, int64_t parts) const {
  const Chunk own = chunk(d, turn);
  const int64_t other_turn = chunks_ - 1 - turn;
  const bool second = layer_.directions == 2 && (other_turn < turn || (other_turn == turn && d == 1));
  const int64_t count = ColumnWeights<S>::panel_count(layer_.input_size);
  Range panels{0, count}, rows{0, own.rows};
  if (count >= parts)
    panels = share(count, part, parts);
  else
    rows = share(own.rows, part, parts);
  if (rows.size() == 0) return;
  const int64_t width = layer_.input_size;
  const Matrix<const A> dg = constant(directions_[d].dg, rows.first);
  S* result = static_cast<S*>(arguments_->grad_input) + (own.first_row + rows.first) * width;
  const void* w_ih = arguments_->weights[d].w_ih;
  const auto multiply = [&](const ColumnPanels<S>& columns, Range of) {
    if constexpr (!kWidens) {
      multiply_gradient(columns, w_ih, width, Cell::kInputSegments, of, dg, rows.size(), Matrix<C>{result, width}, second);
    } else {
      C* const strip = memory_of(part).strip;
      for (int64_t panel = of.first; panel < of.last; ++panel) {
        const int64_t column = panel * kStripColumns;
        // The product addresses columns of the whole result, so the strip is passed shifted to its place.
        multiply_gradient(columns, w_ih, width, Cell::kInputSegments, {panel, panel + 1}, dg, rows.size(),
                          Matrix<C>{strip - column, kStripColumns}, false);
        for (int64_t row = 0; row < rows.size(); ++row)
          add_rounded(result + row * width + column, strip + row * kStripColumns, smaller(width - column, kStripColumns),
                      second);
      }
    }
  };
  Range packed = panels;
  if (rows.size() < kRowsWorthPacking) {
    packed.first = ColumnWeights<S>::needs_padding(width) && panels.last == count ? count - 1 : panels.last;
    multiply({}, {panels.first, packed.first});
  }
  for (int64_t panel = packed.first; panel < packed.last; ++panel)
    multiply(pack_own(w_ih, width, panel, panel_memory(d, part, parts)), {panel, panel + 1});
}

// dW_ih = dG^T x, dW_hh = dG^T h', dW_hr = dr^T h.
template <class Cell>
void Backward<Cell>::weight_gradients(int d, int64_t turn, int64_t part, int64_t parts) const {
  const Direction& from = directions_[d];
  const Chunk own = chunk(d, turn);
  const WeightGradients& results = arguments_->grad_weights[d];
  const bool accumulate = turn > 0;
  transposed_products(Cell::kInputSegments, from.dg, from.x, own.rows, layer_.input_size, results.w_ih, from.dw_ih, part, parts,
                      accumulate);
  transposed_products(Cell::kRecurrentSegments, from.dg, from.h_prev, own.rows, layer_.state_size, results.w_hh, from.dw_hh,
                      part, parts, accumulate);
  if (layer_.has_projection)
    transposed_product(constant(from.dr, 0), from.hidden_rows, own.rows, share(layer_.state_size, part, parts),
                       layer_.hidden_size, results.w_hr, from.dw_hr, part, accumulate);
  bias_gradients(d, turn, part, parts);
}

// db = the sum of dG over rows, on part of the units.
template <class Cell>
void Backward<Cell>::bias_gradients(int d, int64_t turn, int64_t part, int64_t parts) const {
  const Direction& from = directions_[d];
  const int64_t rows = chunk(d, turn).rows;
  const Range vectors = share(divide_up(4 * layer_.hidden_size, kLanes<C>), part, parts);
  for (int64_t v = vectors.first; v < vectors.last; ++v) {
    // Blocks of rows, then chunks: one running sum over thousands of rows would lose ten times what torch does.
    constexpr int64_t kBlock = 32;
    Vec<C> sum(C(0));
    for (int64_t first = 0; first < rows; first += kBlock) {
      Vec<C> block(C(0));
      for (int64_t row = first; row < smaller(first + kBlock, rows); ++row)
        block = block + load(from.dg.row(row) + v * kLanes<C>);
      sum = sum + block;
    }
    if (turn > 0) sum = sum + Vec<C>::load(from.db + v * kLanes<C>);
    sum.store(from.db + v * kLanes<C>);
  }
}

template <class Cell>
template <int kCount>
void Backward<Cell>::transposed_products(const SegmentOfGates (&gates)[kCount], const Matrix<A>& dg, const S* const* x,
                                         int64_t rows, int64_t width, void* result, C* sum, int64_t part, int64_t parts,
                                         bool accumulate) const {
  for (const SegmentOfGates& of : gates) {
    const Segment s = of.of(layer_.hidden_size);
    const int64_t first = s.w_first * width;
    transposed_product({dg.data + s.a_first, dg.stride}, x, rows, share(s.length, part, parts), width,
                       static_cast<S*>(result) + first, sum == nullptr ? nullptr : sum + first, part, accumulate);
  }
}

// a^T x on rows `of` of a gradient, added up in `sum` over chunks, or, without one, in the result itself.
template <class Cell>
template <class X>
void Backward<Cell>::transposed_product(Matrix<const A> a, const X* const* x, int64_t rows, Range of, int64_t width,
                                        void* result, C* sum, int64_t part, bool accumulate) const {
  const ThreadMemory memory = memory_of(part);
  if constexpr (kWidens) {
    if (sum == nullptr) {  // the only chunk: some rows at a time are summed and rounded
      C* const to = memory.gradient_rows;
      for (int64_t first = of.first; first < of.last; first += kRoundedRows) {
        const int64_t last = smaller(first + kRoundedRows, of.last);
        multiply_transposed(a, x, rows, first, last, width, Matrix<C>{to - first * width, width}, false, memory.transposed);
        narrow_row(static_cast<S*>(result) + first * width, to, (last - first) * width);
      }
      return;
    }
  } else {
    sum = static_cast<C*>(result);
  }
  multiply_transposed(a, x, rows, of.first, of.last, width, Matrix<C>{sum, width}, accumulate, memory.transposed);
}

template <class Cell>
void Backward<Cell>::store_weight_gradients(const Direction& from, const WeightGradients& to, int64_t part,
                                            int64_t parts) const {
  if (kWidens && !one_chunk_) {
    const auto round = [&](void* result, const C* sum, int64_t count) {
      const Range range = share(count, part, parts);
      narrow_row(static_cast<S*>(result) + range.first, sum + range.first, range.size());
    };
    round(to.w_ih, from.dw_ih, kGates * layer_.hidden_size * layer_.input_size);
    round(to.w_hh, from.dw_hh, kGates * layer_.hidden_size * layer_.state_size);
    if (layer_.has_projection) round(to.w_hr, from.dw_hr, layer_.state_size * layer_.hidden_size);
  }
  if (layer_.has_biases && part == 0) {
    store_bias(to.b_ih, from.db, Cell::kInputSegments);
    store_bias(to.b_hh, from.db, Cell::kRecurrentSegments);
  }
}

template <class Cell>
template <int kCount>
void Backward<Cell>::store_bias(void* to, const C* db, const SegmentOfGates (&segments)[kCount]) const {
  for (const SegmentOfGates& gates : segments) {
    const Segment s = gates.of(layer_.hidden_size);
    narrow_row(static_cast<S*>(to) + s.w_first, db + s.a_first, s.length);
  }
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
