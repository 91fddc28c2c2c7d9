// The recurrence of a layer, forward and backward, one scalar at a time, straight from the numbered equations of
// rnnkernels/backends/reference.py: in double, what the kernels are compared with; in float with rounded operands, the
// plain evaluation whose error theirs is measured against.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace recurrence {

using Values = std::vector<double>;

struct Problem {
  bool lstm;
  int64_t steps, batch;
  std::vector<int64_t> batch_sizes;  // empty when dense
  int hidden, directions;
  int projection = 0;                              // LSTM's proj_size; P is it, or else H
  Values projected[2], w_hh[2], b_ih[2], b_hh[2];  // (R, G*H), (G*H, P), (G*H)
  Values w_hr[2];                                  // (P, H)
  Values h0, c0, grad_h_n, grad_c_n;               // (D, N, P) of h, (D, N, H) of c
  Values grad_output;                              // (R, D*P)

  int gates() const { return lstm ? 4 : 3; }
  int width() const { return projection > 0 ? projection : hidden; }
  int64_t active(int64_t t) const { return batch_sizes.empty() ? batch : batch_sizes[size_t(t)]; }
  int64_t offset(int64_t t) const {
    int64_t rows = 0;
    for (int64_t s = 0; s < t; ++s) rows += active(s);
    return rows;
  }
  int64_t rows() const { return offset(steps); }
};

struct Results {
  Values output, h_n, c_n;      // (R, D*P), (D, N, P), (D, N, H)
  Values gates, cells;          // (D, R, 4, H), (D, R, H)
  Values grad_gates, grad_q;    // (D, R, G*H), (D, R, H)
  Values grad_bias;             // (D, 4, H)
  Values grad_projected;        // (D, R, P): of W_hr h, with a projection
  Values grad_h0, grad_c0;      // (D, N, P), (D, N, H)
};

using Rounding = std::function<double(double)>;

// storage rounds what is kept in memory, operand what is multiplied with W_hh.
template <class Real>
class Layer {
 public:
  Layer(const Problem& problem, Rounding storage, Rounding operand)
      : p_(problem),
        storage_(std::move(storage)),
        operand_(std::move(operand)),
        h_(size_t(problem.hidden)),
        w_(size_t(problem.width())) {}

  Results evaluate() {
    const size_t rows = size_t(p_.rows()), directions = size_t(p_.directions), gates = size_t(p_.gates());
    r_.output.resize(rows * directions * w_);
    r_.gates.resize(directions * rows * 4 * h_);
    r_.cells.resize(directions * rows * h_);
    r_.grad_gates.resize(directions * rows * gates * h_);
    r_.grad_q.resize(directions * rows * h_);
    r_.grad_bias.resize(directions * 4 * h_);
    if (p_.projection > 0) r_.grad_projected.resize(directions * rows * w_);
    r_.h_n = p_.h0;
    r_.c_n = p_.c0;
    r_.grad_h0 = p_.grad_h_n;
    r_.grad_c0 = p_.grad_c_n;
    for (int d = 0; d < p_.directions; ++d)
      for (int64_t b = 0; b < p_.batch; ++b) sequence(d, b);
    return r_;
  }

 private:
  using Reals = std::vector<Real>;
  static Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }

  // One row of the batch, all its steps there and back.
  void sequence(int d, int64_t b) {
    int64_t length = 0;
    while (length < p_.steps && p_.active(length) > b) ++length;
    const size_t sequence = size_t(d * p_.batch + b), state = sequence * h_, outer = sequence * w_;
    Reals h = load(p_.h0, outer, w_), c = load(p_.c0, state, h_);
    std::vector<Reals> h_before, c_before;
    for (int64_t i = 0; i < length; ++i) {
      h_before.push_back(h);
      c_before.push_back(c);
      step(d, row(d, b, i, length), h, c);
    }
    store(r_.h_n, outer, h, storage_);
    store(r_.c_n, state, c, storage_);
    Reals dh = load(p_.grad_h_n, outer, w_), dc = load(p_.grad_c_n, state, h_);
    std::vector<Reals> bias(4, Reals(h_));
    for (int64_t i = length; i-- > 0;)
      step_back(d, row(d, b, i, length), h_before[size_t(i)], c_before[size_t(i)], dh, dc, bias, i == 0);
    store(r_.grad_h0, outer, dh, storage_);
    store(r_.grad_c0, state, dc, storage_);
    for (size_t gate = 0; gate < 4; ++gate)
      for (size_t j = 0; j < h_; ++j) r_.grad_bias[(size_t(d) * 4 + gate) * h_ + j] += bias[gate][j];
  }

  size_t row(int d, int64_t b, int64_t i, int64_t length) const { return size_t(p_.offset(d == 1 ? length - 1 - i : i) + b); }
  size_t saved(int d, size_t r) const { return size_t(d) * size_t(p_.rows()) + r; }

  static Real bias(const Values& b, size_t i) { return b.empty() ? Real(0) : Real(b[i]); }

  void step(int d, size_t r, Reals& h, Reals& c) {
    const size_t gates = size_t(p_.gates());
    Reals sums(gates * h_), next(h_);
    multiply(p_.w_hh[d], h, sums);
    for (size_t j = 0; j < h_; ++j) {
      const auto x = [&](size_t gate) {
        return Real(p_.projected[d][r * gates * h_ + gate * h_ + j]) + bias(p_.b_ih[d], gate * h_ + j);
      };
      const auto u = [&](size_t gate) { return sums[gate * h_ + j] + bias(p_.b_hh[d], gate * h_ + j); };
      Real y[4];
      if (p_.lstm) {
        y[0] = sigmoid(x(0) + u(0));      // L1, L2
        y[1] = sigmoid(x(1) + u(1));      // L3
        y[2] = std::tanh(x(2) + u(2));    // L4
        y[3] = sigmoid(x(3) + u(3));      // L5
        c[j] = y[1] * c[j] + y[0] * y[2];  // L6
        next[j] = y[3] * std::tanh(c[j]);  // L7
      } else {
        y[0] = sigmoid(x(0) + u(0));             // G1
        y[1] = sigmoid(x(1) + u(1));             // G2
        y[3] = u(2);                             // G3
        y[2] = std::tanh(x(2) + y[0] * y[3]);    // G4
        next[j] = (1 - y[1]) * y[2] + y[1] * h[j];  // G5
      }
      for (size_t gate = 0; gate < 4; ++gate) r_.gates[(saved(d, r) * 4 + gate) * h_ + j] = storage_(double(y[gate]));
      r_.cells[saved(d, r) * h_ + j] = double(c[j]);
    }
    if (p_.projection > 0) {
      h.assign(w_, Real(0));
      multiply(p_.w_hr[d], next, h);                            // L8
      for (Real& x : h) x = Real(storage_(double(x)));  // a product's result, kept as it is stored
    } else {
      h = next;
    }
    for (size_t j = 0; j < w_; ++j) r_.output[(r * size_t(p_.directions) + size_t(d)) * w_ + j] = storage_(double(h[j]));
  }

  // sums (rows) += matrix (rows, columns) times vector (columns).
  void multiply(const Values& matrix, const Reals& vector, Reals& sums) const {
    const size_t columns = vector.size();
    for (size_t row = 0; row < sums.size(); ++row)
      for (size_t j = 0; j < columns; ++j)
        sums[row] += Real(operand_(matrix[row * columns + j])) * Real(operand_(double(vector[j])));
  }
  // The same with the transposed matrix.
  Reals multiply_transposed(const Values& matrix, const Reals& vector, size_t columns) const {
    Reals sums(columns);
    for (size_t j = 0; j < columns; ++j)
      for (size_t row = 0; row < vector.size(); ++row)
        sums[j] += Real(operand_(double(vector[row]))) * Real(operand_(matrix[row * columns + j]));
    return sums;
  }

  // h' and c' before the step; dh and dc: of its results, then of h' and c'.
  void step_back(int d, size_t r, const Reals& h_before, const Reals& c_before, Reals& dh, Reals& dc, std::vector<Reals>& bias,
                 bool first) {
    const size_t gates = size_t(p_.gates());
    Reals du(gates * h_), direct(w_);
    if (!p_.grad_output.empty())
      for (size_t j = 0; j < w_; ++j) dh[j] += Real(p_.grad_output[(r * size_t(p_.directions) + size_t(d)) * w_ + j]);
    if (p_.projection > 0) {
      for (size_t j = 0; j < w_; ++j) r_.grad_projected[saved(d, r) * w_ + j] = storage_(double(dh[j]));
      dh = multiply_transposed(p_.w_hr[d], dh, h_);  // LB8
    }
    for (size_t j = 0; j < h_; ++j) {
      Real y[4], g[4];
      for (size_t gate = 0; gate < 4; ++gate) y[gate] = Real(r_.gates[(saved(d, r) * 4 + gate) * h_ + j]);
      const Real grad = dh[j];
      if (p_.lstm) {
        const Real tanh_c = std::tanh(Real(r_.cells[saved(d, r) * h_ + j]));
        const Real all = dc[j] + grad * y[3] * (1 - tanh_c * tanh_c);  // LB7
        g[0] = all * y[2] * y[0] * (1 - y[0]);                         // LB6, LB2-5
        g[1] = all * c_before[j] * y[1] * (1 - y[1]);
        g[2] = all * y[0] * (1 - y[2] * y[2]);
        g[3] = grad * tanh_c * y[3] * (1 - y[3]);
        dc[j] = all * y[1];
      } else {
        // What forward stored of h', as backward reads it; h0 is exact.
        const Real before = first ? h_before[j] : Real(storage_(double(h_before[j])));
        const Real dn = grad * (1 - y[1]), dz = grad * (before - y[2]);  // GB5
        g[2] = dn * (1 - y[2] * y[2]);                                   // GB4
        g[3] = g[2] * y[0];
        g[0] = g[2] * y[3] * y[0] * (1 - y[0]);  // GB1-2
        g[1] = dz * y[1] * (1 - y[1]);
        direct[j] = grad * y[1];
        r_.grad_q[saved(d, r) * h_ + j] = storage_(double(g[3]));
      }
      for (size_t gate = 0; gate < 4; ++gate) bias[gate][j] += g[gate];
      for (size_t gate = 0; gate < gates; ++gate) {
        r_.grad_gates[(saved(d, r) * gates + gate) * h_ + j] = storage_(double(g[gate]));
        du[gate * h_ + j] = g[!p_.lstm && gate == 2 ? 3 : gate];  // GB3: the hidden side
      }
    }
    dh = multiply_transposed(p_.w_hh[d], du, w_);  // LB1, GB3
    for (size_t j = 0; j < w_; ++j) dh[j] += direct[j];
  }

  static Reals load(const Values& from, size_t first, size_t count) {
    return Reals(from.begin() + long(first), from.begin() + long(first + count));
  }
  void store(Values& to, size_t first, const Reals& values, const Rounding& rounding) const {
    for (size_t j = 0; j < values.size(); ++j) to[first + j] = rounding(double(values[j]));
  }

  const Problem& p_;
  Rounding storage_, operand_;
  size_t h_, w_;
  Results r_;
};

}  // namespace recurrence
