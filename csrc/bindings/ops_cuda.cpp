// The CUDA implementations of rnnkernels::{lstm,gru}_{forward,backward}, through torch's stable ABI: checks what comes in,
// allocates what goes out, leaves the products over all steps to torch, and launches the recurrence. Everything happens on the
// current stream; nothing waits for the device. Schemas are in rnnkernels/ops.py.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cuda/recurrence.h"

namespace {

using namespace rnnkernels::cuda;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

// ---- What came in ----------------------------------------------------------------------------------------------------

std::string to_string(const Sizes& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + ")";
}

Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

ProductName product_of(const Tensor& input) {
  switch (input.scalar_type()) {
    case ScalarType::BFloat16: return ProductName::kBFloat16;
    case ScalarType::Half: return ProductName::kFloat16;
    case ScalarType::Float: return ProductName::kTf32x3;
    default: break;
  }
  STD_TORCH_CHECK(false, "the CUDA kernels compute in float32, bfloat16 and float16");
}

void check_tensor(const char* name, const Tensor& tensor, const Tensor& like, ScalarType dtype, const Sizes& sizes) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), name,
                  " must be on the same CUDA device as input");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has another dtype than input asks for");
  STD_TORCH_CHECK(sizes_of(tensor) == sizes, name, " must have shape ", to_string(sizes), ", got ", to_string(sizes_of(tensor)));
}

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

struct Flags {
  CellName cell;
  bool has_biases, has_projection, bidirectional;

  int gates() const { return cell == CellName::kLstm ? 4 : 3; }
  size_t per_direction() const { return has_biases ? 4 : 2; }
};

// The inputs both passes share, checked. Sizes in comments as in ../cuda/arguments.h.
struct Layer {
  Flags flags;
  Request request;  // of the pass
  Sequence sequence{};
  int64_t input_size;
  bool one_step;
  Tensor input, rows;          // as given; (R, I)
  Tensor h0;                   // (D, N, H)
  OptionalTensor c0, offsets;  // (D, N, H); (T + 1) on the device
  std::vector<Tensor> weights;
  cudaStream_t stream;

  int device() const { return input.get_device_index(); }
  const Tensor& weight(int direction, size_t i) const { return weights[size_t(direction) * flags.per_direction() + i]; }
  // (leading..., last): of input, of states and of what is saved, in the form of the call.
  Sizes rows_and(int64_t last) const {
    if (one_step || input.dim() == 2) return {sequence.rows, last};
    return {sequence.steps, sequence.batch, last};
  }
  Sizes states() const {
    return one_step ? Sizes{sequence.batch, sequence.hidden} : Sizes{sequence.directions, sequence.batch, sequence.hidden};
  }
  Sizes saved(Sizes last) const {
    Sizes sizes;
    if (!one_step) sizes.push_back(sequence.directions);
    if (!one_step && input.dim() == 3) sizes.push_back(sequence.steps);
    sizes.push_back(input.dim() == 3 ? sequence.batch : sequence.rows);
    sizes.insert(sizes.end(), last.begin(), last.end());
    return sizes;
  }
  Tensor empty(const Sizes& sizes) const { return torch::stable::new_empty(input, {sizes.data(), sizes.size()}); }
  Tensor empty(const Sizes& sizes, ScalarType dtype) const {
    return torch::stable::new_empty(input, {sizes.data(), sizes.size()}, dtype);
  }
};

// The host's batch_sizes (T), checked, as offsets on the device.
void take_batch_sizes(Layer& layer, const Tensor& batch_sizes) {
  STD_TORCH_CHECK(batch_sizes.is_cpu() && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.dim() == 1,
                  "batch_sizes must be a 1-D int64 tensor on the CPU");
  const Tensor sizes = dense(batch_sizes);
  const int64_t* active = sizes.const_data_ptr<int64_t>();
  Sequence& s = layer.sequence;
  s.steps = sizes.size(0);
  std::vector<int64_t> offsets{0};
  int64_t most = s.batch;
  for (int64_t t = 0; t < s.steps; ++t) {
    STD_TORCH_CHECK(active[t] > 0 && active[t] <= most,
                    "batch_sizes must be positive, not increase, and not exceed the batch of h0 (", s.batch, "), got ", active[t],
                    " at step ", t);
    most = active[t];
    offsets.push_back(offsets.back() + most);
  }
  STD_TORCH_CHECK(offsets.back() == s.rows, "batch_sizes sum up to ", offsets.back(), ", but input has ", s.rows, " rows");
  layer.offsets = layer.empty({s.steps + 1}, ScalarType::Long);
  write_offsets(offsets.data(), s.steps + 1, layer.offsets->mutable_data_ptr<int64_t>(), layer.stream);
  s.offsets = layer.offsets->const_data_ptr<int64_t>();
}

Layer check_layer(Pass pass, const Flags& flags, const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
                  const OptionalTensor& c0, std::vector<Tensor> weights) {
  STD_TORCH_CHECK(input.is_cuda(), "input must be on a CUDA device");
  STD_TORCH_CHECK(!flags.has_projection, "the CUDA kernels do not serve proj_size");
  Layer layer{flags, {}, {}, 0, input.dim() == 2 && !batch_sizes.has_value(), input, input, h0, c0, std::nullopt, {}, nullptr};
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(layer.device(), &stream));
  layer.stream = static_cast<cudaStream_t>(stream);
  Sequence& s = layer.sequence;
  s.directions = flags.bidirectional ? 2 : 1;
  STD_TORCH_CHECK(h0.dim() == (layer.one_step ? 2 : 3), "h0 must be 3-D, or 2-D with the input of one step");
  s.batch = h0.size(layer.one_step ? 0 : 1);
  layer.input_size = input.size(input.dim() - 1);
  STD_TORCH_CHECK(batch_sizes.has_value() ? input.dim() == 2 : input.dim() == 3 || layer.one_step,
                  "input must be 3-D (steps, batch, input_size), or 2-D (rows, input_size) with batch_sizes");
  STD_TORCH_CHECK(!layer.one_step || s.directions == 1, "one step, an input (batch, input_size), has one direction");
  s.steps = input.dim() == 3 ? input.size(0) : 1;
  s.rows = input.dim() == 3 ? s.steps * input.size(1) : input.size(0);
  STD_TORCH_CHECK(batch_sizes.has_value() || s.rows == s.steps * s.batch, "input and h0 have different batches");
  STD_TORCH_CHECK(s.steps > 0, "Expected sequence length to be larger than 0 in RNN");

  const size_t expected = flags.per_direction() * size_t(s.directions);
  STD_TORCH_CHECK(weights.size() == expected, "expected ", expected, " weights, got ", weights.size());
  const int64_t gate_rows = weights[0].size(0), hidden = gate_rows / flags.gates();
  STD_TORCH_CHECK(hidden * flags.gates() == gate_rows, "w_ih must have ", flags.gates(), " * hidden_size rows, got ", gate_rows);
  // Offsets within a slice of a step are ints.
  STD_TORCH_CHECK(hidden < (1 << 20), "hidden_size is too large for the CUDA kernels");
  s.hidden = int(hidden);
  const ScalarType dtype = input.scalar_type();
  const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t which = i % flags.per_direction();
    const Sizes sizes = which == 0   ? Sizes{gate_rows, layer.input_size}
                        : which == 1 ? Sizes{gate_rows, hidden}
                                     : Sizes{gate_rows};
    check_tensor(names[which], weights[i], input, dtype, sizes);
    layer.weights.push_back(dense(weights[i]));
  }
  check_tensor("h0", h0, input, dtype, layer.states());
  layer.h0 = dense(h0);
  if (c0.has_value()) {
    check_tensor("c0", *c0, input, dtype, layer.states());
    layer.c0 = dense(*c0);
  }
  if (batch_sizes.has_value()) take_batch_sizes(layer, *batch_sizes);
  layer.rows = torch::stable::reshape(input, {s.rows, layer.input_size});
  layer.request = {flags.cell, product_of(input), pass, hidden, s.batch, s.directions, flags.has_projection};
  return layer;
}

Plan plan_for(const Layer& layer) {
  Plan plan = choose(layer.request, device_limits(layer.device()), measurements(), true);
  STD_TORCH_CHECK(plan.schedule != Schedule::kStepwise, "no persistent CUDA schedule serves this layer: ", plan.reason);
  return plan;
}

// Room for a plan's packed weights, and the arguments to fill it.
struct Packed {
  std::vector<Tensor> tensors;
  PackArguments arguments{};

  Packed(const Layer& layer, const Plan& plan) {
    arguments.partition = plan.partition;
    arguments.hidden = layer.sequence.hidden;
    arguments.directions = layer.sequence.directions;
    for (int d = 0; d < layer.sequence.directions; ++d) {
      tensors.push_back(layer.empty({packed_bytes(layer.request, plan)}, ScalarType::Byte));
      arguments.w_hh[d] = layer.weight(d, 1).const_data_ptr();
      arguments.packed[d] = tensors.back().mutable_data_ptr();
    }
  }
};

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

// a b in float32.
Tensor product_in_float(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == ScalarType::Float) return torch::stable::matmul(a, b);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(ScalarType::Float)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// a + b c.
Tensor addmm(const Tensor& a, const Tensor& b, const Tensor& c) {
  std::array<StableIValue, 5> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(c), torch::stable::detail::from(1.0),
                                    torch::stable::detail::from(1.0)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::addmm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// ---- Forward ---------------------------------------------------------------------------------------------------------

struct Outputs {
  Tensor output, h_n, gates;
  OptionalTensor c_n, cells;
};

Outputs forward(const Layer& layer, bool save) {
  const Sequence& s = layer.sequence;
  const bool lstm = layer.flags.cell == CellName::kLstm;
  Outputs out{layer.empty(layer.rows_and(int64_t(s.directions) * s.hidden)), layer.empty(layer.states()),
              layer.empty(save ? layer.saved({kSavedGates, s.hidden}) : Sizes{0}), std::nullopt, std::nullopt};
  if (lstm) {
    out.c_n = layer.empty(layer.states());
    out.cells = layer.empty(save ? layer.saved({s.hidden}) : Sizes{0}, ScalarType::Float);
  }
  if (s.rows == 0 || s.hidden == 0) return out;

  const Plan plan = plan_for(layer);
  const Packed packed(layer, plan);
  ForwardArguments a{};
  a.sequence = s;
  a.partition = plan.partition;
  std::vector<Tensor> projected;
  for (int d = 0; d < s.directions; ++d) {
    projected.push_back(product_in_float(layer.rows, transposed(layer.weight(d, 0))));
    a.projected[d] = projected.back().const_data_ptr<float>();
    a.packed[d] = packed.arguments.packed[d];
    if (layer.flags.has_biases) {
      a.b_ih[d] = layer.weight(d, 2).const_data_ptr();
      a.b_hh[d] = layer.weight(d, 3).const_data_ptr();
    }
  }
  a.h0 = layer.h0.const_data_ptr();
  a.output = out.output.mutable_data_ptr();
  a.h_n = out.h_n.mutable_data_ptr();
  if (lstm) {
    a.c0 = layer.c0->const_data_ptr();
    a.c_n = out.c_n->mutable_data_ptr();
  }
  if (save) {
    a.gates = out.gates.mutable_data_ptr();
    if (lstm) a.cells = out.cells->mutable_data_ptr<float>();
  }
  launch(layer.request, plan, packed.arguments, a, layer.stream);
  return out;
}

// ---- Backward --------------------------------------------------------------------------------------------------------

struct Gradients {
  OptionalTensor output, h_n, c_n;
};
struct Saved {
  Tensor output, gates;
  OptionalTensor cells;
};
struct BackwardOutputs {
  Tensor input, h0;
  OptionalTensor c0;
  std::vector<Tensor> weights;
};

// Adjacent elements, and rows an int apart.
Tensor as_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool readable = tensor.stride(last) == 1 && tensor.stride(last - 1) < std::numeric_limits<int>::max() / 64;
  return readable ? tensor : dense(tensor);
}

// d(W_hh) (G*H, H) from the gates' gradients and the states before: of GRU, n's rows meet the hidden side's.
Tensor recurrent_gradient(const Layer& layer, Tensor grad_gates, const OptionalTensor& grad_q, const Tensor& before) {
  if (!grad_q.has_value()) return torch::stable::matmul(transposed(grad_gates), before);
  const int64_t h = layer.sequence.hidden;
  Tensor result = layer.empty({3 * h, h});
  Tensor both = torch::stable::narrow(grad_gates, 1, 0, 2 * h);
  Tensor of_rz = torch::stable::narrow(result, 0, 0, 2 * h), of_n = torch::stable::narrow(result, 0, 2 * h, h);
  torch::stable::copy_(of_rz, torch::stable::matmul(transposed(both), before));
  torch::stable::copy_(of_n, torch::stable::matmul(transposed(*grad_q), before));
  return result;
}

BackwardOutputs backward(const Layer& layer, const Gradients& gradients, const Saved& saved, bool needs_input,
                         bool needs_weights) {
  const Sequence& s = layer.sequence;
  const bool lstm = layer.flags.cell == CellName::kLstm;
  const ScalarType dtype = layer.input.scalar_type();
  const int64_t h = s.hidden, gates = layer.flags.gates(), width = s.directions * h;
  std::vector<Tensor> alive;
  const auto pointer = [&](const char* name, const Tensor& tensor, ScalarType of, const Sizes& sizes) {
    check_tensor(name, tensor, layer.input, of, sizes);
    alive.push_back(dense(tensor));
    return alive.back().const_data_ptr();
  };

  BackwardOutputs out{layer.empty(needs_input ? sizes_of(layer.input) : Sizes{0}), layer.empty(layer.states()), std::nullopt, {}};
  if (lstm) out.c0 = layer.empty(layer.states());
  BackwardArguments a{};
  a.sequence = s;
  if (gradients.output.has_value()) {
    check_tensor("grad_output", *gradients.output, layer.input, dtype, layer.rows_and(width));
    alive.push_back(as_rows(*gradients.output));
    const Tensor& rows = alive.back();
    a.grad_output = rows.const_data_ptr();
    a.grad_output_step = rows.dim() == 3 ? rows.stride(0) : 0;
    a.grad_output_row = int(rows.stride(rows.dim() - 2));
  }
  if (gradients.h_n.has_value()) a.grad_h_n = pointer("grad_h_n", *gradients.h_n, dtype, layer.states());
  if (gradients.c_n.has_value()) a.grad_c_n = pointer("grad_c_n", *gradients.c_n, dtype, layer.states());
  a.h0 = layer.h0.const_data_ptr();
  a.output = pointer("output", saved.output, dtype, layer.rows_and(width));
  a.gates = pointer("gates", saved.gates, dtype, layer.saved({kSavedGates, h}));
  a.grad_h0 = out.h0.mutable_data_ptr();
  if (lstm) {
    a.c0 = layer.c0->const_data_ptr();
    a.cells = static_cast<const float*>(pointer("cells", *saved.cells, ScalarType::Float, layer.saved({h})));
    a.grad_c0 = out.c0->mutable_data_ptr();
  }
  if (s.rows == 0 || h == 0) {
    for (const Tensor& weight : layer.weights)
      if (needs_weights) out.weights.push_back(torch::stable::new_zeros(layer.input, weight.sizes()));
    return out;
  }

  const Plan plan = plan_for(layer);
  const Packed packed(layer, plan);
  a.partition = plan.partition;
  for (int d = 0; d < s.directions; ++d) a.packed[d] = packed.arguments.packed[d];
  const int64_t slices = (s.batch + plan.rows - 1) / plan.rows;
  const Tensor grad_gates = layer.empty({s.directions, s.rows, gates * h});
  OptionalTensor grad_q;
  if (!lstm) grad_q = layer.empty({s.directions, s.rows, h});
  const Tensor grad_bias = layer.empty({s.directions, slices, kSavedGates, h}, ScalarType::Float);
  a.grad_gates = grad_gates.mutable_data_ptr();
  if (grad_q.has_value()) a.grad_q = grad_q->mutable_data_ptr();
  a.grad_bias = grad_bias.mutable_data_ptr<float>();
  launch(layer.request, plan, packed.arguments, a, layer.stream);

  const auto of_direction = [](const Tensor& all, int d) { return torch::stable::select(all, 0, d); };
  if (needs_input) {
    Tensor grad = torch::stable::matmul(of_direction(grad_gates, 0), layer.weight(0, 0));
    if (s.directions == 2) grad = addmm(grad, of_direction(grad_gates, 1), layer.weight(1, 0));
    const Sizes sizes = sizes_of(layer.input);
    out.input = torch::stable::reshape(grad, {sizes.data(), sizes.size()});
  }
  if (!needs_weights) return out;
  const Tensor before = layer.empty({s.directions, s.rows, h});
  states_before(layer.request.product, {s, a.output, a.h0, before.mutable_data_ptr()}, layer.stream);
  BiasGradientsArguments bias{s.hidden, int(slices), a.grad_bias, {}, {}};
  for (int d = 0; d < s.directions; ++d) {
    const Tensor own = of_direction(grad_gates, d);
    OptionalTensor own_q;
    if (grad_q.has_value()) own_q = of_direction(*grad_q, d);
    out.weights.push_back(torch::stable::matmul(transposed(own), layer.rows));
    out.weights.push_back(recurrent_gradient(layer, own, own_q, of_direction(before, d)));
    if (!layer.flags.has_biases) continue;
    for (void** to : {&bias.b_ih[d], &bias.b_hh[d]}) {
      out.weights.push_back(layer.empty({gates * h}));
      *to = out.weights.back().mutable_data_ptr();
    }
  }
  if (layer.flags.has_biases) bias_gradients(layer.flags.cell, layer.request.product, s.directions, bias, layer.stream);
  return out;
}

// ---- The operators ---------------------------------------------------------------------------------------------------

using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
                                                                const Tensor& c0, std::vector<Tensor> weights, bool has_biases,
                                                                bool has_projection, bool bidirectional, bool save_for_backward) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kForward, {CellName::kLstm, has_biases, has_projection, bidirectional}, input,
                                  batch_sizes, h0, c0, std::move(weights));
  const Outputs out = forward(layer, save_for_backward);
  return {out.output, out.h_n, *out.c_n, out.gates, *out.cells};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n, const Tensor& input, OptionalTensor batch_sizes,
    const Tensor& h0, const Tensor& c0, std::vector<Tensor> weights, const Tensor& output, const Tensor& gates,
    const Tensor& cells, bool has_biases, bool has_projection, bool bidirectional, bool needs_input_grad,
    bool needs_weight_grads) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kBackward, {CellName::kLstm, has_biases, has_projection, bidirectional}, input,
                                  batch_sizes, h0, c0, std::move(weights));
  BackwardOutputs out =
      backward(layer, {grad_output, grad_h_n, grad_c_n}, {output, gates, cells}, needs_input_grad, needs_weight_grads);
  return {out.input, out.h0, *out.c0, std::move(out.weights)};
}

std::tuple<Tensor, Tensor, Tensor> gru_forward(const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
                                               std::vector<Tensor> weights, bool has_biases, bool bidirectional,
                                               bool save_for_backward) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kForward, {CellName::kGru, has_biases, false, bidirectional}, input, batch_sizes, h0,
                                  std::nullopt, std::move(weights));
  const Outputs out = forward(layer, save_for_backward);
  return {out.output, out.h_n, out.gates};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(OptionalTensor grad_output, OptionalTensor grad_h_n,
                                                             const Tensor& input, OptionalTensor batch_sizes, const Tensor& h0,
                                                             std::vector<Tensor> weights, const Tensor& output,
                                                             const Tensor& gates, bool has_biases, bool bidirectional,
                                                             bool needs_input_grad, bool needs_weight_grads) {
  const DeviceGuard guard(input.get_device_index());
  const Layer layer = check_layer(Pass::kBackward, {CellName::kGru, has_biases, false, bidirectional}, input, batch_sizes, h0,
                                  std::nullopt, std::move(weights));
  BackwardOutputs out = backward(layer, {grad_output, grad_h_n, std::nullopt}, {output, gates, std::nullopt}, needs_input_grad,
                                 needs_weight_grads);
  return {out.input, out.h0, std::move(out.weights)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CUDA, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}
