#include "schedules/stepwise.h"

#include "launching.cuh"

namespace rnnkernels::cuda {
namespace {

template <class Cell, class S>
__global__ void __launch_bounds__(kThreads) step_forward_kernel(const __grid_constant__ StepForwardArguments arguments) {
  step_forward<Cell, S>(arguments);
}

template <class S>
__global__ void __launch_bounds__(kThreads) step_projection_kernel(const __grid_constant__ StepProjectionArguments arguments) {
  step_projection<S>(arguments);
}

template <class Cell, class S>
__global__ void __launch_bounds__(kThreads) step_backward_kernel(const __grid_constant__ StepBackwardArguments arguments) {
  step_backward<Cell, S>(arguments);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    step_projection_backward_kernel(const __grid_constant__ StepProjectionBackwardArguments arguments) {
  step_projection_backward<S>(arguments);
}

// `rows` of each direction, all units; a layer without rows to work on needs no launch.
template <class Arguments>
void launch_step(void (*kernel)(Arguments), int64_t rows, const Arguments& arguments, Stream stream, const char* name) {
  if (rows > 0)
    launch_simple(kernel, rows * arguments.sequence.hidden, arguments.sequence.directions, arguments, stream, name);
}

}  // namespace

void launch(CellName cell, ProductName product, const StepForwardArguments& a, Stream stream) {
  with_cell_and_storage(cell, product, [&](auto of, auto storage) {
    launch_step(step_forward_kernel<decltype(of), decltype(storage)>, rows_at_work(a.sequence, a.step), a, stream,
                "step_forward");
  });
}

void launch(CellName cell, ProductName product, const StepBackwardArguments& a, Stream stream) {
  with_cell_and_storage(cell, product, [&](auto of, auto storage) {
    launch_step(step_backward_kernel<decltype(of), decltype(storage)>, rows_at_work(a.sequence, a.step, a.dh), a, stream,
                "step_backward");
  });
}

void launch(ProductName product, const StepProjectionArguments& a, Stream stream) {
  with_storage(product, [&](auto storage) {
    launch_step(step_projection_kernel<decltype(storage)>, rows_at_work(a.sequence, a.step), a, stream, "step_projection");
  });
}

void launch(ProductName product, const StepProjectionBackwardArguments& a, Stream stream) {
  with_storage(product, [&](auto storage) {
    launch_step(step_projection_backward_kernel<decltype(storage)>, rows_at_work(a.sequence, a.step, a.dh), a, stream,
                "step_projection_backward");
  });
}

}  // namespace rnnkernels::cuda
