// The forward pass of a layer, for any cell. A Cell says how many gates it has and how one vector of units
// goes one step on; see lstm.cpp and gru.cpp.
#pragma once

#include "rounds.h"
#include "sequence.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

// One vector of units of one batch row; pointers are at the first of those units.
template <class S>
struct ForwardUnits {
  using C = Compute<S>;
  const C* x_part;       // (G, lanes): W_ih x
  C* h_part;             // (G, lanes): W_hh h', then whatever forward_gates leaves to forward_state
  const C* bias;         // (4, lanes)
  const C* h_prev;       // (H), GRU only
  C* carried;            // (H), h in full precision, or null where operands have it
  Operand<S>* h;         // (H), null with projection
  Operand<S>* hidden;    // (H), h before its projection, or null
  C* c;                  // (H), c' in and c out; LSTM only
  S* output;             // (H), null with projection
  S* h_n;                // (H), null with projection
  S* gates;              // (4, H), null: not saved
  C* cells;              // (H), null: not saved
  int64_t gate_stride;   // H
  int64_t count;         // real units from here on, maybe more than lanes
  bool last;             // of the row's steps: h is h_n too, unless it is projected
};

template <class Cell>
class Forward {
  using S = typename Cell::Storage;
  using C = Compute<S>;
  using A = Operand<S>;
  static constexpr int kGates = Cell::kGates;
  static constexpr bool kRoundsState = !std::is_same_v<A, C>;  // what is multiplied has less precision than h
  static constexpr bool kCarriesState = kRoundsState && Cell::kCarriesPastGates;
  static constexpr int64_t kWidth = kGates * kLanes<C>;
  static constexpr int64_t kBlockRows = 24;      // rows whose recurrent parts wait in the first-level cache
  static constexpr int64_t kChunkBytes = 196608;  // of projected inputs, to stay in the second-level cache
  static constexpr int64_t kChunkRows = 128;      // at least: fewer do not repay the pass over large weights
  static constexpr int64_t kStepsWorthPacking = 8;  // W_hh; or kForwardRowsWorthPacking

 public:
  // A null workspace only measures how much is needed.
  Forward(const Layer& layer, bool save, int threads, void* workspace)
      : layer_(layer), arena_(workspace), steps_(layer, arena_), division_(divide_forward(layer, kGates, threads)),
        panels_(GateWeights<S>::panel_count(layer.hidden_size)), save_(save) {
    const int64_t slice_rows = layer.batch_sizes == nullptr ? divide_up(layer.batch, division_.slices) : layer.batch;
    const int64_t most_rows = layer.batch_sizes == nullptr ? slice_rows * layer.steps : layer.rows;
    const int64_t fitting = kChunkBytes / larger(panels_ * kWidth * int64_t(sizeof(C)), 1);
    // Where whoever takes a panel takes all rows of it, and none is idle, panels are packed when they are used first. Those that are
    // used once need no memory for all: of W_hh in a single step, of W_ih in a single chunk. More steps are one chunk as long as its
    // projections are no larger than packed W_ih would be.
    packs_at_first_use_ = division_.by_units || (division_.slices == 1 && threads <= layer.directions);
    packs_w_hh_when_used_ = packs_at_first_use_ && packs_for_one_use(layer);
    packs_w_ih_when_used_ =
        packs_w_hh_when_used_ || (packs_at_first_use_ && layer.rows >= kForwardRowsWorthPacking &&
                                  most_rows * int64_t(sizeof(C)) <= layer.input_size * int64_t(sizeof(S)));
    capacity_ = packs_w_ih_when_used_ ? most_rows : larger(slice_rows, smaller(larger(fitting, kChunkRows), most_rows));
    for (int d = 0; d < layer.directions; ++d) {
      Direction& to = directions_[d];
      to.bias = arena_.take<C>(panels_ * 4 * kLanes<C>);
      if (packs_w_ih_when_used_)
        to.panels = arena_.take<S>((division_.by_units ? threads : 1) * largest_panel());
      else if (layer.rows >= kForwardRowsWorthPacking)
        to.w_ih = arena_.take<S>(panels_ * GateWeights<S>::panel_size(kGates, layer.input_size));
      if (!packs_w_hh_when_used_ && (layer.steps >= kStepsWorthPacking || layer.rows >= kForwardRowsWorthPacking))
        to.w_hh = arena_.take<S>(panels_ * GateWeights<S>::panel_size(kGates, layer.state_size));
      for (Matrix<A>& h : to.h) h = arena_.take_rows<A>(layer.batch, layer.state_size);
      if (Cell::kHasCellState) to.c = arena_.take_rows<C>(layer.batch, layer.hidden_size);
      if (kCarriesState) to.carried = arena_.take_rows<C>(layer.batch, layer.hidden_size);
      if (layer.has_projection) {
        to.projected = arena_.take_rows<C>(layer.batch, layer.state_size);
        S* const panels = arena_.take<S>(projection_panels() * ColumnWeights<S>::panel_size(layer.hidden_size));
        to.w_hr = ColumnWeights<S>::adjacent(panels, layer.hidden_size, layer.state_size);
        to.hidden = arena_.take_rows<A>(layer.batch, layer.hidden_size);
      }
      to.x = arena_.take_rows<A>(division_.slices * capacity_, layer.input_size);
      to.x_part = arena_.take<C>(division_.slices * panels_ * capacity_ * kWidth);
    }
  }

  int64_t workspace() const { return arena_.used(); }

  void run(const ForwardArguments& arguments, const Parallel& parallel) {
    arguments_ = &arguments;
    steps_.fill_offsets();
    prepare(parallel);
    if (division_.by_units) {
      for (int d = 0; d < layer_.directions; ++d) run_by_units(d, parallel);
    } else {
      run_tasks(parallel, layer_.directions * division_.slices, worth_sharing(layer_, kGates, layer_.rows * layer_.directions),
                [&](int64_t i) { run_slice(int(i / division_.slices), i % division_.slices); });
    }
  }

 private:
  struct Direction {
    C* bias;                // (panels, 4, lanes)
    S* w_ih = nullptr;      // gate panels; null: not packed, or not before they are used
    S* w_hh = nullptr;      // gate panels; null: not packed, or not before they are used
    S* panels = nullptr;    // a gate panel for each thread, where they are packed when they are used
    ColumnPanels<S> w_hr;   // of W_hr^T
    Matrix<A> h[2];         // (N, P): the state before and after a step, in turn
    Matrix<C> carried{};    // (N, H): h where operands round it, for the share that bypasses the weights
    Matrix<C> c{};          // (N, H)
    Matrix<A> hidden{};     // (N, H): h before its projection
    Matrix<C> projected{};  // (N, P): and after it
    Matrix<A> x;            // (slices * capacity, I): a chunk's inputs, when they cannot be read in place
    C* x_part;              // (slices, panels, capacity, G, lanes): W_ih x of a chunk
  };

  // Time steps [first, last) of a slice, and their inputs.
  struct Chunk {
    Range steps;
    int64_t rows;
    Matrix<const A> x;
    C* x_part;  // (panels, capacity, G, lanes)
  };

  int64_t projection_panels() const { return ColumnWeights<S>::panel_count(layer_.state_size); }
  ColumnWeights<S> projection(int d) const { return {nullptr, directions_[d].w_hr, layer_.hidden_size, layer_.state_size}; }
  bool reverse(int d) const { return d == 1; }
  Range slice(int64_t index) const { return steps_.slice(index, division_.slices); }

  // Packs weights and biases, loads initial states.
  void prepare(const Parallel& parallel) {
    const int64_t parts = larger(parallel.threads, 1);
    const bool packs = !packs_at_first_use_ && (directions_[0].w_ih != nullptr || directions_[0].w_hh != nullptr);
    run_tasks(parallel, parts, packs && worth_sharing(layer_, kGates, 1), [&](int64_t part) {
      for (int d = 0; d < layer_.directions; ++d) {
        const Direction& to = directions_[d];
        const Weights& from = arguments_->weights[d];
        const Range panels = share(panels_, part, parts);
        for (int64_t panel = panels.first; panel < panels.last; ++panel) {
          if (packs && to.w_ih != nullptr) pack(to.w_ih, from.w_ih, layer_.input_size, panel);
          if (packs && to.w_hh != nullptr) pack(to.w_hh, from.w_hh, layer_.state_size, panel);
          pack_bias(to.bias + panel * 4 * kLanes<C>, from, panel);
        }
        if (layer_.has_projection) {
          const Range columns = share(projection_panels(), part, parts);
          for (int64_t panel = columns.first; panel < columns.last; ++panel)
            pack_column_panel_transposed(projection(d).packed(panel), static_cast<const S*>(from.w_hr), layer_.hidden_size,
                                         layer_.state_size, panel);
        }
        const Range rows = share(layer_.batch, part, parts);
        for (int64_t b = rows.first; b < rows.last; ++b) {
          // Both buffers: a row may stay idle through any number of steps before its own first.
          for (const Matrix<A>& h : to.h)
            load_row(h.row(b), state_row(arguments_->h0, d, b, layer_.state_size), layer_.state_size, h.stride);
          // Pairs reach into the padding of an odd number of units.
          if (kTogether<S> == 2 && layer_.has_projection)
            std::memset(to.hidden.row(b), 0, size_t(to.hidden.stride) * sizeof(A));
          if (kCarriesState) load_state(to.carried, arguments_->h0, d, b);
          if (Cell::kHasCellState) load_state(to.c, arguments_->c0, d, b);
        }
      }
    });
  }

  void pack(S* to, const void* weights, int64_t depth, int64_t panel) const {
    pack_gate_panel<S>(to + panel * GateWeights<S>::panel_size(kGates, depth), static_cast<const S*>(weights), kGates,
                       layer_.hidden_size, depth, panel);
  }

  int64_t largest_panel() const {
    return larger(GateWeights<S>::panel_size(kGates, layer_.input_size), GateWeights<S>::panel_size(kGates, layer_.state_size));
  }

  // Weights to multiply with some of their panels, which are packed now if they are used for the first time: before everything
  // else, they would go to memory and come back. packed: where all panels lie; null: not packed, or only while they are used.
  GateWeights<S> with_panels(int d, const void* rows, S* packed, int64_t depth, Range panels, int64_t part, bool first_use,
                             bool only_use) const {
    // Panels are addressed from the first one on.
    const int64_t size = GateWeights<S>::panel_size(kGates, depth);
    if (only_use) packed = directions_[d].panels + part * largest_panel() - panels.first * size;
    const bool packs = packed != nullptr && packs_at_first_use_ && first_use;
    for (int64_t panel = panels.first; packs && panel < panels.last; ++panel) pack(packed, rows, depth, panel);
    return {static_cast<const S*>(rows), packed, layer_.hidden_size, depth, packs};
  }

  void pack_bias(C* to, const Weights& from, int64_t panel) const {
    const int64_t unit = panel * kLanes<C>;
    const int64_t count = smaller(layer_.hidden_size - unit, kLanes<C>);
    const Vec<C> zero(C(0));
    const auto gate = [&](const void* bias, int index) {
      return bias == nullptr ? zero : load(static_cast<const S*>(bias) + index * layer_.hidden_size + unit, count);
    };
    for (int i = 0; i < 4; ++i) Cell::bias(gate, from.b_ih, from.b_hh, i).store(to + i * kLanes<C>);
  }

  const S* state_row(const void* states, int d, int64_t b, int64_t width) const {
    return static_cast<const S*>(states) + (d * layer_.batch + b) * width;
  }
  void load_state(const Matrix<C>& to, const void* from, int d, int64_t b) const {
    widen_row(to.row(b), state_row(from, d, b, layer_.hidden_size), layer_.hidden_size, to.stride);
  }

  void run_slice(int d, int64_t index) {
    const Range rows = slice(index);
    for (Chunk chunk = first_chunk(d, index, rows); chunk.steps.size() > 0; chunk = next_chunk(d, index, rows, chunk)) {
      gather(d, index, rows, chunk, chunk.steps);
      project(d, chunk, {0, panels_}, 0);
      each_step(d, rows, chunk, [&](int64_t t, const C* x_part) { step(d, rows, t, x_part, {0, panels_}, 0); });
    }
    finish_cells(d, rows);
  }

  // All rows at once, the units of each step shared by the threads.
  void run_by_units(int d, const Parallel& parallel) {
    const Range rows = slice(0);
    const int64_t parts = smaller(parallel.threads, panels_);
    for (Chunk chunk = first_chunk(d, 0, rows); chunk.steps.size() > 0; chunk = next_chunk(d, 0, rows, chunk)) {
      gather(d, 0, rows, chunk, chunk.steps);
      run_rounds(parallel, parts, chunk.steps.size(), [&](int64_t round, int64_t part) {
        const Range panels = share(panels_, part, parts);
        if (round == 0) project(d, chunk, panels, part);
        const int64_t t = reverse(d) ? chunk.steps.last - 1 - round : chunk.steps.first + round;
        const int64_t row = steps_.offset(t) - steps_.offset(chunk.steps.first);
        step(d, rows, t, chunk.x_part + row * kWidth, panels, part);
      });
    }
    finish_cells(d, rows);
  }

  // ---- Chunks -------------------------------------------------------------------------------------

  Chunk first_chunk(int d, int64_t index, Range rows) const {
    return chunk_from(d, index, rows, reverse(d) ? layer_.steps : 0);
  }
  Chunk next_chunk(int d, int64_t index, Range rows, const Chunk& chunk) const {
    return chunk_from(d, index, rows, reverse(d) ? chunk.steps.first : chunk.steps.last);
  }

  // The steps after (before, in reverse) `border` whose rows fit the scratch; at least one while there are any.
  Chunk chunk_from(int d, int64_t index, Range rows, int64_t border) const {
    const Direction& direction = directions_[d];
    Chunk chunk{{border, border}, 0, {}, direction.x_part + index * panels_ * capacity_ * kWidth};
    while (reverse(d) ? chunk.steps.first > 0 : chunk.steps.last < layer_.steps) {
      const int64_t t = reverse(d) ? chunk.steps.first - 1 : chunk.steps.last;
      const int64_t active = steps_.active(t, rows);
      if (chunk.steps.size() > 0 && chunk.rows + active > capacity_) break;
      chunk.rows += active;
      (reverse(d) ? chunk.steps.first : chunk.steps.last) += reverse(d) ? -1 : 1;
    }
    return chunk;
  }

  // Makes the inputs of a chunk one matrix of the compute type: in place where they are one already.
  void gather(int d, int64_t index, Range rows, Chunk& chunk, Range steps) const {
    int64_t stride;
    if constexpr (std::is_same_v<S, A>) {
      constexpr int64_t together = kTogether<S>;
      if (steps_.evenly_spaced(arguments_->input, rows, &stride) && stride % together == 0 &&
          layer_.input_size % together == 0) {
        chunk.x = {steps_.row<S>(arguments_->input, steps.first, rows.first), stride};
        return;
      }
    }
    const Direction& direction = directions_[d];
    const Matrix<A> x{direction.x.row(index * capacity_), direction.x.stride};
    int64_t row = 0;
    for (int64_t t = steps.first; t < steps.last; ++t)
      for (int64_t b = 0; b < steps_.active(t, rows); ++b, ++row)
        load_row(x.row(row), steps_.row<S>(arguments_->input, t, rows.first + b), layer_.input_size, x.stride);
    chunk.x = {x.data, x.stride};
  }

  // W_ih x for all rows of a chunk (the input half of L1, G1, G2, G4); part: whose share the panels are.
  void project(int d, const Chunk& chunk, Range panels, int64_t part) const {
    const bool first_chunk = reverse(d) ? chunk.steps.last == layer_.steps : chunk.steps.first == 0;
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const GateWeights<S> w_ih = with_panels(d, arguments_->weights[d].w_ih, directions_[d].w_ih, layer_.input_size,
                                              {panel, panel + 1}, part, first_chunk, packs_w_ih_when_used_);
      multiply_gates(w_ih, kGates, panel, chunk.x, chunk.rows, chunk.x_part + panel * capacity_ * kWidth);
    }
  }

  // Calls body(t, x_part of the first row of step t) in the order of the direction.
  template <class Body>
  void each_step(int d, Range rows, const Chunk& chunk, const Body& body) {
    const int64_t count = chunk.steps.size();
    int64_t row = reverse(d) ? chunk.rows : 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = reverse(d) ? chunk.steps.last - 1 - i : chunk.steps.first + i;
      const int64_t active = steps_.active(t, rows);
      if (reverse(d)) row -= active;
      body(t, chunk.x_part + row * kWidth);
      if (!reverse(d)) row += active;
    }
  }

  // ---- One step -----------------------------------------------------------------------------------

  void step(int d, Range slice, int64_t t, const C* x_part, Range panels, int64_t part) const {
    const int64_t rows = steps_.active(t, slice);
    if (rows == 0) return;
    const Direction& direction = directions_[d];
    const int64_t done = reverse(d) ? layer_.steps - 1 - t : t;
    const Matrix<A> h_prev = direction.h[done % 2], h_next = direction.h[(done + 1) % 2];
    // Rows from this one on are at their last step.
    const int64_t goes_on = reverse(d) ? (t == 0 ? 0 : rows) : steps_.active(t + 1, slice);

    alignas(64) C h_part[kBlockRows * kWidth];
    const int64_t blocks = divide_up(rows, kBlockRows);
    // Few rows take several panels at once: a row's gates are a chain of dependent instructions, and several chains overlap.
    const int64_t together = blocks == 1 && !packs_w_hh_when_used_ ? kBlockRows / rows : 1;
    for (int64_t first = panels.first; first < panels.last; first += together) {
      const int64_t count = smaller(together, panels.last - first);
      const GateWeights<S> w_hh = with_panels(d, arguments_->weights[d].w_hh, direction.w_hh, layer_.state_size,
                                              {first, first + count}, part, done == 0, packs_w_hh_when_used_);
      for (int64_t block = 0; block < blocks; ++block) {
        const Range own = share(rows, block, blocks);
        const Matrix<const A> h{h_prev.row(slice.first + own.first), h_prev.stride};
        const auto h_part_of = [&](int64_t i) { return h_part + i * own.size() * kWidth; };
        for (int64_t i = 0; i < count; ++i) multiply_gates(w_hh, kGates, first + i, h, own.size(), h_part_of(i));
        const auto each_unit = [&](const auto& body) __attribute__((always_inline)) {
          const auto units_of_first = [&](int64_t i) __attribute__((always_inline)) {
            const int64_t panel = first + i;
            return units(d, t, slice.first + own.first, panel, x_part + (panel * capacity_ + own.first) * kWidth, h_part_of(i),
                         h_prev, h_next);
          };
          if (own.size() == 1) {
            ForwardUnits<S> u = units_of_first(0);
            u.last = own.first >= goes_on;
            for (int64_t i = 0; i < count; ++i, next_panel(u)) body(u);
            return;
          }
          for (int64_t i = 0; i < count; ++i) {
            ForwardUnits<S> u = units_of_first(i);
            for (int64_t b = own.first; b < own.last; ++b, next_row(d, u, h_prev, h_next)) {
              u.last = b >= goes_on;
              body(u);
            }
          }
        };
        // What waits for the gates comes after all of them: one after the other is a chain of dependent instructions longer than
        // what the processor looks ahead.
        each_unit([](const ForwardUnits<S>& u) __attribute__((always_inline)) { Cell::forward_gates(u); });
        each_unit([](const ForwardUnits<S>& u) __attribute__((always_inline)) { Cell::forward_state(u); });
      }
    }
    if (layer_.has_projection) project_state(d, slice, t, rows, h_next, goes_on);
  }

  // All but whether this is the row's last step.
  RNN_INLINE ForwardUnits<S> units(int d, int64_t t, int64_t b, int64_t panel, const C* x_part, C* h_part,
                                   const Matrix<A>& h_prev, const Matrix<A>& h_next) const {
    const Direction& direction = directions_[d];
    const int64_t hidden = layer_.hidden_size, unit = panel * kLanes<C>;
    const int64_t row = steps_.offset(t) + b;
    ForwardUnits<S> u{};
    u.x_part = x_part;
    u.h_part = h_part;
    u.bias = direction.bias + panel * 4 * kLanes<C>;
    if (kCarriesState) u.carried = direction.carried.row(b) + unit;
    if constexpr (kRoundsState)
      u.h_prev = u.carried;
    else
      u.h_prev = h_prev.row(b) + unit;
    if (layer_.has_projection) {
      u.hidden = direction.hidden.row(b) + unit;
    } else {
      u.h = h_next.row(b) + unit;
      u.output = output_row(d, row) + unit;
      u.h_n = final_row(d, b) + unit;
    }
    if (Cell::kHasCellState) u.c = direction.c.row(b) + unit;
    if (save_) {
      u.gates = static_cast<S*>(arguments_->gates) + (d * layer_.rows + row) * 4 * hidden + unit;
      if (Cell::kHasCellState) u.cells = static_cast<C*>(arguments_->cells) + (d * layer_.rows + row) * hidden + unit;
    }
    u.gate_stride = hidden;
    u.count = hidden - unit;
    return u;
  }

  // The same units of the next row. Counting all addresses anew would take as many instructions as the cell.
  RNN_INLINE void next_row(int d, ForwardUnits<S>& u, const Matrix<A>& h_prev, const Matrix<A>& h_next) const {
    const Direction& direction = directions_[d];
    u.x_part += kWidth;
    u.h_part += kWidth;
    if (kCarriesState) u.carried += direction.carried.stride;
    if constexpr (kRoundsState)
      u.h_prev = u.carried;
    else
      u.h_prev += h_prev.stride;
    if (layer_.has_projection) {
      u.hidden += direction.hidden.stride;
    } else {
      u.h += h_next.stride;
      u.output += layer_.directions * layer_.state_size;
      u.h_n += layer_.state_size;
    }
    if (Cell::kHasCellState) u.c += direction.c.stride;
    if (save_) {
      u.gates += 4 * layer_.hidden_size;
      if (Cell::kHasCellState) u.cells += layer_.hidden_size;
    }
  }

  // The next units of the same row, if it is alone among its panels' rows.
  RNN_INLINE void next_panel(ForwardUnits<S>& u) const {
    constexpr int64_t lanes = kLanes<C>;
    u.x_part += capacity_ * kWidth;
    u.h_part += kWidth;
    u.bias += 4 * lanes;
    if (kCarriesState) u.carried += lanes;
    u.h_prev = kRoundsState ? u.carried : u.h_prev + lanes;
    if (layer_.has_projection) {
      u.hidden += lanes;
    } else {
      u.h += lanes;
      u.output += lanes;
      u.h_n += lanes;
    }
    if (Cell::kHasCellState) u.c += lanes;
    if (save_) {
      u.gates += lanes;
      if (Cell::kHasCellState) u.cells += lanes;
    }
    u.count -= lanes;
  }

  // L8: r = W_hr h
  void project_state(int d, Range slice, int64_t t, int64_t rows, const Matrix<A>& h_next, int64_t goes_on) const {
    const Direction& direction = directions_[d];
    const Segment all{0, 0, layer_.hidden_size};
    multiply_columns(projection(d), 0, projection_panels(),
                     Matrix<const A>{direction.hidden.row(slice.first), direction.hidden.stride}, &all, 1, rows,
                     Matrix<C>{direction.projected.row(slice.first), direction.projected.stride}, false);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t b = slice.first + i;
      S* output = output_row(d, steps_.offset(t) + b);
      narrow_row(output, direction.projected.row(b), layer_.state_size);
      if constexpr (kRoundsState)
        load_row<S>(h_next.row(b), output, layer_.state_size, layer_.state_size);
      else
        load_row<C>(h_next.row(b), direction.projected.row(b), layer_.state_size, layer_.state_size);
      if (i >= goes_on) narrow_row(final_row(d, b), direction.projected.row(b), layer_.state_size);
    }
  }

  S* output_row(int d, int64_t row) const {
    return static_cast<S*>(arguments_->output) + (row * layer_.directions + d) * layer_.state_size;
  }
  S* final_row(int d, int64_t b) const {
    return static_cast<S*>(arguments_->h_n) + (d * layer_.batch + b) * layer_.state_size;
  }

  // c is updated in place, so that it ends as every row's last; a row that never ran keeps its initial state.
  void finish_cells(int d, Range rows) const {
    if constexpr (Cell::kHasCellState) {
      for (int64_t b = rows.first; b < rows.last; ++b)
        narrow_row(static_cast<S*>(arguments_->c_n) + (d * layer_.batch + b) * layer_.hidden_size,
                   directions_[d].c.row(b), layer_.hidden_size);
    }
    for (int64_t b = larger(rows.first, steps_.active(0)); b < rows.last; ++b)
      std::memcpy(final_row(d, b), state_row(arguments_->h0, d, b, layer_.state_size),
                  size_t(layer_.state_size) * sizeof(S));
  }

  const Layer& layer_;
  Arena arena_;
  Steps steps_;
  Division division_;
  int64_t panels_;
  int64_t capacity_;  // rows of a chunk
  bool packs_at_first_use_, packs_w_ih_when_used_, packs_w_hh_when_used_;
  bool save_;
  Direction directions_[kMostDirections];
  const ForwardArguments* arguments_ = nullptr;
};

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
