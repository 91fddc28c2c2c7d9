// The backward pass of a layer, for any cell: back-propagation through time. A Cell says how one vector of
// units goes one step back, and which gate gradients meet which rows of the weights; see lstm.cpp and gru.cpp.
//
// Per chunk of steps, last first: (1) the recurrence, by slices of the batch, leaves the gate gradients dG of
// the chunk's rows, (2) dx = dG W_ih and the weight gradients dG^T [x, h'] are taken from them. Each output of
// (2) is summed by one thread, chunk after chunk, row after row: no result depends on how work was shared.
#pragma once

#include "rounds.h"
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
  static constexpr int64_t kChunkBytes = 2097152;  // of gate gradients
  static constexpr int64_t kChunkRows = 256;       // at least: fewer do not repay the pass over the weight gradients
  static constexpr int64_t kMostChunkRows = 512;
  // Products with fewer rows read column weights as they lie; a recurrence with fewer steps and, in all of them, rows does too.
  static constexpr int64_t kRowsWorthPacking = 32;
  static constexpr int64_t kStepsWorthPacking = 8, kRecurrentRowsWorthPacking = 64;

 public:
  // A null workspace only measures how much is needed.
  Backward(const Layer& layer, bool needs_input, bool needs_weights, int threads, void* workspace)
      : layer_(layer), arena_(workspace), steps_(layer, arena_), needs_input_(needs_input), needs_weights_(needs_weights) {
    const int64_t hidden = layer.hidden_size;
    carries_at_once_ = layer.steps == 1 && layer.rows >= kRowsWorthPacking;
    division_ = divide(layer, kGates, threads, !carries_at_once_);
    const bool packs_w_hh =
        !carries_at_once_ && (layer.steps >= kStepsWorthPacking || layer.rows >= kRecurrentRowsWorthPacking);
    const bool fits_gradient = packs_w_hh && needs_weights && !kWidens && layer.state_size % kStripColumns == 0;
    capacity_ = chunk_rows(fits_gradient);
    one_chunk_ = layer.rows <= capacity_;
    w_hh_in_gradient_ = one_chunk_ && fits_gradient;
    borders_ = arena_.take<int64_t>(layer.steps + 1);
    for (int d = 0; d < layer.directions; ++d) {
      Direction& to = directions_[d];
      if (!w_hh_in_gradient_ && !carries_at_once_)
        to.w_hh = take_columns(kGates * hidden, layer.state_size, packs_w_hh);
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
        if (kWidens && !one_chunk_) {
          to.dw_ih = arena_.take<C>(kGates * hidden * layer.input_size);
          to.dw_hh = arena_.take<C>(kGates * hidden * layer.state_size);
          if (layer.has_projection) to.dw_hr = arena_.take<C>(layer.state_size * hidden);
        }
      }
    }
    if (needs_input || carries_at_once_)
      panels_ = arena_.take<C>(larger(threads, 1) * ColumnWeights<S>::panel_size(kGates * hidden));
    if (needs_input && kWidens) strips_ = arena_.take<C>(larger(threads, 1) * capacity_ * kStripColumns);
    if (needs_weights) transposed_scratch_ = arena_.take<C>(larger(threads, 1) * kTransposedScratch<C>);
    if (needs_weights && kWidens && one_chunk_) gradient_rows_ = arena_.take<C>(larger(threads, 1) * gradient_rows_size());
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const BackwardArguments& arguments, const Parallel& parallel) {
    arguments_ = &arguments;
    for (int d = 0; d < layer_.directions && w_hh_in_gradient_; ++d)
      directions_[d].w_hh.panels = static_cast<C*>(arguments.grad_weights[d].w_hh);
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
                    if (carries_at_once_) carry_at_once(d, part, parts);
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
    C* panels = nullptr;
    bool in_place = false;
  };

  struct Direction {
    Columns w_hh, w_hr;
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
    C* dw_ih;             // (G*H, I), of half types and several chunks; null: sums are in the result
    C* dw_hh;             // (G*H, P), likewise
    C* dw_hr;             // (P, H), likewise
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

  // Rows of a chunk. With one alone, packed W_hh can lie where its gradient will be (fits_gradient), and half types need no sums in
  // the compute type. Then all rows are one chunk, if it takes no more memory than that saves.
  int64_t chunk_rows(bool fits_gradient) const {
    const int64_t hidden = layer_.hidden_size, recurrent = kGates * hidden * layer_.state_size;
    const int64_t row_bytes = padded_row<C>(4 * hidden) * int64_t(sizeof(C));
    const int64_t usual = smaller(larger(kChunkBytes / row_bytes, kChunkRows), kMostChunkRows);
    const int64_t width = 4 * hidden + layer_.state_size + layer_.input_size;
    int64_t saved = fits_gradient ? recurrent : 0;
    if (kWidens && needs_weights_) saved = recurrent + kGates * hidden * layer_.input_size;
    const int64_t rows = layer_.rows * width <= usual * width + saved ? layer_.rows : smaller(usual, layer_.rows);
    return larger(rows, layer_.batch);
  }

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
    const int64_t packed = in_place ? (ColumnWeights<S>::needs_padding(columns) ? 1 : 0) : panels;
    return {arena_.take<C>(packed * ColumnWeights<S>::panel_size(depth)), in_place};
  }

  void pack_columns(const Columns& to, const void* weights, int64_t depth, int64_t columns, int64_t part,
                    int64_t parts) const {
    const int64_t count = ColumnWeights<S>::panel_count(columns);
    Range panels = share(count, part, parts);
    if (to.in_place) {
      // Only the last panel, by whom it falls to.
      if (panels.last < count || panels.size() == 0 || !ColumnWeights<S>::needs_padding(columns)) return;
      panels.first = count - 1;
    }
    for (int64_t panel = panels.first; panel < panels.last; ++panel)
      pack_column_panel<S>(to.panels + (to.in_place ? 0 : panel) * ColumnWeights<S>::panel_size(depth),
                           static_cast<const S*>(weights), depth, columns, panel);
  }

  void prepare(const Parallel& parallel) {
    const int64_t parts = larger(parallel.threads, 1);
    const bool packs = directions_[0].w_hh.panels != nullptr && !directions_[0].w_hh.in_place;
    run_tasks(parallel, parts, packs && worth_sharing(layer_.state_size), [&](int64_t part) {
      for (int d = 0; d < layer_.directions; ++d) {
        const Direction& to = directions_[d];
        const Weights& weights = arguments_->weights[d];
        if (!carries_at_once_)
          pack_columns(to.w_hh, weights.w_hh, kGates * layer_.hidden_size, layer_.state_size, part, parts);
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

  // ---- The recurrence: backward_recurrence.h ------------------------------------------------------

  void recur(int d, const Chunk& chunk, Range slice);
  void recur_by_units(int d, const Chunk& chunk, const Parallel& parallel);
  void gather(int d, const Chunk& chunk, Range steps, Range slice) const;
  void differentiate(int d, const Chunk& chunk, int64_t t, Range slice, Range units) const;
  void project_gradient(int d, const Chunk& chunk, int64_t t, Range slice, int64_t rows) const;
  void carry(int d, const Chunk& chunk, int64_t t, Range slice, Range panels) const;

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

  const S* grad_output_row(int d, int64_t t, int64_t b) const {
    if (arguments_->grad_output.data == nullptr) return nullptr;
    return steps_.row<S>(arguments_->grad_output, t, b) + d * layer_.state_size;
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

  // ---- From the gate gradients of a chunk: backward_gradients.h -----------------------------------

  C* own_panel(int64_t part) const { return panels_ + part * ColumnWeights<S>::panel_size(kGates * layer_.hidden_size); }
  Columns pack_own(const void* weights, int64_t width, int64_t panel, int64_t part) const;
  void carry_at_once(int d, int64_t part, int64_t parts) const;
  void input_gradient(int d, int64_t turn, int64_t part, int64_t parts) const;
  void weight_gradients(int d, int64_t turn, int64_t part, int64_t parts) const;
  C* transposed_scratch(int64_t part) const { return transposed_scratch_ + part * kTransposedScratch<C>; }
  void bias_gradients(int d, int64_t turn, int64_t part, int64_t parts) const;
  template <int kCount>
  void transposed_products(const SegmentOfGates (&gates)[kCount], const Matrix<C>& dg, Matrix<const C> x, int64_t rows,
                           int64_t width, void* result, C* sum, int64_t part, int64_t parts, bool accumulate) const;
  void transposed_product(Matrix<const C> a, Matrix<const C> x, int64_t rows, Range of, int64_t width, void* result, C* sum,
                          int64_t part, bool accumulate) const;
  int64_t gradient_rows_size() const { return kTransposedRows * larger(layer_.input_size, layer_.hidden_size); }
  void store_weight_gradients(const Direction& from, const WeightGradients& to, int64_t part, int64_t parts) const;
  template <int kCount>
  void store_bias(void* to, const C* db, const SegmentOfGates (&segments)[kCount]) const;

  const Layer& layer_;
  Arena arena_;
  Steps steps_;
  Division division_;
  bool needs_input_, needs_weights_;
  bool carries_at_once_;   // there is one step: each panel of W_hh is packed for all of its rows when it is used
  bool one_chunk_;         // all rows are one
  bool w_hh_in_gradient_;  // packed W_hh lies where its gradient will be
  int64_t capacity_;       // rows of a chunk
  int64_t* borders_;       // (chunks + 1) first steps of chunks
  int64_t chunks_ = 0;
  C* panels_ = nullptr;  // a column panel of W_ih or W_hh for each thread
  C* strips_ = nullptr;  // of dx, half types only: in the compute type before it is rounded, for each thread
  C* transposed_scratch_ = nullptr;
  C* gradient_rows_ = nullptr;  // half types with one chunk: of weight gradients before they are rounded, for each thread
  Direction directions_[kMostDirections]{};
  const BackwardArguments* arguments_ = nullptr;
};

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA

#include "backward_gradients.h"
#include "backward_recurrence.h"
