// The CPU implementations of rnnkernels::{lstm,gru}_{forward,backward}, through torch's stable ABI: checks what
// comes in, allocates what goes out, and calls the torch-free kernels. Schemas are in rnnkernels/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"
#include "workspace.h"

namespace {

using rnnkernels::cpu::BackwardArguments;
using rnnkernels::cpu::CellKernels;
using rnnkernels::cpu::Dtype;
using rnnkernels::cpu::ForwardArguments;
using rnnkernels::cpu::Layer;
using rnnkernels::cpu::Parallel;
using rnnkernels::cpu::RowsView;
using rnnkernels::cpu::WeightGradients;
using rnnkernels::cpu::Weights;
using rnnkernels::cpu::kernels;
using rnnkernels::Workspace;
using rnnkernels::ask_for_huge_pages;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The sizes of a tensor: compared and allocated with in every call, so without memory of their own.
class Sizes {
 public:
  static constexpr int kMost = 5;

  Sizes(std::initializer_list<int64_t> values) {
    for (const int64_t value : values) push_back(value);
  }
  void push_back(int64_t value) { values_[count_++] = value; }

  int64_t operator[](int64_t i) const { return values_[i]; }
  const int64_t* data() const { return values_; }
  int64_t count() const { return count_; }
  bool operator==(torch::headeronly::IntHeaderOnlyArrayRef other) const {
    return int64_t(other.size()) == count_ && std::equal(other.begin(), other.end(), values_);
  }

 private:
  int64_t values_[kMost];
  int64_t count_ = 0;
};

// ---- What came in -----------------------------------------------------------------------------------

std::string to_string(const int64_t* sizes, size_t count) {
  std::string text = "(";
  for (size_t i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + ")";
}

// A dtype as torch's C interface numbers it.
using DtypeCode = int32_t;

DtypeCode dtype_code(const Tensor& tensor) {
  DtypeCode code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

Dtype dtype_of(const Tensor& input) {
  const DtypeCode code = dtype_code(input);
  if (code == aoti_torch_dtype_float32()) return Dtype::kFloat32;
  if (code == aoti_torch_dtype_float64()) return Dtype::kFloat64;
  if (code == aoti_torch_dtype_bfloat16()) return Dtype::kBFloat16;
  STD_TORCH_CHECK(code == aoti_torch_dtype_float16(), "input must be float32, float64, bfloat16 or float16");
  return Dtype::kFloat16;
}

// Sharded modules free weights until they need them again; and anyone may resize a storage.
void check_memory(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.const_data_ptr() != nullptr, name,
                  " has no memory: its storage was freed, and not allocated again");
}

void check_tensor(const char* name, const Tensor& tensor, DtypeCode dtype, const Sizes& sizes) {
  STD_TORCH_CHECK(tensor.defined(), name, " is an undefined tensor");
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU, like the operator that was called");
  STD_TORCH_CHECK(dtype_code(tensor) == dtype, name, " has another dtype than input asks for");
  const auto actual = tensor.sizes();
  STD_TORCH_CHECK(sizes == actual, name, " must have shape ", to_string(sizes.data(), size_t(sizes.count())), ", got ",
                  to_string(actual.data(), actual.size()));
  check_memory(name, tensor);
}

Tensor checked(const char* name, const Tensor& tensor, DtypeCode dtype, const Sizes& sizes) {
  check_tensor(name, tensor, dtype, sizes);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// As kernels read rows: adjacent elements, the rows themselves anywhere.
Tensor with_adjacent_elements(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

RowsView rows_view(const Tensor& tensor) {
  if (tensor.dim() == 2) return {tensor.const_data_ptr(), 0, tensor.stride(0)};
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

struct Flags {
  int gates;
  bool has_biases, has_projection, bidirectional;

  size_t per_direction() const { return 2 + (has_biases ? 2 : 0) + (has_projection ? 1 : 0); }
};

// The inputs both passes share, checked, with the tensors kept alive that the pointers point into.
struct Checked {
  Layer layer{};
  DtypeCode dtype, state_dtype;
  Tensor input, h0;
  std::optional<Tensor> c0;
  std::vector<Tensor> weights;
  Weights views[rnnkernels::cpu::kMostDirections] = {};
  std::optional<Tensor> batch_sizes;

  // One step of one direction, given and returned without the axes for steps and directions.
  bool one_step = false;

  // (leading..., last) for a tensor with one row per active element.
  Sizes rows_and(int64_t last) const {
    return input.dim() == 2 ? Sizes{layer.rows, last} : Sizes{layer.steps, layer.batch, last};
  }
  Sizes saved_gates() const {
    Sizes sizes = saved();
    sizes.push_back(4);
    sizes.push_back(layer.hidden_size);
    return sizes;
  }
  Sizes saved_cells() const {
    Sizes sizes = saved();
    sizes.push_back(layer.hidden_size);
    return sizes;
  }
  Sizes hidden_state() const { return state(layer.state_size); }
  Sizes cell_state() const { return state(layer.hidden_size); }

 private:
  Sizes saved() const {
    if (one_step) return {layer.rows};
    return input.dim() == 2 ? Sizes{layer.directions, layer.rows} : Sizes{layer.directions, layer.steps, layer.batch};
  }
  Sizes state(int64_t width) const {
    return one_step ? Sizes{layer.batch, width} : Sizes{layer.directions, layer.batch, width};
  }
};

void check_batch_sizes(Checked& in) {
  Tensor& sizes = *in.batch_sizes;
  STD_TORCH_CHECK(sizes.is_cpu(), "batch_sizes must be on the CPU");
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Long && sizes.dim() == 1, "batch_sizes must be a 1-D int64 tensor");
  if (!sizes.is_contiguous()) sizes = torch::stable::contiguous(sizes);
  STD_TORCH_CHECK(in.input.dim() == 2, "with batch_sizes, input must be 2-D (rows, input_size), got ", in.input.dim(),
                  " dimensions");
  Layer& layer = in.layer;
  layer.steps = sizes.size(0);
  layer.rows = in.input.size(0);
  layer.batch_sizes = sizes.const_data_ptr<int64_t>();
  int64_t rows = 0, most = layer.batch;
  for (int64_t t = 0; t < layer.steps; ++t) {
    const int64_t active = layer.batch_sizes[t];
    STD_TORCH_CHECK(active > 0, "batch_sizes must be positive, got ", active, " at step ", t);
    STD_TORCH_CHECK(active <= most, "batch_sizes must not increase nor exceed the batch of h0 (", layer.batch,
                    "), got ", active, " at step ", t);
    most = active;
    rows += active;
    STD_TORCH_CHECK(rows <= layer.rows, "batch_sizes sum up to more than the ", layer.rows, " rows of input");
  }
  STD_TORCH_CHECK(rows == layer.rows, "batch_sizes sum up to ", rows, ", but input has ", layer.rows, " rows");
}

// Every size the kernels compute stays far below the limit of an int64.
void check_magnitude(const Layer& layer) {
  int64_t widest, total;
  const bool fits = !__builtin_mul_overflow(layer.hidden_size + layer.state_size + layer.input_size + 64, 1024, &widest) &&
                    !__builtin_mul_overflow(widest, layer.rows + layer.batch + layer.hidden_size + layer.steps + 4096, &total);
  STD_TORCH_CHECK(fits, "the sizes of this layer exceed what a 64-bit index can address");
}

void check_weights(Checked& in, const Flags& flags) {
  std::vector<Tensor>& weights = in.weights;
  const size_t expected = flags.per_direction() * size_t(in.layer.directions);
  STD_TORCH_CHECK(weights.size() == expected, "expected ", expected, " weights (", flags.per_direction(),
                  " per direction), got ", weights.size());
  STD_TORCH_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2, "w_ih and w_hh must be 2-D");
  const int64_t gate_rows = weights[0].size(0);
  STD_TORCH_CHECK(gate_rows % flags.gates == 0, "w_ih must have ", flags.gates, " * hidden_size rows, got ", gate_rows);
  Layer& layer = in.layer;
  layer.hidden_size = gate_rows / flags.gates;
  layer.state_size = flags.has_projection ? weights[1].size(1) : layer.hidden_size;
  check_magnitude(layer);
  for (int d = 0; d < layer.directions; ++d) {
    size_t next = d * flags.per_direction();
    const auto take = [&](const char* name, const Sizes& sizes) {
      Tensor& weight = weights[next++];
      check_tensor(name, weight, in.dtype, sizes);
      if (!weight.is_contiguous()) weight = torch::stable::contiguous(weight);
      return weight.const_data_ptr();
    };
    Weights& view = in.views[d];
    view.w_ih = take("w_ih", {gate_rows, layer.input_size});
    view.w_hh = take("w_hh", {gate_rows, layer.state_size});
    if (flags.has_biases) {
      view.b_ih = take("b_ih", {gate_rows});
      view.b_hh = take("b_hh", {gate_rows});
    }
    if (flags.has_projection) view.w_hr = take("w_hr", {layer.state_size, layer.hidden_size});
  }
}

Checked check_inputs(const Tensor& input, const std::optional<Tensor>& batch_sizes, const Tensor& h0,
                     const std::optional<Tensor>& c0, std::vector<Tensor> weights, const Flags& flags) {
  STD_TORCH_CHECK(input.defined() && input.is_cpu(), "input must be on the CPU");
  check_memory("input", input);
  const DtypeCode dtype = dtype_code(input), float64 = aoti_torch_dtype_float64();
  Checked in{{}, dtype, dtype == float64 ? float64 : aoti_torch_dtype_float32(), with_adjacent_elements(input), h0, c0,
             std::move(weights), {}, batch_sizes};
  Layer& layer = in.layer;
  layer.dtype = dtype_of(input);
  layer.directions = flags.bidirectional ? 2 : 1;
  layer.has_biases = flags.has_biases;
  layer.has_projection = flags.has_projection;
  in.one_step = input.dim() == 2 && !batch_sizes.has_value();
  STD_TORCH_CHECK(h0.defined() && h0.dim() == (in.one_step ? 2 : 3),
                  "h0 must be 3-D (directions, batch, state_size), or 2-D (batch, state_size) with the input "
                  "(batch, input_size) of one step");
  layer.batch = h0.size(in.one_step ? 0 : 1);
  if (batch_sizes.has_value()) {
    check_batch_sizes(in);
  } else if (in.one_step) {
    STD_TORCH_CHECK(layer.directions == 1, "one step, an input (batch, input_size), has one direction");
    STD_TORCH_CHECK(input.size(0) == layer.batch, "input has a batch of ", input.size(0), ", h0 one of ", layer.batch);
    layer.steps = 1;
    layer.rows = layer.batch;
  } else {
    STD_TORCH_CHECK(input.dim() == 3, "without batch_sizes, input must be 3-D (steps, batch, input_size), got ",
                    input.dim(), " dimensions");
    layer.steps = input.size(0);
    STD_TORCH_CHECK(input.size(1) == layer.batch, "input has a batch of ", input.size(1), ", h0 one of ", layer.batch);
    STD_TORCH_CHECK(!__builtin_mul_overflow(layer.steps, layer.batch, &layer.rows), "steps * batch overflows");
  }
  STD_TORCH_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
  layer.input_size = input.size(input.dim() - 1);
  check_weights(in, flags);
  in.h0 = checked("h0", h0, in.dtype, in.hidden_state());
  if (c0.has_value()) in.c0 = checked("c0", *c0, in.dtype, in.cell_state());
  return in;
}

// ---- What goes out ----------------------------------------------------------------------------------

// Straight to the allocator: new_empty by way of the dispatcher takes longer than a small layer's arithmetic.
Tensor empty(const Sizes& sizes, DtypeCode dtype) {
  int64_t strides[Sizes::kMost], stride = 1;
  for (int64_t i = sizes.count() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.count(), sizes.data(), strides, dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor result(handle);
  ask_for_huge_pages(result.mutable_data_ptr(), result.numel() * int64_t(result.element_size()));
  return result;
}

void run_on_torch_pool(void*, int64_t count, void (*task)(void*, int64_t), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(context, i);
  });
}

Parallel torch_pool() { return {int(torch::stable::get_num_threads()), run_on_torch_pool, nullptr}; }

// What a workspace is allocated with.
class Allocation {
 public:
  void* operator()(int64_t bytes) {
    tensor_ = empty({bytes}, aoti_torch_dtype_uint8());
    return tensor_->mutable_data_ptr();
  }

 private:
  std::optional<Tensor> tensor_;
};

struct ForwardOutputs {
  Tensor output, h_n, gates;
  std::optional<Tensor> c_n, cells;
};

ForwardOutputs forward(const CellKernels& cell, const Checked& in, bool save) {
  const Layer& layer = in.layer;
  ForwardOutputs out{empty(in.rows_and(layer.directions * layer.state_size), in.dtype),
                     empty(in.hidden_state(), in.dtype),
                     empty(save ? in.saved_gates() : Sizes{0}, in.dtype),
                     std::nullopt,
                     std::nullopt};
  ForwardArguments arguments{};
  arguments.input = rows_view(in.input);
  arguments.h0 = in.h0.const_data_ptr();
  for (int d = 0; d < layer.directions; ++d) arguments.weights[d] = in.views[d];
  arguments.output = out.output.mutable_data_ptr();
  arguments.h_n = out.h_n.mutable_data_ptr();
  // An empty result may have no address; saving is asked for by one.
  static char nothing;
  const auto address = [](const Tensor& tensor) {
    void* data = tensor.mutable_data_ptr();
    return data == nullptr ? static_cast<void*>(&nothing) : data;
  };
  if (save) arguments.gates = address(out.gates);
  if (in.c0.has_value()) {
    arguments.c0 = in.c0->const_data_ptr();
    out.c_n = empty(in.cell_state(), in.dtype);
    arguments.c_n = out.c_n->mutable_data_ptr();
    out.cells = empty(save ? in.saved_cells() : Sizes{0}, in.state_dtype);
    if (save) arguments.cells = address(*out.cells);
  }
  const Parallel pool = torch_pool();
  Allocation allocation;
  const Workspace workspace(kernels(), cell.forward_workspace(layer, save, pool.threads), std::ref(allocation));
  cell.forward(layer, arguments, workspace.data(), pool);
  return out;
}

// The tensors backward gets beyond those of forward.
struct Gradients {
  std::optional<Tensor> output, h_n, c_n;
};
struct Saved {
  Tensor output, gates;
  std::optional<Tensor> cells;
};

struct BackwardOutputs {
  Tensor input, h0;
  std::optional<Tensor> c0;
  std::vector<Tensor> weights;
};

BackwardOutputs backward(const CellKernels& cell, const Checked& in, const Gradients& gradients, const Saved& saved,
                         bool needs_input, bool needs_weights) {
  const Layer& layer = in.layer;
  BackwardArguments arguments{};
  std::vector<Tensor> alive;
  const auto pointer = [&](const char* name, const Tensor& tensor, DtypeCode dtype, const Sizes& sizes) {
    alive.push_back(checked(name, tensor, dtype, sizes));
    return alive.back().const_data_ptr();
  };
  const Sizes output_sizes = in.rows_and(layer.directions * layer.state_size);
  if (gradients.output.has_value()) {
    check_tensor("grad_output", *gradients.output, in.dtype, output_sizes);
    alive.push_back(with_adjacent_elements(*gradients.output));
    arguments.grad_output = rows_view(alive.back());
  }
  if (gradients.h_n.has_value()) arguments.grad_h_n = pointer("grad_h_n", *gradients.h_n, in.dtype, in.hidden_state());
  if (gradients.c_n.has_value()) arguments.grad_c_n = pointer("grad_c_n", *gradients.c_n, in.dtype, in.cell_state());
  arguments.input = rows_view(in.input);
  arguments.h0 = in.h0.const_data_ptr();
  for (int d = 0; d < layer.directions; ++d) arguments.weights[d] = in.views[d];
  arguments.output = pointer("output", saved.output, in.dtype, output_sizes);
  arguments.gates = pointer("gates", saved.gates, in.dtype, in.saved_gates());

  BackwardOutputs out{empty(needs_input ? in.rows_and(layer.input_size) : Sizes{0}, in.dtype),
                      empty(in.hidden_state(), in.dtype), std::nullopt, {}};
  if (needs_input && layer.rows > 0) arguments.grad_input = out.input.mutable_data_ptr();
  arguments.grad_h0 = out.h0.mutable_data_ptr();
  if (in.c0.has_value()) {
    arguments.c0 = in.c0->const_data_ptr();
    arguments.cells = pointer("cells", *saved.cells, in.state_dtype, in.saved_cells());
    out.c0 = empty(in.cell_state(), in.dtype);
    arguments.grad_c0 = out.c0->mutable_data_ptr();
  }
  arguments.needs_weights = needs_weights;
  if (needs_weights) {
    out.weights.reserve(in.weights.size());
    for (const Tensor& weight : in.weights) {
      const auto sizes = weight.sizes();
      out.weights.push_back(empty(sizes.size() == 1 ? Sizes{sizes[0]} : Sizes{sizes[0], sizes[1]}, in.dtype));
    }
    auto next = out.weights.begin();
    for (int d = 0; d < layer.directions; ++d) {
      WeightGradients& to = arguments.grad_weights[d];
      to.w_ih = next++->mutable_data_ptr();
      to.w_hh = next++->mutable_data_ptr();
      if (layer.has_biases) {
        to.b_ih = next++->mutable_data_ptr();
        to.b_hh = next++->mutable_data_ptr();
      }
      if (layer.has_projection) to.w_hr = next++->mutable_data_ptr();
    }
  }
  const Parallel pool = torch_pool();
  Allocation allocation;
  const Workspace workspace(kernels(), cell.backward_workspace(layer, arguments.grad_input != nullptr, needs_weights, pool.threads),
                            std::ref(allocation));
  cell.backward(layer, arguments, workspace.data(), pool);
  return out;
}

// ---- The operators ----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& input, std::optional<Tensor> batch_sizes, const Tensor& h0, const Tensor& c0,
    std::vector<Tensor> weights, bool has_biases, bool has_projection, bool bidirectional, bool save_for_backward) {
  const Checked in =
      check_inputs(input, batch_sizes, h0, c0, std::move(weights), {4, has_biases, has_projection, bidirectional});
  ForwardOutputs out = forward(*kernels().lstm, in, save_for_backward);
  return {out.output, out.h_n, *out.c_n, out.gates, *out.cells};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n, std::optional<Tensor> grad_c_n,
    const Tensor& input, std::optional<Tensor> batch_sizes, const Tensor& h0, const Tensor& c0,
    std::vector<Tensor> weights, const Tensor& output, const Tensor& gates, const Tensor& cells, bool has_biases,
    bool has_projection, bool bidirectional, bool needs_input_grad, bool needs_weight_grads) {
  const Checked in =
      check_inputs(input, batch_sizes, h0, c0, std::move(weights), {4, has_biases, has_projection, bidirectional});
  BackwardOutputs out = backward(*kernels().lstm, in, {grad_output, grad_h_n, grad_c_n},
                                 {output, gates, cells}, needs_input_grad, needs_weight_grads);
  return {out.input, out.h0, *out.c0, std::move(out.weights)};
}

std::tuple<Tensor, Tensor, Tensor> gru_forward(const Tensor& input, std::optional<Tensor> batch_sizes,
                                               const Tensor& h0, std::vector<Tensor> weights, bool has_biases,
                                               bool bidirectional, bool save_for_backward) {
  const Checked in =
      check_inputs(input, batch_sizes, h0, std::nullopt, std::move(weights), {3, has_biases, false, bidirectional});
  ForwardOutputs out = forward(*kernels().gru, in, save_for_backward);
  return {out.output, out.h_n, out.gates};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(
    std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n, const Tensor& input,
    std::optional<Tensor> batch_sizes, const Tensor& h0, std::vector<Tensor> weights, const Tensor& output,
    const Tensor& gates, bool has_biases, bool bidirectional, bool needs_input_grad, bool needs_weight_grads) {
  const Checked in =
      check_inputs(input, batch_sizes, h0, std::nullopt, std::move(weights), {3, has_biases, false, bidirectional});
  BackwardOutputs out = backward(*kernels().gru, in, {grad_output, grad_h_n, std::nullopt},
                                 {output, gates, std::nullopt}, needs_input_grad, needs_weight_grads);
  return {out.input, out.h0, std::move(out.weights)};
}

}  // namespace

// For direct.h, which is in another library.
extern "C" __attribute__((visibility("default"))) const rnnkernels::cpu::Kernels* rnnkernels_cpu_kernels() {
  return &kernels();
}

STABLE_TORCH_LIBRARY_IMPL(rnnkernels, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
  m.impl("gru_forward", TORCH_BOX(&gru_forward));
  m.impl("gru_backward", TORCH_BOX(&gru_backward));
}
