// The recurrence of a layer by the schedule that a plan names, on tensors. Sizes in comments as in ../cuda/arguments.h, P the
// width of h; every tensor is of the right shape, dense unless it says otherwise.
#pragma once

#include "cuda_layer.h"

namespace rnnkernels::cuda {

struct Outputs {
  Tensor output, h_n, gates;   // (..., D*P), (D, N, P), (D, ..., 4, H) or (0)
  OptionalTensor c_n, cells;   // LSTM only: (D, N, H), (D, ..., H) or (0)
};

// Gradients of a pass's results; those that are missing are zero. output: rows may be apart.
struct Gradients {
  OptionalTensor output, h_n, c_n;

  int64_t step() const { return output->dim() == 3 ? output->stride(0) : 0; }  // elements
  int64_t row() const { return output->stride(output->dim() - 2); }
};

struct Saved {
  Tensor output, gates;
  OptionalTensor cells;
};

// What the products over all steps take up, and what is finished.
struct BackwardResults {
  Tensor grad_gates;              // (D, R, G*H), of the input side
  OptionalTensor grad_q;          // (D, R, H), GRU only
  OptionalTensor grad_projected;  // (D, R, P), with a projection
  Tensor h0;                      // (D, N, P)
  OptionalTensor c0;              // (D, N, H), LSTM only
  std::vector<Tensor> biases;     // (G*H) per direction: b_ih, b_hh, where asked for
};

// projected (R, G*H) per direction: x W_ih^T. Fills `out`.
void persistent_forward(const Layer& layer, const Plan& plan, const std::vector<Tensor>& projected, bool save, Outputs& out);
void stepwise_forward(const Layer& layer, const std::vector<Tensor>& projected, bool save, Outputs& out);

// Fill `results`, whose tensors are there but for `biases`.
void persistent_backward(const Layer& layer, const Plan& plan, const Gradients& gradients, const Saved& saved,
                         bool needs_weights, BackwardResults& results);
void stepwise_backward(const Layer& layer, const Gradients& gradients, const Saved& saved, bool needs_weights,
                       BackwardResults& results);

}  // namespace rnnkernels::cuda
