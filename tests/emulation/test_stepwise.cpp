// The stepwise schedule: the order of steps, products and kernels that the binding runs, with the library's products done
// naively, against the numbered equations. Odd sizes, lengths, both directions, projections, every dtype.
#include <cstdio>

#include "../../csrc/cuda/schedules/stepwise.h"
#include "layer.h"

using namespace emulated;
using cuda::BFloat16;
using cuda::Float16;
using cuda::kMostDirections;
using cuda::StepRows;

namespace {

// Of our error, in units of the storage's roundoff, as in test_schedules.cpp.
constexpr double kFloor = 4;

template <class S>
constexpr double kRoundoff = 0x1p-24;
template <>
constexpr double kRoundoff<BFloat16> = 0x1p-9;
template <>
constexpr double kRoundoff<Float16> = 0x1p-12;
template <>
constexpr double kRoundoff<double> = 0x1p-53;

template <class S>
const char* const kName = "float32";
template <>
const char* const kName<BFloat16> = "bfloat16";
template <>
const char* const kName<Float16> = "float16";
template <>
const char* const kName<double> = "float64";

// The kernels under emulation, the products as loops. `forward` says which way through time is run.
template <class Cell, class S>
class Machine : public cuda::StepMachine {
 public:
  using R = cuda::Real<S>;

  // b (columns, depth) of a product when transposed, (depth, columns) otherwise; a (D, N, depth), result (D, N, columns).
  struct Factors {
    const S* a;
    const std::vector<S>* b;  // per direction
    R* result;
    int64_t columns, depth;
    bool transposed;
  };

  Machine(const cuda::Sequence& sequence, uint64_t seed) : sequence_(sequence), seed_(seed) {}
  Factors recurrent{}, projection{};

  void multiply(cuda::StepProduct which, const StepRows (&step)[kMostDirections]) override {
    const Factors& f = which == cuda::StepProduct::kRecurrent ? recurrent : projection;
    for (int d = 0; d < sequence_.directions; ++d) {
      for (int64_t row = 0; row < step[d].active; ++row) {
        const S* a = f.a + (d * sequence_.batch + row) * f.depth;
        for (int64_t j = 0; j < f.columns; ++j) {
          R sum = 0;
          for (int64_t k = 0; k < f.depth; ++k)
            sum += R(value(a[k])) * R(value(f.b[d][size_t(f.transposed ? j * f.depth + k : k * f.columns + j)]));
          f.result[(d * sequence_.batch + row) * f.columns + j] = sum;
        }
      }
    }
  }
  void launch(const cuda::StepForwardArguments& a) override {
    run(a.sequence, cuda::rows_at_work(a.sequence, a.step), [&] { cuda::step_forward<Cell, S>(a); });
  }
  void launch(const cuda::StepProjectionArguments& a) override {
    run(a.sequence, cuda::rows_at_work(a.sequence, a.step), [&] { cuda::step_projection<S>(a); });
  }
  void launch(const cuda::StepBackwardArguments& a) override {
    run(a.sequence, cuda::rows_at_work(a.sequence, a.step, a.dh), [&] { cuda::step_backward<Cell, S>(a); });
  }
  void launch(const cuda::StepProjectionBackwardArguments& a) override {
    run(a.sequence, cuda::rows_at_work(a.sequence, a.step, a.dh), [&] { cuda::step_projection_backward<S>(a); });
  }

 private:
  template <class Kernel>
  void run(const cuda::Sequence& s, int64_t rows, const Kernel& kernel) {
    const int64_t threads = rows * s.hidden;
    if (threads == 0) return;
    const auto outcome =
        rnnkernels::emulation::run({int((threads + 31) / 32), s.directions, 32, 1, 0, false, seed_++}, kernel);
    CHECK(outcome.ok(), outcome.error);
  }

  cuda::Sequence sequence_;
  uint64_t seed_;
};

// Adds what a pass leaves to what it is compared with.
struct Comparison {
  const Results &exact, &plain;
  double roundoff;
  std::string layer;
  double* worst;

  template <class V>
  void operator()(const char* name, const V& ours, Values Results::*member) const {
    const double off = error(values(ours), exact.*member), allowed = error(plain.*member, exact.*member);
    *worst = std::max(*worst, (off - 2 * allowed) / roundoff);
    CHECK(off <= 2 * allowed + kFloor * roundoff,
          layer + ": " + name + " is off by " + std::to_string(off) + ", a plain evaluation by " + std::to_string(allowed));
  }
};

double worst_excess = 0;

template <class Cell, class S>
void check(const Shape& shape) {
  using R = cuda::Real<S>;
  using Wide = std::conditional_t<std::is_same_v<S, double>, long double, double>;
  const Problem p = problem<S>(Cell::kHasCellState, shape, 23);
  const auto identity = [](double x) { return x; };
  const Results exact = recurrence::Layer<Wide>(p, identity, identity).evaluate();
  const Results plain = recurrence::Layer<R>(p, rounded<S>, rounded<S>).evaluate();
  const Comparison compare{exact, plain, kRoundoff<S>,
                           std::string(Cell::kHasCellState ? "LSTM " : "GRU ") + kName<S> + " H " +
                               std::to_string(p.hidden) + " P " + std::to_string(p.projection) + (shape.packed ? " packed" : ""),
                           &worst_excess};

  const size_t rows = size_t(p.rows()), h = size_t(p.hidden), w = size_t(p.width()), directions = size_t(p.directions);
  const size_t batch = size_t(p.batch), gates = size_t(p.gates());
  const bool projected = p.projection > 0;
  std::vector<int64_t> offsets;
  for (int64_t t = 0; t <= p.steps; ++t) offsets.push_back(p.offset(t));
  const cuda::Sequence sequence{p.steps, p.batch, p.rows(), nullptr, p.hidden, p.directions};
  cuda::Sequence outer = sequence;
  outer.hidden = p.width();
  const cuda::StepOrder order(sequence, shape.packed ? offsets.data() : nullptr);
  std::vector<R> inputs[2];
  std::vector<S> w_hh[2], w_hr[2], b_ih[2], b_hh[2];
  for (int d = 0; d < p.directions; ++d) {
    for (const double x : p.projected[d]) inputs[d].push_back(R(x));
    w_hh[d] = tensor<S>(p.w_hh[d]);
    w_hr[d] = tensor<S>(p.w_hr[d]);
    b_ih[d] = tensor<S>(p.b_ih[d]);
    b_hh[d] = tensor<S>(p.b_hh[d]);
  }
  const auto c0 = tensor<S>(p.c0), h0 = tensor<S>(p.h0);

  // Forward. Without a projection the cell's state is what recurs.
  auto h_n = h0;
  auto hidden = poisoned<S>(projected ? directions * batch * h : 0);
  std::vector<R> carry;
  for (const double x : Cell::kHasCellState ? p.c0 : p.h0) carry.push_back(R(x));
  auto product = poisoned<R>(directions * batch * gates * h), product_r = poisoned<R>(projected ? directions * batch * w : 0);
  auto output = poisoned<S>(rows * directions * w), saved = poisoned<S>(directions * rows * 4 * h);
  auto cells = poisoned<R>(Cell::kHasCellState ? directions * rows * h : 0);
  Machine<Cell, S> forward(sequence, 100);
  forward.recurrent = {h_n.data(), w_hh, product.data(), int64_t(gates * h), int64_t(w), true};
  forward.projection = {hidden.data(), w_hr, product_r.data(), int64_t(w), int64_t(h), true};
  cuda::StepForwardArguments a{};
  a.sequence = sequence;
  for (int d = 0; d < p.directions; ++d) {
    a.projected[d] = inputs[d].data();
    a.b_ih[d] = pointer(b_ih[d]);
    a.b_hh[d] = pointer(b_hh[d]);
  }
  a.product = product.data();
  a.carry = carry.data();
  a.state = projected ? hidden.data() : h_n.data();
  a.output = projected ? nullptr : output.data();
  a.gates = shape.save ? saved.data() : nullptr;
  a.cells = shape.save ? pointer(cells) : nullptr;
  cuda::StepProjectionArguments r{outer, {}, product_r.data(), h_n.data(), output.data()};
  cuda::run_forward(order, a, projected ? &r : nullptr, forward);
  compare("output", output, &Results::output);
  compare("h_n", h_n, &Results::h_n);
  if (Cell::kHasCellState) compare("c_n", tensor<S>(values(carry)), &Results::c_n);
  if (!shape.save) return;
  compare("gates", saved, &Results::gates);
  if (Cell::kHasCellState) compare("cells", cells, &Results::cells);

  // Backward. The output's gradient is a view: rows are apart, and steps are further apart than rows.
  const size_t row = directions * w + 3, step = batch * row + 5;
  auto grad_output = poisoned<S>(shape.packed ? rows * row : size_t(p.steps) * step);
  for (size_t i = 0; i < p.grad_output.size(); ++i) {
    const size_t of = i / (directions * w), at = shape.packed ? of * row : of / batch * step + of % batch * row;
    grad_output[at + i % (directions * w)] = stored<S>(p.grad_output[i]);
  }
  std::vector<R> direct, carry_dc;
  for (const double x : p.grad_h_n) direct.push_back(R(x));
  for (const double x : p.grad_c_n) carry_dc.push_back(R(x));
  auto back = poisoned<R>(directions * batch * w), back_r = poisoned<R>(projected ? directions * batch * h : 0);
  auto operand = poisoned<S>(directions * batch * gates * h), operand_r = poisoned<S>(projected ? directions * batch * w : 0);
  auto grad_gates = poisoned<S>(directions * rows * gates * h);
  auto grad_projected = poisoned<S>(projected ? directions * rows * w : 0);
  auto grad_q = poisoned<S>(Cell::kHasCellState ? 0 : directions * rows * h);
  Machine<Cell, S> backward(sequence, 200);
  backward.recurrent = {operand.data(), w_hh, back.data(), int64_t(w), int64_t(gates * h), false};
  backward.projection = {operand_r.data(), w_hr, back_r.data(), int64_t(h), int64_t(w), false};
  cuda::StepBackwardArguments b{};
  b.sequence = sequence;
  cuda::StepHiddenGradient dh{back.data(), {}, direct.data(), grad_output.data(), {}, int64_t(row)};
  if (projected) {
    b.dh.product = back_r.data();
  } else {
    b.dh = dh;
  }
  b.carry = carry_dc.data();
  b.h0 = h0.data();
  b.c0 = c0.data();
  b.output = output.data();
  b.gates = saved.data();
  b.cells = cells.data();
  b.grad_gates = grad_gates.data();
  b.grad_q = pointer(grad_q);
  b.operand = operand.data();
  cuda::StepProjectionBackwardArguments br{outer, {}, dh, grad_projected.data(), operand_r.data()};
  cuda::run_backward(order, b, projected ? &br : nullptr, int64_t(step), backward);
  compare("grad_gates", grad_gates, &Results::grad_gates);
  compare("grad_h0", tensor<S>(values(direct)), &Results::grad_h0);
  if (Cell::kHasCellState) compare("grad_c0", tensor<S>(values(carry_dc)), &Results::grad_c0);
  if (!Cell::kHasCellState) compare("grad_q", grad_q, &Results::grad_q);
  if (projected) compare("grad_projected", grad_projected, &Results::grad_projected);
}

template <class S>
void check_layers() {
  // hidden, directions, steps, batch, packed, then: biases, gradients of states, saved, projection
  const Shape dense{7, 2, 4, 5, false, 1}, packed{13, 2, 6, 9, true, 1}, bare{1, 1, 1, 1, false, 1, false, false, false};
  for (const Shape& shape : {dense, packed, bare}) {
    check<cuda::Lstm, S>(shape);
    check<cuda::Gru, S>(shape);
  }
  check<cuda::Lstm, S>({11, 2, 5, 7, true, 1, true, true, true, 3});
  check<cuda::Lstm, S>({6, 1, 3, 4, false, 1, false, true, true, 5});
}

}  // namespace

void run_tests() {
  check_layers<float>();
#ifndef RNNKERNELS_TEST_FEW  // For deliberately broken copies.
  check_layers<double>();
#ifndef RNNKERNELS_TEST_SANITIZED  // Instrumenting takes longer than running, and half types differ in conversions only.
  check_layers<BFloat16>();
  check_layers<Float16>();
#endif
#endif
  std::printf("largest excess over twice a plain evaluation's error: %.2f units of roundoff\n", worst_excess);
}
