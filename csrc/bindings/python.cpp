// The optional module rnnkernels._C: facts about this build, and streams. The operators do not need it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>

#include "../cpu/dispatch.h"
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build of rnnkernels, and streams.";
  m.def("build_info", &build_info,
        "Compiler, flags, torch version and instruction sets of the build, and the set chosen in this process "
        "(cpu_isa, or None and the reason in cpu_isa_error when RNNKERNELS_CPU_ISA cannot be served).");
  rnnkernels::python::bind_stream(m);
}
