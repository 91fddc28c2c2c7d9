// LibTorch's thread pool, by its stable C interface, as the kernels want it.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../cpu/kernels.h"

extern "C" {
int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, void (*body)(int64_t, int64_t, void*),
                           void* context);
int32_t torch_get_num_threads(uint32_t* count);
}

namespace rnnkernels::python {

inline void run_on_torch_pool(void*, int64_t count, void (*run)(void*, int64_t), void* context) {
  struct Task {
    void (*run)(void*, int64_t);
    void* context;
  } task{run, context};
  const int32_t failed = torch_parallel_for(
      0, count, 1,
      [](int64_t begin, int64_t end, void* all) {
        for (int64_t i = begin; i < end; ++i) static_cast<Task*>(all)->run(static_cast<Task*>(all)->context, i);
      },
      &task);
  if (failed != 0) throw std::runtime_error("torch could not run a parallel region");
}

inline cpu::Parallel torch_pool() {
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  return {int(threads), run_on_torch_pool, nullptr};
}

}  // namespace rnnkernels::python
