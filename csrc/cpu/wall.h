// What the processor can do at most, measured: the yardstick that python -m benchmarks holds every time against. No kernel
// of a layer needs it.
#pragma once

#include <cstdint>
#include <optional>

namespace rnnkernels::cpu {

// One instruction set's probes, each a loop that does nothing else.
struct WallProbes {
  // Independent multiply-adds on registers, enough of them in flight to hide their latency; returns the operations done
  // (two per multiply-add and lane).
  double (*multiply_add)(int64_t rounds);
  // The same with dot products of bfloat16 pairs; null where the instruction set has none.
  double (*bfloat16_dot)(int64_t rounds);
  // Reads count floats once.
  void (*read)(const float* from, int64_t count);
  // Steps of one vector of units, each waiting for the state of the one before: one multiply-add for the matrix product, then
  // the cell's pointwise equations.
  void (*lstm_chain)(int64_t steps);
  void (*gru_chain)(int64_t steps);
};

// Each measures for about `seconds`, in several windows, and returns the best of them; threads >= 1. They throw
// what chosen_isa() throws, and std::invalid_argument for threads < 1 or more threads than the process may run at once.

// Floating-point operations per second of all threads together: float32 multiply-adds, or bfloat16 dot products (nothing if
// the instruction set has none).
double multiply_add_rate(int threads, double seconds);
std::optional<double> bfloat16_dot_rate(int threads, double seconds);

// Bytes per second at which all threads together read, again and again, memory of `bytes` that is divided among them.
double read_rate(int64_t bytes, int threads, double seconds);

// Seconds that one step of a recurrence takes when its matrix product costs a single multiply-add.
double step_latency(bool lstm, double seconds);

// Seconds until one thread sees what another has written: what dividing a step among threads costs at least. Needs two.
double handover_latency(double seconds);

}  // namespace rnnkernels::cpu
