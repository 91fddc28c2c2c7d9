// The CUDA implementations of rnnkernels::cuda_{lstm,gru}_{forward,backward}, through torch's stable ABI: allocate what goes out,
// leave the products over all steps to torch, and have the recurrence run. Everything happens on the current stream; nothing
// waits for the device. Schemas are in rnnkernels/ops.py.
#include <tuple>
#include <utility>

#include "cuda_schedules.h"

namespace {

using namespace rnnkernels::cuda;

// ---- Forward ---------------------------------------------------------------------------------------------------------

Outputs forward(const Layer& layer, bool save) {
  const Sequence& s = layer.sequence;
  Outputs out{layer.empty(layer.rows_and(int64_t(s.directions) * layer.width)), layer.empty(layer.states(layer.width)),
              layer.empty(save ? layer.saved({kSavedGates, s.hidden}) : Sizes{0}), std::nullopt, std::nullopt};
  if (layer.flags.cell == CellName::kLstm) {
    out.c_n = layer.empty(layer.states(s.hidden));
    out.cells = layer.empty(save ? layer.saved({s.hidden}) : Sizes{0}, layer.real());
  }
  if (layer.is_empty()) return out;

  const Plan plan = plan_for(layer);
  std::vector<Tensor> projected;
  for (int d = 0; d < s.directions; ++d)
    projected.push_back(product_in(layer.real(), layer.rows, transposed(layer.weight(d, 0))));
  if (plan.schedule == Schedule::kStepwise) {
    stepwise_forward(layer, projected, save, out);
  } else {
    persistent_forward(layer, plan, projected, save, out);
  }
  return out;
}

// ---- Backward --------------------------------------------------------------------------------------------------------

struct BackwardOutputs {
  Tensor input, h0;
  OptionalTensor c0;
  std::vector<Tensor> weights;
};

// Checked, and laid out as schedules read them.
Gradients take(const Layer& layer, Gradients gradients) {
  const Sequence& s = layer.sequence;
  if (gradients.output.has_value()) {
    check_tensor("grad_output", *gradients.output, layer.input, layer.dtype(),
                 layer.rows_and(int64_t(s.directions) * layer.width));
    gradients.output = as_rows(*gradients.output);
  }
  if (gradients.h_n.has_value()) {
    check_tensor("grad_h_n", *gradients.h_n, layer.input, layer.dtype(), layer.states(layer.width));
    gradients.h_n = dense(*gradients.h_n);
  }
  if (gradients.c_n.has_value()) {
    check_tensor("grad_c_n", *gradients.c_n, layer.input, layer.dtype(), layer.states(s.hidden));
    gradients.c_n = dense(*gradients.c_n);
  }
  return gradients;
}

Saved take(const Layer& layer, Saved saved) {
  const Sequence& s = layer.sequence;
  check_tensor("output", saved.output, layer.input, layer.dtype(), layer.rows_and(int64_t(s.directions) * layer.width));
  check_tensor("gates", saved.gates, layer.input, layer.dtype(), layer.saved({kSavedGates, s.hidden}));
  saved.output = dense(saved.output);
  saved.gates = dense(saved.gates);
  if (saved.cells.has_value()) {
    check_tensor("cells", *saved.cells, layer.input, layer.real(), layer.saved({s.hidden}));
    saved.cells = dense(*saved.cells);
  }
  return saved;
}

// d(W_hh) (G*H, P) from the gates' gradients and the states before: of GRU, n's rows meet the hidden side's.
Tensor recurrent_gradient(const Layer& layer, const Tensor& grad_gates, const OptionalTensor& grad_q, const Tensor& before) {
  if (!grad_q.has_value()) return torch::stable::matmul(transposed(grad_gates), before);
  const int64_t h = layer.sequence.hidden;
  Tensor result = layer.empty({3 * h, h});
  Tensor of_rz = torch::stable::narrow(result, 0, 0, 2 * h), of_n = torch::stable::narrow(result, 0, 2 * h, h);
  torch::stable::copy_(of_rz, torch::stable::matmul(transposed(columns(grad_gates, 0, 2 * h)), before));
  torch::stable::copy_(of_n, torch::stable::matmul(transposed(*grad_q), before));
  return result;
}

// By direction: w_ih, w_hh, [b_ih, b_hh], [w_hr].
std::vector<Tensor> weight_gradients(const Layer& layer, const Saved& saved, const BackwardResults& results) {
  const Sequence& s = layer.sequence;
  Sequence outer = s;
  outer.hidden = int(layer.width);
  const Tensor before = layer.empty({s.directions, s.rows, layer.width});
  states_before(layer.request.product,
                {outer, saved.output.const_data_ptr(), layer.h0.const_data_ptr(), before.mutable_data_ptr()}, layer.stream);
  OptionalTensor unprojected;
  if (layer.flags.has_projection) {
    unprojected = layer.empty({s.directions, s.rows, s.hidden});
    unprojected_states(layer.request.product,
                       {s.hidden, s.directions * s.rows, saved.gates.const_data_ptr(), saved.cells->const_data_ptr(),
                        unprojected->mutable_data_ptr()},
                       layer.stream);
  }
  std::vector<Tensor> weights;
  for (int d = 0; d < s.directions; ++d) {
    const Tensor own = of_direction(results.grad_gates, d);
    OptionalTensor own_q;
    if (results.grad_q.has_value()) own_q = of_direction(*results.grad_q, d);
    weights.push_back(torch::stable::matmul(transposed(own), layer.rows));
    weights.push_back(recurrent_gradient(layer, own, own_q, of_direction(before, d)));
    if (layer.flags.has_biases) {
      weights.push_back(results.biases[size_t(2 * d)]);
      weights.push_back(results.biases[size_t(2 * d + 1)]);
    }
    if (!unprojected.has_value()) continue;
    const Tensor grad_projected = of_direction(*results.grad_projected, d);
    weights.push_back(torch::stable::matmul(transposed(grad_projected), of_direction(*unprojected, d)));
  }
  return weights;
}

Tensor input_gradient(const Layer& layer, const Tensor& grad_gates) {
  Tensor grad = torch::stable::matmul(of_direction(grad_gates, 0), layer.weight(0, 0));
  if (layer.sequence.directions == 2) grad = addmm(grad, of_direction(grad_gates, 1), layer.weight(1, 0));
  return shaped(grad, sizes_of(layer.input));
}

BackwardOutputs backward(const Layer& layer, const Gradients& given, const Saved& kept, bool needs_input, bool needs_weights) {
  const Sequence& s = layer.sequence;
  const bool lstm = layer.flags.cell == CellName::kLstm;
  const Gradients gradients = take(layer, given);
  const Saved saved = take(layer, kept);
  BackwardResults results{{}, std::nullopt, std::nullopt, layer.empty(layer.states(layer.width)), std::nullopt, {}};
  if (lstm) results.c0 = layer.empty(layer.states(s.hidden));
  if (layer.is_empty()) {
    BackwardOutputs out{layer.empty({0}), results.h0, results.c0, {}};
    if (needs_input) out.input = torch::stable::new_zeros(layer.input, layer.input.sizes());
    for (const Tensor& weight : layer.weights)
      if (needs_weights) out.weights.push_back(torch::stable::new_zeros(layer.input, weight.sizes()));
    return out;
  }

  const Plan plan = plan_for(layer);
  results.grad_gates = layer.empty({s.directions, s.rows, int64_t(layer.flags.gates()) * s.hidden});
  if (!lstm) results.grad_q = layer.empty({s.directions, s.rows, s.hidden});
  if (layer.flags.has_projection) results.grad_projected = layer.empty({s.directions, s.rows, layer.width});
  if (plan.schedule == Schedule::kStepwise) {
    stepwise_backward(layer, gradients, saved, needs_weights, results);
  } else {
    persistent_backward(layer, plan, gradients, saved, needs_weights, results);
  }
  return {needs_input ? input_gradient(layer, results.grad_gates) : layer.empty({0}), results.h0, results.c0,
          needs_weights ? weight_gradients(layer, saved, results) : std::vector<Tensor>()};
}

// ---- The operators: rnnkernels/ops.py's, then what Manner is of -----------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
                                                                const Tensor& c0, std::vector<Tensor> weights, bool has_biases,
                                                                bool has_projection, bool bidirectional, bool save_for_backward,
                                                                bool allow_tf32, std::string schedule, std::string tile,
                                                                int64_t ctas) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kForward, {CellName::kLstm, has_biases, has_projection, bidirectional},
                                  {allow_tf32, wish_for(schedule, tile, int(ctas))}, input, batch_sizes, h0, c0, weights);
  const Outputs out = forward(layer, save_for_backward);
  return {out.output, out.h_n, *out.c_n, out.gates, *out.cells};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n, const Tensor& input, OptionalTensor batch_sizes,
    const Tensor& h0, const Tensor& c0, std::vector<Tensor> weights, const Tensor& output, const Tensor& gates,
    const Tensor& cells, bool has_biases, bool has_projection, bool bidirectional, bool needs_input_grad, bool needs_weight_grads,
    bool allow_tf32, std::string schedule, std::string tile, int64_t ctas) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kBackward, {CellName::kLstm, has_biases, has_projection, bidirectional},
                                  {allow_tf32, wish_for(schedule, tile, int(ctas))}, input, batch_sizes, h0, c0, weights);
  BackwardOutputs out =
      backward(layer, {grad_output, grad_h_n, grad_c_n}, {output, gates, cells}, needs_input_grad, needs_weight_grads);
  return {out.input, out.h0, *out.c0, std::move(out.weights)};
}

std::tuple<Tensor, Tensor, Tensor> gru_forward(const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
                                               std::vector<Tensor> weights, bool has_biases, bool bidirectional,
                                               bool save_for_backward, bool allow_tf32, std::string schedule, std::string tile,
                                               int64_t ctas) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer =
      check_layer(Pass::kForward, {CellName::kGru, has_biases, false, bidirectional},
                  {allow_tf32, wish_for(schedule, tile, int(ctas))}, input, batch_sizes, h0, std::nullopt, weights);
  const Outputs out = forward(layer, save_for_backward);
  return {out.output, out.h_n, out.gates};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
    std::vector<Tensor> weights, const Tensor& output, const Tensor& gates, bool has_biases, bool bidirectional,
    bool needs_input_grad, bool needs_weight_grads, bool allow_tf32, std::string schedule, std::string tile, int64_t ctas) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer =
      check_layer(Pass::kBackward, {CellName::kGru, has_biases, false, bidirectional},
                  {allow_tf32, wish_for(schedule, tile, int(ctas))}, input, batch_sizes, h0, std::nullopt, weights);
  BackwardOutputs out = backward(layer, {grad_output, grad_h_n, std::nullopt}, {output, gates, std::nullopt}, needs_input_grad,
                                 needs_weight_grads);
  return {out.input, out.h0, std::move(out.weights)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rnnkernels, RNNKERNELS_DISPATCH_KEY, m) {
  m.impl("cuda_lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("cuda_lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("cuda_gru_forward", TORCH_BOX(&gru_forward));
  m.impl("cuda_gru_backward", TORCH_BOX(&gru_backward));
}
