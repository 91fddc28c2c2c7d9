// What every launch needs: a check of its status, and for the small kernels the launch itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "numbers.h"
#include "plan.h"
#include "recurrence.h"

namespace rnnkernels::cuda {

inline constexpr int kThreads = 256;  // of the kernels around the recurrence and between a step's products

inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error("rnnkernels: " + what + " failed: " + cudaGetErrorString(status));
}

template <class Arguments>
void launch_simple(void (*kernel)(Arguments), int64_t threads, int directions, const Arguments& arguments, Stream stream,
                   const char* name) {
  const dim3 grid(unsigned((threads + kThreads - 1) / kThreads), unsigned(directions));
  kernel<<<grid, kThreads, 0, stream>>>(arguments);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess)
    check(status, std::string("launching ") + name + " (grid " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + ", " +
                      std::to_string(kThreads) + " threads)");
}

// use(S()) for the type of tensors.
template <class Use>
void with_storage(ProductName product, const Use& use) {
  switch (product) {
    case ProductName::kBFloat16: return use(BFloat16());
    case ProductName::kFloat16: return use(Float16());
    case ProductName::kTf32:
    case ProductName::kTf32x3: return use(float());
    case ProductName::kFloat64: break;
  }
  use(double());
}

// use(Cell(), S()).
template <class Use>
void with_cell_and_storage(CellName cell, ProductName product, const Use& use) {
  with_storage(product, [&](auto storage) {
    if (cell == CellName::kLstm) {
      use(Lstm(), storage);
    } else {
      use(Gru(), storage);
    }
  });
}

}  // namespace rnnkernels::cuda
