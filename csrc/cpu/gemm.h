// Matrix products of the three shapes a recurrent layer needs, on one register-tile kernel:
//   x W_ih^T, h W_hh^T   weights packed in gate panels (or read as they are when rows are few),
//   dG W                 weights in column panels,
//   dG^T [x, h]          both operands packed block by block.
// Sums run over k in ascending order into compute-type accumulators.
#pragma once

#include "storage.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

template <class T>
inline constexpr int64_t kLanes = Vec<T>::size;

// Elements of an operand that one multiply-add consumes: dot products take them two by two, and packed operands have them so.
template <class S>
inline constexpr int64_t kTogether = int64_t(sizeof(Compute<S>) / sizeof(Operand<S>));

// Vectors of columns that one tile takes: with 16 registers two, so that it has six rows and reads half as much of the right
// operand as one of three rows and four vectors would.
inline constexpr int kPanelVectors = kRegisters == 32 ? 4 : 2;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The stride, in elements, of a scratch row of n: whole vectors, and never a multiple
// of 512 bytes, which would map the rows of a tile onto the same few cache sets.
template <class T>
inline int64_t padded_row(int64_t n) {
  constexpr int64_t lanes = kVectorBytes / int64_t(sizeof(T));
  const int64_t padded = divide_up(n, lanes) * lanes;
  return padded * int64_t(sizeof(T)) % 512 == 0 ? padded + lanes : padded;
}

// Row-major matrix: element (i, j) at data[i * stride + j].
template <class T>
struct Matrix {
  T* data;
  int64_t stride;

  T* row(int64_t i) const { return data + i * stride; }
};

// ---- x W^T: gate panels -------------------------------------------------------------------
// The rows of W (gates * units, depth), one vector of units of every gate at a time, so that a panel yields all gates of
// the same units. It consists of strips, the gates that one register tile takes: each is [depth][gates of the strip][kLanes].
// Operands that go two by two: [depth / 2][gates][kLanes][2], padded with zeros.

// Four gates make two strips where a panel's columns do; three go together, on four rows.
constexpr int gates_of_strip(int gates) { return gates % kPanelVectors == 0 ? kPanelVectors : gates; }

template <class S>
struct GateWeights {
  const S* rows;    // (gates * units, depth), contiguous
  const S* panels;  // packed, or null: dot products with the rows as they lie
  int64_t units, depth;
  bool one_by_one = false;  // panels are packed when they are used, each from its rows

  static int64_t panel_count(int64_t units) { return divide_up(units, kLanes<Compute<S>>); }
  static int64_t panel_size(int gates, int64_t depth) {
    return gates * kLanes<Compute<S>> * divide_up(depth, kTogether<S>) * kTogether<S>;
  }
};

// Panel p of W, out of panel_count(units).
template <class S>
void pack_gate_panel(S* to, const S* weights, int gates, int64_t units, int64_t depth, int64_t panel);

// c[m][gate * kLanes + lane] = sum_k a[m][k] W[gate * units + panel * kLanes + lane][k], c with rows of
// gates * kLanes. Lanes beyond units hold finite values of no meaning as long as row m is finite. Rows of a start a
// multiple of kTogether<S> elements apart and are readable, and finite wherever the real ones are, up to one.
template <class S>
void multiply_gates(const GateWeights<S>& weights, int gates, int64_t panel, Matrix<const Operand<S>> a,
                    int64_t rows, Compute<S>* c);

// ---- dG W: column panels ------------------------------------------------------------------
// W (depth, columns) cut into panels of kPanelVectors vectors of columns: panel p is
// [depth][kPanelVectors * kLanes], padded with zeros at the end of the last; two by two
// [depth / 2][kPanelVectors * kLanes][2], with zeros beside an odd last row.

// Where they are packed. Null: rows are read as they lie, those of the last if it needs no padding.
template <class S>
struct ColumnPanels {
  S* first = nullptr;  // all but the last, one behind the other
  S* last = nullptr;
};

template <class S>
struct ColumnWeights {
  const S* rows;  // (depth, columns), contiguous
  ColumnPanels<S> panels;
  int64_t depth, columns;

  static constexpr int64_t kPanelColumns = kPanelVectors * kLanes<Compute<S>>;
  static int64_t panel_count(int64_t columns) { return divide_up(columns, kPanelColumns); }
  static int64_t panel_size(int64_t depth) { return kPanelColumns * divide_up(depth, kTogether<S>) * kTogether<S>; }
  // The last panel does not end with a whole vector.
  static bool needs_padding(int64_t columns) { return columns % kLanes<Compute<S>> != 0; }

  // All of them, in memory from `first` on.
  static ColumnPanels<S> adjacent(S* first, int64_t depth, int64_t columns) {
    if (first == nullptr) return {};
    return {first, first + (panel_count(columns) - 1) * panel_size(depth)};
  }
  // A packed panel, or null.
  S* packed(int64_t panel) const {
    if (panel == panel_count(columns) - 1) return panels.last;
    return panels.first == nullptr ? nullptr : panels.first + panel * panel_size(depth);
  }
};

template <class S>
void pack_column_panel(S* to, const S* weights, int64_t depth, int64_t columns, int64_t panel);

// The same panel of the transpose of weights (columns, depth).
template <class S>
void pack_column_panel_transposed(S* to, const S* weights, int64_t depth, int64_t columns, int64_t panel);

// The part of a sum over depth that pairs a's columns [a_first, a_first + length) with W's rows
// [w_first, w_first + length). w_first is a multiple of kTogether<S>; where the length is not, it ends with W.
struct Segment {
  int64_t a_first, w_first, length;
};

// c[m][j] (+)= sum over segments of a[m][..] W[..][j], for the columns j of panels [first, last). Rows of a start a multiple of
// kTogether<S> elements apart, and up to a multiple of it they are readable beyond a segment, and finite wherever it is.
template <class S>
void multiply_columns(const ColumnWeights<S>& weights, int64_t first, int64_t last, Matrix<const Operand<S>> a,
                      const Segment* segments, int segment_count, int64_t rows, Matrix<Compute<S>> c,
                      bool accumulate);

// ---- dG^T X ---------------------------------------------------------------------------------
// Blocks of both operands are copied first, into the order in which tiles read them: in place, each step of a sum would be on
// a page of its own.
inline constexpr int64_t kTransposedRows = 192;
// Steps of a sum, of as many bytes in either type; and float64 needs the exacter sums of shorter blocks.
template <class T>
inline constexpr int64_t kTransposedDepth = 1024 / int64_t(sizeof(T));
template <class T>
inline constexpr int64_t kTransposedScratch = kTransposedDepth<T> * (kTransposedRows + kPanelVectors * kLanes<T>);

// c[i][j] (+)= sum_r a[r][i] x[r][j] for i in [first, last), j in [0, columns). x[r] is where row r lies. scratch:
// kTransposedScratch of its elements.
template <class X>
void multiply_transposed(Matrix<const Operand<X>> a, const X* const* x, int64_t rows, int64_t first, int64_t last,
                         int64_t columns, Matrix<Compute<X>> c, bool accumulate, Compute<X>* scratch);

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
