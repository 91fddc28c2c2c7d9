#include "wall.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "../cpu/wall.h"

namespace py = pybind11;

namespace rnnkernels::python {

void bind_wall(py::module_& m) {
  using Released = py::call_guard<py::gil_scoped_release>;
  m.def("multiply_add_rate", &cpu::multiply_add_rate, Released(), py::arg("threads"), py::arg("seconds") = 0.2,
        "Float32 operations per second that multiply-adds on registers reach, all threads together.");
  m.def("bfloat16_dot_rate", &cpu::bfloat16_dot_rate, Released(), py::arg("threads"), py::arg("seconds") = 0.2,
        "The same for dot products of bfloat16 pairs; None if the chosen instruction set has none.");
  m.def("read_rate", &cpu::read_rate, Released(), py::arg("bytes"), py::arg("threads"), py::arg("seconds") = 0.1,
        "Bytes per second at which all threads together read, again and again, memory of that size.");
  m.def(
      "step_latency",
      [](const std::string& cell, double seconds) {
        if (cell != "lstm" && cell != "gru") throw std::invalid_argument("cell must be lstm or gru");
        return cpu::step_latency(cell == "lstm", seconds);
      },
      Released(), py::arg("cell"), py::arg("seconds") = 0.1,
      "Seconds per step of a recurrence whose matrix product costs a single multiply-add.");
  m.def("handover_latency", &cpu::handover_latency, Released(), py::arg("seconds") = 0.1,
        "Seconds until one thread sees what another has written.");
}

}  // namespace rnnkernels::python
