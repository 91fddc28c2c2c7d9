// The backward cell equations against central differences of the forward ones, in double.
#include <cmath>
#include <limits>

#include "../../csrc/cells/gru.h"
#include "../../csrc/cells/lstm.h"
#include "harness.h"

namespace cells = rnnkernels::cells;
using harness::Random;

namespace {

template <class F>
double slope(double x, const F& f) {
  const double step = 1e-6;
  return (f(x + step) - f(x - step)) / (2 * step);
}

void check_close(double actual, double expected, const char* what) {
  CHECK(std::fabs(actual - expected) < 1e-8, std::string(what) + ": " + std::to_string(actual) + " for " +
                                                 std::to_string(expected));
}

void lstm_backward_is_the_derivative_of_forward() {
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    double x[5];  // a_i, a_f, a_g, a_o, c'
    for (double& value : x) value = random.uniform(-2, 2);
    const double dh = random.uniform(-1, 1), dc = random.uniform(-1, 1);
    const auto loss = [&](int which, double value) {
      double y[5];
      for (int j = 0; j < 5; ++j) y[j] = j == which ? value : x[j];
      const auto step = cells::lstm_forward<double>({y[0], y[1], y[2], y[3]}, y[4]);
      return dh * step.h + dc * step.c;
    };
    const auto step = cells::lstm_forward<double>({x[0], x[1], x[2], x[3]}, x[4]);
    const auto grad = cells::lstm_backward<double>(dh, dc, step.gates, step.c, x[4]);
    const double actual[5] = {grad.a.i, grad.a.f, grad.a.g, grad.a.o, grad.c_prev};
    const char* names[5] = {"i", "f", "g", "o", "c'"};
    for (int j = 0; j < 5; ++j)
      check_close(actual[j], slope(x[j], [&](double value) { return loss(j, value); }), names[j]);
  }
}

void gru_backward_is_the_derivative_of_forward() {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    double x[7];  // x_r, x_z, x_n, h_r, h_z, h_n, h'
    for (double& value : x) value = random.uniform(-2, 2);
    const double dh = random.uniform(-1, 1);
    const auto loss = [&](int which, double value) {
      double y[7];
      for (int j = 0; j < 7; ++j) y[j] = j == which ? value : x[j];
      return dh * cells::gru_forward<double>(y[0], y[1], y[2], y[3], y[4], y[5], y[6]).h;
    };
    const auto step = cells::gru_forward<double>(x[0], x[1], x[2], x[3], x[4], x[5], x[6]);
    const auto grad = cells::gru_backward<double>(dh, step.gates, x[6]);
    const double actual[7] = {grad.r, grad.z, grad.n, grad.r, grad.z, grad.q, grad.h_prev};
    const char* names[7] = {"x_r", "x_z", "x_n", "h_r", "h_z", "h_n", "h'"};
    for (int j = 0; j < 7; ++j)
      check_close(actual[j], slope(x[j], [&](double value) { return loss(j, value); }), names[j]);
  }
}

template <class T>
void scalar_activations_saturate() {
  const T infinity = std::numeric_limits<T>::infinity();
  for (const T large : {T(1e4), infinity}) {
    CHECK(cells::sigmoid(large) == 1, "sigmoid of a large number is 1");
    CHECK(cells::sigmoid(-large) == 0, "sigmoid of a large negative number is 0");
    CHECK(cells::tanh(large) == 1 && cells::tanh(-large) == -1, "tanh saturates");
  }
  const T nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(std::isnan(cells::sigmoid(nan)) && std::isnan(cells::tanh(nan)), "NaN stays NaN");
}

}  // namespace

void run_tests() {
  lstm_backward_is_the_derivative_of_forward();
  gru_backward_is_the_derivative_of_forward();
  scalar_activations_saturate<float>();
  scalar_activations_saturate<double>();
}
