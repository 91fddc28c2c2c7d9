// A layer run through a schedule's kernels under emulation, and compared with recurrence.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/schedules/backward.h"
#include "../../csrc/cuda/schedules/forward.h"
#include "../cpp/harness.h"
#include "recurrence.h"

namespace emulated {

namespace cuda = rnnkernels::cuda;
namespace device = rnnkernels::cuda::device;
using recurrence::Problem;
using recurrence::Results;
using recurrence::Values;

// ---- Numbers -------------------------------------------------------------------------------------------------------

// precision: unit roundoff of tensors, and of what is multiplied.
template <class Product>
struct Precision;
template <>
struct Precision<cuda::BFloat16Product> {
  static constexpr const char* name = "bfloat16";
  static constexpr double storage = 0x1p-9;
  static double operand(double x) { return device::to_float(device::round_to<cuda::BFloat16>(float(x))); }
};
template <>
struct Precision<cuda::Float16Product> {
  static constexpr const char* name = "float16";
  static constexpr double storage = 0x1p-12;
  static double operand(double x) { return device::to_float(device::round_to<cuda::Float16>(float(x))); }
};
template <>
struct Precision<cuda::Tf32Product> {
  static constexpr const char* name = "tf32";
  static constexpr double storage = 0x1p-24;
  static double operand(double x) { return device::round_to_tf32(float(x)); }
};
template <>
struct Precision<cuda::Tf32x3Product> {
  static constexpr const char* name = "3xtf32";
  static constexpr double storage = 0x1p-24;
  static double operand(double x) { return x; }
};

template <class S>
S stored(double x) {
  if constexpr (std::is_same_v<S, double>) {
    return x;
  } else {
    return device::round_to<S>(float(x));
  }
}

template <class S>
double value(S x) {
  if constexpr (std::is_same_v<S, double>) {
    return x;
  } else {
    return device::to_float(x);
  }
}

template <class S>
double rounded(double x) {
  return value(stored<S>(x));
}

template <class S>
std::vector<S> tensor(const Values& values) {
  std::vector<S> result;
  for (const double x : values) result.push_back(stored<S>(x));
  return result;
}

template <class S>
std::vector<S> poisoned(size_t count) {
  std::vector<S> result(count);
  if (count > 0) std::memset(static_cast<void*>(result.data()), 0xff, count * sizeof(S));  // NaN in every type
  return result;
}

template <class S>
Values values(const std::vector<S>& from) {
  Values result;
  for (const S x : from) result.push_back(value(x));
  return result;
}

// ---- Problems ------------------------------------------------------------------------------------------------------

struct Shape {
  int hidden, directions;
  int64_t steps, batch;
  bool packed;
  int ctas;  // that share the units
  bool biases = true, gradients_of_states = true, save = true;
  int projection = 0;
  int slices_at_once = 1;  // of a grid
};

constexpr int64_t kSpinBound = 5000;

template <class S>
Problem problem(bool lstm, const Shape& shape, uint64_t seed) {
  harness::Random random(seed);
  const auto uniform = [&](int64_t count, double scale) {
    Values result(static_cast<size_t>(count));
    for (double& x : result) x = rounded<S>(random.uniform(-scale, scale));
    return result;
  };
  Problem p{};
  p.lstm = lstm;
  p.steps = shape.steps;
  p.batch = shape.batch;
  p.hidden = shape.hidden;
  p.directions = shape.directions;
  p.projection = shape.projection;
  if (shape.packed) {
    int64_t active = shape.batch;
    for (int64_t t = 0; t < shape.steps; ++t) {
      p.batch_sizes.push_back(active);
      active = random.integer(std::max<int64_t>(1, active - 3), active);
    }
  }
  const int64_t h = shape.hidden, width = p.width(), gates = p.gates(), rows = shape.directions * shape.batch;
  for (int d = 0; d < shape.directions; ++d) {
    p.projected[d] = uniform(p.rows() * gates * h, 2.0);  // representable in S, too
    p.w_hh[d] = uniform(gates * h * width, 2.0 / std::sqrt(double(width)));
    if (shape.projection > 0) p.w_hr[d] = uniform(width * h, 2.0 / std::sqrt(double(h)));
    if (shape.biases) {
      p.b_ih[d] = uniform(gates * h, 0.5);
      p.b_hh[d] = uniform(gates * h, 0.5);
    }
  }
  p.h0 = uniform(rows * width, 1.0);
  p.c0 = uniform(rows * h, 1.0);
  p.grad_output = uniform(p.rows() * shape.directions * width, 1.0);
  const double scale = shape.gradients_of_states ? 1.0 : 0.0;
  p.grad_h_n = uniform(rows * width, scale);
  p.grad_c_n = uniform(rows * h, scale);
  return p;
}

// ---- Running -------------------------------------------------------------------------------------------------------

// The tensors of one layer, results poisoned.
template <class Product>
struct Tensors {
  using S = typename Product::Storage;

  std::vector<float> projected[2];
  std::vector<S> w_hh[2], b_ih[2], b_hh[2], h0, c0, grad_output, grad_h_n, grad_c_n;
  std::vector<S> output, h_n, c_n, gates, grad_gates, grad_q, grad_h0, grad_c0;
  std::vector<float> cells, grad_bias;
  std::vector<int64_t> offsets;

  Tensors(const Problem& p, int64_t slices) {
    const size_t rows = size_t(p.rows()), h = size_t(p.hidden), directions = size_t(p.directions);
    for (int d = 0; d < p.directions; ++d) {
      projected[d] = tensor<float>(p.projected[d]);
      w_hh[d] = tensor<S>(p.w_hh[d]);
      b_ih[d] = tensor<S>(p.b_ih[d]);
      b_hh[d] = tensor<S>(p.b_hh[d]);
    }
    h0 = tensor<S>(p.h0);
    c0 = tensor<S>(p.c0);
    grad_output = tensor<S>(p.grad_output);
    grad_h_n = tensor<S>(p.grad_h_n);
    grad_c_n = tensor<S>(p.grad_c_n);
    output = poisoned<S>(rows * directions * h);
    h_n = poisoned<S>(h0.size());
    c_n = poisoned<S>(p.lstm ? h0.size() : 0);
    gates = poisoned<S>(directions * rows * 4 * h);
    cells = poisoned<float>(p.lstm ? directions * rows * h : 0);
    grad_gates = poisoned<S>(directions * rows * size_t(p.gates()) * h);
    grad_q = poisoned<S>(p.lstm ? 0 : directions * rows * h);
    grad_bias = poisoned<float>(directions * size_t(slices) * 4 * h);
    grad_h0 = poisoned<S>(h0.size());
    grad_c0 = poisoned<S>(p.lstm ? h0.size() : 0);
    for (int64_t t = 0; t <= p.steps; ++t) offsets.push_back(p.offset(t));
  }
};

template <class V>
auto* pointer(V& values) {
  return values.empty() ? nullptr : values.data();
}

template <class Cell, class Product, class Tile, class Exchange>
struct Layer {
  using Data = Tensors<Product>;

  static cuda::Partition partition(const Shape& shape) {
    constexpr int unit = cuda::Ownership<Cell, Tile>::kUnits;
    return {shape.ctas, ((shape.hidden + shape.ctas - 1) / shape.ctas + unit - 1) / unit * unit};
  }
  static int64_t slices(const Shape& shape) { return (shape.batch + Tile::kRows - 1) / Tile::kRows; }

  static rnnkernels::emulation::Launch launch(const Shape& shape, int64_t shared_bytes, uint64_t seed) {
    const int threads = 32 * cuda::Ownership<Cell, Tile>::warps(partition(shape).units);
    // In a grid all CTAs that wait for each other run at once; more slices than that are further launches.
    const int slices_at_once = Tile::kDirect ? shape.slices_at_once : int(slices(shape)), cluster = Tile::kDirect ? 1 : shape.ctas;
    return {slices_at_once * shape.ctas, shape.directions, threads, cluster, size_t(shared_bytes), Tile::kDirect, seed, kSpinBound};
  }

  // Runs a pass over all slices of the batch.
  template <class Arguments, class Kernel>
  static rnnkernels::emulation::Outcome run(const Shape& shape, int64_t shared_bytes, uint64_t seed, Arguments& a,
                                            const Kernel& kernel) {
    rnnkernels::emulation::Outcome outcome{};
    auto asked = launch(shape, shared_bytes, seed);
    const int at_once = asked.grid_x / shape.ctas;
    for (int first = 0; first < slices(shape) && outcome.ok(); first += at_once) {
      a.first_slice = first;
      asked.grid_x = std::min(at_once, int(slices(shape)) - first) * shape.ctas;
      outcome = rnnkernels::emulation::run(asked, [&] { kernel(a); });
    }
    return outcome;
  }

  // W_hh as a pass reads it.
  template <class Pack>
  static std::vector<cuda::Vector16> packed(const Shape& shape, const Problem& p, const Data& data, int d, int64_t count,
                                            const Pack& pack) {
    std::vector<cuda::Vector16> result(static_cast<size_t>(count));
    cuda::PackArguments a{partition(shape), p.hidden, 1, {data.w_hh[d].data()}, {result.data()}};
    const auto outcome = rnnkernels::emulation::run({int((count + 63) / 64), 1, 64, 1, 0, false, 1}, [&] { pack(a); });
    CHECK(outcome.ok(), "pack: " + outcome.error);
    return result;
  }

  static cuda::Sequence sequence(const Problem& p, const Data& data) {
    return {p.steps, p.batch, p.rows(), p.batch_sizes.empty() ? nullptr : data.offsets.data(), p.hidden, p.directions};
  }

  static rnnkernels::emulation::Outcome forward(const Shape& shape, const Problem& p, Data& data, uint64_t seed) {
    cuda::ForwardArguments a{};
    a.sequence = sequence(p, data);
    a.partition = partition(shape);
    std::vector<cuda::Vector16> weights[2];
    for (int d = 0; d < p.directions; ++d) {
      weights[d] = packed(shape, p, data, d, cuda::ForwardShared<Cell, Product, Tile>::packed_count(a.partition),
                          cuda::pack_forward<Cell, Product, Tile>);
      a.projected[d] = data.projected[d].data();
      a.packed[d] = weights[d].data();
      a.b_ih[d] = pointer(data.b_ih[d]);
      a.b_hh[d] = pointer(data.b_hh[d]);
    }
    a.h0 = data.h0.data();
    a.c0 = data.c0.data();
    a.output = data.output.data();
    a.h_n = data.h_n.data();
    a.c_n = pointer(data.c_n);
    a.gates = shape.save ? data.gates.data() : nullptr;
    a.cells = shape.save ? pointer(data.cells) : nullptr;
    std::vector<cuda::Vector16> exchange;
    std::vector<uint32_t> flags;
    if constexpr (Tile::kDirect) {
      const int64_t meetings = slices(shape) * p.directions;
      const int64_t bytes = cuda::ForwardShared<Cell, Product, Tile>::template exchange_bytes<Exchange>(a.partition);
      exchange = poisoned<cuda::Vector16>(size_t(meetings * bytes / 16));
      flags.resize(size_t(meetings * shape.ctas));
      a.exchange = exchange.data();
      a.flags = flags.data();
    }
    const cuda::ForwardShared<Cell, Product, Tile> shared(nullptr, a.partition);
    return run(shape, shared.bytes, seed, a, cuda::forward<Cell, Product, Tile, Exchange>);
  }

  static rnnkernels::emulation::Outcome backward(const Shape& shape, const Problem& p, Data& data, uint64_t seed) {
    cuda::BackwardArguments a{};
    a.sequence = sequence(p, data);
    a.partition = partition(shape);
    a.grad_output = data.grad_output.data();
    a.grad_output_row = p.directions * p.hidden;
    a.grad_output_step = p.batch * a.grad_output_row;
    if (shape.gradients_of_states) {
      a.grad_h_n = data.grad_h_n.data();
      a.grad_c_n = data.grad_c_n.data();
    }
    std::vector<cuda::Vector16> weights[2];
    for (int d = 0; d < p.directions; ++d) {
      weights[d] = packed(shape, p, data, d, cuda::BackwardDivision<Cell, Product, Tile>(a.partition).packed_count(shape.ctas),
                          cuda::pack_backward<Cell, Product, Tile>);
      a.packed[d] = weights[d].data();
    }
    a.h0 = data.h0.data();
    a.c0 = data.c0.data();
    a.output = data.output.data();
    a.gates = data.gates.data();
    a.cells = data.cells.data();
    a.grad_gates = data.grad_gates.data();
    a.grad_q = data.grad_q.data();
    a.grad_bias = data.grad_bias.data();
    a.grad_h0 = data.grad_h0.data();
    a.grad_c0 = data.grad_c0.data();
    std::vector<cuda::Vector16> exchange;
    if constexpr (Tile::kDirect) {
      const int64_t bytes = cuda::BackwardShared<Cell, Product, Tile>::exchange_bytes(a.partition);
      exchange.resize(size_t(slices(shape) * p.directions * bytes / 16));
      a.exchange = exchange.data();
    }
    const cuda::BackwardShared<Cell, Product, Tile> shared(nullptr, a.partition);
    return run(shape, shared.bytes, seed, a, cuda::backward<Cell, Product, Tile, Exchange>);
  }
};

// ---- Comparing -----------------------------------------------------------------------------------------------------

// The largest difference relative to the largest element; infinite where one is not a number.
inline double error(const Values& actual, const Values& exact) {
  double largest = 0, difference = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::fabs(exact[i]));
    const double off = std::fabs(actual[i] - exact[i]);
    if (!(off <= difference)) difference = std::isnan(off) ? INFINITY : off;
  }
  return difference == 0 ? 0 : difference / largest;
}

struct Compared {
  std::string name;
  double ours, plain;
};

// Sums the batch slices of each direction: (D, slices, n) to (D, n).
inline Values sum_slices(const Values& partial, size_t directions, size_t slices) {
  const size_t n = partial.size() / directions / slices;
  Values result(directions * n);
  for (size_t d = 0; d < directions; ++d)
    for (size_t s = 0; s < slices; ++s)
      for (size_t i = 0; i < n; ++i) result[d * n + i] += partial[(d * slices + s) * n + i];
  return result;
}

template <class Product>
std::vector<Compared> compare(const Problem& p, const Tensors<Product>& data, int64_t slices) {
  using S = typename Product::Storage;
  const auto identity = [](double x) { return x; };
  const Results exact = recurrence::Layer<double>(p, identity, identity).evaluate();
  const Results plain = recurrence::Layer<float>(p, rounded<S>, Precision<Product>::operand).evaluate();
  std::vector<Compared> all;
  const auto add = [&](const char* name, const Values& ours, Values Results::*member) {
    all.push_back({name, error(ours, exact.*member), error(plain.*member, exact.*member)});
  };
  add("output", values(data.output), &Results::output);
  add("h_n", values(data.h_n), &Results::h_n);
  add("gates", values(data.gates), &Results::gates);
  add("grad_gates", values(data.grad_gates), &Results::grad_gates);
  add("grad_bias", sum_slices(values(data.grad_bias), size_t(p.directions), size_t(slices)), &Results::grad_bias);
  add("grad_h0", values(data.grad_h0), &Results::grad_h0);
  if (p.lstm) {
    add("c_n", values(data.c_n), &Results::c_n);
    add("cells", values(data.cells), &Results::cells);
    add("grad_c0", values(data.grad_c0), &Results::grad_c0);
  } else {
    add("grad_q", values(data.grad_q), &Results::grad_q);
  }
  return all;
}

}  // namespace emulated
