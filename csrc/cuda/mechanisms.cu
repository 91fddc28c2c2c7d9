// A program that measures what the schedules are made of:
//
//     mechanisms NAME [NUMBER...]    prints {"median": ..., "p20": ..., "p80": ...} as the list below has it
//
// Costs are slopes: the time of many rounds less the time of few, by the difference, so that what a launch costs is not in them.
// Waits are bounded (device.h), so that a mistake ends with an error. No torch. benchmarks/gpu_acceptance runs it.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "mechanisms.h"

namespace {

using namespace rnnkernels::cuda;
namespace mechanisms = rnnkernels::cuda::mechanisms;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// ---- Kernels -------------------------------------------------------------------------------------------------------

__global__ void empty() {}
__global__ void throw_async(int rounds, uint32_t* out) {
  if constexpr (RNN_HAS_CLUSTERS) mechanisms::throw_async(rounds, out);
}
__global__ void exchange(int ctas, int vectors, int rounds, uint32_t* out) {
  if constexpr (RNN_HAS_CLUSTERS) mechanisms::exchange_in_cluster(ctas, vectors, rounds, out);
}
__global__ void throw_flags(int rounds, uint32_t* flags) { mechanisms::throw_flags(rounds, flags); }
__global__ void throw_words(int rounds, uint32_t* words) { mechanisms::throw_words(rounds, words); }
__global__ void meet_by_flags(int rounds, uint32_t* flags) { mechanisms::meet_by_flags(rounds, flags); }
__global__ void meet_in_grid(int rounds) {
  for (int round = 0; round < rounds; ++round) cooperative_groups::this_grid().sync();
}
__global__ void meet_in_cta(int rounds) { mechanisms::meet_in_cta(rounds); }
template <class Product, int kChains>
__global__ void multiply(int rounds, float* out) {
  mechanisms::multiply<Product, kChains>(rounds, out);
}
template <class Cell>
__global__ void step_cell(int rounds, float* out) {
  mechanisms::step_cell<Cell>(rounds, out);
}
__global__ void read_shared(int rounds, int vectors, uint32_t* out) { mechanisms::read_shared(rounds, vectors, out); }
__global__ void read_global(int rounds, const Vector16* memory, int64_t vectors, uint32_t* out) {
  mechanisms::read_global(rounds, memory, vectors, out);
}
__global__ void chase(int rounds, const Vector16* memory, uint32_t* out) { mechanisms::chase(rounds, memory, out); }

// Each load's address, in the next CTA's shared memory, is what the load before brought.
__global__ void chase_remote(int rounds, uint32_t* out) {
#if RNN_HAS_CLUSTERS
  __shared__ uint32_t ring[256];
  auto cluster = cooperative_groups::this_cluster();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) ring[i] = uint32_t(i + 37) % 256;
  cluster.sync();
  const uint32_t* remote = cluster.map_shared_rank(ring, (cluster.block_rank() + 1) % cluster.num_blocks());
  uint32_t place = 0;
  for (int round = 0; round < rounds; ++round) place = *static_cast<const volatile uint32_t*>(remote + place);
  if (threadIdx.x == 0) out[blockIdx.x] = place;
  cluster.sync();
#endif
}

// out (2): cycles and nanoseconds while the multiprocessor is busy.
__global__ void compare_clocks(int64_t cycles, int64_t* out) {
  const uint64_t begin = device::nanoseconds();
  const int64_t first = clock64();
  int64_t now = first;
  while (now - first < cycles) now = clock64();
  if (threadIdx.x == 0 && blockIdx.x == 0) {
    out[0] = now - first;
    out[1] = int64_t(device::nanoseconds() - begin);
  }
}

// ---- Timing --------------------------------------------------------------------------------------------------------

struct Quantiles {
  double p20, median, p80;
};

Quantiles quantiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) { return values[size_t(q * double(values.size() - 1) + 0.5)]; };
  return {at(0.2), at(0.5), at(0.8)};
}

Quantiles mapped(Quantiles q, const std::function<double(double)>& f) {
  const double a = f(q.p20), b = f(q.p80);
  return {std::min(a, b), f(q.median), std::max(a, b)};
}

constexpr int kSamples = 15;

// Microseconds of the device between two events around a launch.
double microseconds(const std::function<void()>& launch) {
  static cudaEvent_t events[2] = {};
  for (cudaEvent_t& event : events)
    if (event == nullptr) check(cudaEventCreate(&event), "creating an event");
  check(cudaEventRecord(events[0]), "recording an event");
  launch();
  check(cudaEventRecord(events[1]), "recording an event");
  check(cudaEventSynchronize(events[1]), "waiting for a kernel");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, events[0], events[1]), "asking for the time");
  return milliseconds * 1e3;
}

// Microseconds per round.
Quantiles slope(int few, int many, const std::function<void(int)>& launch) {
  launch(few);
  launch(many);
  std::vector<double> values;
  for (int i = 0; i < kSamples; ++i) {
    const double shorter = microseconds([&] { launch(few); }), longer = microseconds([&] { launch(many); });
    values.push_back((longer - shorter) / (many - few));
  }
  return quantiles(std::move(values));
}

template <class T>
T* device_memory(size_t count) {
  T* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)), "allocating");
  check(cudaMemset(memory, 0, count * sizeof(T)), "clearing memory");
  return memory;
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, int grid, int threads, size_t shared, int cluster, Arguments... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "asking for shared memory");
  if (cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "a large cluster");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute attribute{};
  attribute.id = cluster > 0 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
  if (cluster > 0) {
    attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  } else {
    attribute.val.cooperative = 1;  // CTAs that wait for each other
  }
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching");
}

int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "asking for multiprocessors");
  return count;
}

// ---- What can be asked for -----------------------------------------------------------------------------------------

using Numbers = std::vector<int>;

// Cycles per microsecond, all multiprocessors busy.
Quantiles clock_rate(const Numbers&) {
  int64_t* out = device_memory<int64_t>(2);
  std::vector<double> values;
  for (int i = 0; i < kSamples; ++i) {
    compare_clocks<<<multiprocessors(), 256>>>(4'000'000, out);
    int64_t found[2];
    check(cudaMemcpy(found, out, sizeof found, cudaMemcpyDeviceToHost), "comparing clocks");
    values.push_back(double(found[0]) * 1e3 / double(found[1]));
  }
  return quantiles(std::move(values));
}

// Microseconds of the host per launch of an empty kernel.
Quantiles launch_on_host(const Numbers&) {
  constexpr int kLaunches = 500;  // fewer than the queue holds
  std::vector<double> values;
  for (int i = 0; i < kSamples + 1; ++i) {
    check(cudaDeviceSynchronize(), "waiting");
    const auto begin = std::chrono::steady_clock::now();
    for (int k = 0; k < kLaunches; ++k) empty<<<1, 32>>>();
    values.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / kLaunches);
  }
  values.erase(values.begin());
  return quantiles(std::move(values));
}

// Microseconds per node of a graph of empty kernels, one after the other.
Quantiles graph_node(const Numbers&) {
  cudaStream_t stream{};
  check(cudaStreamCreate(&stream), "creating a stream");
  std::map<int, cudaGraphExec_t> graphs;
  for (const int nodes : {100, 1100}) {
    cudaGraph_t graph{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    for (int i = 0; i < nodes; ++i) empty<<<1, 32, 0, stream>>>();
    check(cudaStreamEndCapture(stream, &graph), "capturing");
    check(cudaGraphInstantiate(&graphs[nodes], graph, 0), "instantiating a graph");
  }
  return slope(100, 1100, [&](int nodes) { check(cudaGraphLaunch(graphs[nodes], nullptr), "launching a graph"); });
}

// CTAs of the cluster. Microseconds from an asynchronous store to the end of the wait for it.
Quantiles remote_latency(const Numbers& n) {
  uint32_t* out = device_memory<uint32_t>(1);
  const Quantiles trip = slope(1000, 11000, [&](int rounds) {
    launch(throw_async, n[0], 32, mechanisms::kBarrierBytes + sizeof(Vector16), n[0], rounds, out);
  });
  return mapped(trip, [](double us) { return us / 2; });
}

// CTAs of a cluster, vectors of 16 bytes that each hands to all, clusters. Microseconds per exchange.
Quantiles cluster_exchange(const Numbers& n) {
  uint32_t* out = device_memory<uint32_t>(size_t(n[0]) * size_t(n[2]));
  const size_t shared = mechanisms::kBarrierBytes + 2 * sizeof(Vector16) * size_t(n[0]) * size_t(n[1]);
  return slope(500, 5500, [&](int rounds) { launch(exchange, n[0] * n[2], 256, shared, n[0], n[0], n[1], rounds, out); });
}

// CTAs of the cluster. Microseconds per load from another CTA's shared memory that the next one depends on.
Quantiles remote_load(const Numbers& n) {
  uint32_t* out = device_memory<uint32_t>(size_t(n[0]));
  return slope(1000, 11000, [&](int rounds) { launch(chase_remote, n[0], 32, 0, n[0], rounds, out); });
}

// Half a trip between two multiprocessors, in microseconds.
Quantiles half_a_trip(void (*kernel)(int, uint32_t*)) {
  constexpr size_t kWords = 2 * mechanisms::kFlagStride;
  uint32_t* words = device_memory<uint32_t>(kWords);
  const Quantiles trip = slope(1000, 11000, [&](int rounds) {
    check(cudaMemsetAsync(words, 0, kWords * sizeof(uint32_t)), "clearing memory");
    launch(kernel, 2, 32, 100 * 1024, 0, rounds, words);  // too much shared memory for both on one multiprocessor
  });
  return mapped(trip, [](double us) { return us / 2; });
}

// From a release store to the acquire load that sees it.
Quantiles flag_latency(const Numbers&) { return half_a_trip(throw_flags); }

// From a store to the load that sees it, unordered with any others.
Quantiles word_latency(const Numbers&) { return half_a_trip(throw_words); }

// CTAs. Microseconds per meeting, each CTA with a flag of its own.
Quantiles flag_barrier(const Numbers& n) {
  const size_t words = size_t(n[0]) * mechanisms::kFlagStride;
  uint32_t* flags = device_memory<uint32_t>(words);
  return slope(500, 5500, [&](int rounds) {
    check(cudaMemsetAsync(flags, 0, words * sizeof(uint32_t)), "clearing flags");
    launch(meet_by_flags, n[0], 256, 0, 0, rounds, flags);
  });
}

// CTAs. Microseconds per grid barrier of cooperative groups.
Quantiles grid_barrier(const Numbers& n) {
  return slope(500, 5500, [&](int rounds) { launch(meet_in_grid, n[0], 256, 0, 0, rounds); });
}

// Threads. Microseconds per barrier of a CTA.
Quantiles cta_barrier(const Numbers& n) {
  return slope(10'000, 110'000, [&](int rounds) { launch(meet_in_cta, 1, n[0], 0, 0, rounds); });
}

// Microseconds per product that the next one depends on, one warp.
template <class Product>
Quantiles product_latency(const Numbers&) {
  float* out = device_memory<float>(32);
  return slope(10'000, 110'000, [&](int rounds) { launch(multiply<Product, 1>, 1, 32, 0, 0, rounds, out); });
}

// Instructions per microsecond and multiprocessor, 8 warps with 8 accumulators each.
template <class Product>
Quantiles product_rate(const Numbers&) {
  constexpr int kWarps = 8, kChains = 8;
  float* out = device_memory<float>(size_t(multiprocessors()) * kWarps * kLanes);
  const Quantiles round = slope(5'000, 55'000, [&](int rounds) {
    launch(multiply<Product, kChains>, multiprocessors(), kWarps * kLanes, 0, 0, rounds, out);
  });
  return mapped(round, [](double us) { return kWarps * kChains / us; });
}

// Microseconds per cell that the next step's depends on.
template <class Cell>
Quantiles cell_latency(const Numbers&) {
  float* out = device_memory<float>(32);
  return slope(10'000, 110'000, [&](int rounds) { launch(step_cell<Cell>, 1, 32, 0, 0, rounds, out); });
}

// Threads. Bytes per microsecond and multiprocessor.
Quantiles shared_rate(const Numbers& n) {
  const int vectors = 8192;
  uint32_t* out = device_memory<uint32_t>(size_t(multiprocessors()) * size_t(n[0]));
  const Quantiles round = slope(1'000, 11'000, [&](int rounds) {
    launch(read_shared, multiprocessors(), n[0], sizeof(Vector16) * vectors, 0, rounds, vectors, out);
  });
  return mapped(round, [&](double us) { return 8.0 * sizeof(Vector16) * n[0] / us; });
}

// KiB of memory that all read. Bytes per microsecond, all multiprocessors together.
Quantiles global_rate(const Numbers& n) {
  constexpr int kThreads = 512;
  const int64_t vectors = int64_t(n[0]) * 1024 / int64_t(sizeof(Vector16));
  const Vector16* memory = device_memory<Vector16>(size_t(vectors));
  uint32_t* out = device_memory<uint32_t>(size_t(multiprocessors()) * kThreads);
  const Quantiles round = slope(200, 2200, [&](int rounds) {
    launch(read_global, multiprocessors(), kThreads, 0, 0, rounds, memory, vectors, out);
  });
  return mapped(round, [](double us) { return 8.0 * sizeof(Vector16) * kThreads * multiprocessors() / us; });
}

// KiB of memory. Microseconds per load, past the L1 cache, that the next one depends on.
Quantiles global_latency(const Numbers& n) {
  const size_t vectors = size_t(n[0]) * 1024 / sizeof(Vector16);
  std::vector<Vector16> ring(vectors);
  // A stride that is odd and not near a power of two visits all places, in another line each.
  for (size_t i = 0; i < vectors; ++i) ring[i].words[0] = uint32_t((i + 1021) % vectors);
  Vector16* memory = device_memory<Vector16>(vectors);
  check(cudaMemcpy(memory, ring.data(), vectors * sizeof(Vector16), cudaMemcpyHostToDevice), "copying");
  uint32_t* out = device_memory<uint32_t>(1);
  return slope(int(vectors), int(vectors) + 20'000, [&](int rounds) { launch(chase, 1, 1, 0, 0, rounds, memory, out); });
}

// CTAs of a cluster, KiB of shared memory of each. Clusters that run at once.
Quantiles resident_clusters(const Numbers& n) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(n[0]));
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = size_t(n[1]) * 1024;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(n[0]), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaFuncSetAttribute(exchange, cudaFuncAttributeMaxDynamicSharedMemorySize, n[1] * 1024), "asking for shared memory");
  check(cudaFuncSetAttribute(exchange, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "a large cluster");
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, exchange, &config), "asking for clusters");
  return {double(clusters), double(clusters), double(clusters)};
}

struct Mechanism {
  Quantiles (*measure)(const Numbers&);
  size_t numbers;
};

const std::map<std::string, Mechanism> kMechanisms = {
    {"clock_rate", {clock_rate, 0}},
    {"launch_on_host", {launch_on_host, 0}},
    {"graph_node", {graph_node, 0}},
    {"remote_latency", {remote_latency, 1}},
    {"cluster_exchange", {cluster_exchange, 3}},
    {"remote_load", {remote_load, 1}},
    {"flag_latency", {flag_latency, 0}},
    {"word_latency", {word_latency, 0}},
    {"flag_barrier", {flag_barrier, 1}},
    {"grid_barrier", {grid_barrier, 1}},
    {"cta_barrier", {cta_barrier, 1}},
    {"product_latency_bf16", {product_latency<BFloat16Product>, 0}},
    {"product_latency_tf32", {product_latency<Tf32Product>, 0}},
    {"product_rate_bf16", {product_rate<BFloat16Product>, 0}},
    {"product_rate_tf32", {product_rate<Tf32Product>, 0}},
    {"cell_latency_lstm", {cell_latency<Lstm>, 0}},
    {"cell_latency_gru", {cell_latency<Gru>, 0}},
    {"shared_rate", {shared_rate, 1}},
    {"global_rate", {global_rate, 1}},
    {"global_latency", {global_latency, 1}},
    {"resident_clusters", {resident_clusters, 2}},
};

}  // namespace

int main(int count, char** arguments) {
  const auto found = kMechanisms.find(count > 1 ? arguments[1] : "");
  if (found == kMechanisms.end() || size_t(count - 2) != found->second.numbers) {
    std::fprintf(stderr, "usage: mechanisms NAME [NUMBER...], where NAME and the count of numbers are one of\n");
    for (const auto& [name, mechanism] : kMechanisms) std::fprintf(stderr, "  %s %zu\n", name.c_str(), mechanism.numbers);
    return 2;
  }
  Numbers numbers;
  for (int i = 2; i < count; ++i) numbers.push_back(std::atoi(arguments[i]));
  try {
    const Quantiles q = found->second.measure(numbers);
    check(cudaDeviceSynchronize(), "the kernels");
    std::printf("{\"median\": %.9g, \"p20\": %.9g, \"p80\": %.9g}\n", q.median, q.p20, q.p80);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[1], error.what());
    return 1;
  }
}
