// Whole layers, forward and backward, through the torch-free interface against naive.h: dense and ragged, both
// directions, projection, every element type, any number of threads. Workspaces and results start out as NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "harness.h"
#include "naive.h"

using namespace rnnkernels::cpu;
using harness::Random;
using naive::Shape;
using naive::Values;

namespace {

// ---- Element types ------------------------------------------------------------------------------------

BFloat16 round_to(BFloat16, double x) {
  const float wide = float(x);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
float round_to(float, double x) { return float(x); }
double round_to(double, double x) { return x; }

double exact(float x) { return x; }
double exact(double x) { return x; }
double exact(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <class S>
struct Traits;
template <>
struct Traits<float> {
  using State = float;
  static constexpr Dtype dtype = Dtype::kFloat32;
  static constexpr double tolerance = 2e-5;
};
template <>
struct Traits<double> {
  using State = double;
  static constexpr Dtype dtype = Dtype::kFloat64;
  static constexpr double tolerance = 1e-12;
};
template <>
struct Traits<BFloat16> {
  using State = float;
  static constexpr Dtype dtype = Dtype::kBFloat16;
  static constexpr double tolerance = 0.06;
};

// ---- Memory that would show a stray read or write --------------------------------------------------------

template <class S>
std::vector<S> poisoned(int64_t count) {
  std::vector<S> values(static_cast<size_t>(count));
  if (count > 0) std::memset(values.data(), 0xff, values.size() * sizeof(S));  // NaN in every type
  return values;
}

class Workspace {
 public:
  explicit Workspace(int64_t bytes) : memory_(static_cast<size_t>(bytes + kWorkspaceAlignment), char(0xff)) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    aligned_ = memory_.data() + (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
  }
  void* data() { return aligned_; }

 private:
  std::vector<char> memory_;
  char* aligned_;
};

// ---- Thread pools ------------------------------------------------------------------------------------

void run_threads(void*, int64_t count, void (*task)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back([=] { task(context, i); });
  for (std::thread& thread : threads) thread.join();
}

// As a nested pool does: one after another, here even backwards.
void run_backwards(void*, int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = count; i-- > 0;) task(context, i);
}

// ---- One case ------------------------------------------------------------------------------------------

template <class S>
std::vector<S> rounded(const Values& values) {
  std::vector<S> result;
  for (const double x : values) result.push_back(round_to(S{}, x));
  return result;
}

template <class S>
Values random_values(Random& random, int64_t count, double scale) {
  Values values(static_cast<size_t>(count));
  for (double& x : values) x = exact(round_to(S{}, random.uniform(-scale, scale)));
  return values;
}

template <class S>
struct Outputs {
  std::vector<S> output, h_n, c_n, gates, grad_input, grad_h0, grad_c0;
  std::vector<typename Traits<S>::State> cells;
  std::vector<S> grad_weights[2][5];
};

template <class S>
class Case {
 public:
  Case(const Shape& shape, uint64_t seed) : s_(shape) {
    Random random(seed);
    const double scale = 1 / std::sqrt(double(std::max<int64_t>(s_.hidden, 1)));
    const int64_t gate_rows = s_.gates() * s_.hidden, rows = s_.rows();
    x_ = random_values<S>(random, rows * s_.input, 1);
    h0_ = random_values<S>(random, s_.directions * s_.batch * s_.state, 1);
    c0_ = random_values<S>(random, s_.lstm ? s_.directions * s_.batch * s_.hidden : 0, 1);
    grad_output_ = random_values<S>(random, rows * s_.directions * s_.state, 1);
    grad_h_n_ = random_values<S>(random, int64_t(h0_.size()), 1);
    grad_c_n_ = random_values<S>(random, int64_t(c0_.size()), 1);
    for (int d = 0; d < s_.directions; ++d) {
      weights_[d].w_ih = random_values<S>(random, gate_rows * s_.input, scale);
      weights_[d].w_hh = random_values<S>(random, gate_rows * s_.state, scale);
      weights_[d].b_ih = random_values<S>(random, s_.biases ? gate_rows : 0, scale);
      weights_[d].b_hh = random_values<S>(random, s_.biases ? gate_rows : 0, scale);
      weights_[d].w_hr = random_values<S>(random, s_.projection ? s_.state * s_.hidden : 0, scale);
    }
  }

  Outputs<S> run(const Parallel& pool) const {
    const int64_t rows = s_.rows(), hidden_states = s_.directions * s_.batch * s_.state;
    const int64_t cell_states = s_.lstm ? s_.directions * s_.batch * s_.hidden : 0;
    Layer layer{Traits<S>::dtype, s_.steps, s_.batch, rows, s_.batch_sizes.empty() ? nullptr : s_.batch_sizes.data(),
                s_.input, s_.hidden, s_.state, s_.directions, s_.biases, s_.projection};
    const CellKernels& cell = s_.lstm ? *kernels().lstm : *kernels().gru;
    const auto x = rounded<S>(x_), h0 = rounded<S>(h0_), c0 = rounded<S>(c0_);
    std::vector<S> stored[2][5];
    Weights weights[2] = {};
    for (int d = 0; d < s_.directions; ++d) {
      const Values* from[5] = {&weights_[d].w_ih, &weights_[d].w_hh, &weights_[d].b_ih, &weights_[d].b_hh,
                               &weights_[d].w_hr};
      for (int i = 0; i < 5; ++i) stored[d][i] = rounded<S>(*from[i]);
      weights[d] = {stored[d][0].data(), stored[d][1].data(), s_.biases ? stored[d][2].data() : nullptr,
                    s_.biases ? stored[d][3].data() : nullptr, s_.projection ? stored[d][4].data() : nullptr};
    }

    Outputs<S> out;
    out.output = poisoned<S>(rows * s_.directions * s_.state);
    out.h_n = poisoned<S>(hidden_states);
    out.c_n = poisoned<S>(cell_states);
    out.gates = poisoned<S>(s_.directions * rows * 4 * s_.hidden);
    out.cells = poisoned<typename Traits<S>::State>(s_.lstm ? s_.directions * rows * s_.hidden : 0);
    const RowsView input{x.data(), s_.batch * s_.input, s_.input};
    ForwardArguments forward{input, h0.data(), c0.data(), {weights[0], weights[1]}, out.output.data(), out.h_n.data(),
                             out.c_n.data(), out.gates.data(), out.cells.data()};
    Workspace forward_space(cell.forward_workspace(layer, forward.gates != nullptr, pool.threads));
    cell.forward(layer, forward, forward_space.data(), pool);

    const auto grad_output = rounded<S>(grad_output_), grad_h_n = rounded<S>(grad_h_n_), grad_c_n = rounded<S>(grad_c_n_);
    out.grad_input = poisoned<S>(rows * s_.input);
    out.grad_h0 = poisoned<S>(hidden_states);
    out.grad_c0 = poisoned<S>(cell_states);
    BackwardArguments backward{};
    const int64_t width = s_.directions * s_.state;
    backward.grad_output = {grad_output.data(), s_.batch * width, width};
    backward.grad_h_n = grad_h_n.data();
    backward.grad_c_n = grad_c_n.data();
    backward.input = input;
    backward.h0 = h0.data();
    backward.c0 = c0.data();
    backward.output = out.output.data();
    backward.gates = out.gates.data();
    backward.cells = out.cells.data();
    backward.grad_input = out.grad_input.data();
    backward.grad_h0 = out.grad_h0.data();
    backward.grad_c0 = out.grad_c0.data();
    backward.needs_weights = true;
    for (int d = 0; d < s_.directions; ++d) {
      backward.weights[d] = weights[d];
      for (int i = 0; i < 5; ++i) out.grad_weights[d][i] = poisoned<S>(int64_t(stored[d][i].size()));
      auto& to = out.grad_weights[d];
      backward.grad_weights[d] = {to[0].data(), to[1].data(), to[2].data(), to[3].data(), to[4].data()};
    }
    Workspace backward_space(cell.backward_workspace(layer, backward.grad_input != nullptr, true, pool.threads));
    cell.backward(layer, backward, backward_space.data(), pool);
    return out;
  }

  void check(const Outputs<S>& out, const std::string& name) const {
    naive::Layer layer(s_, x_, h0_, c0_, weights_);
    const naive::Result expected = layer.forward();
    compare(out.output, expected.output, name + " output");
    compare(out.h_n, expected.h_n, name + " h_n");
    compare(out.c_n, expected.c_n, name + " c_n");
    const naive::Gradients grad = layer.backward(grad_output_, grad_h_n_, grad_c_n_);
    compare(out.grad_input, grad.input, name + " grad_input");
    compare(out.grad_h0, grad.h0, name + " grad_h0");
    compare(out.grad_c0, grad.c0, name + " grad_c0");
    for (int d = 0; d < s_.directions; ++d) {
      const naive::Weights& w = grad.weights[d];
      const Values* expected_weights[5] = {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr};
      const char* names[5] = {" w_ih", " w_hh", " b_ih", " b_hh", " w_hr"};
      for (int i = 0; i < 5; ++i) compare(out.grad_weights[d][i], *expected_weights[i], name + " gradient of" + names[i]);
    }
  }

 private:
  static void compare(const std::vector<S>& actual, const Values& expected, const std::string& what) {
    CHECK(actual.size() == expected.size(), what + " has the right size");
    double scale = 1, worst = 0;
    size_t worst_at = 0;
    for (const double x : expected) scale = std::max(scale, std::fabs(x));
    for (size_t i = 0; i < actual.size(); ++i) {
      const double error = std::fabs(exact(actual[i]) - expected[i]);
      if (!(error <= worst)) worst = error, worst_at = i;
      if (std::isnan(error)) break;
    }
    CHECK(worst <= Traits<S>::tolerance * scale,
          what + " is off by " + std::to_string(worst) + " at " + std::to_string(worst_at));
  }

  Shape s_;
  Values x_, h0_, c0_, grad_output_, grad_h_n_, grad_c_n_;
  naive::Weights weights_[2];
};

template <class S>
bool same_bits(const Outputs<S>& a, const Outputs<S>& b) {
  const auto same = [](const auto& x, const auto& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof x[0]) == 0);
  };
  bool all = same(a.output, b.output) && same(a.h_n, b.h_n) && same(a.grad_input, b.grad_input) &&
             same(a.grad_h0, b.grad_h0) && same(a.grad_c0, b.grad_c0) && same(a.gates, b.gates);
  for (int d = 0; d < 2; ++d)
    for (int i = 0; i < 5; ++i) all = all && same(a.grad_weights[d][i], b.grad_weights[d][i]);
  return all;
}

std::string describe(const Shape& s) {
  return std::string(s.lstm ? "lstm" : "gru") + " T" + std::to_string(s.steps) + " N" + std::to_string(s.batch) +
         (s.batch_sizes.empty() ? "" : " ragged") + " I" + std::to_string(s.input) + " H" + std::to_string(s.hidden) +
         (s.projection ? " P" + std::to_string(s.state) : "") + " D" + std::to_string(s.directions) +
         (s.biases ? "" : " without biases");
}

template <class S>
void check_shape(const Shape& shape, uint64_t seed) {
  const Case<S> layer(shape, seed);
  const std::string name = describe(shape);
  for (const int threads : {1, 2, 3, 7}) {
    const Parallel pool{threads, threads == 3 ? run_backwards : run_threads, nullptr};
    const Outputs<S> out = layer.run(pool);
    layer.check(out, name + " on " + std::to_string(threads) + " threads");
    if (threads <= 2) CHECK(same_bits(out, layer.run(pool)), name + " gives the same bits twice");
  }
}

std::vector<int64_t> random_batch_sizes(Random& random, int64_t steps, int64_t batch) {
  std::vector<int64_t> sizes;
  int64_t active = batch;
  for (int64_t t = 0; t < steps; ++t) {
    sizes.push_back(active);
    active = random.integer(std::max<int64_t>(1, active - 2), active);
  }
  return sizes;
}

template <class S>
void check_random_shapes(uint64_t seed, int count) {
  Random random(seed);
  const int64_t sizes[] = {1, 2, 5, 8, 15, 16, 17, 31, 33, 66};
  for (int i = 0; i < count; ++i) {
    Shape s{};
    s.lstm = i % 2 == 0;
    s.steps = random.integer(1, 9);
    s.batch = random.integer(1, 14);
    s.input = sizes[random.integer(0, 9)];
    s.hidden = sizes[random.integer(0, 9)];
    s.directions = int(random.integer(1, 2));
    s.biases = random.integer(0, 3) != 0;
    s.projection = s.lstm && s.hidden > 1 && random.integer(0, 2) == 0;
    s.state = s.projection ? random.integer(1, s.hidden - 1) : s.hidden;
    if (random.integer(0, 1)) s.batch_sizes = random_batch_sizes(random, s.steps, s.batch);
    check_shape<S>(s, seed + uint64_t(i));
  }
}

// Shapes that take a path of their own.
void check_special_shapes() {
  for (const bool lstm : {true, false}) {
    check_shape<float>({lstm, 3, 0, {}, 4, 5, 5, 2, true, false}, 1);       // no rows
    check_shape<float>({lstm, 3, 2, {}, 4, 0, 0, 1, true, false}, 2);       // no units
    check_shape<float>({lstm, 700, 1, {}, 1, 3, 3, 2, true, false}, 3);     // many chunks of many steps
    check_shape<float>({lstm, 6, 2, {}, 5, 230, 230, 1, true, false}, 4);   // units shared by the threads
    check_shape<double>({lstm, 5, 1, {}, 5, 260, 260, 2, false, false}, 5);
    check_shape<BFloat16>({lstm, 5, 2, {2, 2, 2, 1, 1}, 7, 240, 240, 1, true, false}, 6);
    check_shape<float>({lstm, 3, 90, {}, 9, 12, 12, 2, true, false}, 7);    // more rows than a block, one step a chunk
    check_shape<float>({lstm, 3, 17, {}, 30, 240, 240, 1, true, false}, 8);  // units shared for the sake of the weights
    check_shape<float>({lstm, 3, 40, {}, 70, 66, 66, 1, true, false}, 9);    // enough rows to pack W_hh for few steps
    check_shape<float>({lstm, 1, 40, {}, 70, 66, 66, 1, true, false}, 10);  // one step, weights packed when used
    check_shape<double>({lstm, 1, 23, {}, 9, 31, 31, 2, true, false}, 11);
    check_shape<BFloat16>({lstm, 1, 30, {30}, 7, 70, 70, 1, false, false}, 12);
    if (lstm) check_shape<float>({lstm, 1, 25, {}, 33, 17, 9, 2, true, true}, 13);
    check_shape<float>({lstm, 9, 3, {}, 6, 64, 64, 2, true, false}, 14);  // W_hh packed where its gradient will be
    check_shape<double>({lstm, 8, 5, {5, 5, 4, 4, 2, 1, 1, 1}, 3, 32, 32, 1, false, false}, 15);
    check_shape<BFloat16>({lstm, 700, 1, {}, 1, 3, 3, 2, true, false}, 16);  // sums over chunks, rounded at the end
    check_shape<BFloat16>({lstm, 4, 9, {}, 70, 60, 60, 2, true, false}, 17);  // the only chunk, rounded as it is summed
    check_shape<BFloat16>({lstm, 1, 40, {}, 70, 66, 66, 2, true, false}, 18);
    check_shape<float>({lstm, 12, 1, {}, 40, 64, 64, 2, true, false}, 20);  // short steps, units shared
    check_shape<float>({lstm, 10, 2, {}, 40, 230, 230, 1, true, false}, 21);  // one chunk of W_ih x, its panels packed when used
    check_shape<BFloat16>({lstm, 10, 2, {}, 80, 230, 230, 2, true, false}, 22);
    check_shape<float>({lstm, 80, 2, {}, 5, 100, 100, 1, true, false}, 23);  // panels packed at their first use, several chunks
    check_shape<float>({lstm, 9, 5, {}, 300, 20, 20, 2, true, false}, 24);    // a thread's own panel in the gradient of W_ih
    check_shape<BFloat16>({lstm, 9, 5, {5, 5, 5, 4, 4, 2, 1, 1, 1}, 301, 21, 21, 1, true, false}, 25);
    if (lstm) check_shape<BFloat16>({lstm, 6, 7, {}, 33, 17, 9, 2, true, true}, 26);  // odd numbers of pairs' elements
    if (lstm) check_shape<float>({lstm, 1, 40, {}, 33, 17, 9, 2, true, true}, 19);
  }
}

}  // namespace

void run_tests() {
  check_special_shapes();
  check_random_shapes<float>(100, 60);
  check_random_shapes<double>(200, 40);
  check_random_shapes<BFloat16>(300, 30);
}
