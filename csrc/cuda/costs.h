// What the parts of a step cost: the constants of the plan's estimates, their names and values in costs.inc.
#pragma once

namespace rnnkernels::cuda {

struct Costs {
#define RNN_COST(name, value) double name = value;
#include "costs.inc"
#undef RNN_COST
};

}  // namespace rnnkernels::cuda
