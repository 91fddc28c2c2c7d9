// Every product of gemm.h against three nested loops, on sizes around the tile borders. Operands sit in
// exactly-sized heap blocks, so that AddressSanitizer sees a read beyond them.
#include <cmath>
#include <utility>
#include <vector>

#include "../../csrc/cpu/gemm.h"
#include "harness.h"

using namespace rnnkernels::cpu;
using namespace rnnkernels::cpu::RNNKERNELS_ISA;
using harness::Random;

namespace {

constexpr int kVectors[] = {3, 4};

template <class S>
std::vector<S> random_storage(Random& random, int64_t count) {
  std::vector<S> values(static_cast<size_t>(count));
  for (S& value : values) {
    const auto x = Compute<S>(random.uniform(-1, 1));
    store(&value, Vec<Compute<S>>(x), 1);
  }
  return values;
}

template <class S>
double at(const std::vector<S>& values, int64_t i) {
  Compute<S> lanes[Vec<Compute<S>>::size];
  load(values.data() + i, 1).store(lanes);
  return lanes[0];
}

template <class T>
void check_close(T actual, double expected, int64_t terms, const char* what) {
  const double bound = (double(terms) + 4) * (sizeof(T) == 4 ? 1.2e-7 : 2.3e-16);
  CHECK(std::fabs(double(actual) - expected) <= bound,
        std::string(what) + ": " + std::to_string(actual) + " for " + std::to_string(expected));
}

template <class S>
void gate_products(Random& random, bool packed, int gates, int64_t rows, int64_t units, int64_t depth) {
  using T = Compute<S>;
  using A = Operand<S>;
  const int64_t stride = divide_up(depth, 2) * 2 + 4;
  const auto a = random_storage<A>(random, rows * stride);
  const auto w = random_storage<S>(random, gates * units * depth);
  const int64_t panels = GateWeights<S>::panel_count(units), size = GateWeights<S>::panel_size(gates, depth);
  std::vector<S> panel_data(static_cast<size_t>(panels * size));
  if (packed)
    for (int64_t p = 0; p < panels; ++p)
      pack_gate_panel(panel_data.data() + p * size, w.data(), gates, units, depth, p);
  const GateWeights<S> weights{w.data(), packed ? panel_data.data() : nullptr, units, depth};
  for (int64_t p = 0; p < panels; ++p) {
    std::vector<T> c(static_cast<size_t>(rows * gates * kLanes<T>), T(7));
    multiply_gates(weights, gates, p, Matrix<const A>{a.data(), stride}, rows, c.data());
    for (int64_t m = 0; m < rows; ++m)
      for (int gate = 0; gate < gates; ++gate)
        for (int64_t lane = 0; lane < kLanes<T> && p * kLanes<T> + lane < units; ++lane) {
          double sum = 0;
          const int64_t row = gate * units + p * kLanes<T> + lane;
          for (int64_t k = 0; k < depth; ++k) sum += at(a, m * stride + k) * at(w, row * depth + k);
          check_close(c[size_t((m * gates + gate) * kLanes<T> + lane)], sum, depth, packed ? "gates" : "dots");
        }
  }
}

template <class S>
void column_products(Random& random, bool in_place, bool transposed, int64_t rows, int64_t columns, int64_t depth) {
  using T = Compute<S>;
  using A = Operand<S>;
  const int64_t hidden = depth / 3;
  const Segment segments[] = {{0, 0, 2 * hidden}, {depth, 2 * hidden, depth - 2 * hidden}};
  const int64_t stride = 2 * depth + 2;  // an odd last segment's pair ends beyond it
  const auto a = random_storage<A>(random, rows * stride);
  const auto w = random_storage<S>(random, depth * columns);  // (columns, depth) when transposed
  const int64_t panels = ColumnWeights<S>::panel_count(columns), size = ColumnWeights<S>::panel_size(depth);
  std::vector<S> all_but_last(static_cast<size_t>((panels - 1) * size)), last(static_cast<size_t>(size));
  const bool packs_last = !in_place || ColumnWeights<S>::needs_padding(columns);
  for (int64_t p = in_place ? panels - 1 : 0; p < panels; ++p) {
    S* to = p == panels - 1 ? last.data() : all_but_last.data() + p * size;
    if (transposed)
      pack_column_panel_transposed(to, w.data(), depth, columns, p);
    else
      pack_column_panel(to, w.data(), depth, columns, p);
  }
  const ColumnPanels<S> packed{in_place ? nullptr : all_but_last.data(), packs_last ? last.data() : nullptr};
  const ColumnWeights<S> weights{w.data(), packed, depth, columns};
  for (const bool accumulate : {false, true}) {
    std::vector<T> c(static_cast<size_t>(rows * columns), T(0.5));
    // As threads share them: panels may go in pairs within a share, never across.
    const int64_t cut = random.integer(0, panels);
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, panels}})
      multiply_columns(weights, first, last, Matrix<const A>{a.data(), stride}, segments, 2, rows,
                       Matrix<T>{c.data(), columns}, accumulate);
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t j = 0; j < columns; ++j) {
        double sum = accumulate ? 0.5 : 0;
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t a_column = k < 2 * hidden ? k : depth + k - 2 * hidden;
          sum += at(a, m * stride + a_column) * at(w, transposed ? j * depth + k : k * columns + j);
        }
        check_close(c[size_t(m * columns + j)], sum, depth, "columns");
      }
  }
}

template <class X>
void transposed_products(Random& random, int64_t rows, int64_t count, int64_t columns) {
  using T = Compute<X>;
  using A = Operand<X>;
  const int64_t a_stride = count + 2;
  const auto a = random_storage<A>(random, rows * a_stride);
  std::vector<std::vector<X>> x;
  std::vector<const X*> x_rows;
  for (int64_t r = 0; r < rows; ++r) x_rows.push_back(x.emplace_back(random_storage<X>(random, columns)).data());
  std::vector<T> scratch(kTransposedScratch<T>);
  const int64_t first = count / 3;
  for (const bool accumulate : {false, true}) {
    std::vector<T> c(static_cast<size_t>(count * columns), T(0.5));
    multiply_transposed(Matrix<const A>{a.data(), a_stride}, x_rows.data(), rows, first, count, columns,
                        Matrix<T>{c.data(), columns}, accumulate, scratch.data());
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        double sum = accumulate || i < first ? 0.5 : 0;
        for (int64_t r = 0; i >= first && r < rows; ++r) sum += at(a, r * a_stride + i) * at(x[size_t(r)], j);
        check_close(c[size_t(i * columns + j)], sum, rows, "transposed");
      }
  }
}

template <class S>
void all_products(Random& random) {
  const int64_t sizes[] = {1, 2, 3, 5, 15, 16, 17, 33, 70};
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 25})
    for (const int64_t size : sizes) {
      const int64_t other = sizes[random.integer(0, 8)];
      for (const int gates : kVectors)
        for (const bool packed : {false, true}) gate_products<S>(random, packed, gates, rows, size, other);
      column_products<S>(random, false, false, rows, size, other);
      column_products<S>(random, false, true, rows, size, other);
      column_products<S>(random, true, false, rows, size, other);
      transposed_products<S>(random, rows, size, other);
    }
  column_products<S>(random, false, false, 3, 5, 1500);  // several blocks of depth
  column_products<S>(random, false, false, 2, 3, 0);     // an empty sum is zero
  transposed_products<S>(random, 530, 200, 40);  // of both operands
}

}  // namespace

void run_tests() {
  Random random(4);
  all_products<float>(random);
  all_products<double>(random);
  all_products<BFloat16>(random);
  all_products<Float16>(random);
}
