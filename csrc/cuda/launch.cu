#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "launching.cuh"
#include "product.h"
#include "recurrence.h"

namespace rnnkernels::cuda {
namespace {

template <class Cell>
const TileKernels* kernels_of(ProductName product) {
  switch (product) {
    case ProductName::kBFloat16: return tile_kernels<Cell, BFloat16Product>();
    case ProductName::kFloat16: return tile_kernels<Cell, Float16Product>();
    case ProductName::kTf32: return tile_kernels<Cell, Tf32Product>();
    case ProductName::kTf32x3: return tile_kernels<Cell, Tf32x3Product>();
    case ProductName::kFloat64: break;
  }
  throw std::logic_error("rnnkernels: persistent schedules do not multiply in float64");
}

const TileKernels& kernels_of(const Request& request, TileName tile) {
  return (request.cell == CellName::kLstm ? kernels_of<Lstm>(request.product) : kernels_of<Gru>(request.product))[int(tile)];
}

std::string describe(const Request& request, const Plan& plan, const char* kernel, unsigned grid_x, unsigned grid_y) {
  return std::string(request.cell == CellName::kLstm ? "LSTM " : "GRU ") + kernel + " (" + name(plan.schedule) + ", " +
         name(plan.tile) + " tile, grid " + std::to_string(grid_x) + " x " + std::to_string(grid_y) + ", " +
         std::to_string(plan.partition.ctas) + " CTAs together, " + std::to_string(plan.threads) + " threads, " +
         std::to_string(plan.shared_bytes) + " bytes of shared memory)";
}

const void* kernel_of(const TileKernels& kernels, Schedule schedule, int pass) {
  switch (schedule) {
    case Schedule::kOneCta: return kernels.one_cta[pass];
    case Schedule::kCluster: return kernels.cluster[pass];
    case Schedule::kGrid: return kernels.grid[pass];
    case Schedule::kStepwise: break;
  }
  return nullptr;
}

// As schedules/grid.h expects it.
void initialise(const ForwardArguments& arguments, const Workspace& room, Stream stream) {
  check(cudaMemsetAsync(arguments.exchange, 0xff, size_t(room.exchange_bytes), stream), "emptying the exchange of a grid");
  check(cudaMemsetAsync(arguments.flags, 0, size_t(room.flags) * sizeof(uint32_t), stream), "lowering the flags of a grid");
}
void initialise(const BackwardArguments& arguments, const Workspace& room, Stream stream) {
  check(cudaMemsetAsync(arguments.exchange, 0, size_t(room.exchange_bytes), stream), "emptying the exchange of a grid");
}

template <class Arguments>
void launch_pass(const Request& request, const Plan& plan, const PackArguments& pack, Arguments arguments, Stream stream) {
  const int pass = int(request.pass);
  const TileKernels& kernels = kernels_of(request, plan.tile);
  const unsigned directions = unsigned(request.directions), ctas = unsigned(plan.partition.ctas);

  const int64_t vectors = kernels.packed_count[pass](plan.partition);
  const dim3 pack_grid(unsigned((vectors + kThreads - 1) / kThreads), directions);
  void* pack_pointers[] = {const_cast<PackArguments*>(&pack)};
  check(cudaLaunchKernel(kernels.pack[pass], pack_grid, dim3(kThreads), pack_pointers, 0, stream),
        "launching the packing of weights");

  const int slices = int((request.batch + plan.rows - 1) / plan.rows);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(plan.slices_at_once) * ctas, directions);
  config.blockDim = dim3(unsigned(plan.threads));
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  const char* name_of_pass = request.pass == Pass::kForward ? "forward" : "backward";
  const std::string what = describe(request, plan, name_of_pass, config.gridDim.x, directions);
  const void* kernel = kernel_of(kernels, plan.schedule, pass);
  if (kernel == nullptr) throw std::runtime_error("rnnkernels: " + what + " is not compiled");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.shared_bytes)),
        "shared memory of " + what);

  cudaLaunchAttribute together{};
  if (plan.schedule == Schedule::kCluster) {
    if (ctas > 8)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "the cluster of " + what);
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {ctas, 1, 1};
  } else {
    // CTAs that wait for each other must all be resident: the driver refuses what would hang.
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
  }
  config.attrs = &together;
  config.numAttrs = plan.schedule == Schedule::kOneCta ? 0 : 1;
  if (plan.schedule == Schedule::kGrid) initialise(arguments, workspace(request, plan), stream);

  void* pointers[] = {&arguments};
  for (int first = 0; first < slices; first += plan.slices_at_once) {
    arguments.first_slice = first;
    config.gridDim.x = unsigned(std::min(plan.slices_at_once, slices - first)) * ctas;
    check(cudaLaunchKernelExC(&config, kernel, pointers), "launching " + what);
  }
}

// Clusters of 16 lie within one group of multiprocessors, which not every GPU has whole: the driver knows.
int most_cluster(int compute_capability, int64_t shared_bytes) {
  if (compute_capability < 90) return 1;
  const void* kernel = tile_kernels<Lstm, BFloat16Product>()[int(TileName::kDeep)].cluster[0];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16);
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = size_t(shared_bytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {16, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const bool possible =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0;
  if (!possible) (void)cudaGetLastError();  // the question is no error
  return possible ? 16 : 8;
}

}  // namespace

const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "asking for the limits of device " + std::to_string(device));
    return value;
  };
  DeviceLimits limits{};
  limits.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.most_cluster = most_cluster(limits.compute_capability, limits.shared_bytes);
  return known.emplace(device, limits).first->second;
}

int64_t packed_bytes(const Request& request, const Plan& plan) {
  return kernels_of(request, plan.tile).packed_count[int(request.pass)](plan.partition) * int64_t(sizeof(Vector16));
}

Workspace workspace(const Request& request, const Plan& plan) {
  if (plan.schedule != Schedule::kGrid) return {0, 0};
  const int64_t meetings = (request.batch + plan.rows - 1) / plan.rows * request.directions;
  const int pass = int(request.pass);
  return {meetings * kernels_of(request, plan.tile).exchange_bytes[pass](plan.partition),
          request.pass == Pass::kForward ? meetings * plan.partition.ctas : 0};
}

void launch(const Request& request, const Plan& plan, const PackArguments& pack, const ForwardArguments& arguments,
            Stream stream) {
  launch_pass(request, plan, pack, arguments, stream);
}

void launch(const Request& request, const Plan& plan, const PackArguments& pack, const BackwardArguments& arguments,
            Stream stream) {
  launch_pass(request, plan, pack, arguments, stream);
}

}  // namespace rnnkernels::cuda
