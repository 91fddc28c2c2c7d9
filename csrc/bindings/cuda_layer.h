// One layer as an operator is given it: what came in, checked, and the plan for it.
#pragma once

#include "cuda_tensors.h"

namespace rnnkernels::cuda {

struct Flags {
  CellName cell;
  bool has_biases, has_projection, bidirectional;

  int gates() const { return cell == CellName::kLstm ? 4 : 3; }
  size_t per_direction() const { return 2 + (has_biases ? 2 : 0) + (has_projection ? 1 : 0); }
};

// How it is to be computed, beyond what the tensors say.
struct Manner {
  bool allow_tf32;  // in products of float32
  Wish wish;
};

// The inputs both passes share. Sizes in comments as in ../cuda/arguments.h, P the width of h: H, or proj_size.
struct Layer {
  Flags flags;
  Request request;  // of the pass
  Wish wish;
  Sequence sequence{};
  int64_t input_size, width;  // I, P
  bool one_step;
  Tensor input, rows;            // as given; (R, I)
  Tensor h0;                     // (D, N, P)
  OptionalTensor c0, offsets;    // (D, N, H); (T + 1) on the device
  std::vector<int64_t> offsets_on_host;  // (T + 1), or empty
  std::vector<Tensor> weights;
  Stream stream;

  int device() const { return input.get_device_index(); }
  ScalarType dtype() const { return input.scalar_type(); }
  // Of c, and of what is carried from step to step.
  ScalarType real() const { return dtype() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }
  const Tensor& weight(int direction, size_t i) const { return weights[size_t(direction) * flags.per_direction() + i]; }
  const Tensor& w_hr(int direction) const { return weight(direction, flags.per_direction() - 1); }
  // (leading..., last): of input, of states and of what is saved, in the form of the call.
  Sizes rows_and(int64_t last) const;
  Sizes states(int64_t last) const;
  Sizes saved(Sizes last) const;
  Tensor empty(const Sizes& sizes) const { return empty(sizes, dtype()); }
  Tensor empty(const Sizes& sizes, ScalarType of) const {
    return torch::stable::new_empty(input, {sizes.data(), sizes.size()}, of);
  }
  // Nothing to go through: no rows, or no units.
  bool is_empty() const { return sequence.rows == 0 || sequence.hidden == 0; }
};

Layer check_layer(Pass pass, const Flags& flags, const Manner& manner, const Tensor& input, const OptionalTensor& batch_sizes,
                  const Tensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weights);

// Throws where a wish cannot be granted.
Plan plan_for(const Layer& layer);

}  // namespace rnnkernels::cuda
