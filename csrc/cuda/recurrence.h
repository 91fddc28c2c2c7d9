// Launches the persistent schedules a plan names. No torch; errors are exceptions that name the kernel and its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "plan.h"

namespace rnnkernels::cuda {

// The kernels of one tile, as the runtime knows them; null where a tile is not made for that many CTAs.
struct TileKernels {
  const void* pack[2];  // by Pass
  const void* one_cta[2];
  const void* cluster[2];
  int64_t (*packed_count[2])(const Partition&);  // 16-byte vectors of packed weights of one direction
};

// By TileName. One translation unit per cell and product: recurrence.cu.
template <class Cell, class Product>
const TileKernels* tile_kernels();

const TileKernels& kernels_of(const Request& request, TileName tile);

// What the device of this index allows; asked once.
DeviceLimits device_limits(int device);

// Packs the weights and runs the recurrence of the whole sequence. arguments.packed points to workspaces of
// 16 * packed_count bytes each.
void launch(const Request& request, const Plan& plan, const PackArguments& pack, const ForwardArguments& arguments, cudaStream_t stream);
void launch(const Request& request, const Plan& plan, const PackArguments& pack, const BackwardArguments& arguments, cudaStream_t stream);

}  // namespace rnnkernels::cuda
