// Adds DirectCall to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnkernels::python {

void bind_direct(pybind11::module_& m);

}  // namespace rnnkernels::python
