// Which instruction set serves this process.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace rnnkernels::cpu {

// The widest set that was built and that this processor runs, or the one RNNKERNELS_CPU_ISA names.
// Throws std::runtime_error when that names a set unknown, not built, or not supported here.
// The environment is read once.
const Kernels& kernels();
const char* chosen_isa();

// Names accepted by RNNKERNELS_CPU_ISA: those built into this library, narrowest first.
std::vector<std::string> built_isas();
std::vector<std::string> supported_isas();

}  // namespace rnnkernels::cpu
