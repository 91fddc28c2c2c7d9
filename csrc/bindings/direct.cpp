// DirectCall: the forward pass of a module, from Python's objects straight to the kernels. rnnkernels/direct.py is its only
// caller and says when it may be taken. Whatever is not as it should be gives NotImplemented: then the caller takes the way
// through the operators, which knows all cases and has the words for what is wrong.
#include "direct.h"

#include <dlfcn.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "tensor_view.h"
#include "torch_pool.h"
#include "workspace.h"

namespace rnnkernels::python {
namespace {

using cpu::Layer;

// One function to ask about something that may be going on, and the answer when it is not.
struct Question {
  py::object function, arguments, ordinary;

  bool is_ordinary() const {
    const py::object answer = py::reinterpret_steal<py::object>(PyObject_CallObject(function.ptr(), arguments.ptr()));
    if (!answer) throw py::error_already_set();
    return answer.is(ordinary);
  }
};

// What a module says of itself; attributes as torch.nn names them.
struct Structure {
  bool lstm, has_biases, bidirectional, batch_first;
  int64_t input_size, hidden_size, proj_size, layers;

  int gates() const { return lstm ? 4 : 3; }
  int directions() const { return bidirectional ? 2 : 1; }
  int64_t state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
  int64_t layer_input(int64_t layer) const { return layer == 0 ? input_size : directions() * state_size(); }
  size_t weights_per_direction() const { return 2u + 2u * has_biases + (proj_size > 0); }
};

// A tensor that somebody holds while it is read.
struct Held {
  py::object object;
  TensorView view;
};

class DirectCall {
 public:
  // library: the loaded library of the operators, whose kernels these are. selection.name: the backend asked for.
  DirectCall(const std::string& library, py::object selection)
      : reader_(true), selection_(std::move(selection)) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle != nullptr) find_kernels_ = reinterpret_cast<FindKernels>(dlsym(handle, "rnnkernels_cpu_kernels"));
    if (find_kernels_ == nullptr) throw std::runtime_error(library + " is not loaded or has no kernels to call directly");

    const py::module_ torch = py::module_::import("torch");
    const py::object internals = torch.attr("_C");
    const py::object no = py::bool_(false), zero = py::int_(0);
    const py::tuple nothing(0);
    questions_ = {
        {torch.attr("is_grad_enabled"), nothing, no},
        {internals.attr("_are_functorch_transforms_active"), nothing, no},
        {internals.attr("_len_torch_dispatch_stack"), nothing, zero},
        {internals.attr("_len_torch_function_stack"), nothing, zero},
        {internals.attr("_get_tracing_state"), nothing, py::none()},
        {internals.attr("_autograd").attr("_profiler_enabled"), nothing, no},
        {torch.attr("is_autocast_enabled"), py::make_tuple("cpu"), no},
    };
    forward_ad_ = py::module_::import("torch.autograd.forward_ad").attr("__dict__");
    profiler_ = py::module_::import("torch.autograd.profiler").attr("__dict__");
    for (const char* name : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) {
      if (cell_names_.size() < 2) cell_names_without_biases_.append(Keys::interned(name));
      cell_names_.append(Keys::interned(name));
    }
    empty_ = torch.attr("empty");
    const py::object cpu_device = torch.attr("device")("cpu");
    const char* names[] = {"float32", "float64", "bfloat16", "float16"};  // in the order of Dtype
    for (int i = 0; i < 4; ++i) options_[i] = py::dict(py::arg("dtype") = torch.attr(names[i]), py::arg("device") = cpu_device);
  }

  // What module(input, hx) returns, for an LSTM or GRU, or NotImplemented.
  py::object layers(const py::object& module, const py::object& input, const py::object& hx) const {
    if (!nothing_else_goes_on()) return not_implemented();
    const py::dict attributes = module.attr(keys_.dict);
    Structure s;
    Held x;
    if (!read_stack(attributes, &s) || !read(input, &x) || x.view.dims < 2) return not_implemented();
    const bool batched = x.view.dims == 3;
    const int batch_axis = s.batch_first ? 0 : 1, step_axis = batched ? 1 - batch_axis : 0;
    const int64_t steps = x.view.sizes[step_axis], batch = batched ? x.view.sizes[batch_axis] : 1;
    const int64_t count = s.layers * s.directions(), width = s.directions() * s.state_size();
    const auto sizes_of_state = [&](int64_t features) {
      return batched ? Sizes{count, batch, features} : Sizes{count, features};
    };
    States states;
    std::vector<Held> weights;
    const py::handle names = item(attributes, keys_.names);
    const Sizes sizes[2] = {sizes_of_state(s.state_size()), sizes_of_state(s.hidden_size)};
    if (!fits(x.view, s.input_size, steps, batch) || !read_states(hx, s, x.view.dtype, sizes, &states) || !names ||
        !PyList_CheckExact(names.ptr()) || !read_weights(attributes, names, s, x.view.dtype, &weights))
      return not_implemented();

    make_states(hx, s, x.view.dtype, sizes, &states);
    Held output;
    cpu::RowsView from{x.view.data, x.view.strides[step_axis], x.view.strides[batched ? batch_axis : 0]};
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      const Held next = empty(x.view.dtype, batched ? Sizes{steps, batch, width} : Sizes{steps, width});
      run(s, layer, x.view.dtype, steps, batch, from, states, weights, next.view.data);
      output = next;
      from = {next.view.data, batch * width, width};
    }
    const py::object result = batched && s.batch_first ? output.object.attr("transpose")(0, 1) : output.object;
    if (s.lstm) return py::make_tuple(result, py::make_tuple(states.last[0].object, states.last[1].object));
    return py::make_tuple(result, states.last[0].object);
  }

  // The same for an LSTMCell or GRUCell.
  py::object cell(bool lstm, const py::object& module, const py::object& input, const py::object& hx) const {
    if (!nothing_else_goes_on()) return not_implemented();
    const py::dict attributes = module.attr(keys_.dict);
    Structure s{lstm, false, false, false, 0, 0, 0, 1};
    Held x;
    if (!read_cell(attributes, &s) || !read(input, &x) || x.view.dims < 1 || x.view.dims > 2) return not_implemented();
    const bool batched = x.view.dims == 2;
    const int64_t batch = batched ? x.view.sizes[0] : 1;
    const Sizes of_state = batched ? Sizes{batch, s.hidden_size} : Sizes{s.hidden_size}, sizes[2] = {of_state, of_state};
    const py::list& names = s.has_biases ? cell_names_ : cell_names_without_biases_;
    States states;
    std::vector<Held> weights;
    if (!fits(x.view, s.input_size, 1, batch) || !read_states(hx, s, x.view.dtype, sizes, &states) ||
        !read_weights(attributes, names, s, x.view.dtype, &weights))
      return not_implemented();

    make_states(hx, s, x.view.dtype, sizes, &states);
    // The output of one step is its state.
    run(s, 0, x.view.dtype, 1, batch, {x.view.data, 0, batched ? x.view.strides[0] : 0}, states, weights,
        states.last[0].view.data);
    if (lstm) return py::make_tuple(states.last[0].object, states.last[1].object);
    return states.last[0].object;
  }

 private:
  // About 20 us of multiply-adds: letting others run costs less than a tenth of that. A step takes time even without any.
  static constexpr int64_t kWorthReleasing = 1 << 20, kOfAnyRow = 2000;

  // Before the first step and after the last; h and, for an LSTM, c.
  struct States {
    Held first[2];            // none: zeros
    std::vector<char> zeros;  // of as many bytes as the larger of the last states
    Held last[2];
  };

  struct Sizes {
    int64_t values[TensorView::kMostDims];
    int count;

    Sizes(std::initializer_list<int64_t> list) : count(int(list.size())) {
      int i = 0;
      for (const int64_t value : list) values[i++] = value;
    }
    int64_t elements() const {
      int64_t product = 1;
      for (int i = 0; i < count; ++i) product *= values[i];
      return product;
    }
  };

  static py::object not_implemented() { return py::reinterpret_borrow<py::object>(Py_NotImplemented); }
  static int64_t size_of(cpu::Dtype dtype) {
    return dtype == cpu::Dtype::kFloat64 ? 8 : dtype == cpu::Dtype::kFloat32 ? 4 : 2;
  }

  bool read(py::handle object, Held* held) const {
    held->object = py::reinterpret_borrow<py::object>(object);
    return reader_.read(object, &held->view);
  }

  static py::handle item(const py::dict& dict, const py::str& key) {
    PyObject* found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found;
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
    if (!training || s->layers == 1) return true;  // no dropout
    const py::handle dropout = item(attributes, keys_.dropout);
    return dropout && PyFloat_CheckExact(dropout.ptr()) && PyFloat_AS_DOUBLE(dropout.ptr()) == 0;
  }

  // A cell has the biases that it holds, whatever its attribute `bias` says: both or, here, none.
  bool read_cell(const py::dict& attributes, Structure* s) const {
    const py::handle parameters = item(attributes, keys_.parameters);
    if (!parameters || !PyDict_CheckExact(parameters.ptr())) return false;
    const py::dict held = py::reinterpret_borrow<py::dict>(parameters);
    const py::handle b_ih = item(held, keys_.bias_ih), b_hh = item(held, keys_.bias_hh);
    if (!b_ih || !b_hh || b_ih.is_none() != b_hh.is_none()) return false;
    s->has_biases = !b_ih.is_none();
    return read_size(attributes, keys_.input_size, &s->input_size) &&
           read_size(attributes, keys_.hidden_size, &s->hidden_size) && s->input_size > 0 && s->hidden_size > 0;
  }

  // The initial states, if there are any. sizes: of h and c.
  bool read_states(const py::object& hx, const Structure& s, cpu::Dtype dtype, const Sizes (&sizes)[2], States* states) const {
    if (hx.is_none()) return true;
    if (s.lstm && (!PyTuple_CheckExact(hx.ptr()) || PyTuple_GET_SIZE(hx.ptr()) != 2)) return false;
    for (int i = 0; i < 1 + s.lstm; ++i) {
      const py::handle state = s.lstm ? py::handle(PyTuple_GET_ITEM(hx.ptr(), i)) : py::handle(hx);
      if (!read(state, &states->first[i]) || !is(states->first[i].view, dtype, sizes[i])) return false;
    }
    return true;
  }

  void make_states(const py::object& hx, const Structure& s, cpu::Dtype dtype, const Sizes (&sizes)[2], States* states) const {
    int64_t most = 0;
    for (int i = 0; i < 1 + s.lstm; ++i) {
      states->last[i] = empty(dtype, sizes[i]);
      most = std::max(most, sizes[i].elements() * size_of(dtype));
    }
    if (hx.is_none()) states->zeros.resize(size_t(most));
  }

  // The parameters of these names, a list: all layers in torch.nn's order. Not if something computes one of them.
  bool read_weights(const py::dict& attributes, py::handle names, const Structure& s, cpu::Dtype dtype,
                    std::vector<Held>* weights) const {
    const py::handle parameters = item(attributes, keys_.parameters);
    if (!parameters || !PyDict_Check(parameters.ptr())) return false;
    const size_t per_direction = s.weights_per_direction();
    const size_t count = size_t(PyList_GET_SIZE(names.ptr()));
    if (count % (size_t(s.directions()) * per_direction) != 0 ||
        int64_t(count / (size_t(s.directions()) * per_direction)) != s.layers)
      return false;
    weights->resize(count);
    const int64_t rows = s.gates() * s.hidden_size;
    for (size_t i = 0; i < weights->size(); ++i) {
      PyObject* found = PyDict_GetItemWithError(parameters.ptr(), PyList_GET_ITEM(names.ptr(), Py_ssize_t(i)));
      if (found == nullptr) {
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        return false;
      }
      const size_t index = i % per_direction;
      const int64_t depth = s.layer_input(int64_t(i / per_direction) / s.directions());
      const Sizes sizes = index == 0                     ? Sizes{rows, depth}
                          : index == 1                   ? Sizes{rows, s.state_size()}
                          : index < 2u + 2u * s.has_biases ? Sizes{rows}
                                                         : Sizes{s.state_size(), s.hidden_size};
      Held& weight = (*weights)[i];
      if (!read(found, &weight) || !is(weight.view, dtype, sizes)) return false;
    }
    return true;
  }

  // A contiguous tensor of these sizes.
  static bool is(const TensorView& view, cpu::Dtype dtype, const Sizes& sizes) {
    if (view.dtype != dtype || view.dims != sizes.count) return false;
    for (int i = 0; i < sizes.count; ++i)
      if (view.sizes[i] != sizes.values[i]) return false;
    return view.contiguous();
  }

  // Rows with adjacent elements, and not so many that a number of them overflowed.
  static bool fits(const TensorView& x, int64_t input_size, int64_t steps, int64_t batch) {
    constexpr int64_t kMostRows = int64_t(1) << 32;
    const int last = x.dims - 1;
    return x.sizes[last] == input_size && (x.strides[last] == 1 || input_size == 1) && steps > 0 && batch > 0 &&
           steps < kMostRows && batch < kMostRows && steps * batch < kMostRows;
  }

  bool nothing_else_goes_on() const {
    if (kernels() == nullptr) return false;
    const py::object backend = selection_.attr(keys_.name);
    if (!backend.is(keys_.automatic) && !backend.equal(keys_.automatic) && !backend.equal(keys_.cpu)) return false;
    const py::handle level = item(forward_ad_, keys_.current_level);
    if (!level || !PyLong_CheckExact(level.ptr()) || PyLong_AsLong(level.ptr()) >= 0) return false;
    if (item(profiler_, keys_.profiling).ptr() != Py_False) return false;  // in any thread
    for (const Question& question : questions_)
      if (!question.is_ordinary()) return false;
    return true;
  }

  Held empty(cpu::Dtype dtype, const Sizes& sizes) const {
    py::tuple arguments(1);
    py::tuple shape(size_t(sizes.count));
    for (int i = 0; i < sizes.count; ++i) shape[size_t(i)] = py::int_(sizes.values[i]);
    arguments[0] = shape;
    Held result;
    result.object = py::reinterpret_steal<py::object>(
        PyObject_Call(empty_.ptr(), arguments.ptr(), options_[int(dtype)].ptr()));
    if (!result.object) throw py::error_already_set();
    if (!reader_.read(result.object, &result.view)) throw std::runtime_error("torch.empty gave a tensor without memory");
    return result;
  }

  static cpu::Weights of_direction(const Held* weights, const Structure& s) {
    cpu::Weights result{};
    result.w_ih = weights[0].view.data;
    result.w_hh = weights[1].view.data;
    if (s.has_biases) {
      result.b_ih = weights[2].view.data;
      result.b_hh = weights[3].view.data;
    }
    if (s.proj_size > 0) result.w_hr = weights[2 + 2 * s.has_biases].view.data;
    return result;
  }

  void run(const Structure& s, int64_t index, cpu::Dtype dtype, int64_t steps, int64_t batch, const cpu::RowsView& input,
           const States& states, const std::vector<Held>& weights, void* output) const {
    const Layer layer{dtype,         steps,          batch,          steps * batch, nullptr,        s.layer_input(index),
                      s.hidden_size, s.state_size(), s.directions(), s.has_biases,  s.proj_size > 0};
    cpu::ForwardArguments arguments{};
    arguments.input = input;
    arguments.output = output;
    const auto of_layer = [&](void* data, int64_t features) {
      return static_cast<char*>(data) + index * s.directions() * batch * features * size_of(dtype);
    };
    // Zeros are the same for every layer.
    const auto initial = [&](const Held& state, int64_t features) {
      return state.object ? of_layer(state.view.data, features) : states.zeros.data();
    };
    arguments.h0 = initial(states.first[0], s.state_size());
    arguments.h_n = of_layer(states.last[0].view.data, s.state_size());
    if (s.lstm) {
      arguments.c0 = initial(states.first[1], s.hidden_size);
      arguments.c_n = of_layer(states.last[1].view.data, s.hidden_size);
    }
    for (int d = 0; d < s.directions(); ++d)
      arguments.weights[d] = of_direction(&weights[size_t(index * s.directions() + d) * s.weights_per_direction()], s);

    const cpu::CellKernels& cell = s.lstm ? *kernels()->lstm : *kernels()->gru;
    const cpu::Parallel pool = torch_pool();
    Held memory;
    const Workspace workspace(cell.forward_workspace(layer, false, pool.threads), [&](int64_t bytes) {
      memory = empty(cpu::Dtype::kFloat32, {bytes / int64_t(sizeof(float)) + 1});
      return memory.view.data;
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

  TensorReader reader_;
  py::object selection_;
  FindKernels find_kernels_ = nullptr;
  mutable const cpu::Kernels* kernels_ = nullptr;
  std::vector<Question> questions_;
  py::dict forward_ad_, profiler_;
  py::object empty_;
  py::dict options_[4];
  Keys keys_;
  py::list cell_names_, cell_names_without_biases_;
};

}  // namespace

void bind_direct(py::module_& m) {
  py::class_<DirectCall>(m, "DirectCall", "What rnnkernels.direct calls.")
      .def(py::init<const std::string&, py::object>(), py::arg("library"), py::arg("selection"))
      .def("layers", &DirectCall::layers, py::arg("module"), py::arg("input"), py::arg("hx"))
      .def("cell", &DirectCall::cell, py::arg("lstm"), py::arg("module"), py::arg("input"), py::arg("hx"));
}

}  // namespace rnnkernels::python
