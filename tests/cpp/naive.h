// A layer one scalar at a time in double, straight from the equations: what the kernels are compared with.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace naive {

using Values = std::vector<double>;

struct Shape {
  bool lstm;
  int64_t steps, batch;
  std::vector<int64_t> batch_sizes;  // empty when dense
  int64_t input, hidden, state;      // I, H, P
  int directions;
  bool biases, projection;

  int gates() const { return lstm ? 4 : 3; }
  int64_t active(int64_t t) const {
    if (t < 0 || t >= steps) return 0;
    return batch_sizes.empty() ? batch : batch_sizes[size_t(t)];
  }
  int64_t offset(int64_t t) const {
    int64_t rows = 0;
    for (int64_t s = 0; s < t; ++s) rows += active(s);
    return rows;
  }
  int64_t rows() const { return offset(steps); }
};

struct Weights {
  Values w_ih, w_hh, b_ih, b_hh, w_hr;
};

struct Result {
  Values output;  // (R, D*P)
  Values h_n, c_n;
};

struct Gradients {
  Values input, h0, c0;
  Weights weights[2];
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Everything one direction computes, kept for its backward pass; row r = offset(t) + b.
struct Trace {
  Values gates;   // (R, 4, H): i, f, g, o or r, z, n, q
  Values c;       // (R, H)
  Values hidden;  // (R, H): h before its projection
  Values h;       // (R, P)
};

class Layer {
 public:
  Layer(const Shape& shape, const Values& x, const Values& h0, const Values& c0, const Weights* weights)
      : s_(shape), x_(x), h0_(h0), c0_(c0), w_(weights) {}

  Result forward() {
    Result result;
    result.output.resize(size_t(s_.rows() * s_.directions * s_.state));
    result.h_n = h0_;
    result.c_n = c0_;
    for (int d = 0; d < s_.directions; ++d) {
      Trace& trace = trace_[d];
      trace.gates.resize(size_t(s_.rows() * 4 * s_.hidden));
      trace.c.resize(size_t(s_.rows() * s_.hidden));
      trace.hidden = trace.c;
      trace.h.resize(size_t(s_.rows() * s_.state));
      for (int64_t i = 0; i < s_.steps; ++i) {
        const int64_t t = d == 1 ? s_.steps - 1 - i : i;
        for (int64_t b = 0; b < s_.active(t); ++b) {
          step(d, t, b);
          const int64_t r = s_.offset(t) + b;
          for (int64_t j = 0; j < s_.state; ++j) {
            const double h = trace.h[size_t(r * s_.state + j)];
            result.output[size_t((r * s_.directions + d) * s_.state + j)] = h;
            result.h_n[size_t((d * s_.batch + b) * s_.state + j)] = h;
          }
          for (int64_t j = 0; s_.lstm && j < s_.hidden; ++j)
            result.c_n[size_t((d * s_.batch + b) * s_.hidden + j)] = trace.c[size_t(r * s_.hidden + j)];
        }
      }
    }
    return result;
  }

  // Needs forward() to have run.
  Gradients backward(const Values& grad_output, const Values& grad_h_n, const Values& grad_c_n) {
    Gradients grad;
    grad.input.assign(x_.size(), 0);
    grad.h0 = grad_h_n;
    grad.c0 = grad_c_n;
    for (int d = 0; d < s_.directions; ++d) {
      Weights& dw = grad.weights[d];
      dw.w_ih.assign(w_[d].w_ih.size(), 0);
      dw.w_hh.assign(w_[d].w_hh.size(), 0);
      dw.b_ih.assign(w_[d].b_ih.size(), 0);
      dw.b_hh.assign(w_[d].b_hh.size(), 0);
      dw.w_hr.assign(w_[d].w_hr.size(), 0);
      for (int64_t i = 0; i < s_.steps; ++i) {
        const int64_t t = d == 1 ? i : s_.steps - 1 - i;
        for (int64_t b = 0; b < s_.active(t); ++b) step_back(d, t, b, grad_output, grad);
      }
    }
    return grad;
  }

 private:
  int64_t previous(int d, int64_t t) const { return d == 1 ? t + 1 : t - 1; }
  double h_before(int d, int64_t t, int64_t b, int64_t j) const {
    const int64_t p = previous(d, t);
    return b < s_.active(p) ? trace_[d].h[size_t((s_.offset(p) + b) * s_.state + j)]
                            : h0_[size_t((d * s_.batch + b) * s_.state + j)];
  }
  double c_before(int d, int64_t t, int64_t b, int64_t j) const {
    const int64_t p = previous(d, t);
    return b < s_.active(p) ? trace_[d].c[size_t((s_.offset(p) + b) * s_.hidden + j)]
                            : c0_[size_t((d * s_.batch + b) * s_.hidden + j)];
  }

  void step(int d, int64_t t, int64_t b) {
    const Weights& w = w_[d];
    Trace& trace = trace_[d];
    const int64_t r = s_.offset(t) + b, hidden = s_.hidden;
    for (int64_t j = 0; j < hidden; ++j) {
      double from_x[4] = {}, from_h[4] = {};
      for (int gate = 0; gate < s_.gates(); ++gate) {
        const int64_t row = gate * hidden + j;
        for (int64_t k = 0; k < s_.input; ++k) from_x[gate] += w.w_ih[size_t(row * s_.input + k)] * x_[size_t(r * s_.input + k)];
        for (int64_t k = 0; k < s_.state; ++k) from_h[gate] += w.w_hh[size_t(row * s_.state + k)] * h_before(d, t, b, k);
        if (s_.biases) {
          from_x[gate] += w.b_ih[size_t(row)];
          from_h[gate] += w.b_hh[size_t(row)];
        }
      }
      double* y[4];
      for (int gate = 0; gate < 4; ++gate) y[gate] = &trace.gates[size_t((r * 4 + gate) * hidden + j)];
      double& h = trace.hidden[size_t(r * hidden + j)];
      if (s_.lstm) {
        for (int gate = 0; gate < 4; ++gate) *y[gate] = sigmoid(from_x[gate] + from_h[gate]);
        *y[2] = std::tanh(from_x[2] + from_h[2]);
        double& c = trace.c[size_t(r * hidden + j)];
        c = *y[1] * c_before(d, t, b, j) + *y[0] * *y[2];
        h = *y[3] * std::tanh(c);
      } else {
        *y[0] = sigmoid(from_x[0] + from_h[0]);
        *y[1] = sigmoid(from_x[1] + from_h[1]);
        *y[3] = from_h[2];
        *y[2] = std::tanh(from_x[2] + *y[0] * *y[3]);
        h = (1 - *y[1]) * *y[2] + *y[1] * h_before(d, t, b, j);
      }
    }
    for (int64_t j = 0; j < s_.state; ++j) {
      double& h = trace.h[size_t(r * s_.state + j)];
      h = s_.projection ? 0 : trace.hidden[size_t(r * hidden + j)];
      for (int64_t k = 0; s_.projection && k < hidden; ++k)
        h += w.w_hr[size_t(j * hidden + k)] * trace.hidden[size_t(r * hidden + k)];
    }
  }

  void step_back(int d, int64_t t, int64_t b, const Values& grad_output, Gradients& grad) {
    const Weights& w = w_[d];
    Weights& dw = grad.weights[d];
    const Trace& trace = trace_[d];
    const int64_t r = s_.offset(t) + b, hidden = s_.hidden;
    double* carried = grad.h0.data() + (d * s_.batch + b) * s_.state;
    Values dr(size_t(s_.state)), dh(size_t(hidden), 0), dh_before(size_t(s_.state), 0);
    for (int64_t j = 0; j < s_.state; ++j) dr[size_t(j)] = carried[j] + grad_output[size_t((r * s_.directions + d) * s_.state + j)];
    if (s_.projection) {
      for (int64_t j = 0; j < s_.state; ++j)
        for (int64_t k = 0; k < hidden; ++k) {
          dh[size_t(k)] += dr[size_t(j)] * w.w_hr[size_t(j * hidden + k)];
          dw.w_hr[size_t(j * hidden + k)] += dr[size_t(j)] * trace.hidden[size_t(r * hidden + k)];
        }
    } else {
      dh = dr;
    }
    for (int64_t j = 0; j < hidden; ++j) {
      double y[4], to_x[4], to_h[4];
      for (int gate = 0; gate < 4; ++gate) y[gate] = trace.gates[size_t((r * 4 + gate) * hidden + j)];
      const double g = dh[size_t(j)];
      if (s_.lstm) {
        double& dc = grad.c0[size_t((d * s_.batch + b) * hidden + j)];
        const double tanh_c = std::tanh(trace.c[size_t(r * hidden + j)]);
        const double all = dc + g * y[3] * (1 - tanh_c * tanh_c);
        to_x[0] = all * y[2] * y[0] * (1 - y[0]);
        to_x[1] = all * c_before(d, t, b, j) * y[1] * (1 - y[1]);
        to_x[2] = all * y[0] * (1 - y[2] * y[2]);
        to_x[3] = g * tanh_c * y[3] * (1 - y[3]);
        for (int gate = 0; gate < 4; ++gate) to_h[gate] = to_x[gate];
        dc = all * y[1];
      } else {
        to_x[2] = g * (1 - y[1]) * (1 - y[2] * y[2]);
        to_h[2] = to_x[2] * y[0];
        to_x[1] = to_h[1] = g * (h_before(d, t, b, j) - y[2]) * y[1] * (1 - y[1]);
        to_x[0] = to_h[0] = to_x[2] * y[3] * y[0] * (1 - y[0]);
        dh_before[size_t(j)] += g * y[1];
      }
      for (int gate = 0; gate < s_.gates(); ++gate) {
        const int64_t row = gate * hidden + j;
        for (int64_t k = 0; k < s_.input; ++k) {
          grad.input[size_t(r * s_.input + k)] += to_x[gate] * w.w_ih[size_t(row * s_.input + k)];
          dw.w_ih[size_t(row * s_.input + k)] += to_x[gate] * x_[size_t(r * s_.input + k)];
        }
        for (int64_t k = 0; k < s_.state; ++k) {
          dh_before[size_t(k)] += to_h[gate] * w.w_hh[size_t(row * s_.state + k)];
          dw.w_hh[size_t(row * s_.state + k)] += to_h[gate] * h_before(d, t, b, k);
        }
        if (s_.biases) {
          dw.b_ih[size_t(row)] += to_x[gate];
          dw.b_hh[size_t(row)] += to_h[gate];
        }
      }
    }
    for (int64_t k = 0; k < s_.state; ++k) carried[k] = dh_before[size_t(k)];
  }

  Shape s_;
  const Values& x_;
  const Values& h0_;
  const Values& c0_;
  const Weights* w_;
  Trace trace_[2];
};

}  // namespace naive
