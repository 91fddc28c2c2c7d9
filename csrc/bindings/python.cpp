// The optional module rnnkernels._C: facts about this build, plans of the CUDA kernels, and streams. The operators do not
// need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch.h"
#include "../cuda/plan.h"
#include "stream.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = RNNKERNELS_VERSION;
  info["compiler"] = RNNKERNELS_COMPILER;
  info["flags"] = RNNKERNELS_FLAGS;
  info["torch"] = RNNKERNELS_TORCH;
  info["cpu_isas_built"] = rnnkernels::cpu::built_isas();
  info["cpu_isas_supported"] = rnnkernels::cpu::supported_isas();
  info["cpu_isa"] = py::none();
  info["cpu_isa_error"] = py::none();
  try {
    info["cpu_isa"] = rnnkernels::cpu::chosen_isa();
  } catch (const std::exception& error) {
    info["cpu_isa_error"] = error.what();
  }
  return info;
}

py::dict describe(const rnnkernels::cuda::Plan& plan) {
  using namespace rnnkernels::cuda;
  const bool persistent = plan.schedule != Schedule::kStepwise;
  py::dict result;
  result["schedule"] = name(plan.schedule);
  result["tile"] = persistent ? py::object(py::str(name(plan.tile))) : py::none();
  result["ctas"] = plan.partition.ctas;
  result["units"] = plan.partition.units;
  result["rows"] = plan.rows;
  result["slices_at_once"] = plan.slices_at_once;
  result["threads"] = plan.threads;
  result["shared_bytes"] = plan.shared_bytes;
  result["microseconds"] = plan.microseconds;
  result["measured"] = plan.measured;
  result["reason"] = plan.reason;
  return result;
}

rnnkernels::cuda::ProductName product_of(const std::string& dtype, bool tf32) {
  using rnnkernels::cuda::ProductName;
  if (dtype == "bfloat16") return ProductName::kBFloat16;
  if (dtype == "float16") return ProductName::kFloat16;
  if (dtype == "float32") return tf32 ? ProductName::kTf32 : ProductName::kTf32x3;
  if (dtype == "float64") return ProductName::kFloat64;
  throw std::invalid_argument("dtype must be float32, float64, bfloat16 or float16");
}

// Names are those of Request, DeviceLimits and Wish.
py::dict cuda_plan(const std::string& cell, const std::string& dtype, bool tf32, bool backward, int64_t hidden, int64_t batch,
                   int directions, bool projected, int compute_capability, int multiprocessors, int64_t shared_bytes,
                   int most_cluster, const std::string& schedule, const std::string& tile, int ctas) {
  using namespace rnnkernels::cuda;
  if (cell != "lstm" && cell != "gru") throw std::invalid_argument("cell must be lstm or gru");
  if (hidden < 1 || batch < 1 || directions < 1) throw std::invalid_argument("sizes must be positive");
  const Request request{cell == "lstm" ? CellName::kLstm : CellName::kGru, product_of(dtype, tf32),
                        backward ? Pass::kBackward : Pass::kForward, hidden, batch, directions, projected};
  const DeviceLimits limits{compute_capability, multiprocessors, shared_bytes, most_cluster};
  py::dict result = describe(choose(request, limits, measurements(), wish_for(schedule, tile, ctas)));
  py::list fitting;
  for (const Plan& plan : candidates(request, limits)) fitting.append(describe(plan));
  result["candidates"] = fitting;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build of rnnkernels, plans of its CUDA kernels, and streams.";
  m.def("build_info", &build_info,
        "Compiler, flags, torch version and instruction sets of the build, and the set chosen in this process "
        "(cpu_isa, or None and the reason in cpu_isa_error when RNNKERNELS_CPU_ISA cannot be served).");
  m.def("cuda_plan", &cuda_plan,
        "The schedule, tile and layout the CUDA kernels would take for a pass of a layer on a device with these limits, with the "
        "estimated microseconds per step, the reason, and under \"candidates\" everything that fits. schedule, tile and ctas ask "
        "for what is to be taken instead of the fastest.",
        py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("tf32") = false, py::arg("backward"), py::arg("hidden"),
        py::arg("batch"), py::arg("directions") = 1, py::arg("projected") = false, py::arg("compute_capability"),
        py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("most_cluster"), py::arg("schedule") = "",
        py::arg("tile") = "", py::arg("ctas") = 0);
  rnnkernels::python::bind_stream(m);
}
