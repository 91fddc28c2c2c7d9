// The schedules as kernels. Those of clusters are empty below compute capability 9.0, where no plan chooses them.
#pragma once

#include "schedules/backward.h"
#include "schedules/forward.h"

namespace rnnkernels::cuda {

template <class Cell, class Product, class Tile, class Exchange>
__global__ void __launch_bounds__(kMostWarps* kLanes, 1) forward_kernel(const __grid_constant__ ForwardArguments arguments) {
  if constexpr (RNN_HAS_CLUSTERS || !Exchange::kHasMbarriers) forward<Cell, Product, Tile, Exchange>(arguments);
}

template <class Cell, class Product, class Tile, class Exchange>
__global__ void __launch_bounds__(kMostWarps* kLanes, 1) backward_kernel(const __grid_constant__ BackwardArguments arguments) {
  if constexpr (RNN_HAS_CLUSTERS || !Exchange::kHasMbarriers) backward<Cell, Product, Tile, Exchange>(arguments);
}

template <class Cell, class Product, class Tile>
__global__ void pack_forward_kernel(const __grid_constant__ PackArguments arguments) {
  pack_forward<Cell, Product, Tile>(arguments);
}

template <class Cell, class Product, class Tile>
__global__ void pack_backward_kernel(const __grid_constant__ PackArguments arguments) {
  pack_backward<Cell, Product, Tile>(arguments);
}

}  // namespace rnnkernels::cuda
