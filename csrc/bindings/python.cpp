// The optional module rnnkernels._C: facts about this build, plans of the kernels, streams, and what the machine can do at
// most. The operators do not need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/sequence.h"
#include "../cuda/plan.h"
#include "stream.h"
#include "wall.h"

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

// Names are those of Request and DeviceLimits.
py::dict cuda_plan(const std::string& cell, const std::string& dtype, bool backward, int64_t hidden, int64_t batch,
                   int directions, bool projected, int compute_capability, int multiprocessors, int64_t shared_bytes,
                   int most_cluster, bool persistent_only) {
  using namespace rnnkernels::cuda;
  if (cell != "lstm" && cell != "gru") throw std::invalid_argument("cell must be lstm or gru");
  if (hidden < 1 || batch < 1 || directions < 1) throw std::invalid_argument("sizes must be positive");
  ProductName product = ProductName::kTf32x3;
  if (dtype == "bfloat16") {
    product = ProductName::kBFloat16;
  } else if (dtype == "float16") {
    product = ProductName::kFloat16;
  } else if (dtype != "float32") {
    throw std::invalid_argument("dtype must be float32, bfloat16 or float16");
  }
  const Request request{cell == "lstm" ? CellName::kLstm : CellName::kGru, product, backward ? Pass::kBackward : Pass::kForward,
                        hidden, batch, directions, projected};
  const Plan plan =
      choose(request, {compute_capability, multiprocessors, shared_bytes, most_cluster}, measurements(), persistent_only);
  const bool persistent = plan.schedule != Schedule::kStepwise;
  py::dict result;
  result["schedule"] = name(plan.schedule);
  result["tile"] = persistent ? py::object(py::str(name(plan.tile))) : py::none();
  result["ctas"] = plan.partition.ctas;
  result["units"] = plan.partition.units;
  result["rows"] = plan.rows;
  result["threads"] = plan.threads;
  result["shared_bytes"] = plan.shared_bytes;
  result["microseconds"] = plan.microseconds;
  result["measured"] = plan.measured;
  result["reason"] = plan.reason;
  return result;
}

// Names are those of Layer. The division does not depend on the instruction set.
py::dict cpu_division(const std::string& cell, int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
                      int64_t state_size, int directions, bool has_projection, int threads) {
  using namespace rnnkernels::cpu;
  if (cell != "lstm" && cell != "gru") throw std::invalid_argument("cell must be lstm or gru");
  if (steps < 1 || batch < 1 || input_size < 1 || hidden_size < 1 || state_size < 1 || threads < 1)
    throw std::invalid_argument("sizes must be positive");
  if (directions != 1 && directions != kMostDirections) throw std::invalid_argument("directions must be 1 or 2");
  const Layer layer{Dtype::kFloat32, steps, batch, steps * batch, nullptr, input_size, hidden_size, state_size,
                    directions, true, has_projection};
  const auto division = RNNKERNELS_ISA::divide(layer, cell == "lstm" ? 4 : 3, threads);
  py::dict result;
  result["slices"] = division.slices;
  result["by_units"] = division.by_units;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build of rnnkernels, plans of its kernels, streams, and the machine's limits.";
  m.def("build_info", &build_info,
        "Compiler, flags, torch version and instruction sets of the build, and the set chosen in this process "
        "(cpu_isa, or None and the reason in cpu_isa_error when RNNKERNELS_CPU_ISA cannot be served).");
  m.def("cuda_plan", &cuda_plan,
        "The schedule, tile and layout the CUDA kernels would take for a pass of a layer on a device with these limits, with the "
        "estimated microseconds per step and the reason.",
        py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("backward"), py::arg("hidden"), py::arg("batch"),
        py::arg("directions") = 1, py::arg("projected") = false, py::arg("compute_capability"), py::arg("multiprocessors"),
        py::arg("shared_bytes"), py::arg("most_cluster"), py::arg("persistent_only") = false);
  m.def("cpu_division", &cpu_division,
        "How the CPU kernels would divide a dense layer among threads: into how many slices of the batch for each direction, or "
        "(by_units) by the units of every step.",
        py::kw_only(), py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("input_size"), py::arg("hidden_size"),
        py::arg("state_size"), py::arg("directions") = 1, py::arg("has_projection") = false, py::arg("threads"));
  rnnkernels::python::bind_stream(m);
  rnnkernels::python::bind_wall(m);
}
