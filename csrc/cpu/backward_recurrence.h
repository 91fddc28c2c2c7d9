// The recurrence of backward.h: the steps of a chunk, last first, from dh and dc to the gate gradients dG.
#pragma once

#include "backward.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

// All steps of a chunk for one slice of the batch.
template <class Cell>
void Backward<Cell>::recur(int d, const Chunk& chunk, Range slice) {
  find_rows(d, chunk, slice);
  for (int64_t i = 0; i < chunk.steps.size(); ++i) {
    const int64_t t = backward_step(d, chunk, i);
    differentiate(d, chunk, t, slice, {0, layer_.hidden_size});
    if (!carries_at_once_) carry(d, chunk, t, slice, {0, ColumnWeights<S>::panel_count(layer_.state_size)});
  }
}

// The same with the units of each step shared by the threads. A thread that has carried dh to some units
// takes those units through the next step at once, so that one round per step is enough.
template <class Cell>
void Backward<Cell>::recur_by_units(int d, const Chunk& chunk, const Parallel& parallel) {
  const Range batch{0, layer_.batch};
  const int64_t panels = ColumnWeights<S>::panel_count(layer_.state_size);
  const int64_t parts = smaller(parallel.threads, panels);
  find_rows(d, chunk, batch);
  const auto units = [&](Range of) {
    return Range{of.first * kStripColumns, smaller(of.last * kStripColumns, layer_.hidden_size)};
  };
  differentiate(d, chunk, backward_step(d, chunk, 0), batch, {0, layer_.hidden_size});
  run_rounds(parallel, parts, chunk.steps.size(), [&](int64_t i, int64_t part) {
    const Range own = share(panels, part, parts);
    carry(d, chunk, backward_step(d, chunk, i), batch, own);
    if (i + 1 < chunk.steps.size()) differentiate(d, chunk, backward_step(d, chunk, i + 1), batch, units(own));
  });
}

// Where h' and x of a chunk's rows lie, and h before its projection.
template <class Cell>
void Backward<Cell>::find_rows(int d, const Chunk& chunk, Range slice) const {
  const Direction& to = directions_[d];
  for (int64_t t = chunk.steps.first; t < chunk.steps.last; ++t) {
    const int64_t rows = steps_.active(t, slice), started = steps_.active(previous(d, t), slice);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = slice.first + i, row = chunk_row(chunk, t, b);
      to.h_prev[row] = i < started ? output_row(d, previous(d, t), b)
                                   : static_cast<const S*>(arguments_->h0) + (d * layer_.batch + b) * layer_.state_size;
      if (needs_weights_) to.x[row] = steps_.row<S>(arguments_->input, t, b);
      if (layer_.has_projection) to.hidden_rows[row] = to.hidden.row(row);
      // The last pair of an odd number of gate gradients ends in the padding.
      if (kTogether<S> == 2 && layer_.hidden_size % 2 != 0) to.dg.row(row)[4 * layer_.hidden_size] = A{};
    }
  }
}

// Pointwise: dh, dc of step t -> gate gradients, dc', and dh' as far as it bypasses the weights.
template <class Cell>
void Backward<Cell>::differentiate(int d, const Chunk& chunk, int64_t t, Range slice, Range units) const {
  const int64_t rows = steps_.active(t, slice);
  if (rows == 0) return;
  const Direction& direction = directions_[d];
  if (layer_.has_projection) project_gradient(d, chunk, t, slice, rows);
  const int64_t started = steps_.active(previous(d, t), slice);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = slice.first + i;
    const int64_t row = steps_.offset(t) + b;
    const int64_t hidden = layer_.hidden_size;
    // Everything of this row, from its first unit on.
    BackwardUnits<S> of_row{};
    of_row.gates = static_cast<const S*>(arguments_->gates) + (d * layer_.rows + row) * 4 * hidden;
    of_row.h_prev = direction.h_prev[row - chunk.first_row];
    of_row.grad_output = layer_.has_projection ? nullptr : grad_output_row(d, t, b);
    of_row.dh_in = (layer_.has_projection ? direction.dh_hidden : direction.dh).row(b);
    of_row.dh_out = direction.dh.row(b);
    of_row.dg = direction.dg.row(row - chunk.first_row);
    of_row.gate_stride = hidden;
    if (layer_.has_projection) of_row.hidden = direction.hidden.row(row - chunk.first_row);
    if constexpr (Cell::kHasCellState) {
      const C* cells = static_cast<const C*>(arguments_->cells) + d * layer_.rows * hidden;
      of_row.cells = cells + row * hidden;
      of_row.c_prev =
          i < started ? cells + (steps_.offset(previous(d, t)) + b) * hidden : direction.c0.row(b);
      of_row.dc = direction.dc.row(b);
    }
    for (int64_t unit = units.first; unit < units.last; unit += kLanes<C>) {
      BackwardUnits<S> u = of_row;
      u.gates += unit;
      u.h_prev += unit;
      if (u.grad_output != nullptr) u.grad_output += unit;
      u.dh_in += unit;
      u.dh_out += unit;
      u.dg += unit;
      if (u.hidden != nullptr) u.hidden += unit;
      if constexpr (Cell::kHasCellState) {
        u.cells += unit;
        u.c_prev += unit;
        u.dc += unit;
      }
      u.count = smaller(hidden - unit, kLanes<C>);
      Cell::backward(u);
    }
  }
}

// LB8: dr = dh' of the step after + dy, dh = dr W_hr
template <class Cell>
void Backward<Cell>::project_gradient(int d, const Chunk& chunk, int64_t t, Range slice, int64_t rows) const {
  const Direction& direction = directions_[d];
  const int64_t first = chunk_row(chunk, t, slice.first);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t b = slice.first + i;
    const S* grad_output = grad_output_row(d, t, b);
    const C* carried = direction.dh.row(b);
    A* dr = direction.dr.row(first + i);
    for (int64_t j = 0; j < layer_.state_size; j += kLanes<C>) {
      const int64_t count = layer_.state_size - j;
      Vec<C> sum = load(carried + j, count);
      if (grad_output != nullptr) sum = sum + load(grad_output + j, count);
      store(dr + j, sum);  // zeros into the padding: pairs reach into it
    }
  }
  const Segment all{0, 0, layer_.state_size};
  multiply_columns(columns(direction.w_hr, arguments_->weights[d].w_hr, layer_.state_size, layer_.hidden_size), 0,
                   ColumnWeights<S>::panel_count(layer_.hidden_size), constant(direction.dr, first), &all, 1, rows,
                   Matrix<C>{direction.dh_hidden.row(slice.first), direction.dh_hidden.stride}, false);
}

// dh' = dG W_hh (LB1, GB1..GB4), on top of what bypasses the weights.
template <class Cell>
void Backward<Cell>::carry(int d, const Chunk& chunk, int64_t t, Range slice, Range panels) const {
  const Direction& direction = directions_[d];
  multiply_gradient(direction.w_hh, arguments_->weights[d].w_hh, layer_.state_size, Cell::kRecurrentSegments, panels,
                    constant(direction.dg, chunk_row(chunk, t, slice.first)), steps_.active(t, slice),
                    Matrix<C>{direction.dh.row(slice.first), direction.dh.stride}, Cell::kCarriesPastGates);
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
