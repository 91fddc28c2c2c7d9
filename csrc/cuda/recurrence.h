// Launches the persistent schedules a plan names, the steps of the stepwise one, and what goes around them. No torch; errors are
// exceptions that name the kernel and its launch. Everything is asynchronous on the stream given, and can be captured into a
// graph. Implemented by *.cu, and on the emulated machine by tests/emulation/launch.cpp.
#pragma once

#include "auxiliary.h"
#include "plan.h"
#include "stepwise.h"

struct CUstream_st;

namespace rnnkernels::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// The kernels of one tile, as the runtime knows them; null where a tile is not made for that many CTAs.
struct TileKernels {
  const void* pack[2];  // by Pass
  const void* one_cta[2];
  const void* cluster[2];
  const void* grid[2];
  int64_t (*packed_count[2])(const Partition&);  // 16-byte vectors of packed weights of one direction
  int64_t (*exchange_bytes[2])(const Partition&);  // where CTAs of a grid meet: of one direction of one slice
};

// By TileName. One translation unit per cell and product: recurrence.cu.
template <class Cell, class Product>
const TileKernels* tile_kernels();

// What the device of this index allows; asked once.
const DeviceLimits& device_limits(int device);

// Bytes of a direction's packed weights, for arguments.packed.
int64_t packed_bytes(const Request& request, const Plan& plan);

// For arguments.exchange and .flags: of the grid, else nothing. Launching initialises them.
struct Workspace {
  int64_t exchange_bytes, flags;
};
Workspace workspace(const Request& request, const Plan& plan);

// Packs the weights and runs the recurrence of the whole sequence.
void launch(const Request& request, const Plan& plan, const PackArguments& pack, const ForwardArguments& arguments,
            Stream stream);
void launch(const Request& request, const Plan& plan, const PackArguments& pack, const BackwardArguments& arguments,
            Stream stream);

void launch(CellName cell, ProductName product, const StepForwardArguments& arguments, Stream stream);
void launch(CellName cell, ProductName product, const StepBackwardArguments& arguments, Stream stream);
void launch(ProductName product, const StepProjectionArguments& arguments, Stream stream);
void launch(ProductName product, const StepProjectionBackwardArguments& arguments, Stream stream);

void write_offsets(const int64_t* offsets, int64_t count, int64_t* to, Stream stream);
void states_before(ProductName product, const StatesBeforeArguments& arguments, Stream stream);
void unprojected_states(ProductName product, const UnprojectedStatesArguments& arguments, Stream stream);
void bias_gradients(CellName cell, ProductName product, int directions, const BiasGradientsArguments& arguments,
                    Stream stream);

}  // namespace rnnkernels::cuda
