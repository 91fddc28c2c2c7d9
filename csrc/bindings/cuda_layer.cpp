#include "cuda_layer.h"

#include <algorithm>
#include <utility>

namespace rnnkernels::cuda {
namespace {

ProductName product_of(const Tensor& input, bool allow_tf32) {
  switch (input.scalar_type()) {
    case ScalarType::BFloat16: return ProductName::kBFloat16;
    case ScalarType::Half: return ProductName::kFloat16;
    case ScalarType::Float: return allow_tf32 ? ProductName::kTf32 : ProductName::kTf32x3;
    case ScalarType::Double: return ProductName::kFloat64;
    default: break;
  }
  STD_TORCH_CHECK(false, "the CUDA kernels compute in float32, float64, bfloat16 and float16");
}

// The host's batch_sizes (T), checked, as offsets here and on the device.
void take_batch_sizes(Layer& layer, const Tensor& batch_sizes) {
  STD_TORCH_CHECK(batch_sizes.is_cpu() && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.dim() == 1,
                  "batch_sizes must be a 1-D int64 tensor on the CPU");
  const Tensor sizes = dense(batch_sizes);
  const int64_t* active = sizes.const_data_ptr<int64_t>();
  Sequence& s = layer.sequence;
  s.steps = sizes.size(0);
  std::vector<int64_t>& offsets = layer.offsets_on_host;
  offsets = {0};
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

void take_weights(Layer& layer, const std::vector<Tensor>& weights) {
  const Flags& flags = layer.flags;
  Sequence& s = layer.sequence;
  const size_t expected = flags.per_direction() * size_t(s.directions);
  STD_TORCH_CHECK(weights.size() == expected, "expected ", expected, " weights, got ", weights.size());
  STD_TORCH_CHECK(weights[0].dim() == 2, "w_ih must be 2-D");
  const int64_t gate_rows = weights[0].size(0), hidden = gate_rows / flags.gates();
  STD_TORCH_CHECK(hidden * flags.gates() == gate_rows, "w_ih must have ", flags.gates(), " * hidden_size rows, got ", gate_rows);
  // Offsets within a slice of a step, and a step's elements, are ints.
  STD_TORCH_CHECK(hidden < (1 << 20), "hidden_size is too large for the CUDA kernels");
  if (!flags.has_projection) layer.width = hidden;
  STD_TORCH_CHECK(s.batch * std::max(hidden, layer.width) < std::numeric_limits<int>::max(),
                  "a batch of ", s.batch, " is too large for the CUDA kernels");
  s.hidden = int(hidden);
  std::vector<std::pair<const char*, Sizes>> shapes = {{"w_ih", {gate_rows, layer.input_size}},
                                                       {"w_hh", {gate_rows, layer.width}}};
  if (flags.has_biases) {
    shapes.push_back({"b_ih", {gate_rows}});
    shapes.push_back({"b_hh", {gate_rows}});
  }
  if (flags.has_projection) shapes.push_back({"w_hr", {layer.width, hidden}});
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto& [name, sizes] = shapes[i % shapes.size()];
    check_tensor(name, weights[i], layer.input, layer.dtype(), sizes);
    layer.weights.push_back(dense(weights[i]));
  }
}

}  // namespace

Sizes Layer::rows_and(int64_t last) const {
  if (one_step || input.dim() == 2) return {sequence.rows, last};
  return {sequence.steps, sequence.batch, last};
}

Sizes Layer::states(int64_t last) const {
  return one_step ? Sizes{sequence.batch, last} : Sizes{sequence.directions, sequence.batch, last};
}

Sizes Layer::saved(Sizes last) const {
  Sizes sizes;
  if (!one_step) sizes.push_back(sequence.directions);
  if (!one_step && input.dim() == 3) sizes.push_back(sequence.steps);
  sizes.push_back(input.dim() == 3 ? sequence.batch : sequence.rows);
  sizes.insert(sizes.end(), last.begin(), last.end());
  return sizes;
}

Layer check_layer(Pass pass, const Flags& flags, const Manner& manner, const Tensor& input, const OptionalTensor& batch_sizes,
                  const Tensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(is_here(input), "input must be on a CUDA device");
  const bool one_step = input.dim() == 2 && !batch_sizes.has_value();
  Layer layer{flags, {}, manner.wish, {}, 0, 0, one_step, input, input, h0, c0, std::nullopt, {}, {}, nullptr};
  layer.stream = current_stream(layer.device());
  Sequence& s = layer.sequence;
  s.directions = flags.bidirectional ? 2 : 1;
  STD_TORCH_CHECK(h0.dim() == (one_step ? 2 : 3), "h0 must be 3-D, or 2-D with the input of one step");
  s.batch = h0.size(one_step ? 0 : 1);
  STD_TORCH_CHECK(batch_sizes.has_value() ? input.dim() == 2 : input.dim() == 3 || one_step,
                  "input must be 3-D (steps, batch, input_size), or 2-D (rows, input_size) with batch_sizes");
  layer.input_size = input.size(input.dim() - 1);
  layer.width = h0.size(h0.dim() - 1);
  STD_TORCH_CHECK(!one_step || s.directions == 1, "one step, an input (batch, input_size), has one direction");
  s.steps = input.dim() == 3 ? input.size(0) : 1;
  s.rows = input.dim() == 3 ? s.steps * input.size(1) : input.size(0);
  STD_TORCH_CHECK(batch_sizes.has_value() || s.rows == s.steps * s.batch, "input and h0 have different batches");
  STD_TORCH_CHECK(s.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  take_weights(layer, weights);
  check_tensor("h0", h0, input, layer.dtype(), layer.states(layer.width));
  layer.h0 = dense(h0);
  if (c0.has_value()) {
    check_tensor("c0", *c0, input, layer.dtype(), layer.states(s.hidden));
    layer.c0 = dense(*c0);
  }
  if (batch_sizes.has_value()) take_batch_sizes(layer, *batch_sizes);
  layer.rows = torch::stable::reshape(input, {s.rows, layer.input_size});
  layer.request = {flags.cell, product_of(input, manner.allow_tf32), pass, s.hidden, s.batch, s.directions, flags.has_projection};
  return layer;
}

Plan plan_for(const Layer& layer) {
  Wish wish = layer.wish;
  if (layer.sequence.rows * layer.sequence.directions > kMostPersistentRows) {
    STD_TORCH_CHECK(!wish.any() || wish.schedule == Schedule::kStepwise, "the schedule asked for cannot serve this layer: ",
                    "steps, batch and directions have more rows than ", kMostPersistentRows);
    wish.schedule = Schedule::kStepwise;
  }
  Plan plan = choose(layer.request, device_limits(layer.device()), measurements(), wish);
  STD_TORCH_CHECK(wish.granted(plan), "the schedule asked for cannot serve this layer: ", plan.reason);
  return plan;
}

}  // namespace rnnkernels::cuda
