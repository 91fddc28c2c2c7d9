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
  const S* h_prev;      // (H), GRU only
  const S* grad_output; // (H), or null
  const C* dh_in;       // (H): dh from the steps after
  C* dh_out;            // (H): the share of dh' that bypasses the weights; GRU only
  C* dc;                // (H): dc in, dc' out; LSTM only
  Operand<S>* dg;       // (4, H)
  Operand<S>* hidden;   // (H): h before its projection, or null; LSTM only
  int64_t gate_stride;  // H
  int64_t count;        // real units among the lanes
};

template <class Cell>
class Backward {
  using S = typename Cell::Storage;
  using C = Compute<S>;
  using A = Operand<S>;  // of products: gate gradients, states
  static constexpr int kGates = Cell::kGates;
  static constexpr bool kWidens = sizeof(S) != sizeof(C);
  static constexpr int64_t kChunkBytes = 2097152;  // of gate gradients
  static constexpr int64_t kChunkRows = 256;       // at least: fewer do not repay the pass over the weight gradients
  static constexpr int64_t kMostChunkRows = 512;
  // Products with fewer rows read column weights as they lie; a recurrence with fewer steps and, in all of them, rows does too.
  static constexpr int64_t kRowsWorthPacking = 32;
  static constexpr int64_t kStepsWorthPacking = 8, kRecurrentRowsWorthPacking = 64;
  static constexpr int64_t kRoundedRows = 128;  // of the gradients that half types round as they are summed up

 public:
  // A null workspace only measures how much is needed.
  Backward(const Layer& layer, bool needs_input, bool needs_weights, int threads, void* workspace)
      : layer_(layer), arena_(workspace), steps_(layer, arena_), needs_input_(needs_input), needs_weights_(needs_weights) {
    const int64_t hidden = layer.hidden_size;
    carries_at_once_ = layer.steps == 1 && layer.rows >= kRowsWorthPacking;
    division_ = divide(layer, kGates, threads, !carries_at_once_);
    const bool packs_w_hh =
        !carries_at_once_ && (layer.steps >= kStepsWorthPacking || layer.rows >= kRecurrentRowsWorthPacking);
    capacity_ = chunk_rows(packs_w_hh);
    one_chunk_ = layer.rows <= capacity_;
    w_hh_in_gradient_ = one_chunk_ && packs_w_hh && needs_weights && kGates * hidden % kTogether<S> == 0;
    borders_ = arena_.take<int64_t>(layer.steps + 1);
    for (int d = 0; d < layer.directions; ++d) {
      Direction& to = directions_[d];
      if (!carries_at_once_) to.w_hh = take_columns(kGates * hidden, layer.state_size, packs_w_hh, w_hh_in_gradient_);
      to.dg = arena_.take_rows<A>(capacity_, 4 * hidden);
      to.dh = arena_.take_rows<C>(layer.batch, layer.state_size);
      to.h_prev = arena_.take<const S*>(capacity_);
      if (needs_weights) to.x = arena_.take<const S*>(capacity_);
      if (Cell::kHasCellState) {
        to.dc = arena_.take_rows<C>(layer.batch, hidden);
        to.c0 = arena_.take_rows<C>(layer.batch, hidden);
      }
      if (layer.has_projection) {
        to.w_hr = take_columns(layer.state_size, hidden, true, false);
        to.hidden = arena_.take_rows<A>(capacity_, hidden);
        to.hidden_rows = arena_.take<const A*>(capacity_);
        to.dr = arena_.take_rows<A>(capacity_, layer.state_size);
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
    // Each thread's share of the gradient of W_ih, written last, is memory until then.
    const int64_t gate_rows = kGates * hidden, share_of_gradient = gate_rows / larger(threads, 1) * layer.input_size;
    panel_in_gradient_ = one_chunk_ && needs_weights &&
                         share_of_gradient >= ColumnWeights<S>::panel_size(gate_rows) + kWorkspaceAlignment / int64_t(sizeof(S));
    thread_memory_size_ = memory_at(nullptr).size;
    thread_memory_ = arena_.take<char>(larger(threads, 1) * thread_memory_size_);
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const BackwardArguments& arguments, const Parallel& parallel) {
    arguments_ = &arguments;
    for (int d = 0; d < layer_.directions && w_hh_in_gradient_; ++d) {
      ColumnPanels<S>& w_hh = directions_[d].w_hh;
      const ColumnPanels<S> all = ColumnWeights<S>::adjacent(static_cast<S*>(arguments.grad_weights[d].w_hh),
                                                             kGates * layer_.hidden_size, layer_.state_size);
      w_hh = {all.first, w_hh.last == nullptr ? all.last : w_hh.last};
    }
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

  struct Direction {
    ColumnPanels<S> w_hh, w_hr;
    Matrix<A> dg;         // (capacity, 4 * H): r, z, n, q or i, f, g, o
    const S** h_prev;     // (capacity): where the state before each row's step lies, (P)
    const S** x;          // (capacity): where its input does, (I)
    Matrix<C> dh;         // (N, P): carried from step to step
    Matrix<C> dc;         // (N, H): carried from step to step
    Matrix<C> c0;         // (N, H)
    Matrix<A> hidden;     // (capacity, H): h before its projection
    const A** hidden_rows;  // (capacity): where its rows lie
    Matrix<A> dr;         // (capacity, P): gradient of the projected state
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

  // Rows of a chunk. With one alone, packed W_hh can lie where its gradient will be, and half types need no sums in the compute
  // type. Then all rows are one chunk, if it takes no more memory than that saves.
  int64_t chunk_rows(bool packs_w_hh) const {
    const int64_t hidden = layer_.hidden_size, recurrent = kGates * hidden * layer_.state_size;
    const int64_t row_bytes = padded_row<A>(4 * hidden) * int64_t(sizeof(A));
    const int64_t usual = smaller(larger(kChunkBytes / row_bytes, kChunkRows), kMostChunkRows);
    int64_t saved = 0;
    if (packs_w_hh && needs_weights_) saved += recurrent * int64_t(sizeof(S));
    if (kWidens && needs_weights_) saved += (recurrent + kGates * hidden * layer_.input_size) * int64_t(sizeof(C));
    const bool all = (layer_.rows - usual) * row_bytes <= saved;
    return larger(all ? layer_.rows : smaller(usual, layer_.rows), layer_.batch);
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

  // Memory for what is packed of weights: all panels, or only the last one. That needs padding where rows are read as they lie; and
  // where panels go elsewhere, into memory of the matrix's size, it does not fit if it is wider than its columns.
  ColumnPanels<S> take_columns(int64_t depth, int64_t columns, bool pack, bool elsewhere) {
    const int64_t size = ColumnWeights<S>::panel_size(depth);
    if (pack && !elsewhere)
      return ColumnWeights<S>::adjacent(arena_.take<S>(ColumnWeights<S>::panel_count(columns) * size), depth, columns);
    const bool needs_last = pack ? columns % kStripColumns != 0 : ColumnWeights<S>::needs_padding(columns);
    return {nullptr, needs_last ? arena_.take<S>(size) : nullptr};
  }

  void pack_columns(const ColumnPanels<S>& to, const void* weights, int64_t depth, int64_t width, int64_t part,
                    int64_t parts) const {
    const ColumnWeights<S> of = columns(to, weights, depth, width);
    const Range panels = share(ColumnWeights<S>::panel_count(width), part, parts);
    for (int64_t panel = panels.first; panel < panels.last; ++panel)
      if (S* const packed = of.packed(panel)) pack_column_panel(packed, of.rows, depth, width, panel);
  }

  void prepare(const Parallel& parallel) {
    const int64_t parts = larger(parallel.threads, 1);
    const bool packs = directions_[0].w_hh.first != nullptr;
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
  void find_rows(int d, const Chunk& chunk, Range slice) const;
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

  const S* grad_output_row(int d, int64_t t, int64_t b) const {
    if (arguments_->grad_output.data == nullptr) return nullptr;
    return steps_.row<S>(arguments_->grad_output, t, b) + d * layer_.state_size;
  }

  template <int kCount>
  void multiply_gradient(const ColumnPanels<S>& packed, const void* weights, int64_t width,
                         const SegmentOfGates (&gates)[kCount], Range panels, Matrix<const A> dg, int64_t rows,
                         Matrix<C> to, bool accumulate) const {
    Segment segments[kCount];
    for (int i = 0; i < kCount; ++i) segments[i] = gates[i].of(layer_.hidden_size);
    multiply_columns(columns(packed, weights, kGates * layer_.hidden_size, width), panels.first, panels.last, dg,
                     segments, kCount, rows, to, accumulate);
  }

  ColumnWeights<S> columns(const ColumnPanels<S>& packed, const void* weights, int64_t depth, int64_t count) const {
    return {static_cast<const S*>(weights), packed, depth, count};
  }

  static Matrix<const A> constant(const Matrix<A>& of, int64_t first_row) { return {of.row(first_row), of.stride}; }

  // ---- From the gate gradients of a chunk: backward_gradients.h -----------------------------------

  // Memory of one thread: it takes dx, and then the weight gradients.
  struct ThreadMemory {
    S* panel;          // a column panel of W_ih or W_hh; null: in the gradient of W_ih
    C* strip;          // (capacity, kStripColumns) of dx, half types only: before it is rounded
    C* transposed;     // scratch of multiply_transposed
    C* gradient_rows;  // (kRoundedRows, I or H), half types with one chunk: of weight gradients before they are rounded
    int64_t size;
  };
  ThreadMemory memory_at(char* base) const {
    Arena first(base), second(base);
    ThreadMemory memory{};
    if ((needs_input_ || carries_at_once_) && !panel_in_gradient_)
      memory.panel = first.template take<S>(ColumnWeights<S>::panel_size(kGates * layer_.hidden_size));
    if (needs_input_ && kWidens) memory.strip = first.template take<C>(capacity_ * kStripColumns);
    if (needs_weights_) memory.transposed = second.template take<C>(kTransposedScratch<C>);
    if (needs_weights_ && kWidens && one_chunk_)
      memory.gradient_rows = second.template take<C>(kRoundedRows * larger(layer_.input_size, layer_.hidden_size));
    memory.size = larger(first.used(), second.used());
    return memory;
  }
  ThreadMemory memory_of(int64_t part) const { return memory_at(thread_memory_ + part * thread_memory_size_); }
  S* panel_memory(int d, int64_t part, int64_t parts) const;
  ColumnPanels<S> pack_own(const void* weights, int64_t width, int64_t panel, S* memory) const;
  void carry_at_once(int d, int64_t part, int64_t parts) const;
  void input_gradient(int d, int64_t turn, int64_t part, int64_t parts) const;
  void weight_gradients(int d, int64_t turn, int64_t part, int64_t parts) const;
  void bias_gradients(int d, int64_t turn, int64_t part, int64_t parts) const;
  template <int kCount>
  void transposed_products(const SegmentOfGates (&gates)[kCount], const Matrix<A>& dg, const S* const* x, int64_t rows,
                           int64_t width, void* result, C* sum, int64_t part, int64_t parts, bool accumulate) const;
  template <class X>
  void transposed_product(Matrix<const A> a, const X* const* x, int64_t rows, Range of, int64_t width, void* result, C* sum,
                          int64_t part, bool accumulate) const;
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
  bool panel_in_gradient_;  // so does a panel that a thread packs for itself, where that of W_ih will be
  int64_t capacity_;       // rows of a chunk
  int64_t* borders_;       // (chunks + 1) first steps of chunks
  int64_t chunks_ = 0;
  int64_t thread_memory_size_;
  char* thread_memory_;  // ThreadMemory of each
  Direction directions_[kMostDirections]{};
  const BackwardArguments* arguments_ = nullptr;
};

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA

#include "backward_gradients.h"
#include "backward_recurrence.h"
