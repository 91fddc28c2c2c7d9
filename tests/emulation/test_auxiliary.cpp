// The small kernels around the recurrence, against loops.
#include <cmath>
#include <vector>

#include "../../csrc/cuda/auxiliary.h"
#include "../cpp/harness.h"

using namespace rnnkernels::cuda;

namespace {

constexpr int kThreads = 64;

template <class Kernel>
void run(const char* name, int64_t threads, int directions, const Kernel& kernel) {
  const int blocks = int((threads + kThreads - 1) / kThreads);
  const auto outcome = rnnkernels::emulation::run({blocks, directions, kThreads, 1, 0, false, 3}, kernel);
  CHECK(outcome.ok(), std::string(name) + ": " + outcome.error);
}

void states() {
  constexpr int kHidden = 3, kDirections = 2;
  for (const bool packed : {false, true}) {
    const std::vector<int64_t> sizes = packed ? std::vector<int64_t>{4, 4, 2, 1} : std::vector<int64_t>{4, 4, 4};
    std::vector<int64_t> offsets{0};
    for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
    const int64_t rows = offsets.back(), batch = 4, steps = int64_t(sizes.size());
    // Every element tells where it is from.
    std::vector<float> output(size_t(rows * kDirections * kHidden)), h0(size_t(kDirections * batch * kHidden));
    for (size_t i = 0; i < output.size(); ++i) output[i] = float(i);
    for (size_t i = 0; i < h0.size(); ++i) h0[i] = -1 - float(i);
    std::vector<float> before(size_t(kDirections * rows * kHidden), 0.5f);
    const Sequence sequence{steps, batch, rows, packed ? offsets.data() : nullptr, kHidden, kDirections};
    const StatesBeforeArguments arguments{sequence, output.data(), h0.data(), before.data()};
    run("states_before", rows * kLanes, kDirections, [&] { states_before<float>(arguments); });
    for (int64_t d = 0; d < kDirections; ++d) {
      for (int64_t t = 0; t < steps; ++t) {
        for (int64_t b = 0; b < sizes[size_t(t)]; ++b) {
          for (int64_t u = 0; u < kHidden; ++u) {
            const int64_t from = d == 1 ? t + 1 : t - 1;
            const bool active = from >= 0 && from < steps && b < sizes[size_t(from)];
            const float expected = active ? output[size_t(((offsets[size_t(from)] + b) * kDirections + d) * kHidden + u)]
                                          : h0[size_t((d * batch + b) * kHidden + u)];
            CHECK(before[size_t((d * rows + offsets[size_t(t)] + b) * kHidden + u)] == expected, "h before a step");
          }
        }
      }
    }
  }
}

template <class S>
void unprojected() {
  constexpr int kHidden = 5;
  constexpr int64_t kRows = 7;
  using R = Real<S>;
  std::vector<S> gates(size_t(kRows * kSavedGates * kHidden)), states(size_t(kRows * kHidden) + 1);
  std::vector<R> cells(size_t(kRows * kHidden));
  for (size_t i = 0; i < gates.size(); ++i) gates[i] = S(double(i % 13) / 13);
  for (size_t i = 0; i < cells.size(); ++i) cells[i] = R(double(i % 17) / 4 - 2);
  states.back() = S(42);
  const UnprojectedStatesArguments arguments{kHidden, kRows, gates.data(), cells.data(), states.data()};
  run("unprojected_states", kRows * kHidden, 1, [&] { unprojected_states<S>(arguments); });
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t u = 0; u < kHidden; ++u) {
      const size_t i = size_t(r * kHidden + u);
      const double o = double(gates[size_t((r * kSavedGates + 3) * kHidden + u)]);
      CHECK(std::fabs(double(states[i]) - o * std::tanh(double(cells[i]))) < 1e-6, "h before its projection");
    }
  }
  CHECK(states.back() == S(42), "no more than there are");
}

template <class Cell>
void biases(const std::vector<int>& hidden_side) {
  constexpr int kHidden = 5, kSlices = 3, kDirections = 2;
  std::vector<float> partial(size_t(kDirections * kSlices * kSavedGates * kHidden));
  for (size_t i = 0; i < partial.size(); ++i) partial[i] = float(i * i % 97);
  std::vector<float> ih[2], hh[2];
  BiasGradientsArguments arguments{kHidden, kSlices, partial.data(), {}, {}};
  for (int d = 0; d < kDirections; ++d) {
    ih[d].assign(size_t(Cell::kGates * kHidden), 0.5f);
    hh[d] = ih[d];
    arguments.b_ih[d] = ih[d].data();
    arguments.b_hh[d] = hh[d].data();
  }
  run("bias_gradients", Cell::kGates * kHidden, kDirections, [&] { bias_gradients<Cell, float>(arguments); });
  for (int d = 0; d < kDirections; ++d) {
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      for (int u = 0; u < kHidden; ++u) {
        const auto sum = [&](int of) {
          float total = 0;
          for (int slice = 0; slice < kSlices; ++slice)
            total += partial[size_t(((d * kSlices + slice) * kSavedGates + of) * kHidden + u)];
          return total;
        };
        CHECK(ih[d][size_t(gate * kHidden + u)] == sum(gate), "the bias of the input side");
        CHECK(hh[d][size_t(gate * kHidden + u)] == sum(hidden_side[size_t(gate)]), "the bias of the hidden side");
      }
    }
  }
}

void offsets() {
  std::vector<int64_t> to(300, -1);
  OffsetsArguments arguments{to.data(), 299, {}};
  for (int i = 0; i < 299; ++i) arguments.values[i] = 1000 - i;
  run("write_offsets", 1, 1, [&] { write_offsets(arguments); });
  for (int i = 0; i < 299; ++i) CHECK(to[size_t(i)] == 1000 - i, "an offset");
  CHECK(to[299] == -1, "no more than were asked for");
}

}  // namespace

void run_tests() {
  states();
  biases<Lstm>({0, 1, 2, 3});
  biases<Gru>({0, 1, 3});  // n's bias of the hidden side is q's
  offsets();
  unprojected<float>();
  unprojected<double>();
}
