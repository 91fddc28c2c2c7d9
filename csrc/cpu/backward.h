// The backward pass of a layer, for any cell: back-propagation through time. A Cell says how one vector of
// units goes one step back, and which gate gradients meet which rows of the weights; see lstm.cpp and gru.cpp.
//
// Per chunk of steps, last first: (1) the recurrence, by slices of the batch, leaves the gate gradients dG of
// the chunk's rows, (2) dx = dG W_ih and the weight gradients dG^T [x, h'] are taken from them. Each output of
// (2) is summed by one thread, chunk after chunk, row after row: no result depends on how work was shared.
#pragma once

#include "sequence.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

// One vector of units of one batch row; pointers are at the first of those units.
template <class S>
struct BackwardUnits {
  using C = Compute<S>;
  const S* gates;       // (4, H)
  const C* cells;       // (H), LSTM only
  const C* c_prev;      // (H), LSTM only
  const C* h_prev;      // (H), GRU only
  const S* grad_output; // (H), or null
  const C* dh_in;       // (H): dh from the steps after
  C* dh_out;            // (H): the share of dh' that bypasses the weights; GRU only
  C* dc;                // (H): dc in, dc' out; LSTM only
  C* dg;                // (4, H)
  C* hidden;            // (H): h before its projection, or null; LSTM only
  int64_t gate_stride;  // H
  int64_t count;        // real units among the lanes
};

template <class Cell>
class Backward {
  using S = typename Cell::Storage;
  using C = Compute<S>;
  static constexpr int kGates = Cell::kGates;
  static constexpr bool kWidens = sizeof(S) != sizeof(C);
  static constexpr int64_t kChunkBytes = 524288;  // of gate gradients
  static constexpr int64_t kChunkRows = 64;       // at least: fewer do not repay the pass over the weight gradients
  static constexpr int64_t kMostChunkRows = 512;
  // Fewer rows than this read column weights as they lie.
  static constexpr int64_t kRowsWorthPacking = 16;
  static constexpr int64_t kStepsWorthPacking = 4;

 public:
  // A null workspace only measures how much is needed.
  Backward(const Layer& layer, bool needs_input, bool needs_weights, int threads, void* workspace)
      : layer_(layer), arena_(workspace), steps_(layer, arena_), division_(divide(layer, kGates, threads)),
        needs_input_(needs_input), needs_weights_(needs_weights) {
    const int64_t hidden = layer.hidden_size;
    const int64_t row_bytes = padded_row<C>(4 * hidden) * int64_t(sizeof(C));
    capacity_ = smaller(larger(kChunkBytes / row_bytes, kChunkRows), kMostChunkRows);
    capacity_ = larger(smaller(capacity_, layer.rows), layer.batch);
    borders_ = arena_.take<int64_t>(layer.steps + 1);
    for (int d = 0; d < layer.directions; ++d) {
      Direction& to = directions_[d];
      to.w_hh = take_columns(kGates * hidden, layer.state_size, layer.steps >= kStepsWorthPacking);
      if (needs_input) to.w_ih = take_columns(kGates * hidden, layer.input_size, layer.rows >= kRowsWorthPacking);
      to.dg = arena_.take_rows<C>(capacity_, 4 * hidden);
      to.dh = arena_.take_rows<C>(layer.batch, layer.state_size);
      to.h_prev = arena_.take_rows<C>(capacity_, layer.state_size);
      if (needs_weights) to.x = arena_.take_rows<C>(capacity_, layer.input_size);
      if (Cell::kHasCellState) {
        to.dc = arena_.take_rows<C>(layer.batch, hidden);
        to.c0 = arena_.take_rows<C>(layer.batch, hidden);
      }
      if (layer.has_projection) {
        to.w_hr = take_columns(layer.state_size, hidden, true);
        to.hidden = arena_.take_rows<C>(capacity_, hidden);
        to.dr = arena_.take_rows<C>(capacity_, layer.state_size);
        to.dh_hidden = arena_.take_rows<C>(layer.batch, hidden);
      }
      if (needs_weights) {
        to.db = arena_.take<C>(divide_up(4 * hidden, kLanes<C>) * kLanes<C>);
        if (kWidens) {
          to.dw_ih = arena_.take<C>(kGates * hidden * layer.input_size);
          to.dw_hh = arena_.take<C>(kGates * hidden * layer.state_size);
          if (layer.has_projection) to.dw_hr = arena_.take<C>(layer.state_size * hidden);
        }
      }
    }
    // A strip of dx in the compute type, per thread, before it is rounded to a half type.
    if (needs_input && kWidens) strips_ = arena_.take<C>(larger(threads, 1) * capacity_ * kStripColumns);
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const BackwardArguments& arguments, const Parallel& parallel) {
    arguments_ = &arguments;
    steps_.fill_offsets();
    find_borders();
    prepare(parallel);
    for (int64_t turn = 0; turn < chunks_; ++turn) {
      if (division_.by_units) {
        for (int d = 0; d < layer_.directions; ++d) recur_by_units(d, chunk(d, turn), parallel);
      } else {
        run_tasks(parallel, layer_.directions * division_.slices,
                  worth_sharing(chunk(0, turn).rows * layer_.state_size), [&](int64_t i) {
                    const int d = int(i / division_.slices);
                    recur(d, chunk(d, turn), steps_.slice(i % division_.slices, division_.slices));
                  });
      }
      const int64_t parts = larger(parallel.threads, 1);
      run_tasks(parallel, parts, worth_sharing(chunk(0, turn).rows * (layer_.input_size + layer_.state_size)),
                [&](int64_t part) {
                  for (int d = 0; d < layer_.directions; ++d) {
                    if (needs_input_) input_gradient(d, turn, part, parts);
                    if (needs_weights_) weight_gradients(d, turn, part, parts);
                  }
                });
    }
    finish(parallel);
  }

 private:
  static constexpr int64_t kStripColumns = ColumnWeights<S>::kPanelColumns;

  struct Columns {
    C* panels;
    bool in_place;
  };

  struct Direction {
    Columns w_ih, w_hh, w_hr;
    Matrix<C> dg;         // (capacity, 4 * H): r, z, n, q or i, f, g, o
    Matrix<C> h_prev;     // (capacity, P): the state before each row's step
    Matrix<C> x;          // (capacity, I), when it cannot be read in place
    Matrix<C> dh;         // (N, P): carried from step to step
    Matrix<C> dc;         // (N, H): carried from step to step
    Matrix<C> c0;         // (N, H)
    Matrix<C> hidden;     // (capacity, H): h before its projection
    Matrix<C> dr;         // (capacity, P): gradient of the projected state
    Matrix<C> dh_hidden;  // (N, H): gradient of h before its projection
    C* db;                // (4 * H)
    C* dw_ih;             // (G*H, I), half types only: others sum up in the result
    C* dw_hh;             // (G*H, P), half types only
    C* dw_hr;             // (P, H), half types only
  };

  struct Chunk {
    Range steps;
    int64_t first_row;  // of all rows
    int64_t rows;
  };

  bool worth_sharing(int64_t products_per_gate) const {
    return kGates * layer_.hidden_size * products_per_gate >= kWorthSharing;
  }
  bool reverse(int d) const { return d == 1; }
  // The step before t in the direction's own order.
  int64_t previous(int d, int64_t t) const { return reverse(d) ? t + 1 : t - 1; }

  // ---- Chunks -------------------------------------------------------------------------------------

  void find_borders() {
    chunks_ = 0;
    borders_[0] = 0;
    int64_t rows = 0;
    for (int64_t t = 0; t < layer_.steps; ++t) {
      if (t > borders_[chunks_] && rows + steps_.active(t) > capacity_) {
        borders_[++chunks_] = t;
        rows = 0;
      }
      rows += steps_.active(t);
    }
    borders_[++chunks_] = layer_.steps;
  }

  int64_t chunk_index(int d, int64_t turn) const { return reverse(d) ? turn : chunks_ - 1 - turn; }

  Chunk chunk(int d, int64_t turn) const {
    const int64_t index = chunk_index(d, turn);
    const Range steps{borders_[index], borders_[index + 1]};
    const int64_t first = steps_.offset(steps.first);
    return {steps, first, steps_.offset(steps.last - 1) + steps_.active(steps.last - 1) - first};
  }

  // ---- Before and after -----------------------------------------------------------------------------

  Columns take_columns(int64_t depth, int64_t columns, bool pack) {
    const int64_t panels = ColumnWeights<S>::panel_count(columns);
    const bool in_place = !pack && !kWidens;
    return {arena_.take<C>((in_place ? smaller(panels, 1) : panels) * ColumnWeights<S>::panel_size(depth)), in_place};
  }

  void pack_columns(const Columns& to, const void* weights, int64_t depth, int64_t columns, int64_t part,
                    int64_t parts) const {
    const int64_t count = ColumnWeights<S>::panel_count(columns);
    Range panels = share(count, part, parts);
    if (to.in_place) panels = {panels.last == count ? larger(count - 1, panels.first) : panels.last, panels.last};
    for (int64_t panel = panels.first; panel < panels.last; ++panel)
      pack_column_panel<S>(to.panels + (to.in_place ? 0 : panel) * ColumnWeights<S>::panel_size(depth),
                           static_cast<const S*>(weights), depth, columns, panel);
  }

  void prepare(const Parallel& parallel) {
    const int64_t parts = larger(parallel.threads, 1);
    const bool packs = !directions_[0].w_hh.in_place || (needs_input_ && !directions_[0].w_ih.in_place);
    run_tasks(parallel, parts, packs && worth_sharing(layer_.input_size + layer_.state_size), [&](int64_t part) {
      for (int d = 0; d < layer_.directions; ++d) {
        const Direction& to = directions_[d];
        const Weights& weights = arguments_->weights[d];
        const int64_t gate_rows = kGates * layer_.hidden_size;
        pack_columns(to.w_hh, weights.w_hh, gate_rows, layer_.state_size, part, parts);
        if (needs_input_) pack_columns(to.w_ih, weights.w_ih, gate_rows, layer_.input_size, part, parts);
        if (layer_.has_projection)
          pack_columns(to.w_hr, weights.w_hr, layer_.state_size, layer_.hidden_size, part, parts);
        const Range rows = share(layer_.batch, part, parts);
        for (int64_t b = rows.first; b < rows.last; ++b) {
          load_state(to.dh, arguments_->grad_h_n, d, b, layer_.state_size);
          if (layer_.has_projection) zero_row(to.dh_hidden, b);
          if constexpr (Cell::kHasCellState) {
            load_state(to.dc, arguments_->grad_c_n, d, b, layer_.hidden_size);
            load_state(to.c0, arguments_->c0, d, b, layer_.hidden_size);
          }
        }
      }
    });
  }

  void load_state(const Matrix<C>& to, const void* from, int d, int64_t b, int64_t width) const {
    if (from == nullptr)
      zero_row(to, b);
    else
      widen_row(to.row(b), static_cast<const S*>(from) + (d * layer_.batch + b) * width, width, to.stride);
  }

  static void zero_row(const Matrix<C>& of, int64_t row) {
    for (int64_t i = 0; i < of.stride; ++i) of.row(row)[i] = 0;
  }

  void store_state(void* to, const Matrix<C>& from, int d, int64_t b, int64_t width) const {
    narrow_row(static_cast<S*>(to) + (d * layer_.batch + b) * width, from.row(b), width);
  }

  void finish(const Parallel& parallel) {
    const int64_t parts = larger(parallel.threads, 1);
    const bool large = kWidens && worth_sharing(layer_.input_size + layer_.state_size);
    run_tasks(parallel, parts, large, [&](int64_t part) {
      for (int d = 0; d < layer_.directions; ++d) {
        const Direction& from = directions_[d];
        const Range rows = share(layer_.batch, part, parts);
        for (int64_t b = rows.first; b < rows.last; ++b) {
          store_state(arguments_->grad_h0, from.dh, d, b, layer_.state_size);
          if constexpr (Cell::kHasCellState) store_state(arguments_->grad_c0, from.dc, d, b, layer_.hidden_size);
        }
        if (needs_weights_) store_weight_gradients(from, arguments_->grad_weights[d], part, parts);
      }
    });
  }

  void store_weight_gradients(const Direction& from, const WeightGradients& to, int64_t part, int64_t parts) const {
    if constexpr (kWidens) {
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

  template <int kCount>
  void store_bias(void* to, const C* db, const SegmentOfGates (&segments)[kCount]) const {
    for (const SegmentOfGates& gates : segments) {
      const Segment s = gates.of(layer_.hidden_size);
      narrow_row(static_cast<S*>(to) + s.w_first, db + s.a_first, s.length);
    }
  }

  // ---- The recurrence ---------------------------------------------------------------------------

  // All steps of a chunk for one slice of the batch.
  void recur(int d, const Chunk& chunk, Range slice) {
    gather(d, chunk, chunk.steps, slice);
    for (int64_t i = 0; i < chunk.steps.size(); ++i) {
      const int64_t t = backward_step(d, chunk, i);
      differentiate(d, chunk, t, slice, {0, layer_.hidden_size});
      carry(d, chunk, t, slice, {0, ColumnWeights<S>::panel_count(layer_.state_size)});
    }
  }

  // The same with the units of each step shared by the threads. A thread that has carried dh to some units
  // takes those units through the next step at once, so that one region per step is enough.
  void recur_by_units(int d, const Chunk& chunk, const Parallel& parallel) {
    const Range batch{0, layer_.batch};
    const int64_t panels = ColumnWeights<S>::panel_count(layer_.state_size);
    const int64_t parts = smaller(parallel.threads, panels);
    run_tasks(parallel, parallel.threads, true, [&](int64_t part) {
      const Range steps = share(chunk.steps.size(), part, parallel.threads);
      gather(d, chunk, {chunk.steps.first + steps.first, chunk.steps.first + steps.last}, batch);
    });
    const auto units = [&](Range of) {
      return Range{of.first * kStripColumns, smaller(of.last * kStripColumns, layer_.hidden_size)};
    };
    differentiate(d, chunk, backward_step(d, chunk, 0), batch, {0, layer_.hidden_size});
    for (int64_t i = 0; i < chunk.steps.size(); ++i)
      run_tasks(parallel, parts, true, [&](int64_t part) {
        const Range own = share(panels, part, parts);
        carry(d, chunk, backward_step(d, chunk, i), batch, own);
        if (i + 1 < chunk.steps.size()) differentiate(d, chunk, backward_step(d, chunk, i + 1), batch, units(own));
      });
  }

  int64_t backward_step(int d, const Chunk& chunk, int64_t i) const {
    return reverse(d) ? chunk.steps.first + i : chunk.steps.last - 1 - i;
  }

  int64_t chunk_row(const Chunk& chunk, int64_t t, int64_t b) const { return steps_.offset(t) - chunk.first_row + b; }

  const S* output_row(int d, int64_t t, int64_t b) const {
    return static_cast<const S*>(arguments_->output) +
           ((steps_.offset(t) + b) * layer_.directions + d) * layer_.state_size;
  }

  // True when x can be multiplied where it lies: as one matrix of whole vectors.
  bool reads_input_in_place(int64_t* stride) const {
    return !kWidens && layer_.input_size % kLanes<C> == 0 &&
           steps_.evenly_spaced(arguments_->input, {0, layer_.batch}, stride);
  }

  // h' and x of a chunk, as matrices of the compute type with their padding zeroed.
  void gather(int d, const Chunk& chunk, Range steps, Range slice) const {
    const Direction& to = directions_[d];
    int64_t stride;
    const bool copies_input = needs_weights_ && !reads_input_in_place(&stride);
    for (int64_t t = steps.first; t < steps.last; ++t) {
      const int64_t rows = steps_.active(t, slice), started = steps_.active(previous(d, t), slice);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t b = slice.first + i, row = chunk_row(chunk, t, b);
        const S* h_prev = i < started ? output_row(d, previous(d, t), b)
                                      : static_cast<const S*>(arguments_->h0) +
                                            (d * layer_.batch + b) * layer_.state_size;
        widen_row(to.h_prev.row(row), h_prev, layer_.state_size, to.h_prev.stride);
        if (copies_input)
          widen_row(to.x.row(row), steps_.row<S>(arguments_->input, t, b), layer_.input_size, to.x.stride);
      }
    }
  }

  // Pointwise: dh, dc of step t -> gate gradients, dc', and dh' as far as it bypasses the weights.
  void differentiate(int d, const Chunk& chunk, int64_t t, Range slice, Range units) const {
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
      of_row.h_prev = direction.h_prev.row(row - chunk.first_row);
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

  const S* grad_output_row(int d, int64_t t, int64_t b) const {
    if (arguments_->grad_output.data == nullptr) return nullptr;
    return steps_.row<S>(arguments_->grad_output, t, b) + d * layer_.state_size;
  }

  // LB8: dr = dh' of the step after + dy, dh = dr W_hr
  void project_gradient(int d, const Chunk& chunk, int64_t t, Range slice, int64_t rows) const {
    const Direction& direction = directions_[d];
    const int64_t first = chunk_row(chunk, t, slice.first);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = slice.first + i;
      const S* grad_output = grad_output_row(d, t, b);
      const C* carried = direction.dh.row(b);
      C* dr = direction.dr.row(first + i);
      for (int64_t j = 0; j < layer_.state_size; j += kLanes<C>) {
        const int64_t count = layer_.state_size - j;
        Vec<C> sum = load(carried + j, count);
        if (grad_output != nullptr) sum = sum + load(grad_output + j, count);
        store(dr + j, sum, count);
      }
    }
    const Segment all{0, 0, layer_.state_size};
    multiply_columns(columns(direction.w_hr, arguments_->weights[d].w_hr, layer_.state_size, layer_.hidden_size), 0,
                     ColumnWeights<S>::panel_count(layer_.hidden_size), constant(direction.dr, first), &all, 1, rows,
                     Matrix<C>{direction.dh_hidden.row(slice.first), direction.dh_hidden.stride}, false);
  }

  // dh' = dG W_hh (LB1, GB1..GB4), on top of what bypasses the weights.
  void carry(int d, const Chunk& chunk, int64_t t, Range slice, Range panels) const {
    const Direction& direction = directions_[d];
    multiply_gradient(direction.w_hh, arguments_->weights[d].w_hh, layer_.state_size, Cell::kRecurrentSegments, panels,
                      constant(direction.dg, chunk_row(chunk, t, slice.first)), steps_.active(t, slice),
                      Matrix<C>{direction.dh.row(slice.first), direction.dh.stride}, Cell::kCarriesPastGates);
  }

  template <int kCount>
  void multiply_gradient(const Columns& packed, const void* weights, int64_t width,
                         const SegmentOfGates (&gates)[kCount], Range panels, Matrix<const C> dg, int64_t rows,
                         Matrix<C> to, bool accumulate) const {
    Segment segments[kCount];
    for (int i = 0; i < kCount; ++i) segments[i] = gates[i].of(layer_.hidden_size);
    multiply_columns(columns(packed, weights, kGates * layer_.hidden_size, width), panels.first, panels.last, dg,
                     segments, kCount, rows, to, accumulate);
  }

  ColumnWeights<S> columns(const Columns& packed, const void* weights, int64_t depth, int64_t count) const {
    return {static_cast<const S*>(weights), packed.panels, depth, count, packed.in_place};
  }

  static Matrix<const C> constant(const Matrix<C>& of, int64_t first_row) { return {of.row(first_row), of.stride}; }

  // ---- From the gate gradients of a chunk ---------------------------------------------------------

  // dx = dG W_ih. With two directions whichever comes to a chunk second adds to what the first left.
  void input_gradient(int d, int64_t turn, int64_t part, int64_t parts) const {
    const Chunk own = chunk(d, turn);
    const int64_t other_turn = chunks_ - 1 - turn;
    const bool second = layer_.directions == 2 && (other_turn < turn || (other_turn == turn && d == 1));
    const int64_t count = ColumnWeights<S>::panel_count(layer_.input_size);
    Range panels{0, count}, rows{0, own.rows};
    if (count >= parts)
      panels = share(count, part, parts);
    else
      rows = share(own.rows, part, parts);
    const Direction& direction = directions_[d];
    const Matrix<const C> dg = constant(direction.dg, rows.first);
    S* result = static_cast<S*>(arguments_->grad_input) + (own.first_row + rows.first) * layer_.input_size;
    const void* w_ih = arguments_->weights[d].w_ih;
    if constexpr (!kWidens) {
      multiply_gradient(direction.w_ih, w_ih, layer_.input_size, Cell::kInputSegments, panels, dg, rows.size(),
                        Matrix<C>{result, layer_.input_size}, second);
    } else {
      C* strip = strips_ + part * capacity_ * kStripColumns;
      for (int64_t panel = panels.first; panel < panels.last; ++panel) {
        const int64_t column = panel * kStripColumns;
        const int64_t width = smaller(layer_.input_size - column, kStripColumns);
        // The product addresses columns of the whole result, so the strip is passed shifted to its place.
        multiply_gradient(direction.w_ih, w_ih, layer_.input_size, Cell::kInputSegments, {panel, panel + 1}, dg,
                          rows.size(), Matrix<C>{strip - column, kStripColumns}, false);
        for (int64_t row = 0; row < rows.size(); ++row)
          add_rounded(result + row * layer_.input_size + column, strip + row * kStripColumns, width, second);
      }
    }
  }

  static void add_rounded(S* to, const C* from, int64_t width, bool accumulate) {
    for (int64_t j = 0; j < width; j += kLanes<C>) {
      Vec<C> value = load(from + j, width - j);
      if (accumulate) value = value + load(to + j, width - j);
      store(to + j, value, width - j);
    }
  }

  // dW_ih = dG^T x, dW_hh = dG^T h', dW_hr = dr^T h, db = the sum of dG over rows.
  void weight_gradients(int d, int64_t turn, int64_t part, int64_t parts) const {
    const Direction& from = directions_[d];
    const Chunk own = chunk(d, turn);
    const WeightGradients& results = arguments_->grad_weights[d];
    const bool accumulate = turn > 0;
    int64_t stride;
    Matrix<const C> x{from.x.data, from.x.stride};
    if constexpr (!kWidens) {
      if (reads_input_in_place(&stride)) x = {steps_.row<S>(arguments_->input, own.steps.first, 0), stride};
    }
    transposed_products(own.rows, from.dg, Cell::kInputSegments, x, layer_.input_size,
                        sum_of(results.w_ih, from.dw_ih), part, parts, accumulate);
    transposed_products(own.rows, from.dg, Cell::kRecurrentSegments, constant(from.h_prev, 0), layer_.state_size,
                        sum_of(results.w_hh, from.dw_hh), part, parts, accumulate);
    if (layer_.has_projection) {
      const Range states = share(layer_.state_size, part, parts);
      multiply_transposed(constant(from.dr, 0), constant(from.hidden, 0), own.rows, states.first, states.last,
                          layer_.hidden_size, Matrix<C>{sum_of(results.w_hr, from.dw_hr), layer_.hidden_size},
                          accumulate);
    }
    const Range vectors = share(divide_up(4 * layer_.hidden_size, kLanes<C>), part, parts);
    for (int64_t v = vectors.first; v < vectors.last; ++v) {
      // Blocks of rows, then chunks: one running sum over thousands of rows would lose ten times what torch does.
      constexpr int64_t kBlock = 32;
      Vec<C> sum(C(0));
      for (int64_t first = 0; first < own.rows; first += kBlock) {
        Vec<C> block(C(0));
        for (int64_t row = first; row < smaller(first + kBlock, own.rows); ++row)
          block = block + Vec<C>::load(from.dg.row(row) + v * kLanes<C>);
        sum = sum + block;
      }
      if (accumulate) sum = sum + Vec<C>::load(from.db + v * kLanes<C>);
      sum.store(from.db + v * kLanes<C>);
    }
  }

  C* sum_of(void* result, C* sum) const {
    if constexpr (kWidens) return sum;
    return static_cast<C*>(result);
  }

  template <int kCount>
  void transposed_products(int64_t rows, const Matrix<C>& dg, const SegmentOfGates (&gates)[kCount],
                           Matrix<const C> x, int64_t width, C* to, int64_t part, int64_t parts,
                           bool accumulate) const {
    for (const SegmentOfGates& of : gates) {
      const Segment s = of.of(layer_.hidden_size);
      const Range own = share(s.length, part, parts);
      multiply_transposed(Matrix<const C>{dg.data + s.a_first, dg.stride}, x, rows, own.first, own.last, width,
                          Matrix<C>{to + s.w_first * width, width}, accumulate);
    }
  }

  const Layer& layer_;
  Arena arena_;
  Steps steps_;
  Division division_;
  bool needs_input_, needs_weights_;
  int64_t capacity_;  // rows of a chunk
  int64_t* borders_;  // (chunks + 1) first steps of chunks
  int64_t chunks_ = 0;
  C* strips_ = nullptr;
  Direction directions_[kMostDirections]{};
  const BackwardArguments* arguments_ = nullptr;
};

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
