// A layer step by step: a product by a library, then one small kernel, for every step of both directions. Fits any layer.
// What is to be done in which order is here and in stepwise.cpp, as plain C++; a StepMachine does it. Nothing waits, nothing is
// allocated from the first step to the last.
//
// Sizes as in arguments.h, P the width of h: H, or LSTM's proj_size. R is Real<S>.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace rnnkernels::cuda {

// Which rows a direction has at which step, from the host's offsets.
class StepOrder {
 public:
  // offsets (T + 1), on the host: rows before each step; null when dense.
  StepOrder(const Sequence& sequence, const int64_t* offsets)
      : steps_(sequence.steps), batch_(sequence.batch), offsets_(offsets) {}

  int64_t steps() const { return steps_; }
  bool dense() const { return offsets_ == nullptr; }
  int64_t time(int direction, int64_t i) const { return direction == 1 ? steps_ - 1 - i : i; }
  // Of the forward recurrence's i-th step; none outside 0 <= i < T.
  StepRows rows(int direction, int64_t i) const {
    if (i < 0 || i >= steps_) return {0, 0};
    const int64_t t = time(direction, i);
    if (offsets_ == nullptr) return {t * batch_, int(batch_)};
    return {offsets_[t], int(offsets_[t + 1] - offsets_[t])};
  }

 private:
  int64_t steps_, batch_;
  const int64_t* offsets_;
};

// The cell, after `product` = W_hh h'. Only active rows are touched, so that the others keep their states.
struct StepForwardArguments {
  Sequence sequence;
  StepRows step[kMostDirections];
  const void* projected[kMostDirections];  // (R, G*H) R: x W_ih^T, without bias
  const void* product;                     // (D, N, G*H) R
  const void* b_ih[kMostDirections];       // (G*H) S, or null
  const void* b_hh[kMostDirections];       // (G*H) S, or null
  void* carry;                             // (D, N, H) R: c of LSTM, the unrounded h of GRU; from step to step
  void* state;                             // (D, N, H) S: h, which the next product multiplies
  void* output;                            // (..., D*H) S; null with a projection
  void* gates;                             // (D, ..., 4, H) S, or null: nothing is saved
  void* cells;                             // (D, ..., H) R, LSTM only, null with gates
};

// What is left of a step with a projection, after `product` = W_hr h.
struct StepProjectionArguments {
  Sequence sequence;  // its hidden is P
  StepRows step[kMostDirections];
  const void* product;  // (D, N, P) R
  void* state;          // (D, N, P) S: what the next product multiplies
  void* output;         // (..., D*P) S
};

// What d(h), W wide, of a step is the sum of. Of a row that is not active it is handed on to the step before.
struct StepHiddenGradient {
  const void* product;                    // (D, N, W) R: what came back through W_hh, of the first `known` rows
  int known[kMostDirections];
  void* direct;                           // (D, N, W) R: what came by no product; null: nothing does
  const void* grad_output;                // rows of the output's gradient, S, or null
  int64_t output_first[kMostDirections];  // elements before the step's first row
  int64_t output_row;                     // elements from row to row; elements of a row are adjacent
};

// The cell backwards.
struct StepBackwardArguments {
  Sequence sequence;
  StepRows step[kMostDirections];
  StepRows before[kMostDirections];  // the forward recurrence's step before: where h' and c' are, if a row has them there
  StepHiddenGradient dh;             // W = H
  void* carry;                       // (D, N, H) R: d(c), LSTM only
  const void* h0;                    // (D, N, H) S, GRU only
  const void* c0;                    // (D, N, H) S, LSTM only
  const void* output;                // (..., D*H) S, GRU only
  const void* gates;                 // (D, ..., 4, H) S
  const void* cells;                 // (D, ..., H) R, LSTM only
  void* grad_gates;                  // (D, R, G*H) S: of the input side, d(a)
  void* grad_q;                      // (D, R, H) S: of q, GRU only
  void* operand;                     // (D, N, G*H) S: of the hidden side, which the next product multiplies
};

// A step's beginning with a projection, W = P: d(r) of its result.
struct StepProjectionBackwardArguments {
  Sequence sequence;  // its hidden is P
  StepRows step[kMostDirections];
  StepHiddenGradient dh;
  void* grad_projected;  // (D, R, P) S
  void* operand;         // (D, N, P) S: the same, which the next product multiplies
};

enum class StepProduct {
  kRecurrent,   // forward h W_hh^T, (N, P) to (N, G*H); backward d(u) W_hh, (N, G*H) to (N, P)
  kProjection,  // forward h W_hr^T, (N, H) to (N, P); backward d(r) W_hr, (N, P) to (N, H)
};

// Does what it is told in the order it is told.
class StepMachine {
 public:
  virtual ~StepMachine() = default;
  // Of the active rows of each direction; the others' results may be anything.
  virtual void multiply(StepProduct which, const StepRows (&step)[kMostDirections]) = 0;
  virtual void launch(const StepForwardArguments& arguments) = 0;
  virtual void launch(const StepProjectionArguments& arguments) = 0;
  virtual void launch(const StepBackwardArguments& arguments) = 0;
  virtual void launch(const StepProjectionBackwardArguments& arguments) = 0;
};

// All steps forward. What differs from step to step is filled in here; projection: null without one.
void run_forward(const StepOrder& order, StepForwardArguments step, StepProjectionArguments* projection, StepMachine& machine);

// All steps backward, from states' gradients in dh.direct and carry to those of the initial states in the same place.
// grad_output_step: elements from one step's first row to the next's; dense only. With a projection, dh and the output's gradient
// are in `projection`, whose dh.direct is (D, N, P), and step.dh.product holds what came back through W_hr.
void run_backward(const StepOrder& order, StepBackwardArguments step, StepProjectionBackwardArguments* projection,
                  int64_t grad_output_step, StepMachine& machine);

// Rows that a launch has something to do for, of any direction.
int64_t rows_at_work(const Sequence& sequence, const StepRows (&step)[kMostDirections]);
int64_t rows_at_work(const Sequence& sequence, const StepRows (&step)[kMostDirections], const StepHiddenGradient& dh);

}  // namespace rnnkernels::cuda
