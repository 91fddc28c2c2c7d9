// The layers of a stream, for any cell and any way to keep weights. A step is a matrix-vector product (few batch rows)
// with both of a layer's matrices, bound by reading them: so they are packed in the order they are read in, once, and
// gates go from the accumulators straight into the cell's equations.
//
// A layer's weights, for one vector of units after the other:
//   W_ih  [I][G][lanes], then W_hh  [P][G][lanes]        float, double
//   the same two by two: [I / 2][G][lanes][2], ...        bfloat16; a last odd row has zeros beside it
// and with a projection, for four vectors of its units after the other, W_hr [H][4][lanes].
#pragma once

#include <new>

#include "sequence.h"
#include "simd_math.h"
#include "stream.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

inline constexpr int kSlots = 4;  // accumulators of one row and vector of units, and vectors of a projection panel

// W is the type weights are kept in.
template <class W>
inline constexpr int64_t kPaired = sizeof(W) == 2 ? 2 : 1;

template <class W>
inline int64_t block_size(int64_t depth, int gates) {
  return divide_up(depth, kPaired<W>) * kPaired<W> * gates * kLanes<Compute<W>>;
}

// ---- Packing ------------------------------------------------------------------------------------------

// Writes [depth][gates][lanes] in the order above; row_of(gate, lane) is where that row of weights starts, or null
// past the last unit, which packs zeros.
template <class S, class W, class RowOf>
void pack_block(W* to, int64_t depth, int gates, const RowOf& row_of) {
  using C = Compute<W>;
  constexpr int64_t lanes = kLanes<C>;
  // A square of lanes x lanes at a time: reads are whole vectors, and the lines written to stay in the cache.
  W square[lanes * lanes];
  for (int64_t first = 0; first < depth; first += lanes) {
    const int64_t count = smaller(depth - first, lanes);
    const int64_t padded = divide_up(count, kPaired<W>) * kPaired<W>;
    for (int gate = 0; gate < gates; ++gate) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const S* row = row_of(gate, lane);
        store(square + lane * lanes, row == nullptr ? Vec<C>(C(0)) : load(row + first, count));
      }
      for (int64_t k = 0; k < padded; ++k) {
        W* column = to + ((first + k) / kPaired<W> * gates + gate) * lanes * kPaired<W> + (first + k) % kPaired<W>;
        for (int64_t lane = 0; lane < lanes; ++lane) column[lane * kPaired<W>] = square[lane * lanes + k];
      }
    }
  }
}

// ---- Products -----------------------------------------------------------------------------------------

// One accumulator per row and gate; a lone row has two, or the latency of each multiply-add would show.
template <class C, int kRows>
struct Sums {
  static constexpr int kSets = kRows == 1 ? 2 : 1;
  typename Vec<C>::Raw set[kSets][kRows][kSlots];

  RNN_INLINE Vec<C> total(int row, int slot) const {
    if constexpr (kSets == 1)
      return set[0][row][slot];
    else
      return set[0][row][slot] + set[1][row][slot];
  }
};

// sums += a W^T over one packed block; gate 2 adds to slot kThird. Rows of a are a_stride apart.
template <int kGates, int kThird, class C, int kRows>
RNN_INLINE void add_products(Sums<C, kRows>& sums, const C* weights, const C* a, int64_t a_stride, int64_t depth) {
  using Raw = typename Vec<C>::Raw;
  constexpr int64_t lanes = kLanes<C>;
  constexpr int kSets = Sums<C, kRows>::kSets;
  const auto add = [&](int set, int64_t k) __attribute__((always_inline)) {
    RNN_UNROLL
    for (int gate = 0; gate < kGates; ++gate) {
      const Raw w = Vec<C>::load(weights + (k * kGates + gate) * lanes).v;
      RNN_UNROLL
      for (int m = 0; m < kRows; ++m) sums.set[set][m][gate == 2 ? kThird : gate] += a[m * a_stride + k] * w;
    }
  };
  int64_t k = 0;
  for (; k + kSets <= depth; k += kSets) {
    RNN_UNROLL
    for (int set = 0; set < kSets; ++set) add(set, k + set);
  }
  if (k < depth) add(0, k);
}

// A vector of pairs widens to two vectors: activations and sums stay in float.
template <int kGates, int kThird, class C, int kRows>
RNN_INLINE void add_products(Sums<C, kRows>& sums, const BFloat16* weights, const C* a, int64_t a_stride,
                             int64_t depth) {
  using Raw = typename Vec<C>::Raw;
  constexpr int64_t lanes = kLanes<C>;
  constexpr int kSets = Sums<C, kRows>::kSets;
  const auto add = [&](int64_t pair, bool both) __attribute__((always_inline)) {
    RNN_UNROLL
    for (int gate = 0; gate < kGates; ++gate) {
      Raw first, second;
      load_pairs(weights + (pair * kGates + gate) * lanes * 2, first, second);
      RNN_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const C* row = a + m * a_stride + 2 * pair;
        Raw(&set)[kRows][kSlots] = sums.set[kSets - 1];
        sums.set[0][m][gate == 2 ? kThird : gate] += row[0] * first;
        if (both) set[m][gate == 2 ? kThird : gate] += row[1] * second;
      }
    }
  };
  for (int64_t pair = 0; pair < depth / 2; ++pair) add(pair, true);
  // The row beside the last odd one is not read: zero times an infinity there would be NaN.
  if (depth % 2 != 0) add(depth / 2, false);
}

// ---- Layers -------------------------------------------------------------------------------------------

// One layer's part of the memory. Rows are padded to whole vectors; nothing reads the padding of h and x.
template <class W>
struct StreamLayer {
  using C = Compute<W>;
  int64_t input_size;
  W* weights;          // (panels, block of W_ih, block of W_hh)
  C* bias;             // (panels, kSlots, lanes)
  W* projection;       // (projection panels, block of W_hr), or null
  Matrix<C> h[2];      // (N, P): before and after a step, in turn
  Matrix<C> c;         // (N, H), LSTM only
  Matrix<C> hidden;    // (N, H): h before its projection, or null
};

template <class Cell, class W>
class StreamLayers {
  using C = Compute<W>;
  using V = Vec<C>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int64_t lanes = kLanes<C>;
  // Accumulators, a widened weight vector and a broadcast share the register file.
  static constexpr int kMostRows = kRegisters == 32 ? 4 : 2;
  // Multiply-adds of a layer that repay sharing it with threads that are awake, about 10 us of them. Whoever calls gives a pool
  // only while they are.
  static constexpr int64_t kWorthSharingStep = 3 << 17;

 public:
  // A null memory only measures how much is needed.
  StreamLayers(const StreamShape& shape, void* memory)
      : shape_(shape), panels_(divide_up(shape.hidden_size, lanes)),
        projection_panels_(shape.has_projection ? divide_up(shape.state_size, kSlots * lanes) : 0) {
    Arena arena(memory);
    arena.template take<StreamLayers>(1);
    layers_ = arena.template take<StreamLayer<W>>(shape.layers);
    x_ = arena.template take_rows<C>(shape.batch, shape.input_size);
    for (int i = 0; i < shape.layers; ++i) {
      StreamLayer<W> layer{};
      layer.input_size = i == 0 ? shape.input_size : shape.state_size;
      layer.weights = arena.template take<W>(panels_ * panel_size(layer));
      layer.bias = arena.template take<C>(panels_ * kSlots * lanes);
      for (Matrix<C>& h : layer.h) h = arena.template take_rows<C>(shape.batch, padded_state());
      if (Cell::kHasCellState) layer.c = arena.template take_rows<C>(shape.batch, shape.hidden_size);
      if (shape.has_projection) {
        layer.projection = arena.template take<W>(projection_panels_ * block_size<W>(shape.hidden_size, kSlots));
        layer.hidden = arena.template take_rows<C>(shape.batch, shape.hidden_size);
      }
      if (memory != nullptr) new (layers_ + i) StreamLayer<W>(layer);
    }
    size_ = arena.used();
    for (int64_t b = 0; memory != nullptr && b < shape.batch; ++b) reset(b);
  }

  int64_t memory_size() const { return size_; }

  void load_weights(int i, const Weights& from) {
    with_storage([&](auto storage) { pack<decltype(storage)>(layers_[i], from); });
  }

  void step(const void* x, int64_t x_stride, void* output, int64_t output_stride, const Parallel& parallel) {
    Matrix<const C> input = with_storage([&](auto storage) { return as_computed<decltype(storage)>(x, x_stride); });
    const int after = 1 - current_;
    for (int i = 0; i < shape_.layers; ++i) {
      const StreamLayer<W>& layer = layers_[i];
      run_shared(panels_, kGates * lanes * (layer.input_size + shape_.state_size), parallel, [&](Range panels) {
        for (int64_t panel = panels.first; panel < panels.last; ++panel)
          each_row_block([&](auto rows, int64_t b) { run_panel<decltype(rows)::value>(layer, input, panel, b); });
      });
      if (shape_.has_projection)
        run_shared(projection_panels_, kSlots * lanes * shape_.hidden_size, parallel, [&](Range panels) {
          for (int64_t panel = panels.first; panel < panels.last; ++panel)
            each_row_block([&](auto rows, int64_t b) { run_projection<decltype(rows)::value>(layer, panel, b); });
        });
      input = {layer.h[after].data, layer.h[after].stride};
    }
    current_ = after;
    with_storage([&](auto storage) {
      using S = decltype(storage);
      for (int64_t b = 0; b < shape_.batch; ++b)
        narrow_row(static_cast<S*>(output) + b * output_stride, input.row(b), shape_.state_size);
    });
  }

  void read_state(C* h, C* c) const {
    each_state([&](const StreamLayer<W>& layer, int64_t b, int64_t row) {
      copy(h + row * shape_.state_size, layer.h[current_].row(b), shape_.state_size);
      if (Cell::kHasCellState) copy(c + row * shape_.hidden_size, layer.c.row(b), shape_.hidden_size);
    });
  }

  void write_state(const C* h, const C* c) {
    each_state([&](const StreamLayer<W>& layer, int64_t b, int64_t row) {
      copy(layer.h[current_].row(b), h + row * shape_.state_size, shape_.state_size);
      if (Cell::kHasCellState) copy(layer.c.row(b), c + row * shape_.hidden_size, shape_.hidden_size);
    });
  }

  // The padding, too: it goes through the cell's equations with all else.
  void reset(int64_t b) {
    for (int i = 0; i < shape_.layers; ++i) {
      const StreamLayer<W>& layer = layers_[i];
      for (const Matrix<C>& rows : {layer.h[0], layer.h[1], layer.c, layer.hidden})
        for (int64_t k = 0; rows.data != nullptr && k < rows.stride; ++k) rows.row(b)[k] = 0;
    }
  }

 private:
  // Projection panels are wider than a vector.
  int64_t padded_state() const {
    return shape_.has_projection ? projection_panels_ * kSlots * lanes : shape_.state_size;
  }
  int64_t panel_size(const StreamLayer<W>& layer) const {
    return block_size<W>(layer.input_size, kGates) + block_size<W>(shape_.state_size, kGates);
  }

  // Calls body(S{}) with the storage type of inputs, outputs and parameters, of those that go with W.
  template <class Body>
  auto with_storage(const Body& body) const {
    if constexpr (std::is_same_v<C, double>) {
      return body(double{});
    } else {
      if (shape_.dtype == Dtype::kBFloat16) return body(BFloat16{});
      if constexpr (!std::is_same_v<W, BFloat16>)
        if (shape_.dtype == Dtype::kFloat16) return body(Float16{});
      return body(float{});
    }
  }

  static void copy(C* to, const C* from, int64_t count) {
    if (count > 0) std::memcpy(to, from, size_t(count) * sizeof(C));
  }

  // Calls body(layer, batch row, row of (L * N)).
  template <class Body>
  void each_state(const Body& body) const {
    for (int i = 0; i < shape_.layers; ++i)
      for (int64_t b = 0; b < shape_.batch; ++b) body(layers_[i], b, i * shape_.batch + b);
  }

  template <class S>
  void pack(const StreamLayer<W>& layer, const Weights& from) {
    const int64_t hidden = shape_.hidden_size, state = shape_.state_size;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t unit = panel * lanes;
      const auto rows_of = [&](const void* weights, int64_t depth) {
        return [=](int gate, int64_t lane) {
          const S* rows = static_cast<const S*>(weights);
          return unit + lane < hidden ? rows + (gate * hidden + unit + lane) * depth : nullptr;
        };
      };
      W* to = layer.weights + panel * panel_size(layer);
      pack_block<S>(to, layer.input_size, kGates, rows_of(from.w_ih, layer.input_size));
      pack_block<S>(to + block_size<W>(layer.input_size, kGates), state, kGates, rows_of(from.w_hh, state));
      const auto bias = [&](const void* biases, int gate) {
        if (biases == nullptr) return V(C(0));
        return load(static_cast<const S*>(biases) + gate * hidden + unit, smaller(hidden - unit, lanes));
      };
      for (int slot = 0; slot < kSlots; ++slot)
        Cell::bias(bias, from.b_ih, from.b_hh, slot).store(layer.bias + (panel * kSlots + slot) * lanes);
    }
    for (int64_t panel = 0; panel < projection_panels_; ++panel)
      pack_block<S>(layer.projection + panel * block_size<W>(hidden, kSlots), hidden, kSlots,
                    [&](int vector, int64_t lane) {
                      const int64_t unit = (panel * kSlots + vector) * lanes + lane;
                      return unit < state ? static_cast<const S*>(from.w_hr) + unit * hidden : nullptr;
                    });
  }

  template <class S>
  Matrix<const C> as_computed(const void* x, int64_t stride) const {
    const S* rows = static_cast<const S*>(x);
    if constexpr (std::is_same_v<S, C>) {
      return {rows, stride};
    } else {
      for (int64_t b = 0; b < shape_.batch; ++b)
        widen_row(x_.row(b), rows + b * stride, shape_.input_size, shape_.input_size);
      return {x_.data, x_.stride};
    }
  }

  // Runs body(range of panels), in as many parts as there are threads when a panel's multiply-adds make that worth it.
  template <class Body>
  void run_shared(int64_t panels, int64_t panel_work, const Parallel& parallel, const Body& body) const {
    const bool shared = parallel.threads > 1 && panels > 1 && panels * panel_work * shape_.batch >= kWorthSharingStep;
    if (!shared) return body(Range{0, panels});
    const int64_t parts = smaller(parallel.threads, panels);
    run_tasks(parallel, parts, true, [&](int64_t part) { body(share(panels, part, parts)); });
  }

  // Calls body(integral_constant rows, first row) for blocks of at most kMostRows rows.
  template <class Body>
  void each_row_block(const Body& body) const {
    int64_t b = 0;
    for (; b + kMostRows <= shape_.batch; b += kMostRows) body(std::integral_constant<int, kMostRows>{}, b);
    switch (shape_.batch - b) {
      case 1: return body(std::integral_constant<int, 1>{}, b);
      case 2: return body(std::integral_constant<int, 2>{}, b);
      case 3: return body(std::integral_constant<int, 3>{}, b);
      default: return;
    }
  }

  // One vector of units of kRows batch rows, from their inputs to their new states.
  template <int kRows>
  void run_panel(const StreamLayer<W>& layer, Matrix<const C> x, int64_t panel, int64_t b) const {
    const int64_t unit = panel * lanes;
    const Matrix<C> h_prev = layer.h[current_], h_next = shape_.has_projection ? layer.hidden : layer.h[1 - current_];
    Sums<C, kRows> sums;
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      RNN_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        sums.set[0][m][slot] = V::load(layer.bias + (panel * kSlots + slot) * lanes).v;
        if (kRows == 1) sums.set[sums.kSets - 1][m][slot] = typename V::Raw{};
      }
    const W* weights = layer.weights + panel * panel_size(layer);
    add_products<kGates, 2>(sums, weights, x.row(b), x.stride, layer.input_size);
    add_products<kGates, Cell::kThirdOfState>(sums, weights + block_size<W>(layer.input_size, kGates), h_prev.row(b),
                                              h_prev.stride, shape_.state_size);
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      Cell::finish(sums.total(m, 0), sums.total(m, 1), sums.total(m, 2), sums.total(m, 3),
                   Cell::kHasCellState ? layer.c.row(b + m) + unit : nullptr, h_prev.row(b + m) + unit,
                   h_next.row(b + m) + unit);
  }

  // L8: r = W_hr h, four vectors of it for kRows batch rows.
  template <int kRows>
  void run_projection(const StreamLayer<W>& layer, int64_t panel, int64_t b) const {
    Sums<C, kRows> sums{};
    add_products<kSlots, 2>(sums, layer.projection + panel * block_size<W>(shape_.hidden_size, kSlots),
                            static_cast<const C*>(layer.hidden.row(b)), layer.hidden.stride, shape_.hidden_size);
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      RNN_UNROLL
      for (int slot = 0; slot < kSlots; ++slot)
        sums.total(m, slot).store(layer.h[1 - current_].row(b + m) + (panel * kSlots + slot) * lanes);
  }

  StreamShape shape_;
  int64_t panels_, projection_panels_, size_;
  StreamLayer<W>* layers_;
  Matrix<C> x_;      // (N, I): inputs in the compute type, when they are not in it
  int current_ = 0;  // which h is the state
};

template <class Cell, class W>
constexpr StreamKernels stream_kernels() {
  using Layers = StreamLayers<Cell, W>;
  using C = Compute<W>;
  return {
      [](const StreamShape& shape) { return Layers(shape, nullptr).memory_size(); },
      [](const StreamShape& shape, void* memory) { new (memory) Layers(shape, memory); },
      [](void* memory, int layer, const Weights& weights) {
        static_cast<Layers*>(memory)->load_weights(layer, weights);
      },
      [](void* memory, const void* x, int64_t x_stride, void* output, int64_t output_stride, const Parallel& parallel) {
        static_cast<Layers*>(memory)->step(x, x_stride, output, output_stride, parallel);
      },
      [](const void* memory, void* h, void* c) {
        static_cast<const Layers*>(memory)->read_state(static_cast<C*>(h), static_cast<C*>(c));
      },
      [](void* memory, const void* h, const void* c) {
        static_cast<Layers*>(memory)->write_state(static_cast<const C*>(h), static_cast<const C*>(c));
      },
      [](void* memory, int64_t row) { static_cast<Layers*>(memory)->reset(row); },
  };
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
