// Adds StreamSession to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnkernels::python {

void bind_stream(pybind11::module_& m);

}  // namespace rnnkernels::python
