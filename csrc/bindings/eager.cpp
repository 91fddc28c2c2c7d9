// The optional module rnnkernels._eager: calls in eager mode past the Python of this package. Unlike the rest of the package it
// needs torch's C++ headers, whose classes change from version to version: it is of use with the torch that it was compiled
// against, and rnnkernels/_library.py asks which that was.
#include <pybind11/pybind11.h>

#include "direct.h"

namespace rnnkernels {
namespace {

py::object record_call(const std::string& cell, const std::string& family, const py::tuple& flags, bool one_step,
                       const py::object& batch_sizes, const py::object& input, const py::sequence& states,
                       const py::sequence& weights) {
  HANDLE_TH_ERRORS
  const py::object not_implemented = py::reinterpret_borrow<py::object>(Py_NotImplemented);
  if (in_function_mode() || torch::jit::tracer::isTracing()) return not_implemented;
  if (cell != "lstm" && cell != "gru") return not_implemented;  // one that has no kernels here yet
  const bool lstm = cell == "lstm";
  if (states.size() != (lstm ? 2 : 1) || flags.size() != (lstm ? 3 : 2)) throw py::value_error("wrong number of states or flags");
  Call call{&find_operators(lstm, family), flags[0].cast<bool>(), lstm && flags[1].cast<bool>(), flags[lstm ? 2 : 1].cast<bool>(),
            one_step, {}};
  Tensor x;
  std::vector<Tensor> own_states(states.size()), own_weights(weights.size());
  if ((!batch_sizes.is_none() && !read(batch_sizes, &call.batch_sizes)) || !read(input, &x)) return not_implemented;
  for (size_t i = 0; i < own_states.size(); ++i)
    if (!read(py::object(states[i]), &own_states[i])) return not_implemented;
  for (size_t i = 0; i < own_weights.size(); ++i)
    if (!read(py::object(weights[i]), &own_weights[i])) return not_implemented;

  variable_list results;
  {
    const py::gil_scoped_release released;
    results = record(call, x, own_states, own_weights);
  }
  py::tuple wrapped(results.size());
  for (size_t i = 0; i < results.size(); ++i) wrapped[i] = wrap(std::move(results[i]));
  return wrapped;
  END_HANDLE_TH_ERRORS_PYBIND
}

}  // namespace
}  // namespace rnnkernels

PYBIND11_MODULE(_eager, m) {
  using namespace rnnkernels;
  m.doc() = "Calls in eager mode past the Python of this package.";
  default_device_mode();
  py::class_<DirectCall>(m, "DirectCall", "What rnnkernels.direct calls.")
      .def(py::init<const std::string&, py::object>(), py::arg("library"), py::arg("selection"))
      .def("layers", &DirectCall::layers, py::arg("module"), py::arg("input"), py::arg("hx"))
      .def("cell", &DirectCall::cell, py::arg("lstm"), py::arg("module"), py::arg("input"), py::arg("hx"));
  m.def("record", &record_call, py::arg("cell"), py::arg("family"), py::arg("flags"), py::arg("one_step"), py::arg("batch_sizes"),
        py::arg("input"), py::arg("states"), py::arg("weights"),
        "-> (output, *final_states), of one step final_states only, whose gradients are the backward operator's; or "
        "NotImplemented, for another cell than lstm and gru, with a tensor of a subclass, in a TorchFunctionMode and while a tracer "
        "is on.");
}
