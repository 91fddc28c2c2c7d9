// Streams, step by step, against naive.h: both cells, layers, batch rows, projection, element types, odd sizes. Inputs
// and outputs sit in exactly-sized heap blocks, so that AddressSanitizer sees a stray read or write.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/stream.h"
#include "harness.h"
#include "naive.h"

using namespace rnnkernels::cpu;
using harness::Random;
using naive::Values;

namespace {

// ---- Element types ------------------------------------------------------------------------------------

double rounded_to_bfloat16(double x) {
  const float wide = float(x);
  uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  float narrow;
  std::memcpy(&narrow, &bits, sizeof narrow);
  return narrow;
}

template <class S>
struct Traits;
template <>
struct Traits<float> {
  using State = float;
  static constexpr Dtype dtype = Dtype::kFloat32;
  static constexpr double tolerance = 2e-5;  // of states; outputs are rounded to S after that
  static double round(double x) { return float(x); }
  static float store(double x) { return float(x); }
  static double load(float x) { return x; }
};
template <>
struct Traits<double> {
  using State = double;
  static constexpr Dtype dtype = Dtype::kFloat64;
  static constexpr double tolerance = 1e-12;
  static double round(double x) { return x; }
  static double store(double x) { return x; }
  static double load(double x) { return x; }
};
template <>
struct Traits<BFloat16> {
  using State = float;
  static constexpr Dtype dtype = Dtype::kBFloat16;
  static constexpr double tolerance = 2e-5;
  static double round(double x) { return rounded_to_bfloat16(x); }
  static BFloat16 store(double x) {
    const float wide = float(rounded_to_bfloat16(x));
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return {uint16_t(bits >> 16)};
  }
  static double load(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
};

// ---- Thread pools -------------------------------------------------------------------------------------

void run_threads(void*, int64_t count, void (*task)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back([=] { task(context, i); });
  for (std::thread& thread : threads) thread.join();
}

const Parallel kAlone{1, nullptr, nullptr};

// ---- One stack of layers --------------------------------------------------------------------------------

template <class S>
class Stack {
  using T = Traits<S>;
  using State = typename T::State;

 public:
  Stack(const StreamShape& shape, bool biases, uint64_t seed) : s_(shape), biases_(biases), stream_(shape) {
    Random random(seed);
    const double scale = 1 / std::sqrt(double(s_.hidden_size));
    for (int i = 0; i < s_.layers; ++i) {
      const int64_t rows = (s_.lstm ? 4 : 3) * s_.hidden_size;
      naive::Weights w;
      w.w_ih = draw(random, rows * (i == 0 ? s_.input_size : s_.state_size), scale);
      w.w_hh = draw(random, rows * s_.state_size, scale);
      w.b_ih = draw(random, biases ? rows : 0, scale);
      w.b_hh = draw(random, biases ? rows : 0, scale);
      w.w_hr = draw(random, s_.has_projection ? s_.state_size * s_.hidden_size : 0, scale);
      load(i, w);
      if (s_.bfloat16_weights)
        for (Values* matrix : {&w.w_ih, &w.w_hh, &w.w_hr})
          for (double& x : *matrix) x = rounded_to_bfloat16(x);
      weights_.push_back(w);
      h_.push_back(Values(size_t(s_.batch * s_.state_size), 0));
      c_.push_back(Values(size_t(s_.lstm ? s_.batch * s_.hidden_size : 0), 0));
    }
  }

  Stream& stream() { return stream_; }

  // One step of both, compared.
  void step(const Values& x, const Parallel& pool, const std::string& name) {
    const int64_t stride = s_.input_size + 3, out_stride = s_.state_size + 2;
    std::vector<S> input(size_t(std::max<int64_t>((s_.batch - 1) * stride + s_.input_size, 0)));
    for (int64_t b = 0; b < s_.batch; ++b)
      for (int64_t k = 0; k < s_.input_size; ++k)
        input[size_t(b * stride + k)] = T::store(x[size_t(b * s_.input_size + k)]);
    const S untouched = T::store(7);
    std::vector<S> output(size_t(std::max<int64_t>((s_.batch - 1) * out_stride + s_.state_size, 0)), untouched);
    stream_.step(input.data(), stride, output.data(), out_stride, pool);

    Values expected = x;
    for (int i = 0; i < s_.layers; ++i) {
      const naive::Shape shape{s_.lstm, 1, s_.batch, {}, i == 0 ? s_.input_size : s_.state_size, s_.hidden_size,
                               s_.state_size, 1, biases_, s_.has_projection};
      naive::Layer layer(shape, expected, h_[size_t(i)], c_[size_t(i)], &weights_[size_t(i)]);
      const naive::Result result = layer.forward();
      expected = h_[size_t(i)] = result.h_n;
      c_[size_t(i)] = result.c_n;
    }
    // Half types round the output by at most 2^-8 of it.
    const double output_tolerance = T::tolerance + (sizeof(S) == 2 ? 1.0 / 256 : 0);
    for (int64_t b = 0; b < s_.batch; ++b) {
      for (int64_t j = 0; j < s_.state_size; ++j)
        close(T::load(output[size_t(b * out_stride + j)]), expected[size_t(b * s_.state_size + j)], output_tolerance,
              name + " output");
      for (int64_t j = s_.state_size; b + 1 < s_.batch && j < out_stride; ++j)
        CHECK(T::load(output[size_t(b * out_stride + j)]) == 7, name + " writes between the rows");
    }
  }

  void compare_states(const std::string& name) {
    std::vector<State> h(size_t(s_.layers * s_.batch * s_.state_size));
    std::vector<State> c(size_t(s_.lstm ? s_.layers * s_.batch * s_.hidden_size : 0));
    stream_.read_state(h.data(), c.data());
    for (int i = 0; i < s_.layers; ++i) {
      for (size_t k = 0; k < h_[size_t(i)].size(); ++k)
        close(h[size_t(i) * h_[size_t(i)].size() + k], h_[size_t(i)][k], T::tolerance, name + " h");
      for (size_t k = 0; k < c_[size_t(i)].size(); ++k)
        close(c[size_t(i) * c_[size_t(i)].size() + k], c_[size_t(i)][k], 4 * T::tolerance, name + " c");
    }
  }

  void reset(int64_t row) {
    stream_.reset(row);
    for (int i = 0; i < s_.layers; ++i) {
      clear(h_[size_t(i)], row, s_.state_size);
      if (s_.lstm) clear(c_[size_t(i)], row, s_.hidden_size);
    }
  }

  void set_states(Random& random) {
    std::vector<State> h, c;
    for (int i = 0; i < s_.layers; ++i) {
      for (double& x : h_[size_t(i)]) h.push_back(State(x = float(random.uniform(-1, 1))));
      for (double& x : c_[size_t(i)]) c.push_back(State(x = float(random.uniform(-1, 1))));
    }
    stream_.write_state(h.data(), c.data());
  }

  Values inputs(Random& random) { return draw(random, s_.batch * s_.input_size, 1); }

 private:
  static Values draw(Random& random, int64_t count, double scale) {
    Values values(static_cast<size_t>(count));
    for (double& x : values) x = T::round(random.uniform(-scale, scale));
    return values;
  }

  static void clear(Values& values, int64_t row, int64_t width) {
    std::fill_n(values.begin() + row * width, width, 0.0);
  }

  void load(int layer, const naive::Weights& from) {
    std::vector<S> stored[5];
    const Values* all[5] = {&from.w_ih, &from.w_hh, &from.b_ih, &from.b_hh, &from.w_hr};
    for (int i = 0; i < 5; ++i)
      for (const double x : *all[i]) stored[i].push_back(T::store(x));
    stream_.load_weights(layer, {stored[0].data(), stored[1].data(), biases_ ? stored[2].data() : nullptr,
                                 biases_ ? stored[3].data() : nullptr, stored[4].data()});
  }

  static void close(double actual, double expected, double tolerance, const std::string& what) {
    const bool both_nan = std::isnan(actual) && std::isnan(expected);
    CHECK(both_nan || std::fabs(actual - expected) <= tolerance * std::max(1.0, std::fabs(expected)),
          what + " is " + std::to_string(actual) + " for " + std::to_string(expected));
  }

  StreamShape s_;
  bool biases_;
  Stream stream_;
  std::vector<naive::Weights> weights_;
  std::vector<Values> h_, c_;
};

std::string describe(const StreamShape& s) {
  return std::string(s.lstm ? "lstm" : "gru") + " N" + std::to_string(s.batch) + " I" + std::to_string(s.input_size) +
         " H" + std::to_string(s.hidden_size) + " P" + std::to_string(s.state_size) + " L" + std::to_string(s.layers) +
         (s.bfloat16_weights ? " bfloat16 weights" : "");
}

template <class S>
void check_shape(const StreamShape& shape, bool biases, uint64_t seed, const Parallel& pool = kAlone) {
  Random random(seed + 1000);
  Stack<S> stack(shape, biases, seed);
  const std::string name = describe(shape);
  for (int t = 0; t < 4; ++t) stack.step(stack.inputs(random), pool, name);
  stack.compare_states(name);
  if (shape.batch > 0) stack.reset(random.integer(0, shape.batch - 1));
  stack.step(stack.inputs(random), pool, name + " after a reset");
  stack.set_states(random);
  for (int t = 0; t < 2; ++t) stack.step(stack.inputs(random), pool, name + " from given states");
  stack.compare_states(name);
}

template <class S>
void random_shapes(uint64_t seed, int count) {
  Random random(seed);
  const int64_t sizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 33, 65, 100};
  for (int i = 0; i < count; ++i) {
    StreamShape s{};
    s.lstm = i % 2 == 0;
    s.dtype = Traits<S>::dtype;
    s.bfloat16_weights = sizeof(S) == 2 || (sizeof(S) == 4 && random.integer(0, 1));
    s.batch = random.integer(1, 9);
    s.input_size = sizes[random.integer(0, 10)];
    s.hidden_size = sizes[random.integer(0, 10)];
    s.layers = int(random.integer(1, 3));
    s.has_projection = s.lstm && s.hidden_size > 1 && random.integer(0, 1);
    s.state_size = s.has_projection ? random.integer(1, s.hidden_size - 1) : s.hidden_size;
    check_shape<S>(s, random.integer(0, 3) != 0, seed + uint64_t(i));
  }
}

// An infinite feature saturates the gates and leaves the states finite. What it makes of the zeros that pad the last
// vector of units must not come back: not at the next step, not in another row, not past an odd number of units.
template <class S>
void infinities_stay_in_their_row(bool bfloat16_weights) {
  for (const bool lstm : {true, false}) {
    const StreamShape shape{lstm, Traits<S>::dtype, bfloat16_weights, 3, 5, 7, 7, 2, false};
    Stack<S> stack(shape, true, 5);
    Random random(6);
    Values x = stack.inputs(random);
    x[5] = std::numeric_limits<double>::infinity();
    stack.step(x, kAlone, describe(shape) + " with an infinity");
    for (int t = 0; t < 3; ++t) stack.step(stack.inputs(random), kAlone, describe(shape) + " after an infinity");
    stack.compare_states(describe(shape));
  }
}

void shapes_without_sense_are_refused() {
  const StreamShape good{true, Dtype::kFloat32, false, 1, 2, 3, 3, 1, false};
  StreamShape bad[6];
  std::fill_n(bad, 6, good);
  bad[0].batch = -1;
  bad[1].layers = 0;
  bad[2].state_size = 2;  // without a projection
  bad[3].hidden_size = bad[3].state_size = int64_t(1) << 40;
  bad[4].lstm = false, bad[4].has_projection = true, bad[4].state_size = 2;
  bad[5].dtype = Dtype::kFloat64, bad[5].bfloat16_weights = true;
  for (int i = 0; i < 6; ++i) {
    bool refused = false;
    try {
      const Stream stream(bad[i]);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused, "bad shape " + std::to_string(i) + " is refused");
  }
}

}  // namespace

void run_tests() {
  random_shapes<float>(100, 60);
  random_shapes<double>(200, 30);
  random_shapes<BFloat16>(300, 30);
  infinities_stay_in_their_row<float>(false);
  infinities_stay_in_their_row<float>(true);
  infinities_stay_in_their_row<double>(false);
  // Large enough for the panels of a layer, and of a projection, to be shared.
  for (const int threads : {2, 3}) {
    const Parallel pool{threads, run_threads, nullptr};
    check_shape<float>({true, Dtype::kFloat32, false, 4, 260, 260, 260, 2, false}, true, 1, pool);
    check_shape<float>({false, Dtype::kFloat32, true, 4, 300, 310, 310, 2, false}, true, 2, pool);
    check_shape<double>({true, Dtype::kFloat64, false, 14, 7, 400, 390, 1, true}, false, 3, pool);
  }
  check_shape<float>({true, Dtype::kFloat32, false, 0, 4, 5, 5, 1, false}, true, 4);  // no rows
  shapes_without_sense_are_refused();
}
