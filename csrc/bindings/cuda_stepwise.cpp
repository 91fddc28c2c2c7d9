// The stepwise schedule: products by torch's library into memory that is there before the first step.
#include "cuda_schedules.h"

namespace rnnkernels::cuda {
namespace {

// out (D, N, C) = a (D, N, K) times each direction's weights, (K, C) or, transposed, (C, K).
class BatchProduct {
 public:
  BatchProduct(const Tensor& out, const Tensor& a, const std::vector<Tensor>& weights, bool transpose, bool whole_batches)
      : out_(out), a_(a) {
    for (const Tensor& w : weights) b_.push_back(transpose ? transposed(w) : w);
    if (!whole_batches || weights.size() < 2) return;
    // One product for both directions.
    const Sizes sizes{int64_t(weights.size()), weights[0].size(0), weights[0].size(1)};
    const Tensor stacked = torch::stable::new_empty(a, {sizes.data(), sizes.size()});
    for (size_t d = 0; d < weights.size(); ++d) {
      Tensor to = of_direction(stacked, int(d));
      torch::stable::copy_(to, weights[d]);
    }
    both_ = transpose ? torch::stable::transpose(stacked, 1, 2) : stacked;
  }

  void run(const StepRows (&step)[kMostDirections]) {
    if (both_.has_value()) {
      multiply_into("aten::bmm", out_, a_, *both_);
      return;
    }
    for (size_t d = 0; d < b_.size(); ++d) {
      const int rows = step[d].active;
      if (rows == 0) continue;
      Slices& slices = slices_[d];
      if (slices.rows != rows)
        slices = {rows, first_rows(of_direction(out_, int(d)), rows), first_rows(of_direction(a_, int(d)), rows)};
      multiply_into("aten::mm", slices.out, slices.a, b_[d]);
    }
  }

 private:
  // Most steps have as many rows as the one before.
  struct Slices {
    int rows = 0;
    Tensor out, a;
  };

  Tensor out_, a_;
  std::vector<Tensor> b_;  // (K, C) per direction
  OptionalTensor both_;    // (D, K, C)
  Slices slices_[kMostDirections];
};

class TorchSteps : public StepMachine {
 public:
  TorchSteps(const Layer& layer, BatchProduct recurrent, std::optional<BatchProduct> projection)
      : layer_(layer), recurrent_(std::move(recurrent)), projection_(std::move(projection)) {}

  void multiply(StepProduct which, const StepRows (&step)[kMostDirections]) override {
    (which == StepProduct::kRecurrent ? recurrent_ : *projection_).run(step);
  }
  void launch(const StepForwardArguments& a) override { cuda::launch(layer_.flags.cell, product(), a, layer_.stream); }
  void launch(const StepBackwardArguments& a) override { cuda::launch(layer_.flags.cell, product(), a, layer_.stream); }
  void launch(const StepProjectionArguments& a) override { cuda::launch(product(), a, layer_.stream); }
  void launch(const StepProjectionBackwardArguments& a) override { cuda::launch(product(), a, layer_.stream); }

 private:
  ProductName product() const { return layer_.request.product; }

  const Layer& layer_;
  BatchProduct recurrent_;
  std::optional<BatchProduct> projection_;
};

StepOrder order_of(const Layer& layer) {
  return StepOrder(layer.sequence, layer.offsets_on_host.empty() ? nullptr : layer.offsets_on_host.data());
}

std::vector<Tensor> of_directions(const Layer& layer, const Tensor& (*weight)(const Layer&, int)) {
  std::vector<Tensor> weights;
  for (int d = 0; d < layer.sequence.directions; ++d) weights.push_back(weight(layer, d));
  return weights;
}
const Tensor& w_hh(const Layer& layer, int d) { return layer.weight(d, 1); }
const Tensor& w_hr(const Layer& layer, int d) { return layer.w_hr(d); }

// A sequence whose rows are as wide as h.
Sequence outer_sequence(const Layer& layer) {
  Sequence s = layer.sequence;
  s.hidden = int(layer.width);
  return s;
}

// A copy of a state or its gradient (D, N, last) in the dtype of what is carried; zeros of what is missing.
Tensor carried(const Layer& layer, const OptionalTensor& from, int64_t last) {
  Tensor result = layer.empty({layer.sequence.directions, layer.sequence.batch, last}, layer.real());
  if (!from.has_value()) return torch::stable::zero_(result);
  return torch::stable::copy_(result, shaped(*from, sizes_of(result)));
}

// b_ih and b_hh (G*H) of a direction, whose gates' gradients are (R, G*H) and, of GRU, (R, H).
void append_bias_gradients(const Layer& layer, const Tensor& grad_gates, const OptionalTensor& grad_q,
                           std::vector<Tensor>& biases) {
  const int64_t h = layer.sequence.hidden, both = 2 * h;
  const Tensor sums = column_sums(grad_gates, layer.real());
  for (const bool hidden_side : {false, true}) {
    Tensor bias = layer.empty(sizes_of(sums));
    torch::stable::copy_(bias, sums);
    if (hidden_side && grad_q.has_value()) {
      Tensor of_n = torch::stable::narrow(bias, 0, both, h);
      torch::stable::copy_(of_n, column_sums(*grad_q, layer.real()));
    }
    biases.push_back(bias);
  }
}

}  // namespace

void stepwise_forward(const Layer& layer, const std::vector<Tensor>& projected, bool save, Outputs& out) {
  const Sequence& s = layer.sequence;
  const bool lstm = layer.flags.cell == CellName::kLstm, projects = layer.flags.has_projection;
  const bool dense = layer.offsets_on_host.empty();
  const Sizes states{s.directions, s.batch, layer.width}, inner{s.directions, s.batch, s.hidden};
  torch::stable::copy_(out.h_n, layer.h0);  // h recurs in its place
  const Tensor h = shaped(out.h_n, states), carry = carried(layer, lstm ? layer.c0 : layer.h0, s.hidden);
  const Tensor product = layer.empty({s.directions, s.batch, int64_t(layer.flags.gates()) * s.hidden}, layer.real());

  StepForwardArguments step{};
  step.sequence = s;
  for (int d = 0; d < s.directions; ++d) {
    step.projected[d] = projected[size_t(d)].const_data_ptr();
    if (!layer.flags.has_biases) continue;
    step.b_ih[d] = layer.weight(d, 2).const_data_ptr();
    step.b_hh[d] = layer.weight(d, 3).const_data_ptr();
  }
  step.product = product.const_data_ptr();
  step.carry = carry.mutable_data_ptr();
  step.state = h.mutable_data_ptr();
  step.output = out.output.mutable_data_ptr();
  if (save) {
    step.gates = out.gates.mutable_data_ptr();
    if (lstm) step.cells = out.cells->mutable_data_ptr();
  }

  StepProjectionArguments projection{};
  OptionalTensor unprojected, product_r;
  std::optional<BatchProduct> project;
  if (projects) {
    unprojected = layer.empty(inner);
    product_r = layer.empty(states, layer.real());
    project.emplace(*product_r, *unprojected, of_directions(layer, w_hr), true, dense);
    projection = {outer_sequence(layer), {}, product_r->const_data_ptr(), step.state, step.output};
    step.state = unprojected->mutable_data_ptr();
    step.output = nullptr;
  }
  TorchSteps machine(layer, BatchProduct(product, h, of_directions(layer, w_hh), true, dense), std::move(project));
  run_forward(order_of(layer), step, projects ? &projection : nullptr, machine);
  if (lstm) torch::stable::copy_(*out.c_n, shaped(carry, sizes_of(*out.c_n)));
}

void stepwise_backward(const Layer& layer, const Gradients& gradients, const Saved& saved, bool needs_weights,
                       BackwardResults& results) {
  const Sequence& s = layer.sequence;
  const bool lstm = layer.flags.cell == CellName::kLstm, projects = layer.flags.has_projection;
  const bool dense = layer.offsets_on_host.empty();
  const Sizes states{s.directions, s.batch, layer.width}, inner{s.directions, s.batch, s.hidden};
  const Tensor direct = carried(layer, gradients.h_n, layer.width), product = layer.empty(states, layer.real());
  const Tensor operand = layer.empty({s.directions, s.batch, int64_t(layer.flags.gates()) * s.hidden});
  StepHiddenGradient dh{product.const_data_ptr(), {}, direct.mutable_data_ptr(), nullptr, {}, 0};
  if (gradients.output.has_value()) {
    dh.grad_output = gradients.output->const_data_ptr();
    dh.output_row = gradients.row();
  }

  StepBackwardArguments step{};
  step.sequence = s;
  step.dh = dh;
  step.h0 = layer.h0.const_data_ptr();
  step.output = saved.output.const_data_ptr();
  step.gates = saved.gates.const_data_ptr();
  OptionalTensor carry;
  if (lstm) {
    carry = carried(layer, gradients.c_n, s.hidden);
    step.carry = carry->mutable_data_ptr();
    step.c0 = layer.c0->const_data_ptr();
    step.cells = saved.cells->const_data_ptr();
  } else {
    step.grad_q = results.grad_q->mutable_data_ptr();
  }
  step.grad_gates = results.grad_gates.mutable_data_ptr();
  step.operand = operand.mutable_data_ptr();

  StepProjectionBackwardArguments projection{};
  OptionalTensor operand_r, product_r;
  std::optional<BatchProduct> project;
  if (projects) {
    operand_r = layer.empty(states);
    product_r = layer.empty(inner, layer.real());
    project.emplace(*product_r, *operand_r, of_directions(layer, w_hr), false, dense);
    projection = {outer_sequence(layer), {}, dh, results.grad_projected->mutable_data_ptr(), operand_r->mutable_data_ptr()};
    step.dh = StepHiddenGradient{product_r->const_data_ptr(), {}, nullptr, nullptr, {}, 0};
  }
  TorchSteps machine(layer, BatchProduct(product, operand, of_directions(layer, w_hh), false, dense), std::move(project));
  const int64_t grad_output_step = gradients.output.has_value() ? gradients.step() : 0;
  run_backward(order_of(layer), step, projects ? &projection : nullptr, grad_output_step, machine);
  torch::stable::copy_(results.h0, shaped(direct, sizes_of(results.h0)));
  if (lstm) torch::stable::copy_(*results.c0, shaped(*carry, sizes_of(*results.c0)));
  if (!needs_weights || !layer.flags.has_biases) return;
  for (int d = 0; d < s.directions; ++d) {
    OptionalTensor own_q;
    if (results.grad_q.has_value()) own_q = of_direction(*results.grad_q, d);
    append_bias_gradients(layer, of_direction(results.grad_gates, d), own_q, results.biases);
  }
}

}  // namespace rnnkernels::cuda
