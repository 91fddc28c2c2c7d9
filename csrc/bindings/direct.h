// DirectCall: a module's call, from Python's objects straight to the kernels, or with a gradient to come to the autograd Functions
// of recording.h. rnnkernels/direct.py is its only caller and says when it may be taken. Whatever is not as it should be gives
// NotImplemented: then the caller takes the way through rnnkernels/functional.py, which knows all cases and has the words for what
// is wrong.
#pragma once

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"
#include "recording.h"
#include "torch_pool.h"
#include "workspace.h"

namespace rnnkernels {

// What a module says of itself; attributes as torch.nn names them.
struct Structure {
  bool lstm, has_biases, bidirectional, batch_first;
  int64_t input_size, hidden_size, proj_size, layers;
  double dropout;  // between layers, in this call

  int64_t gates() const { return lstm ? 4 : 3; }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  int64_t state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
  int64_t layer_input(int64_t layer) const { return layer == 0 ? input_size : directions() * state_size(); }
  size_t weights_per_direction() const { return 2u + 2u * has_biases + (proj_size > 0); }
  size_t states() const { return lstm ? 2 : 1; }
  int64_t width(size_t state) const { return state == 0 ? state_size() : hidden_size; }
};

// A tensor or parameter, not of a subclass that has a say in what operators do.
inline bool read(py::handle object, Tensor* tensor) {
  if (!THPVariable_CheckExact(object.ptr())) return false;
  *tensor = THPVariable_Unpack(object.ptr());
  return true;
}

// The class of the mode that torch.set_default_device and torch.device set. Asked for when the module is loaded: a static that
// begins with an import could wait for a thread that waits for it.
inline PyObject* default_device_mode() {
  static PyObject* const type = py::object(py::module_::import("torch.utils._device").attr("DeviceContext")).release().ptr();
  return type;
}

// Whether a TorchFunctionMode has a say in what operators do. That of a default device has none here: tensors are made like others.
inline bool in_function_mode() {
  using Stack = at::impl::PythonTorchFunctionTLS;
  if (!at::impl::torch_function_mode_enabled()) return false;
  if (Stack::stack_len() > 1) return true;
  return py::type::handle_of(Stack::get_stack_at(0)->ptr(getPyInterpreter())).ptr() != default_device_mode();
}

class DirectCall {
 public:
  // library: the loaded library of the operators, whose kernels these are. selection.name: the backend asked for.
  DirectCall(const std::string& library, py::object selection) : selection_(std::move(selection)) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle != nullptr) find_kernels_ = reinterpret_cast<FindKernels>(dlsym(handle, "rnnkernels_cpu_kernels"));
    if (find_kernels_ == nullptr) throw std::runtime_error(library + " is not loaded or has no kernels to call directly");
    forward_ad_ = py::module_::import("torch.autograd.forward_ad").attr("__dict__");
    profiler_ = py::module_::import("torch.autograd.profiler").attr("__dict__");
  }

  // What module(input, hx) returns, for an LSTM or GRU, or NotImplemented.
  py::object layers(const py::object& module, const py::object& input, const py::object& hx) const {
    HANDLE_TH_ERRORS
    Operands given;
    Structure s;
    if (!read_plain(input, &given.input) || !nothing_else_goes_on()) return not_implemented();
    const py::dict attributes = module.attr(keys_.dict);
    if (!read_stack(attributes, &s)) return not_implemented();
    const Tensor& x = given.input;
    const bool batched = x.dim() == 3;
    if (!batched && x.dim() != 2) return not_implemented();
    const int64_t batch_axis = s.batch_first ? 0 : 1, step_axis = batched ? 1 - batch_axis : 0;
    const int64_t steps = x.size(step_axis), batch = batched ? x.size(batch_axis) : 1;
    const int64_t count = s.layers * s.directions();
    const auto state_sizes = [&](size_t state) {
      return batched ? std::vector<int64_t>{count, batch, s.width(state)} : std::vector<int64_t>{count, s.width(state)};
    };
    const py::handle names = item(attributes, keys_.names);
    if (!fits(x, s.input_size, steps, batch) || !read_states(hx, s, state_sizes, &given) || !names ||
        !PyList_CheckExact(names.ptr()) || !read_weights(attributes, names, s, &given))
      return not_implemented();
    if (given.need_gradients()) return batched ? record_layers(s, std::move(given), batch) : not_implemented();
    if (s.dropout > 0 || !given.have_rows_for_kernels()) return not_implemented();

    Tensor finals[kMostStates];
    for (size_t i = 0; i < s.states(); ++i) finals[i] = at::empty(state_sizes(i), x.options());
    Tensor output;
    cpu::RowsView from{x.const_data_ptr(), x.stride(step_axis), x.stride(batched ? batch_axis : 0)};
    const int64_t width = s.directions() * s.state_size();
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      const Tensor next =
          batched ? at::empty({steps, batch, width}, x.options()) : at::empty({steps, width}, x.options());
      ask_for_huge_pages(next.mutable_data_ptr(), int64_t(next.nbytes()));
      run(s, layer, steps, batch, from, given, finals, next.mutable_data_ptr());
      output = next;
      from = {next.const_data_ptr(), batch * width, width};
    }
    return stack_result(s, batched && s.batch_first ? output.transpose(0, 1) : output, finals);
    END_HANDLE_TH_ERRORS_PYBIND
  }

  // The same for an LSTMCell or GRUCell.
  py::object cell(bool lstm, const py::object& module, const py::object& input, const py::object& hx) const {
    HANDLE_TH_ERRORS
    Operands given;
    Structure s{lstm, false, false, false, 0, 0, 0, 1, 0};
    if (!read_plain(input, &given.input) || !nothing_else_goes_on()) return not_implemented();
    const py::dict attributes = module.attr(keys_.dict);
    if (!read_cell(attributes, &s)) return not_implemented();
    const Tensor& x = given.input;
    const bool batched = x.dim() == 2;
    if (!batched && x.dim() != 1) return not_implemented();
    const int64_t batch = batched ? x.size(0) : 1;
    const auto state_sizes = [&](size_t) {
      return batched ? std::vector<int64_t>{batch, s.hidden_size} : std::vector<int64_t>{s.hidden_size};
    };
    const py::list& names = s.has_biases ? keys_.cell : keys_.cell_without_biases;
    if (!fits(x, s.input_size, 1, batch) || !read_states(hx, s, state_sizes, &given) ||
        !read_weights(attributes, names, s, &given))
      return not_implemented();
    if (given.need_gradients()) return batched ? record_step(s, std::move(given), batch) : not_implemented();
    if (!given.have_rows_for_kernels()) return not_implemented();

    Tensor finals[kMostStates];
    for (size_t i = 0; i < s.states(); ++i) finals[i] = at::empty(state_sizes(i), x.options());
    // The output of one step is its state.
    run(s, 0, 1, batch, {x.const_data_ptr(), 0, batched ? x.stride(0) : 0}, given, finals, finals[0].mutable_data_ptr());
    return state_result(s, finals);
    END_HANDLE_TH_ERRORS_PYBIND
  }

 private:
  // About 20 us of multiply-adds: letting others run costs less than a tenth of that. A step takes time even without any.
  static constexpr int64_t kWorthReleasing = 1 << 20, kOfAnyRow = 2000;

  // The tensors of a call.
  struct Operands {
    Tensor input;
    std::vector<Tensor> states;   // none: zeros
    std::vector<Tensor> weights;  // of all layers, in torch.nn's order

    bool need_gradients() const { return torch::autograd::compute_requires_grad(input, states, weights); }

    // As kernels read them: rows of the input anywhere, but with adjacent elements, everything else contiguous.
    bool have_rows_for_kernels() const {
      if (input.stride(-1) != 1 && input.size(-1) != 1) return false;
      for (const auto* tensors : {&states, &weights})
        for (const Tensor& tensor : *tensors)
          if (!tensor.is_contiguous()) return false;
      return true;
    }
  };

  static py::object not_implemented() { return py::reinterpret_borrow<py::object>(Py_NotImplemented); }

  // ---- What is given --------------------------------------------------------------------------------

  // A strided tensor on the CPU whose values are what its memory holds: not a lazily negated view, not torch's tensor of zeros
  // without memory or one whose memory was freed, not what a transform wraps.
  static bool read_plain(py::handle object, Tensor* tensor) {
    if (!read(object, tensor)) return false;
    const auto keys = tensor->key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView - c10::autocast_dispatch_keyset;
    return keys.highestPriorityTypeId() == c10::DispatchKey::CPU && (tensor->const_data_ptr() != nullptr || tensor->numel() == 0);
  }

  static std::optional<cpu::Dtype> kernel_dtype(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
      case at::kFloat: return cpu::Dtype::kFloat32;
      case at::kDouble: return cpu::Dtype::kFloat64;
      case at::kBFloat16: return cpu::Dtype::kBFloat16;
      case at::kHalf: return cpu::Dtype::kFloat16;
      default: return std::nullopt;
    }
  }

  static py::handle item(const py::dict& dict, const py::str& key) {
    PyObject* found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found;
  }
  // A module's parameters by name. Not a dictionary of another class, which may have its own ways to look them up.
  bool read_parameters(const py::dict& attributes, py::dict* parameters) const {
    const py::handle found = item(attributes, keys_.parameters);
    if (!found || !(PyDict_CheckExact(found.ptr()) || PyODict_CheckExact(found.ptr()))) return false;
    *parameters = py::reinterpret_borrow<py::dict>(found);
    return true;
  }
  static bool read_flag(const py::dict& dict, const py::str& key, bool* value) {
    const py::handle found = item(dict, key);
    *value = found.ptr() == Py_True;
    return *value || found.ptr() == Py_False;
  }
  static bool read_size(const py::dict& dict, const py::str& key, int64_t* value) {
    const py::handle found = item(dict, key);
    if (!found || !PyLong_CheckExact(found.ptr())) return false;
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(found.ptr(), &overflow);
    return overflow == 0 && *value >= 0;
  }

  bool read_stack(const py::dict& attributes, Structure* s) const {
    const py::handle mode = item(attributes, keys_.mode);
    if (!mode || !PyUnicode_CheckExact(mode.ptr())) return false;
    s->lstm = PyUnicode_CompareWithASCIIString(mode.ptr(), "LSTM") == 0;
    if (!s->lstm && PyUnicode_CompareWithASCIIString(mode.ptr(), "GRU") != 0) return false;
    bool training;
    if (!read_flag(attributes, keys_.bias, &s->has_biases) || !read_flag(attributes, keys_.bidirectional, &s->bidirectional) ||
        !read_flag(attributes, keys_.batch_first, &s->batch_first) || !read_flag(attributes, keys_.training, &training) ||
        !read_size(attributes, keys_.input_size, &s->input_size) || !read_size(attributes, keys_.hidden_size, &s->hidden_size) ||
        !read_size(attributes, keys_.proj_size, &s->proj_size) || !read_size(attributes, keys_.num_layers, &s->layers))
      return false;
    if (s->input_size == 0 || s->hidden_size == 0 || s->layers == 0 || (s->proj_size > 0 && !s->lstm)) return false;
    s->dropout = 0;
    if (!training || s->layers == 1) return true;
    const py::handle dropout = item(attributes, keys_.dropout);
    if (!dropout || !PyFloat_CheckExact(dropout.ptr())) return false;
    s->dropout = PyFloat_AS_DOUBLE(dropout.ptr());
    return true;
  }

  // A cell has the biases that it holds, whatever its attribute `bias` says: both or, here, none.
  bool read_cell(const py::dict& attributes, Structure* s) const {
    py::dict parameters;
    if (!read_parameters(attributes, &parameters)) return false;
    const py::handle b_ih = item(parameters, keys_.bias_ih), b_hh = item(parameters, keys_.bias_hh);
    if (!b_ih || !b_hh || b_ih.is_none() != b_hh.is_none()) return false;
    s->has_biases = !b_ih.is_none();
    return read_size(attributes, keys_.input_size, &s->input_size) &&
           read_size(attributes, keys_.hidden_size, &s->hidden_size) && s->input_size > 0 && s->hidden_size > 0;
  }

  // sizes(i): what state i has to have.
  template <class SizesOf>
  bool read_states(const py::object& hx, const Structure& s, const SizesOf& sizes, Operands* given) const {
    if (hx.is_none()) return true;
    if (s.lstm && (!PyTuple_CheckExact(hx.ptr()) || PyTuple_GET_SIZE(hx.ptr()) != 2)) return false;
    given->states.resize(s.states());
    for (size_t i = 0; i < s.states(); ++i) {
      const py::handle state = s.lstm ? py::handle(PyTuple_GET_ITEM(hx.ptr(), Py_ssize_t(i))) : py::handle(hx);
      if (!read_like(state, sizes(i), *given, &given->states[i])) return false;
    }
    return true;
  }

  // The parameters of these names, a list: all layers in torch.nn's order. Not if something computes one of them.
  bool read_weights(const py::dict& attributes, py::handle names, const Structure& s, Operands* given) const {
    py::dict parameters;
    if (!read_parameters(attributes, &parameters)) return false;
    const size_t per_direction = s.weights_per_direction(), per_layer = size_t(s.directions()) * per_direction;
    const size_t count = size_t(PyList_GET_SIZE(names.ptr()));
    if (count % per_layer != 0 || int64_t(count / per_layer) != s.layers) return false;
    given->weights.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const py::handle weight = item(parameters, py::reinterpret_borrow<py::str>(PyList_GET_ITEM(names.ptr(), Py_ssize_t(i))));
      if (!weight || !read_weight(weight, i % per_direction, s.layer_input(int64_t(i / per_layer)), s, *given, &given->weights[i]))
        return false;
    }
    return true;
  }

  // index: which of a direction's weights; depth: what w_ih multiplies.
  static bool read_weight(py::handle object, size_t index, int64_t depth, const Structure& s, const Operands& given,
                          Tensor* weight) {
    const int64_t rows = s.gates() * s.hidden_size;
    if (index == 0) return read_like(object, {rows, depth}, given, weight);
    if (index == 1) return read_like(object, {rows, s.state_size()}, given, weight);
    if (index < 2u + 2u * s.has_biases) return read_like(object, {rows}, given, weight);
    return read_like(object, {s.state_size(), s.hidden_size}, given, weight);
  }

  // A tensor of these sizes and the input's dtype.
  static bool read_like(py::handle object, at::IntArrayRef sizes, const Operands& given, Tensor* tensor) {
    return read_plain(object, tensor) && tensor->scalar_type() == given.input.scalar_type() && tensor->sizes() == sizes;
  }

  // Of a type that kernels know and the size that the module has, with steps and rows but not so many that their number overflowed.
  static bool fits(const Tensor& x, int64_t input_size, int64_t steps, int64_t batch) {
    constexpr int64_t kMostRows = int64_t(1) << 32;
    return kernel_dtype(x).has_value() && x.size(-1) == input_size && steps > 0 && batch > 0 && steps < kMostRows &&
           batch < kMostRows && steps * batch < kMostRows;
  }

  bool nothing_else_goes_on() const {
    if (kernels() == nullptr || in_function_mode() || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
        c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
        torch::jit::tracer::isTracing() || at::autocast::is_autocast_enabled(at::kCPU) ||
        torch::profiler::impl::profilerEnabled())
      return false;
    const py::object backend = selection_.attr(keys_.name);
    if (!backend.is(keys_.automatic) && !backend.equal(keys_.automatic) && !backend.equal(keys_.cpu)) return false;
    const py::handle level = item(forward_ad_, keys_.current_level);
    if (!level || !PyLong_CheckExact(level.ptr()) || PyLong_AsLong(level.ptr()) >= 0) return false;
    return item(profiler_, keys_.profiling).ptr() == Py_False;  // in any thread
  }

  // ---- Calls recorded for backward ------------------------------------------------------------------

  // Zeros where no states are given; one tensor for h and c where it can be.
  static void complete_states(const Structure& s, at::IntArrayRef leading, Operands* given) {
    for (size_t i = given->states.size(); i < s.states(); ++i) {
      std::vector<int64_t> sizes(leading.begin(), leading.end());
      sizes.push_back(s.width(i));
      given->states.push_back(i > 0 && s.width(i) == s.width(0) ? given->states[0] : at::zeros(sizes, given->input.options()));
    }
  }

  static Call call_of(const Structure& s, bool one_step) {
    return {&find_operators(s.lstm, ""), s.has_biases, s.proj_size > 0, s.bidirectional, one_step, {}};
  }

  static py::object record_layers(const Structure& s, Operands given, int64_t batch) {
    Tensor output;
    Tensor finals[kMostStates];
    {
      const py::gil_scoped_release released;
      complete_states(s, {s.layers * s.directions(), batch}, &given);
      const Call call = call_of(s, false);
      const size_t per_layer = given.weights.size() / size_t(s.layers);
      output = s.batch_first ? given.input.transpose(0, 1) : given.input;
      std::vector<Tensor> of_layers[kMostStates];
      for (int64_t layer = 0; layer < s.layers; ++layer) {
        if (layer > 0 && s.dropout > 0) output = at::dropout(output, s.dropout, true);
        std::vector<Tensor> states = given.states;
        if (s.layers > 1)
          for (Tensor& state : states) state = state.slice(0, layer * s.directions(), (layer + 1) * s.directions());
        const variable_list results =
            record_where_needed(call, output, states, at::TensorList(given.weights).slice(size_t(layer) * per_layer, per_layer));
        output = results[0];
        for (size_t i = 0; i < s.states(); ++i) of_layers[i].push_back(results[1 + i]);
      }
      if (s.batch_first) output = output.transpose(0, 1);
      for (size_t i = 0; i < s.states(); ++i) finals[i] = s.layers == 1 ? of_layers[i][0] : at::cat(of_layers[i]);
    }
    return stack_result(s, output, finals);
  }

  static py::object record_step(const Structure& s, Operands given, int64_t batch) {
    Tensor finals[kMostStates];
    {
      const py::gil_scoped_release released;
      complete_states(s, {batch}, &given);
      const variable_list results = record(call_of(s, true), given.input, given.states, given.weights);
      for (size_t i = 0; i < s.states(); ++i) finals[i] = results[i];
    }
    return state_result(s, finals);
  }

  static py::object state_result(const Structure& s, const Tensor (&finals)[kMostStates]) {
    if (s.lstm) return py::make_tuple(wrap(finals[0]), wrap(finals[1]));
    return wrap(finals[0]);
  }
  static py::object stack_result(const Structure& s, const Tensor& output, const Tensor (&finals)[kMostStates]) {
    return py::make_tuple(wrap(output), state_result(s, finals));
  }

  // ---- Calls that only compute ----------------------------------------------------------------------

  static cpu::Weights of_direction(const Tensor* weights, const Structure& s) {
    cpu::Weights result{};
    result.w_ih = weights[0].const_data_ptr();
    result.w_hh = weights[1].const_data_ptr();
    if (s.has_biases) {
      result.b_ih = weights[2].const_data_ptr();
      result.b_hh = weights[3].const_data_ptr();
    }
    if (s.proj_size > 0) result.w_hr = weights[2 + 2 * s.has_biases].const_data_ptr();
    return result;
  }

  void run(const Structure& s, int64_t index, int64_t steps, int64_t batch, const cpu::RowsView& input, const Operands& given,
           const Tensor (&finals)[kMostStates], void* output) const {
    const cpu::Layer layer{*kernel_dtype(given.input), steps, batch, steps * batch, nullptr, s.layer_input(index), s.hidden_size,
                           s.state_size(), int(s.directions()), s.has_biases, s.proj_size > 0};
    cpu::ForwardArguments arguments{};
    arguments.input = input;
    arguments.output = output;
    const int64_t element = given.input.element_size(), first_row = index * s.directions() * batch;
    std::vector<char> zeros;  // the same for h and c
    if (given.states.empty()) zeros.resize(size_t(s.directions() * batch * std::max(s.width(0), s.width(1)) * element));
    const auto initial = [&](size_t state) -> const void* {
      if (given.states.empty()) return zeros.data();
      return static_cast<const char*>(given.states[state].const_data_ptr()) + first_row * s.width(state) * element;
    };
    const auto final = [&](size_t state) {
      return static_cast<char*>(finals[state].mutable_data_ptr()) + first_row * s.width(state) * element;
    };
    arguments.h0 = initial(0);
    arguments.h_n = final(0);
    if (s.lstm) {
      arguments.c0 = initial(1);
      arguments.c_n = final(1);
    }
    for (int64_t d = 0; d < s.directions(); ++d)
      arguments.weights[d] = of_direction(&given.weights[size_t(index * s.directions() + d) * s.weights_per_direction()], s);

    const cpu::CellKernels& cell = s.lstm ? *kernels()->lstm : *kernels()->gru;
    const cpu::Parallel pool = python::torch_pool();
    Tensor memory;
    const Workspace workspace(*kernels(), cell.forward_workspace(layer, false, pool.threads), [&](int64_t bytes) {
      memory = at::empty({bytes}, given.input.options().dtype(at::kByte));
      return memory.mutable_data_ptr();
    });
    const auto compute = [&] { cell.forward(layer, arguments, workspace.data(), pool); };
    const int64_t per_row = s.gates() * s.hidden_size * (layer.input_size + layer.state_size) + kOfAnyRow;
    if (layer.rows * per_row * s.directions() < kWorthReleasing) return compute();
    const py::gil_scoped_release released;
    compute();
  }

  // Made once: looking a string up by a new object costs more than the lookup.
  struct Keys {
    py::str mode = interned("mode"), bias = interned("bias"), bidirectional = interned("bidirectional"),
            batch_first = interned("batch_first"), training = interned("training"), input_size = interned("input_size"),
            hidden_size = interned("hidden_size"), proj_size = interned("proj_size"), num_layers = interned("num_layers"),
            dropout = interned("dropout"), names = interned("_flat_weights_names"), parameters = interned("_parameters"),
            dict = interned("__dict__"), name = interned("name"), automatic = interned("auto"), cpu = interned("cpu"),
            current_level = interned("_current_level"), profiling = interned("_is_profiler_enabled"),
            bias_ih = interned("bias_ih"), bias_hh = interned("bias_hh");
    py::list cell, cell_without_biases;

    Keys() {
      for (const char* name : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) cell.append(interned(name));
      for (const char* name : {"weight_ih", "weight_hh"}) cell_without_biases.append(interned(name));
    }
    static py::str interned(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }
  };

  using FindKernels = const cpu::Kernels* (*)();

  // Those of the instruction set that is chosen at the first call. None: the environment asks for one that cannot be served.
  const cpu::Kernels* kernels() const {
    try {
      if (kernels_ == nullptr) kernels_ = find_kernels_();
    } catch (const std::exception&) {
      // The long way throws it again, for the user.
    }
    return kernels_;
  }

  py::object selection_;
  FindKernels find_kernels_ = nullptr;
  mutable const cpu::Kernels* kernels_ = nullptr;
  py::dict forward_ad_, profiler_;
  Keys keys_;
};

}  // namespace rnnkernels
