#include "gemm.h"

#include <utility>

namespace rnnkernels::cpu::RNNKERNELS_ISA {
namespace {

// ---- Register tile --------------------------------------------------------------------------

// How a tile of n rows walks its left operand: (m, k) at a[m * stride + k], or, packed for it, at a[k * n + m].
enum class Order { kRows, kPacked };

// Two adjacent bfloat16, one element of a product that adds them up in float.
struct Pair {
  BFloat16 first, second;
};

template <class E>
struct SumOf {
  using type = E;
};
template <>
struct SumOf<Pair> {
  using type = float;
};

// bfloat16 of two adjacent vectors in turn: one load widens both.
struct Alternating {
  BFloat16 element;
};

// What one lane multiplies.
template <class S>
using Element = std::conditional_t<kTogether<S> == 2, Pair, Compute<S>>;

// How weights of S are packed: as pairs if they are multiplied as such; bfloat16 that is widened in pairs of vectors from the
// first one on, the last alone if their number is odd.
template <class S>
using Packed = std::conditional_t<kTogether<S> == 2, Pair, std::conditional_t<std::is_same_v<S, BFloat16>, Alternating, S>>;

constexpr int64_t kLineBytes = 64;  // of a cache

// What the next product will read, in pieces: each block of rows fetches one, a line of it at every step of its sums. Otherwise
// the first block of rows would wait for weights that come from the third-level cache or from memory.
struct Ahead {
  const void* lines = nullptr;
  int64_t distance = 0;  // from piece to piece, in bytes
  int64_t pieces = 0;

  // What `depth` steps read that lie one behind the other.
  static Ahead of_steps(const void* lines, int64_t step_bytes, int64_t depth) {
    return {lines, depth * kLineBytes, divide_up(step_bytes, kLineBytes)};
  }
};

// E is what one lane multiplies: a float, a double or a Pair. A and B are how a and b are kept: as E, or as a half type that is
// widened when it is read.
template <class E, class B = E, class A = E>
struct Tile {
  using T = typename SumOf<E>::type;
  const A* a;
  int64_t a_stride;
  const B* b;  // (k, j) at b[k * b_stride + j], whole vectors
  int64_t b_stride;
  int64_t b_next;  // of kMostVectors, those beyond kPanelVectors are so much further on than the others
  T* c;  // (m, j) at c[m * c_stride + j]
  int64_t c_stride;
  int64_t depth;
  int64_t columns;  // of c; the last vector may be partial
  bool accumulate;
  Ahead ahead;
};

constexpr int kMostVectors = 4;

// Accumulators, a row of b and a broadcast of a share the register file.
constexpr int max_tile_rows(int vectors) {
  if (kRegisters == 32) return vectors == 4 ? 6 : 8;
  return vectors == 4 ? 3 : vectors == 3 ? 4 : vectors == 2 ? 6 : 8;
}

// Whether such a tile fetches a line of what comes next at every step: its loads leave room for one more, and a vector is a line,
// so that as few blocks of rows as there are vectors fetch all of the next panel.
constexpr bool fetches_ahead(int rows, int vectors) { return kVectorBytes == kLineBytes && rows >= 3 && vectors >= 3; }

// So few rows take two strips or panels at once: more products for each element of theirs.
constexpr int kFewRows = kPanelVectors < kMostVectors ? max_tile_rows(kMostVectors) : 0;

// Rows of a packed block: what a tile of whole panels takes.
constexpr int kPackedRows = max_tile_rows(kPanelVectors);

// Whether so many weights may be further away than the second-level cache.
template <class S>
constexpr bool are_far(int64_t weights) {
  return weights * int64_t(sizeof(S)) >= 1 << 19;
}

// Latency of a multiply-add times the number of units: fewer chains than this leave them idle.
constexpr int kChains = 8;

template <class T>
RNN_INLINE void multiply_add(typename Vec<T>::Raw& sum, T a, typename Vec<T>::Raw b) {
  sum += (a - typename Vec<T>::Raw{}) * b;
}

RNN_INLINE void multiply_add(Vec<float>::Raw& sum, BFloat16 a, Vec<float>::Raw b) {
  const uint32_t bits = uint32_t(a.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  multiply_add(sum, wide, b);
}

#if defined(RNN_NATIVE_BFLOAT16)
RNN_INLINE void multiply_add(Vec<float>::Raw& sum, Pair a, Vec<float>::Raw b) {
  int32_t both;
  std::memcpy(&both, &a, sizeof both);
  sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)b);
}
#endif

template <class E, class B>
RNN_INLINE auto load_lanes(const B* b) {
  using T = typename SumOf<E>::type;
  if constexpr (std::is_same_v<E, B>)
    return Vec<T>::load(reinterpret_cast<const T*>(b)).v;
  else if constexpr (std::is_same_v<B, Alternating>)
    return load(&b->element).v;  // a vector without a neighbour
  else
    return load(b).v;
}

template <class E, class B, class A, int kRows, int kVectors, Order kOrder>
void run_tile(const Tile<E, B, A>& tile) {
  using T = typename SumOf<E>::type;
  using Raw = typename Vec<T>::Raw;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int kUnroll = kRows * kVectors >= kChains ? 1 : kChains / (kRows * kVectors);
  // Two steps a turn where one is mostly broadcasts: counting is a tenth of its instructions. With more vectors the compiler
  // would move sums from register to register.
  constexpr int kSteps = kUnroll == 1 && kVectors <= 2 ? 2 : kUnroll;

  Raw sum[kUnroll][kRows][kVectors];
  RNN_UNROLL
  for (int u = 0; u < kUnroll; ++u)
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      RNN_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[u][m][v] = Raw{};

  const A* a[kRows];
  RNN_UNROLL
  for (int m = 0; m < kRows; ++m) a[m] = kOrder == Order::kRows ? tile.a + m * tile.a_stride : tile.a + m;
  const B* b = tile.b;
  constexpr int64_t a_step = kOrder == Order::kRows ? 1 : kRows;

  const auto add_products = [&](int64_t k, const B* b_row, Raw(&into)[kRows][kVectors]) __attribute__((always_inline)) {
    Raw b_vector[kVectors];
    constexpr int kAtOnce = std::is_same_v<B, Alternating> ? 2 : 1;
    RNN_UNROLL
    for (int v = 0; v < kVectors; v += kAtOnce) {
      const bool next = kVectors == kMostVectors && v >= kPanelVectors;
      const B* b_lanes = next ? b_row + tile.b_next + (v - kPanelVectors) * lanes : b_row + v * lanes;
      if constexpr (kAtOnce == 2) {
        if (v + 1 < kVectors) {
          load_pairs(&b_lanes->element, b_vector[v], b_vector[v + 1]);
          continue;
        }
      }
      b_vector[v] = load_lanes<E>(b_lanes);
    }
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const A a_element = a[m][k * a_step];
      RNN_UNROLL
      for (int v = 0; v < kVectors; ++v) multiply_add(into[m][v], a_element, b_vector[v]);
    }
  };

  // What the sums are added to arrives while they are computed.
  if (tile.accumulate) {
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      for (int64_t n = 0; n < kVectors * lanes; n += kLineBytes / int64_t(sizeof(T)))
        __builtin_prefetch(tile.c + m * tile.c_stride + n);
  }

  const char* ahead = static_cast<const char*>(tile.ahead.lines);
  int64_t k = 0;
  for (; k + kSteps <= tile.depth; k += kSteps, b += kSteps * tile.b_stride) {
    if constexpr (kOrder == Order::kRows && fetches_ahead(kRows, kVectors)) {
      __builtin_prefetch(ahead, 0, 2);  // to read, into the second-level cache
      ahead += kLineBytes;
    }
    RNN_UNROLL
    for (int u = 0; u < kSteps; ++u) add_products(k + u, b + u * tile.b_stride, sum[u % kUnroll]);
  }
  for (; k < tile.depth; ++k, b += tile.b_stride) add_products(k, b, sum[0]);

  RNN_UNROLL
  for (int m = 0; m < kRows; ++m) {
    T* c = tile.c + m * tile.c_stride;
    RNN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Raw total = sum[0][m][v];
      RNN_UNROLL
      for (int u = 1; u < kUnroll; ++u) total += sum[u][m][v];
      const int64_t n = tile.columns - v * lanes;
      if (tile.accumulate) total += load(c + v * lanes, n).v;
      store(c + v * lanes, Vec<T>(total), n);
    }
  }
}

template <Order kOrder, int kVectors, class E, class B, class A, int... kRows>
void dispatch_rows(int rows, const Tile<E, B, A>& tile, std::integer_sequence<int, kRows...>) {
  using Run = void (*)(const Tile<E, B, A>&);
  static constexpr Run table[] = {&run_tile<E, B, A, kRows + 1, kVectors, kOrder>...};
  table[rows - 1](tile);
}

template <Order kOrder, int kVectors, class E, class B, class A>
void run_rows(int rows, const Tile<E, B, A>& tile) {
  if constexpr (kOrder == Order::kRows)
    dispatch_rows<kOrder, kVectors>(rows, tile, std::make_integer_sequence<int, max_tile_rows(kVectors)>{});
  else if constexpr (kVectors <= kPanelVectors)
    dispatch_rows<kOrder, kVectors>(rows, tile, std::make_integer_sequence<int, kPackedRows>{});
}

// Calls body(first, n) for rows [first, first + n), in blocks as even as can be: a lone last row would waste a tile.
template <class Body>
RNN_INLINE void even_blocks(int64_t rows, int64_t most, const Body& body) {
  const int64_t blocks = divide_up(rows, most), least = rows / blocks, larger = rows % blocks;
  for (int64_t block = 0, first = 0; block < blocks; ++block) {
    const int64_t n = least + (block < larger);
    body(first, int(n));
    first += n;
  }
}

// All rows [0, rows) of a column strip, `vectors` wide. A packed left operand comes in blocks of at most kPackedRows rows. The tile is
// changed in place: members that have just been written one by one would be copied in wider pieces, which waits for the cache.
template <Order kOrder, class E, class B, class A>
void run_strip(Tile<E, B, A>&& tile, int vectors, int64_t rows) {
  const auto run = [&](int n) {
    switch (vectors) {
      case 1: return run_rows<kOrder, 1>(n, tile);
      case 2: return run_rows<kOrder, 2>(n, tile);
      case 3: return run_rows<kOrder, 3>(n, tile);
      default: return run_rows<kOrder, 4>(n, tile);
    }
  };
  int64_t pieces = tile.ahead.pieces;
  if (pieces == 0) tile.ahead.lines = tile.b;  // nothing to fetch: that is at hand
  const int most = kOrder == Order::kRows ? max_tile_rows(vectors) : kPackedRows;
  if (rows <= most) return run(int(rows));
  const A* const a = tile.a;
  auto* const c = tile.c;
  even_blocks(rows, most, [&](int64_t first, int n) {
    tile.a = a + first * (kOrder == Order::kRows ? tile.a_stride : tile.depth);
    tile.c = c + first * tile.c_stride;
    run(n);
    if (--pieces > 0)
      tile.ahead.lines = static_cast<const char*>(tile.ahead.lines) + tile.ahead.distance;
    else
      tile.ahead.lines = tile.b;
  });
}

// ---- Dot products with unpacked rows ----------------------------------------------------------

constexpr int kDotRows = kRegisters == 32 ? 4 : 2;

// Rows of the weights that kRows rows meet at once: as many as there are lanes where the sums find registers, so that these are
// one vector in the end.
template <class T>
constexpr int dot_weight_rows(int rows) {
  constexpr int lanes = Vec<T>::size;
  const int most = rows == 1 ? 8 : 4;
  return lanes < most ? lanes : most;
}

// c[m][j] = sum_k a[m][k] w[j * depth + k] for one vector of units, vectors along k. Past the last unit, that unit again: every
// lane is written, none from outside of the weights.
template <class S, int kRows>
void run_dots(Matrix<const Operand<S>> a, const S* w, int64_t units, int64_t depth, Matrix<Compute<S>> c) {
  using T = Compute<S>;
  constexpr int kWeightRows = dot_weight_rows<T>(kRows);
  for (int64_t unit = 0; unit < kLanes<T>; unit += kWeightRows) {
    const S* w_rows[kWeightRows];
    for (int j = 0; j < kWeightRows; ++j) w_rows[j] = w + (unit + j < units ? unit + j : units - 1) * depth;
    Vec<T> sum[kRows][kWeightRows];
    RNN_UNROLL
    for (int m = 0; m < kRows; ++m)
      RNN_UNROLL
      for (int j = 0; j < kWeightRows; ++j) sum[m][j] = T(0);

    const auto add_products = [&](int64_t k, int64_t n) __attribute__((always_inline)) {
      Vec<T> a_vector[kRows];
      RNN_UNROLL
      for (int m = 0; m < kRows; ++m) a_vector[m] = load(a.row(m) + k, n);
      RNN_UNROLL
      for (int j = 0; j < kWeightRows; ++j) {
        const Vec<T> w_vector = load(w_rows[j] + k, n);
        RNN_UNROLL
        for (int m = 0; m < kRows; ++m) sum[m][j].v += a_vector[m].v * w_vector.v;
      }
    };
    int64_t k = 0;
    for (; k + kLanes<T> <= depth; k += kLanes<T>) add_products(k, kLanes<T>);
    if (k < depth) add_products(k, depth - k);

    RNN_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const Vec<T> sums = sum_lanes_of(sum[m]);
      std::memcpy(c.row(m) + unit, &sums, kWeightRows * sizeof(T));
    }
  }
}

template <class S>
void multiply_gates_unpacked(const GateWeights<S>& weights, int gates, int64_t panel,
                             Matrix<const Operand<S>> a, int64_t rows, Compute<S>* c) {
  using T = Compute<S>;
  const int64_t c_stride = gates * kLanes<T>;
  const int64_t first_unit = panel * kLanes<T>;
  const int64_t units = weights.units - first_unit < kLanes<T> ? weights.units - first_unit : kLanes<T>;
  for (int gate = 0; gate < gates; ++gate) {
    const S* w = weights.rows + (gate * weights.units + first_unit) * weights.depth;
    for (int64_t m = 0; m < rows; m += kDotRows) {
      const Matrix<const Operand<S>> a_block{a.row(m), a.stride};
      const Matrix<T> c_block{c + m * c_stride + gate * kLanes<T>, c_stride};
      switch (rows - m < kDotRows ? rows - m : kDotRows) {
        case 1: run_dots<S, 1>(a_block, w, units, weights.depth, c_block); break;
        case 2: run_dots<S, 2>(a_block, w, units, weights.depth, c_block); break;
        case 3: run_dots<S, kRegisters == 32 ? 3 : 2>(a_block, w, units, weights.depth, c_block); break;
        default: run_dots<S, kDotRows>(a_block, w, units, weights.depth, c_block); break;
      }
    }
  }
}

// ---- Packing ------------------------------------------------------------------------------------

// The lanes of a and b in turn, from the first half of both or from the second.
template <class T, int... kLane>
RNN_INLINE void interleave(Vec<T>& low, Vec<T>& high, Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = Vec<T>::size;
  low = shuffle<(kLane / 2 + kLane % 2 * lanes)...>(a.v, b.v);
  high = shuffle<(lanes / 2 + kLane / 2 + kLane % 2 * lanes)...>(a.v, b.v);
}

// Interleaving row i with row i + half, log2(lanes) times over, transposes the block.
template <class T>
RNN_INLINE void transpose(Vec<T> (&rows)[Vec<T>::size]) {
  constexpr int lanes = Vec<T>::size;
  RNN_UNROLL
  for (int stage = 1; stage < lanes; stage *= 2) {
    Vec<T> next[lanes];
    RNN_UNROLL
    for (int i = 0; i < lanes / 2; ++i)
      interleave(next[2 * i], next[2 * i + 1], rows[i], rows[i + lanes / 2],
                 std::make_integer_sequence<int, lanes>{});
    RNN_UNROLL
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// store_row(to + k * to_stride, load_block(lane, k)[0] of each lane), zero in lanes [count, kLanes); load_block(lane, k, n) gives
// the n elements from k on.
template <class T, class To, class LoadBlock, class StoreRow>
RNN_INLINE void pack_transposed(To* to, int64_t to_stride, int64_t count, int64_t depth, const LoadBlock& load_block,
                                const StoreRow& store_row) {
  constexpr int lanes = Vec<T>::size;
  for (int64_t k = 0; k < depth; k += lanes) {
    const int64_t n = depth - k < lanes ? depth - k : lanes;
    Vec<T> block[lanes];
    RNN_UNROLL
    for (int lane = 0; lane < lanes; ++lane) block[lane] = lane < count ? load_block(lane, k, n) : Vec<T>(T(0));
    transpose(block);
    RNN_UNROLL
    for (int i = 0; i < lanes; ++i)
      if (i < n) store_row(to + (k + i) * to_stride, block[i]);
  }
}

// Rows from[lane * depth + k]; halves in the lower half of each lane, as bits.
template <class S>
void pack_rows(S* to, int64_t to_stride, const S* from, int64_t count, int64_t depth) {
  using T = Compute<S>;
  const auto load_block = [=](int lane, int64_t k, int64_t n) __attribute__((always_inline)) {
    if constexpr (sizeof(S) == 2)
      return Vec<T>(typename Vec<T>::Raw(widen_bits(load_bits(&from[lane * depth + k].bits, n))));
    else
      return load(from + lane * depth + k, n);
  };
  pack_transposed<T>(to, to_stride, count, depth, load_block, [](S* row, Vec<T> x) __attribute__((always_inline)) {
    if constexpr (sizeof(S) == 2) {
      const Half16 bits = __builtin_convertvector(Bits32(x.v), Half16);
      std::memcpy(row, &bits, sizeof bits);
    } else {
      x.store(row);
    }
  });
}

RNN_INLINE void store_whole(float* row, Vec<float> x) { x.store(row); }

// The same two by two: a pair moves as one float, whose value is never looked at.
[[maybe_unused]] void pack_rows_of_pairs(BFloat16* to, int64_t to_stride, const BFloat16* from, int64_t count,
                                         int64_t depth) {
  const auto load_pairs = [=](int lane, int64_t k, int64_t n) __attribute__((always_inline)) {
    const BFloat16* row = from + lane * depth + 2 * k;
    if (2 * (k + n) <= depth) return Vec<float>::load(reinterpret_cast<const float*>(row), n);
    float pairs[Vec<float>::size] = {};
    std::memcpy(pairs, row, size_t(depth - 2 * k) * sizeof(BFloat16));
    return Vec<float>::load(pairs);
  };
  pack_transposed<float>(reinterpret_cast<float*>(to), to_stride, count, divide_up(depth, 2), load_pairs, store_whole);
}

// Vectors whose elements are to alternate, as pairs.
RNN_INLINE Vec<float> alternate(Half16 first, Half16 second) {
  return Vec<float>(Vec<float>::Raw(widen_bits(first) | (widen_bits(second) << 16)));
}

// Pairs of what stands below each other in two rows of n columns (null: zeros), as so many vectors.
RNN_INLINE void pair_rows(BFloat16* to, const BFloat16* first, const BFloat16* second, int64_t n, int vectors) {
  for (int v = 0; v < vectors; ++v) {
    const int64_t done = v * kLanes<float>;
    const Half16 below = second == nullptr ? Half16{} : load_bits(&second[done].bits, n - done);
    alternate(load_bits(&first[done].bits, n - done), below).store(reinterpret_cast<float*>(to + 2 * done));
  }
}

// Two blocks of rows from[lane * depth + k], alternating: the second begins `distance` elements after the first and has at most as
// many rows.
void pack_rows_alternating(BFloat16* to, int64_t to_stride, const BFloat16* from, int64_t count, int64_t distance,
                           int64_t second_count, int64_t depth) {
  const auto load_both = [=](int lane, int64_t k, int64_t n) __attribute__((always_inline)) {
    const BFloat16* row = from + lane * depth + k;
    return alternate(load_bits(&row->bits, n), load_bits(&row[distance].bits, lane < second_count ? n : 0));
  };
  pack_transposed<float>(reinterpret_cast<float*>(to), to_stride / 2, count, depth, load_both, store_whole);
}

// A strip of vectors of rows, vector v from[v * distance + lane * depth + k] for count(v) lanes, as Packed has them.
template <class S, class Count>
void pack_strip(S* to, int vectors, const S* from, int64_t distance, int64_t depth, const Count& count) {
  constexpr int64_t lanes = kLanes<Compute<S>>;
  const int64_t stride = vectors * lanes;
  if constexpr (std::is_same_v<Packed<S>, Pair>) {
    for (int v = 0; v < vectors; ++v)
      pack_rows_of_pairs(to + v * lanes * 2, stride, from + v * distance, count(v), depth);
  } else {
    int v = 0;
    if constexpr (std::is_same_v<Packed<S>, Alternating>)
      for (; v + 1 < vectors && count(v + 1) > 0; v += 2)
        pack_rows_alternating(to + v * lanes, stride, from + v * distance, count(v), distance, count(v + 1), depth);
    for (; v < vectors; ++v) pack_rows(to + v * lanes, stride, from + v * distance, count(v), depth);
  }
}

}  // namespace

template <class S>
void pack_gate_panel(S* to, const S* weights, int gates, int64_t units, int64_t depth, int64_t panel) {
  constexpr int64_t lanes = kLanes<Compute<S>>;
  const int64_t first_unit = panel * lanes;
  const int64_t count = units - first_unit < lanes ? units - first_unit : lanes;
  const int of_strip = gates_of_strip(gates);
  for (int gate = 0; gate < gates; gate += of_strip) {
    const S* rows = weights + (gate * units + first_unit) * depth;
    S* strip = to + gate / of_strip * GateWeights<S>::panel_size(of_strip, depth);
    pack_strip(strip, of_strip, rows, units * depth, depth, [=](int) { return count; });
  }
}

template <class S>
void multiply_gates(const GateWeights<S>& weights, int gates, int64_t panel, Matrix<const Operand<S>> a,
                    int64_t rows, Compute<S>* c) {
  constexpr int64_t together = kTogether<S>;
  using E = Element<S>;
  using B = Packed<S>;
  if (rows == 0) return;
  if (weights.panels == nullptr) return multiply_gates_unpacked(weights, gates, panel, a, rows, c);
  const int of_strip = gates_of_strip(gates), at_once = rows <= kFewRows ? gates : of_strip;
  const int64_t strip_size = GateWeights<S>::panel_size(of_strip, weights.depth);
  const int64_t depth = divide_up(weights.depth, together);
  const S* b = weights.panels + panel * GateWeights<S>::panel_size(gates, weights.depth);
  for (int gate = 0; gate < gates; gate += at_once) {
    constexpr int64_t lanes = kLanes<Compute<S>>;
    const int64_t strip_lanes = of_strip * lanes;
    Ahead next;  // panel: packed, or the rows that it will be packed from
    if (weights.one_by_one)
      next = {weights.rows + (gate * weights.units + (panel + 1) * lanes) * weights.depth,
              weights.units * weights.depth * int64_t(sizeof(S)), at_once};
    else if (are_far<S>(gates * weights.units * weights.depth))
      next = Ahead::of_steps(b + strip_size, strip_lanes * int64_t(sizeof(B)), depth);
    run_strip<Order::kRows>(
        Tile<E, B>{reinterpret_cast<const E*>(a.data), a.stride / together, reinterpret_cast<const B*>(b), strip_lanes,
                   strip_size / together, c + gate * lanes, gates * lanes, depth, at_once * lanes, false, next},
        at_once, rows);
    b += strip_size;
  }
}

template <class S>
void pack_column_panel(S* to, const S* weights, int64_t depth, int64_t columns, int64_t panel) {
  constexpr int64_t lanes = kLanes<Compute<S>>, width = ColumnWeights<S>::kPanelColumns;
  const int64_t first = panel * width;
  const int64_t count = columns - first < width ? columns - first : width;
  for (int64_t k = 0; k < depth; k += kTogether<S>) {
    S* const to_row = to + k * width;
    const S* const row = weights + k * columns + first;
    if constexpr (std::is_same_v<Packed<S>, Pair>) {
      pair_rows(to_row, row, k + 1 < depth ? row + columns : nullptr, count, kPanelVectors);
    } else {
      int64_t done = 0;
      if constexpr (std::is_same_v<Packed<S>, Alternating>) {
        for (; count - done > lanes; done += 2 * lanes)
          alternate(load_bits(&row[done].bits), load_bits(&row[done + lanes].bits, count - done - lanes))
              .store(reinterpret_cast<float*>(to_row + done));
      }
      if (done < width) copy_row(to_row + done, row + done, done < count ? count - done : 0, width - done);
    }
  }
}

template <class S>
void pack_column_panel_transposed(S* to, const S* weights, int64_t depth, int64_t columns, int64_t panel) {
  constexpr int64_t lanes = kLanes<Compute<S>>;
  const int64_t first = panel * ColumnWeights<S>::kPanelColumns;
  // May be negative: all padding.
  const auto count = [=](int v) { return columns - first - v * lanes < lanes ? columns - first - v * lanes : lanes; };
  pack_strip(to, kPanelVectors, weights + first * depth, lanes * depth, depth, count);
}

template <class S>
void multiply_columns(const ColumnWeights<S>& weights, int64_t first, int64_t last, Matrix<const Operand<S>> a,
                      const Segment* segments, int segment_count, int64_t rows, Matrix<Compute<S>> c,
                      bool accumulate) {
  using T = Compute<S>;
  constexpr int64_t width = ColumnWeights<S>::kPanelColumns;
  // Steps of a block of a panel, which stays in the second-level cache while all rows pass over it. And sums of blocks are more
  // exact than one sum over 4 * H gate gradients.
  constexpr int64_t kBlock = 256;
  if (rows == 0) return;
  const int64_t count = ColumnWeights<S>::panel_count(weights.columns);
  constexpr int64_t kMostPanels = kMostVectors / kPanelVectors;
  const auto multiply = [&](const auto* b, int64_t b_stride, int64_t b_next, int64_t panel, int64_t next) {
    using B = std::remove_const_t<std::remove_pointer_t<decltype(b)>>;
    constexpr bool pairs = std::is_same_v<B, Pair>;
    using A = std::conditional_t<pairs, Pair, Operand<S>>;
    constexpr int64_t together = pairs ? 2 : 1;
    const int64_t columns = (next < count ? next * width : weights.columns) - panel * width;
    const int vectors = int(divide_up(columns, kLanes<T>));
    const bool far = b_stride == width && are_far<S>(weights.depth * weights.columns);
    bool add = accumulate;
    for (int s = 0; s < segment_count; ++s) {
      // An empty sum still writes its zeros.
      const int64_t steps = divide_up(segments[s].length, together);
      for (int64_t k = 0; k == 0 || k < steps; k += kBlock) {
        const int64_t depth = steps - k < kBlock ? steps - k : kBlock;
        const B* const block = b + (segments[s].w_first / together + k) * b_stride;
        Ahead next;  // block, packed behind this one
        if (far) next = Ahead::of_steps(block + depth * width, width * int64_t(sizeof(B)), depth);
        run_strip<Order::kRows>(
            Tile<std::conditional_t<pairs, Pair, T>, B, A>{
                reinterpret_cast<const A*>(a.data + segments[s].a_first) + k, a.stride / together, block, b_stride,
                b_next / together, c.data + panel * width, c.stride, depth, columns, add, next},
            vectors, rows);
        add = true;
      }
    }
  };
  for (int64_t panel = first, next; panel < last; panel = next) {
    next = panel + kMostPanels < last ? panel + kMostPanels : last;
    const S* const packed = weights.packed(panel);
    if (packed == nullptr) {
      // Such rows are far apart, on pages of their own: as much of each at a time as a tile can take.
      while (weights.packed(next - 1) != nullptr) --next;
      multiply(weights.rows + panel * width, weights.columns, width, panel, next);
      continue;
    }
    const int64_t size = ColumnWeights<S>::panel_size(weights.depth);
    const bool whole = (panel + kMostPanels) * width - kLanes<T> < weights.columns;  // all kMostVectors of them
    const bool adjacent = weights.packed(next - 1) == packed + (next - 1 - panel) * size;
    if (rows > kFewRows || next != panel + kMostPanels || !whole || !adjacent) next = panel + 1;
    multiply(reinterpret_cast<const Packed<S>*>(packed), width, size, panel, next);
  }
}

namespace {

// to[first * depth + k * n + m] = a[k][first + m], for each block of n rows of a packed left operand; of pairs, a[2 * k] and
// a[2 * k + 1]. depth: rows of a.
template <class X, int... kRows>
void pack_blocks(Element<X>* to, Matrix<const Operand<X>> a, int64_t rows, int64_t depth, std::integer_sequence<int, kRows...>) {
  const int64_t steps = divide_up(depth, kTogether<X>);
  const auto pack = [&](auto count, int64_t first) {
    constexpr int n = decltype(count)::value;
    for (int64_t k = 0; k < steps; ++k) {
      Element<X>* const step = to + first * steps + k * n;
      if constexpr (kTogether<X> == 2) {
        const Half16 below = 2 * k + 1 < depth ? load_bits(&a.row(2 * k + 1)[first].bits, n) : Half16{};
        alternate(load_bits(&a.row(2 * k)[first].bits, n), below).store(reinterpret_cast<float*>(step), n);
      } else {
        std::memcpy(step, a.row(k) + first, n * sizeof *step);
      }
    }
  };
  even_blocks(rows, kPackedRows, [&](int64_t first, int n) {
    ((n == kRows + 1 ? pack(std::integral_constant<int, kRows + 1>{}, first) : void()), ...);
  });
}

}  // namespace

template <class X>
void multiply_transposed(Matrix<const Operand<X>> a, const X* const* x, int64_t rows, int64_t first, int64_t last,
                         int64_t columns, Matrix<Compute<X>> c, bool accumulate, Compute<X>* scratch) {
  using T = Compute<X>;
  using E = Element<X>;
  constexpr int64_t width = kPanelVectors * kLanes<T>, block = kTransposedDepth<T> * kTogether<X>;
  E* const packed = reinterpret_cast<E*>(scratch);
  E* const strip = packed + kTransposedRows * kTransposedDepth<T>;
  for (int64_t k = 0; k == 0 || k < rows; k += block) {
    const int64_t depth = rows - k < block ? rows - k : block;
    for (int64_t i = first; i < last; i += kTransposedRows) {
      const int64_t count = last - i < kTransposedRows ? last - i : kTransposedRows;
      pack_blocks<X>(packed, Matrix<const Operand<X>>{a.row(k) + i, a.stride}, count, depth,
                     std::make_integer_sequence<int, kPackedRows>{});
      for (int64_t j = 0; j < columns; j += width) {
        const int64_t n = columns - j < width ? columns - j : width;
        const int vectors = int(divide_up(n, kLanes<T>));
        const int64_t row_size = vectors * kLanes<T>;
        for (int64_t r = 0; r < depth; r += kTogether<X>) {
          E* const row = strip + r / kTogether<X> * row_size;
          const X* const from = x[k + r] + j;
          if constexpr (kTogether<X> == 2)
            pair_rows(&row->first, from, r + 1 < depth ? x[k + r + 1] + j : nullptr, n, vectors);
          else
            widen_row(row, from, n, row_size);
        }
        run_strip<Order::kPacked>(Tile<E>{packed, 0, strip, row_size, 0, c.row(i) + j, c.stride,
                                          divide_up(depth, kTogether<X>), n, accumulate || k > 0, {}},
                                  vectors, count);
      }
    }
  }
}

#define RNN_INSTANTIATE(S)                                                                                                    \
  template void pack_gate_panel<S>(S*, const S*, int, int64_t, int64_t, int64_t);                                             \
  template void multiply_gates<S>(const GateWeights<S>&, int, int64_t, Matrix<const Operand<S>>, int64_t, Compute<S>*);       \
  template void pack_column_panel<S>(S*, const S*, int64_t, int64_t, int64_t);                                                \
  template void pack_column_panel_transposed<S>(S*, const S*, int64_t, int64_t, int64_t);                                     \
  template void multiply_columns<S>(const ColumnWeights<S>&, int64_t, int64_t, Matrix<const Operand<S>>, const Segment*, int, \
                                    int64_t, Matrix<Compute<S>>, bool);                                                       \
  template void multiply_transposed<S>(Matrix<const Operand<S>>, const S* const*, int64_t, int64_t, int64_t, int64_t,         \
                                       Matrix<Compute<S>>, bool, Compute<S>*);
RNN_INSTANTIATE(float)
RNN_INSTANTIATE(double)
RNN_INSTANTIATE(BFloat16)
RNN_INSTANTIATE(Float16)
#undef RNN_INSTANTIATE

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
