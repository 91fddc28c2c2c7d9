#include "auxiliary.h"

#include <algorithm>

#include "launching.cuh"

namespace rnnkernels::cuda {
namespace {

__global__ void write_offsets_kernel(const __grid_constant__ OffsetsArguments arguments) { write_offsets(arguments); }

template <class S>
__global__ void states_before_kernel(const __grid_constant__ StatesBeforeArguments arguments) {
  states_before<S>(arguments);
}

template <class S>
__global__ void unprojected_states_kernel(const __grid_constant__ UnprojectedStatesArguments arguments) {
  unprojected_states<S>(arguments);
}

template <class Cell, class S>
__global__ void bias_gradients_kernel(const __grid_constant__ BiasGradientsArguments arguments) {
  bias_gradients<Cell, S>(arguments);
}

}  // namespace

void write_offsets(const int64_t* offsets, int64_t count, int64_t* to, Stream stream) {
  for (int64_t first = 0; first < count; first += OffsetsArguments::kMost) {
    OffsetsArguments arguments{to + first, int(std::min<int64_t>(OffsetsArguments::kMost, count - first)), {}};
    std::copy_n(offsets + first, arguments.count, arguments.values);
    launch_simple(write_offsets_kernel, 1, 1, arguments, stream, "write_offsets");
  }
}

void states_before(ProductName product, const StatesBeforeArguments& arguments, Stream stream) {
  const int64_t threads = arguments.sequence.rows * kLanes;
  with_storage(product, [&](auto storage) {
    launch_simple(states_before_kernel<decltype(storage)>, threads, arguments.sequence.directions, arguments, stream,
                  "states_before");
  });
}

void unprojected_states(ProductName product, const UnprojectedStatesArguments& arguments, Stream stream) {
  with_storage(product, [&](auto storage) {
    launch_simple(unprojected_states_kernel<decltype(storage)>, arguments.rows * arguments.hidden, 1, arguments, stream,
                  "unprojected_states");
  });
}

void bias_gradients(CellName cell, ProductName product, int directions, const BiasGradientsArguments& arguments, Stream stream) {
  with_cell_and_storage(cell, product, [&](auto of, auto storage) {
    using Cell = decltype(of);
    launch_simple(bias_gradients_kernel<Cell, decltype(storage)>, int64_t(Cell::kGates) * arguments.hidden, directions, arguments,
                  stream, "bias_gradients");
  });
}

}  // namespace rnnkernels::cuda
