// The Functions of rnnkernels/autograd.py, for calls that need nothing of Python: entering it for forward and again for backward
// takes several times as long as the arithmetic of a small step.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/SmallVector.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace rnnkernels {

namespace py = pybind11;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// States that a step carries: LSTM h and c, GRU h.
inline constexpr size_t kMostStates = 2;

// One cell's operators in one family of backends.
struct Operators {
  bool lstm;
  std::string family;
  c10::OperatorHandle forward, backward;

  size_t states() const { return lstm ? 2 : 1; }
};

// Each is looked up once, and stays where it is.
inline const Operators& find_operators(bool lstm, const std::string& family) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<const Operators>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& operators : known)
    if (operators->lstm == lstm && operators->family == family) return *operators;
  const std::string name = "rnnkernels::" + family + (lstm ? "lstm" : "gru");
  const auto find = [&](const char* pass) { return c10::Dispatcher::singleton().findSchemaOrThrow((name + pass).c_str(), ""); };
  known.push_back(std::make_unique<const Operators>(Operators{lstm, family, find("_forward"), find("_backward")}));
  return *known.back();
}

// What a call says besides tensors that may need a gradient.
struct Call {
  const Operators* operators;
  bool has_biases, has_projection, bidirectional;
  bool one_step;       // of a cell
  Tensor batch_sizes;  // undefined if dense
};

// What backward gets of a layer.
struct Saved {
  Tensor input, batch_sizes, states[kMostStates], output, kept[kMostStates];
  std::vector<Tensor> weights;
};

struct Needs {
  bool input, weights;
};

inline c10::IValue optional(const Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

// As operators take them; only LSTMs have projections.
inline c10::SmallVector<bool, 3> flags_of(const Call& call) {
  if (call.operators->lstm) return {call.has_biases, call.has_projection, call.bidirectional};
  return {call.has_biases, call.bidirectional};
}

inline py::object wrap(Tensor tensor) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(tensor))); }

// See call_below_autograd in rnnkernels/calling.py.
inline void call_below_autograd(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
  op.callBoxed(stack);
}

// The forward operator's results. c0: none for a GRU.
inline torch::jit::Stack run_forward(const Call& call, const Tensor& input, const Tensor& h0, const std::optional<Tensor>& c0,
                                     at::TensorList weights, bool save_for_backward) {
  torch::jit::Stack stack;
  stack.reserve(10);
  stack.emplace_back(input);
  stack.push_back(optional(call.batch_sizes));
  stack.emplace_back(h0);
  if (c0.has_value()) stack.emplace_back(*c0);
  stack.emplace_back(c10::List<Tensor>(weights));
  for (const bool flag : flags_of(call)) stack.emplace_back(flag);
  stack.emplace_back(save_for_backward);
  call_below_autograd(call.operators->forward, &stack);
  return stack;
}

// Gradients of input, states and each weight; undefined where not needed. grads: of output, undefined for one step, and states.
inline variable_list gradients(const Call& call, const Saved& saved, const variable_list& grads, Needs needs) {
  const size_t states = call.operators->states();
  torch::jit::Stack stack;
  stack.reserve(16);
  for (const Tensor& grad : grads) stack.push_back(optional(grad));
  stack.emplace_back(saved.input);
  stack.push_back(optional(saved.batch_sizes));
  for (size_t i = 0; i < states; ++i) stack.emplace_back(saved.states[i]);
  stack.emplace_back(c10::List<Tensor>(at::TensorList(saved.weights)));
  stack.emplace_back(saved.output);
  for (size_t i = 0; i < states; ++i) stack.emplace_back(saved.kept[i]);
  for (const bool flag : flags_of(call)) stack.emplace_back(flag);
  stack.emplace_back(needs.input);
  stack.emplace_back(needs.weights);
  call_below_autograd(call.operators->backward, &stack);

  variable_list results{needs.input ? stack[0].toTensor() : Tensor()};
  for (size_t i = 0; i < states; ++i) results.push_back(stack[1 + i].toTensor());
  if (needs.weights)
    for (const Tensor& grad : stack[1 + states].toTensorVector()) results.push_back(grad);
  results.resize(1 + states + saved.weights.size());
  return results;
}

// The same by rnnkernels.autograd.layer_backward, whose results can be differentiated, which torch.func can transform, and which
// differentiates the reference equations for batches of gradients.
inline variable_list gradients_through_python(const Call& call, const Saved& saved, const variable_list& grads, Needs needs) {
  const py::gil_scoped_acquire held;
  const auto list = [&](const Tensor* first, size_t count) {
    py::list result;
    for (size_t i = 0; i < count; ++i) result.append(wrap(first[i]));
    return result;
  };
  const size_t states = call.operators->states();
  py::list kept = list(saved.kept, states);
  kept.insert(0, wrap(saved.output));
  py::list flags;
  for (const bool flag : flags_of(call)) flags.append(flag);
  const py::object layer = py::module_::import("rnnkernels.derivatives")
                               .attr("Saved")(wrap(saved.input), wrap(saved.batch_sizes), list(saved.states, states),
                                              list(saved.weights.data(), saved.weights.size()), kept, py::tuple(flags));
  const py::list results = py::module_::import("rnnkernels.autograd")
                               .attr("layer_backward")(call.operators->lstm ? "lstm" : "gru", call.operators->family, layer,
                                                       list(grads.data(), grads.size()), needs.input, needs.weights);
  variable_list gradients;
  for (const py::handle result : results)
    gradients.push_back(result.is_none() ? Tensor() : THPVariable_Unpack(result.ptr()));
  return gradients;
}

// LSTMFunction and GRUFunction, or with one_step LSTMCellFunction and GRUCellFunction. Saves the same tensors in the same order,
// so that what is saved for one may be recomputed by the other.
template <class Function>
struct LayerFunction : torch::autograd::Function<Function> {
  // Compiled autograd may trace backward: it keeps no tensors but those that are saved.
  static constexpr bool is_traceable = true;

  // -> output, but for one step, and final states. c0: none for a GRU.
  static variable_list forward(AutogradContext* context, const Call& call, const Tensor& input, const Tensor& h0,
                               const std::optional<Tensor>& c0, at::TensorList weights) {
    const size_t states = call.operators->states();
    const torch::jit::Stack stack = run_forward(call, input, h0, c0, weights, true);
    // Backward reads output only to know the state before steps 1, 2, ...: one step has none, and h0 stands in, so that a caller
    // may change h in place.
    const Tensor output = call.one_step ? h0 : stack[0].toTensor();
    variable_list results, saved{input, call.batch_sizes, h0};
    if (c0.has_value()) saved.push_back(*c0);
    saved.push_back(output);
    if (!call.one_step) results.push_back(output);
    for (size_t i = 0; i < states; ++i) {
      results.push_back(stack[1 + i].toTensor());
      saved.push_back(stack[1 + states + i].toTensor());
    }
    saved.insert(saved.end(), weights.begin(), weights.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    auto& data = context->saved_data;
    data["family"] = call.operators->family;
    data["flags"] = c10::List<bool>{call.has_biases, call.has_projection, call.bidirectional, call.one_step};
    return results;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto flags = context->saved_data["flags"].toBoolList();
    const Operators& operators = find_operators(Function::kLstm, context->saved_data["family"].toStringRef());
    const Call call{&operators, flags[0], flags[1], flags[2], flags[3], {}};
    const size_t states = operators.states();
    const Saved saved = of_layer(context->get_saved_variables(), states);
    Needs needs{context->needs_input_grad(0), false};
    for (size_t i = 0; i < saved.weights.size(); ++i) needs.weights |= context->needs_input_grad(1 + states + i);
    if (call.one_step) grads.insert(grads.begin(), Tensor());

    bool plain = !at::GradMode::is_enabled() &&
                 !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
    for (const Tensor& grad : grads) plain &= !grad.defined() || !grad.key_set().has(c10::DispatchKey::Batched);
    variable_list results = (plain ? gradients : gradients_through_python)(call, saved, grads, needs);
    // Forward's other arguments have none.
    if (!Function::kLstm) results.insert(results.begin() + 2, Tensor());
    results.insert(results.begin(), Tensor());
    return results;
  }

 private:
  static Saved of_layer(const variable_list& variables, size_t states) {
    Saved saved;
    auto next = variables.begin();
    saved.input = *next++;
    saved.batch_sizes = *next++;
    for (size_t i = 0; i < states; ++i) saved.states[i] = *next++;
    saved.output = *next++;
    for (size_t i = 0; i < states; ++i) saved.kept[i] = *next++;
    saved.weights.assign(next, variables.end());
    return saved;
  }
};

// As CppNode<rnnkernels::LSTMFunction> they stand in a graph.
struct LSTMFunction : LayerFunction<LSTMFunction> {
  static constexpr bool kLstm = true;
};
struct GRUFunction : LayerFunction<GRUFunction> {
  static constexpr bool kLstm = false;
};

// None for a GRU, which has h alone.
inline std::optional<Tensor> c_of(at::ArrayRef<Tensor> states) {
  return states.size() > 1 ? std::make_optional(states[1]) : std::nullopt;
}

// Apply them -> what LayerFunction::forward gives. states: h and, for an LSTM, c.
inline variable_list record(const Call& call, const Tensor& input, at::ArrayRef<Tensor> states, at::TensorList weights) {
  if (call.operators->lstm) return LSTMFunction::apply(call, input, states[0], c_of(states), weights);
  return GRUFunction::apply(call, input, states[0], c_of(states), weights);
}

// Output and final states of a layer of a stack, recorded if there is something to record.
inline variable_list record_where_needed(const Call& call, const Tensor& input, at::ArrayRef<Tensor> states,
                                         at::TensorList weights) {
  if (torch::autograd::compute_requires_grad(input, states, weights)) return record(call, input, states, weights);
  const torch::jit::Stack stack = run_forward(call, input, states[0], c_of(states), weights, false);
  variable_list results;
  for (size_t i = 0; i < 1 + states.size(); ++i) results.push_back(stack[i].toTensor());
  return results;
}

}  // namespace rnnkernels
