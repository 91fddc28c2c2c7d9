// Which instruction set serves this process. Knows no kernel, so that the Python module can ask too.
#pragma once

#include <string>
#include <vector>

namespace rnnkernels::cpu {

// The widest set that was built and that this processor runs, or the one RNNKERNELS_CPU_ISA names. Throws
// std::runtime_error when that is a set unknown to this build or not supported by this processor.
const char* chosen_isa();

// Names RNNKERNELS_CPU_ISA may have: sets built into this library, narrowest first, and those that run here.
std::vector<std::string> built_isas();
std::vector<std::string> supported_isas();

}  // namespace rnnkernels::cpu
