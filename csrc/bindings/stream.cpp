// StreamSession: a stream (cpu/stream.h) whose tensors come from Python. rnnkernels/streaming.py is its only caller
// and explains what it refuses; nothing it is given makes it read or write outside of a tensor.
#include "stream.h"

#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../cpu/stream.h"
#include "tensor_view.h"
#include "torch_pool.h"

namespace rnnkernels::python {
namespace {

using cpu::Dtype;

Dtype dtype_named(const std::string& name) {
  const char* names[] = {"float32", "float64", "bfloat16", "float16"};  // in the order of Dtype
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return Dtype(i);
  throw std::invalid_argument("a stream cannot have the dtype " + name);
}

class StreamSession {
 public:
  // Steps write to output (N, P), of which row (P) is the first row. refuse_input(x) and refuse_output(out) raise what
  // is wrong with a tensor that does not fit; weights_changed() loads and watches the weights again.
  StreamSession(bool lstm, const std::string& dtype, bool bfloat16_weights, int64_t batch, int64_t input_size,
                int64_t hidden_size, int64_t state_size, int layers, bool has_projection, py::object output,
                py::object row, py::function refuse_input, py::function refuse_output, py::function weights_changed,
                bool use_exchange)
      : reader_(use_exchange),
        stream_({lstm, dtype_named(dtype), bfloat16_weights, batch, input_size, hidden_size, state_size, layers,
                 has_projection}),
        output_(std::move(output)),
        row_(std::move(row)),
        refuse_input_(std::move(refuse_input)),
        refuse_output_(std::move(refuse_output)),
        weights_changed_(std::move(weights_changed)),
        version_("_version"),
        requires_grad_("requires_grad"),
        releases_gil_(stream_.work() >= kWorthReleasing) {}

  // Parameters of one layer, contiguous: w_ih, w_hh[, b_ih, b_hh][, w_hr].
  void load_weights(int layer, const std::vector<py::object>& tensors, bool has_biases) {
    const cpu::StreamShape& s = stream_.shape();
    if (layer < 0 || layer >= s.layers) throw std::out_of_range("no such layer");
    const int64_t rows = (s.lstm ? 4 : 3) * s.hidden_size, depth = layer == 0 ? s.input_size : s.state_size;
    if (tensors.size() != 2u + 2u * has_biases + s.has_projection)
      throw std::invalid_argument("too few or many weights");
    cpu::Weights weights{};
    weights.w_ih = parameter(tensors[0], {rows, depth});
    weights.w_hh = parameter(tensors[1], {rows, s.state_size});
    if (has_biases) {
      weights.b_ih = parameter(tensors[2], {rows});
      weights.b_hh = parameter(tensors[3], {rows});
    }
    if (s.has_projection) weights.w_hr = parameter(tensors.back(), {s.state_size, s.hidden_size});
    const Turn turn(busy_);
    stream_.load_weights(layer, weights);
    loaded_ |= layer == s.layers - 1;
  }

  // From now on a step first asks whether dict[key] is still this object, for each (dict, key, object), and for a
  // tensor whether it has been written to or got other memory.
  void watch(const std::vector<std::tuple<py::dict, py::str, py::object>>& entries) {
    watched_.clear();
    for (const auto& [dict, key, object] : entries) watched_.push_back(observe(dict, key, object));
  }

  bool weights_are_current() const {
    for (const Watched& w : watched_) {
      if (PyDict_GetItemWithError(w.dict.ptr(), w.key.ptr()) != w.object.ptr()) {
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        return false;
      }
      TensorView view;
      if (w.has_memory && (!reader_.read(w.object, &view) || view.data != w.data)) return false;
      if (w.has_version && version_of(w.object) != w.version) return false;
    }
    return true;
  }

  // x (N, I), or (I) for one row, with adjacent features; out (N, P), or (P) for one row, contiguous, or None:
  // then `output`, or `row` if x has one dimension.
  py::object step(const py::object& x, const py::object& out) {
    if (!weights_are_current()) weights_changed_();
    if (!loaded_) throw std::runtime_error("no weights are loaded");
    const cpu::StreamShape& s = stream_.shape();
    TensorView from, to;
    if (!reader_.read(x, &from) || !fits(from, s.input_size) || records_gradient(x)) {
      refuse_input_(x);
      throw std::runtime_error("x has no memory that can be read");
    }
    const py::object& output = !out.is_none() ? out : from.dims == 1 ? row_ : output_;
    if (!reader_.read(output, &to) || !fits(to, s.state_size) || !to.contiguous() || records_gradient(output)) {
      refuse_output_(output);
      throw std::runtime_error("the output has no memory that can be written to");
    }
    const int64_t x_stride = from.dims == 2 ? from.strides[0] : 0, output_stride = s.state_size;
    const Turn turn(busy_);
    if (releases_gil_) {
      const py::gil_scoped_release released;
      stream_.step(from.data, x_stride, to.data, output_stride, pace_.without_pause() ? torch_pool() : kNoPool);
      pace_.step_ended();
    } else {
      stream_.step(from.data, x_stride, to.data, output_stride, kNoPool);
    }
    return output;
  }

  // h (L, N, P) and, for an LSTM, c (L, N, H): contiguous, of the dtype states are held in.
  void read_state(const py::object& h, const py::object& c) const {
    void* data[2];
    states(h, c, data);
    const Turn turn(busy_);
    stream_.read_state(data[0], data[1]);
  }
  void write_state(const py::object& h, const py::object& c) {
    void* data[2];
    states(h, c, data);
    const Turn turn(busy_);
    stream_.write_state(data[0], data[1]);
  }

  void reset(int64_t row) {
    if (row < 0 || row >= stream_.shape().batch) throw std::out_of_range("no such row");
    const Turn turn(busy_);
    stream_.reset(row);
  }

 private:
  // About 10 us of multiply-adds: letting others run costs less than a tenth of that.
  static constexpr int64_t kWorthReleasing = 3 << 17;
  static constexpr cpu::Parallel kNoPool{1, nullptr, nullptr};

  // Whether steps come one after the other. The pool's threads sleep when they have waited for some time; waking them takes longer
  // than a step, now and then milliseconds, which nobody who feeds a stream at its own pace would understand.
  class Pace {
   public:
    bool without_pause() {
      if (Clock::now() - last_ > kPause) in_a_row_ = 0;
      return ++in_a_row_ > kBeforePool;
    }
    void step_ended() { last_ = Clock::now(); }

   private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kPause{1};
    static constexpr int64_t kBeforePool = 32;

    Clock::time_point last_{};
    int64_t in_a_row_ = 0;
  };

  // Two threads may come here at once when a step has released the interpreter.
  class Turn {
   public:
    explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
      if (busy_.exchange(true, std::memory_order_acquire))
        throw std::runtime_error("this stream is in use by another thread: give each thread a stream of its own");
    }
    ~Turn() { busy_.store(false, std::memory_order_release); }
    Turn(const Turn&) = delete;

   private:
    std::atomic<bool>& busy_;
  };

  struct Watched {
    py::dict dict;
    py::str key;
    py::object object;
    bool has_memory, has_version;
    void* data;
    int64_t version;
  };

  Watched observe(const py::dict& dict, const py::str& key, const py::object& object) const {
    Watched w{dict, key, object, false, false, nullptr, 0};
    TensorView view;
    w.has_memory = reader_.read(object, &view);
    if (w.has_memory) w.data = view.data;
    if (reader_.is_plain(object)) {
      const auto version = version_of(object);
      w.has_version = version.has_value();
      w.version = version.value_or(0);
    }
    return w;
  }

  // Nothing for tensors made in inference mode, which do not count.
  std::optional<int64_t> version_of(const py::object& object) const {
    const py::object version = version_.of(object);
    if (!version) {
      PyErr_Clear();
      return std::nullopt;
    }
    return PyLong_AsLongLong(version.ptr());
  }

  bool records_gradient(const py::object& tensor) const {
    const py::object wanted = requires_grad_.of(tensor);
    if (!wanted) throw py::error_already_set();
    if (wanted.ptr() != Py_True) return false;
    return py::module_::import("torch").attr("is_grad_enabled")().cast<bool>();
  }

  bool fits(const TensorView& view, int64_t width) const {
    const cpu::StreamShape& s = stream_.shape();
    if (view.dtype != s.dtype) return false;
    if (view.dims == 1) return s.batch == 1 && view.sizes[0] == width && view.strides[0] == 1;
    return view.dims == 2 && view.sizes[0] == s.batch && view.sizes[1] == width && view.strides[1] == 1;
  }

  const void* parameter(const py::object& tensor, const std::vector<int64_t>& sizes) const {
    TensorView view;
    bool good = reader_.read(tensor, &view) && view.dtype == stream_.shape().dtype && view.contiguous() &&
                view.dims == int(sizes.size());
    for (int i = 0; good && i < view.dims; ++i) good = view.sizes[i] == sizes[size_t(i)];
    if (!good) throw std::invalid_argument("a weight has the wrong shape, dtype, device or layout");
    return view.data;
  }

  void states(const py::object& h, const py::object& c, void** data) const {
    const cpu::StreamShape& s = stream_.shape();
    const py::object* tensors[] = {&h, &c};
    const int64_t widths[] = {s.state_size, s.hidden_size};
    const Dtype dtype = s.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
    for (int i = 0; i < 1 + s.lstm; ++i) {
      TensorView view;
      if (!reader_.read(*tensors[i], &view) || view.dtype != dtype || !view.contiguous() || view.dims != 3 ||
          view.sizes[0] != s.layers || view.sizes[1] != s.batch || view.sizes[2] != widths[i])
        throw std::invalid_argument("a state has the wrong shape, dtype, device or layout");
      data[i] = view.data;
    }
    if (!s.lstm) data[1] = nullptr;
  }

  TensorReader reader_;
  cpu::Stream stream_;
  py::object output_, row_;
  py::function refuse_input_, refuse_output_, weights_changed_;
  TensorAttribute version_, requires_grad_;
  std::vector<Watched> watched_;
  const bool releases_gil_;
  Pace pace_;
  bool loaded_ = false;
  mutable std::atomic<bool> busy_{false};
};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<StreamSession>(m, "StreamSession", "What rnnkernels.streaming.Stream computes with.")
      .def(py::init<bool, const std::string&, bool, int64_t, int64_t, int64_t, int64_t, int, bool, py::object,
                    py::object, py::function, py::function, py::function, bool>(),
           py::kw_only(), py::arg("lstm"), py::arg("dtype"), py::arg("bfloat16_weights"), py::arg("batch"),
           py::arg("input_size"), py::arg("hidden_size"), py::arg("state_size"), py::arg("layers"),
           py::arg("has_projection"), py::arg("output"), py::arg("row"), py::arg("refuse_input"),
           py::arg("refuse_output"), py::arg("weights_changed"), py::arg("use_exchange") = true)
      .def("load_weights", &StreamSession::load_weights)
      .def("watch", &StreamSession::watch)
      .def("weights_are_current", &StreamSession::weights_are_current)
      .def("step", &StreamSession::step)
      .def("read_state", &StreamSession::read_state)
      .def("write_state", &StreamSession::write_state)
      .def("reset", &StreamSession::reset);
}

}  // namespace rnnkernels::python
