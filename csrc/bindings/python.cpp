// The optional module rnnkernels._C: facts about this build, plans of the kernels, streams, and what
// the machine can do at most. The operators do not need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <map>
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
  const auto division = RNNKERNELS_ISA::divide_forward(layer, cell == "lstm" ? 4 : 3, threads);
  py::dict result;
  result["slices"] = division.slices;
  result["by_units"] = division.by_units;
  return result;
}

rnnkernels::cuda::CellName cell_of(const std::string& cell) {
  if (cell != "lstm" && cell != "gru") throw std::invalid_argument("cell must be lstm or gru");
  return cell == "lstm" ? rnnkernels::cuda::CellName::kLstm : rnnkernels::cuda::CellName::kGru;
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
  if (hidden < 1 || batch < 1 || directions < 1) throw std::invalid_argument("sizes must be positive");
  const Request request{cell_of(cell), product_of(dtype, tf32),
                        backward ? Pass::kBackward : Pass::kForward, hidden, batch, directions, projected};
  const DeviceLimits limits{compute_capability, multiprocessors, shared_bytes, most_cluster};
  py::dict result = describe(choose(request, limits, measurements(), wish_for(schedule, tile, ctas)));
  py::list fitting;
  for (const Plan& plan : candidates(request, limits)) fitting.append(describe(plan));
  result["candidates"] = fitting;
  return result;
}

// Names are those of Request, DeviceLimits, Plan and Costs.
double cuda_estimate(const std::string& cell, const std::string& dtype, bool tf32, bool backward, int64_t hidden, int64_t batch,
                     int directions, int compute_capability, int multiprocessors, int64_t shared_bytes, int most_cluster,
                     const std::string& tile, int ctas, const std::map<std::string, double>& costs) {
  using namespace rnnkernels::cuda;
  Costs asked;
  size_t known = 0;
#define RNN_COST(name, value)                                 \
  if (const auto it = costs.find(#name); it != costs.end()) { \
    asked.name = it->second;                                  \
    ++known;                                                  \
  }
#include "../cuda/costs.inc"
#undef RNN_COST
  if (known != costs.size()) throw std::invalid_argument("costs has a name that csrc/cuda/costs.inc does not have");
  const Request request{cell_of(cell), product_of(dtype, tf32), backward ? Pass::kBackward : Pass::kForward, hidden, batch,
                        directions, false};
  const DeviceLimits limits{compute_capability, multiprocessors, shared_bytes, most_cluster};
  const Wish wish = wish_for("", tile, ctas);
  const Plan plan = plan_of(request, limits, wish.tile.value_or(TileName::kNarrow), ctas, asked);
  if (plan.schedule == Schedule::kStepwise) throw std::invalid_argument("it does not fit: " + plan.reason);
  return plan.microseconds;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build of rnnkernels, plans of its kernels, streams, and the machine's limits.";
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
  m.def("cuda_estimate", &cuda_estimate,
        "The estimated microseconds per step of one tile in one or more CTAs, by a cost model with other constants, by name, than "
        "the ones that were compiled in (csrc/cuda/costs.inc).",
        py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("tf32") = false, py::arg("backward"), py::arg("hidden"),
        py::arg("batch"), py::arg("directions") = 1, py::arg("compute_capability"), py::arg("multiprocessors"),
        py::arg("shared_bytes"), py::arg("most_cluster"), py::arg("tile"), py::arg("ctas"), py::arg("costs"));
  m.def("cpu_division", &cpu_division,
        "How the CPU kernels would divide a dense layer among threads: into how many slices of the batch for each direction, or "
        "(by_units) by the units of every step.",
        py::kw_only(), py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("input_size"), py::arg("hidden_size"),
        py::arg("state_size"), py::arg("directions") = 1, py::arg("has_projection") = false, py::arg("threads"));
  rnnkernels::python::bind_stream(m);
  rnnkernels::python::bind_wall(m);
}
