// The CPU kernels, free of torch: raw pointers, sizes, strides in elements.
//
// One call computes one layer in all its directions. Sizes in comments: T steps, N batch rows,
// R active rows in all (T * N when dense), I input size, H hidden size, P state size (H without
// projection), D directions, G gates (4 LSTM, 3 GRU). `...` is (T, N) when dense, (R) when packed.
// S is the storage type named by dtype, C the type computed in (float for half types, else S).
#pragma once

#include "kept_memory.h"
#include "types.h"

namespace rnnkernels::cpu {

inline constexpr int kMostDirections = 2;

struct Layer {
  Dtype dtype;
  int64_t steps;               // T >= 1
  int64_t batch;               // N
  int64_t rows;                // R
  const int64_t* batch_sizes;  // (T), positive, non-increasing, first <= N, sum R; null when dense
  int64_t input_size;          // I
  int64_t hidden_size;         // H
  int64_t state_size;          // P
  int directions;              // D
  bool has_biases;
  bool has_projection;  // LSTM only
};

// Row b of step t starts at data[t * step + b * row] when dense, at data[(first row of t + b) * row]
// when packed; its elements are adjacent. null: absent, read as zero.
struct RowsView {
  const void* data;
  int64_t step, row;
};

// Parameters of one direction, S, contiguous.
struct Weights {
  const void* w_ih;  // (G*H, I)
  const void* w_hh;  // (G*H, P)
  const void* b_ih;  // (G*H), null without biases
  const void* b_hh;  // (G*H), null without biases
  const void* w_hr;  // (P, H), null without projection
};

// Their gradients, same shapes, S, contiguous.
struct WeightGradients {
  void* w_ih;
  void* w_hh;
  void* b_ih;
  void* b_hh;
  void* w_hr;
};

struct ForwardArguments {
  RowsView input;  // (..., I) S
  const void* h0;  // (D, N, P) S
  const void* c0;  // (D, N, H) S, LSTM only
  Weights weights[kMostDirections];
  void* output;  // (..., D*P) S
  void* h_n;     // (D, N, P) S
  void* c_n;     // (D, N, H) S, LSTM only
  void* gates;   // (D, ..., 4, H) S, null: not saved
  void* cells;   // (D, ..., H) C, LSTM only, null: not saved
};

struct BackwardArguments {
  RowsView grad_output;    // (..., D*P) S, or null
  const void* grad_h_n;    // (D, N, P) S, or null
  const void* grad_c_n;    // (D, N, H) S, or null; LSTM only
  RowsView input;          // (..., I) S
  const void* h0;          // (D, N, P) S
  const void* c0;          // (D, N, H) S, LSTM only
  Weights weights[kMostDirections];
  const void* output;  // (..., D*P) S, contiguous
  const void* gates;   // (D, ..., 4, H) S
  const void* cells;   // (D, ..., H) C, LSTM only
  void* grad_input;    // (..., I) S, contiguous, or null: not wanted
  void* grad_h0;       // (D, N, P) S
  void* grad_c0;       // (D, N, H) S, LSTM only
  bool needs_weights;  // otherwise grad_weights is not read
  WeightGradients grad_weights[kMostDirections];
};

// Runs task(context, i) for every i in [0, count), in any order and on any threads, and returns when all are
// done. Correct even when they run one after another.
struct Parallel {
  int threads;  // how many tasks can run at once
  void (*run)(void* pool, int64_t count, void (*task)(void* context, int64_t i), void* context);
  void* pool;
};

// What one instruction set provides. Workspace sizes are in bytes; a workspace starts at an address that is a
// multiple of kWorkspaceAlignment, holds nothing before the call and nothing worth keeping after it. Pass the
// same thread count to both functions of a pair.
inline constexpr int64_t kWorkspaceAlignment = 64;

struct CellKernels {
  int64_t (*forward_workspace)(const Layer&, bool save, int threads);
  void (*forward)(const Layer&, const ForwardArguments&, void* workspace, const Parallel&);
  int64_t (*backward_workspace)(const Layer&, bool needs_input, bool needs_weights, int threads);
  void (*backward)(const Layer&, const BackwardArguments&, void* workspace, const Parallel&);
};

struct Kernels {
  const CellKernels* lstm;
  const CellKernels* gru;
  // Those of kept_memory.h: every library that runs these kernels shares one block.
  Block (*take_memory)(int64_t bytes);
  void (*give_memory_back)(const Block&);
};

// The kernels of the instruction set dispatch.h chooses; throws what it throws.
const Kernels& kernels();

}  // namespace rnnkernels::cpu
