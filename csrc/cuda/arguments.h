// What a schedule's kernels are given. Sizes in comments: T steps, N batch rows, R active rows in all (T * N when dense),
// H hidden size, D directions, G products per unit (4 LSTM, 3 GRU). `...` is (T, N) when dense, (R,) when packed. S is the
// type of tensors. Everything is contiguous unless a stride says otherwise.
#pragma once

#include <cstdint>

namespace rnnkernels::cuda {

inline constexpr int kMostDirections = 2;

// Rows of all steps and directions that the persistent schedules can count, which do it in int.
inline constexpr int64_t kMostPersistentRows = int64_t(1) << 30;

struct Sequence {
  int64_t steps, batch, rows;  // T, N, R
  // (T + 1): rows before each step; null when dense. Rows of a step do not increase over time.
  const int64_t* offsets;
  int hidden, directions;
};

// A step's rows, of a slice of the batch or of all of it, and where the first of them lies among all steps' rows.
struct StepRows {
  int64_t first;
  int active;
};

// How a direction is laid out over the CTAs of a launch; chosen by plan.h.
struct Partition {
  int ctas;   // that share the units of a direction: a cluster, or all of a grid
  int units;  // of each, a multiple of what one warp has: ctas * units >= H
};

// For the kernels that arrange the weights as the recurrence's warps and lanes read them.
struct PackArguments {
  Partition partition;
  int hidden, directions;
  const void* w_hh[kMostDirections];  // (G*H, H) S
  void* packed[kMostDirections];      // 16-byte vectors, as many as the pass's Packing says
};

struct ForwardArguments {
  Sequence sequence;
  Partition partition;
  const float* projected[kMostDirections];  // (R, G*H): x W_ih^T, without bias. Not rounded to a half type: at 6, one
                                            // unit in the last place of bfloat16 is 0.03
  const void* packed[kMostDirections];     // W_hh as pack_forward leaves it
  const void* b_ih[kMostDirections];       // (G*H) S, or null
  const void* b_hh[kMostDirections];       // (G*H) S, or null
  const void* h0;                          // (D, N, H) S
  const void* c0;                          // (D, N, H) S, LSTM only
  void* output;                            // (..., D*H) S
  void* h_n;                               // (D, N, H) S
  void* c_n;                               // (D, N, H) S, LSTM only
  void* gates;                             // (D, ..., 4, H) S, or null: nothing is saved
  float* cells;                            // (D, ..., H), LSTM only, null with gates
  // Of the grid schedule only: see schedules/grid.h.
  void* exchange;   // workspace, all bits set before the first launch
  uint32_t* flags;  // (D, slices, CTAs), zero before the first launch
  int first_slice;  // of this launch
};

struct BackwardArguments {
  Sequence sequence;
  Partition partition;
  const void* grad_output;     // (..., D*H) S, rows as below, or null
  int64_t grad_output_step;    // elements from one step's first row to the next's; dense only
  int grad_output_row;         // elements from row to row; elements of a row are adjacent
  const void* grad_h_n;        // (D, N, H) S, or null
  const void* grad_c_n;        // (D, N, H) S, or null; LSTM only
  const void* packed[kMostDirections];  // W_hh as pack_backward leaves it
  const void* h0;              // (D, N, H) S
  const void* c0;              // (D, N, H) S, LSTM only
  const void* output;          // (..., D*H) S
  const void* gates;           // (D, ..., 4, H) S
  const float* cells;          // (D, ..., H), LSTM only
  void* grad_gates;            // (D, R, G*H) S: of the input side, d(a)
  void* grad_q;                // (D, R, H) S: of q, GRU only
  float* grad_bias;            // (D, slices, 4, H): d(a) of LSTM; r, z, n, q of GRU; summed over a batch slice
  void* grad_h0;               // (D, N, H) S
  void* grad_c0;               // (D, N, H) S, LSTM only
  // Of the grid schedule only: see schedules/grid.h.
  void* exchange;   // workspace, zero before the first launch
  int first_slice;  // of this launch
};

}  // namespace rnnkernels::cuda
