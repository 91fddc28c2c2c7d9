// The schedules as kernels.
#pragma once

#include "schedules/backward.h"
#include "schedules/forward.h"

namespace rnnkernels::cuda {

template <class Cell, class Product, class Tile, class Exchange>
__global__ void __launch_bounds__(kMostWarps * kLanes, 1) forward_kernel(const __grid_constant__ ForwardArguments arguments) {
  forward<Cell, Product, Tile, Exchange>(arguments);
}

template <class Cell, class Product, class Tile, class Exchange>
__global__ void __launch_bounds__(kMostWarps * kLanes, 1) backward_kernel(const __grid_constant__ BackwardArguments arguments) {
  backward<Cell, Product, Tile, Exchange>(arguments);
}

}  // namespace rnnkernels::cuda
