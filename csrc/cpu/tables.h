// The functions of kernels.h for one cell and one instruction set: picks the storage type.
#pragma once

#include "backward.h"
#include "forward.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

// Calls body(S{}) with the storage type a dtype names.
template <class Body>
auto with_storage(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat64: return body(double{});
    case Dtype::kBFloat16: return body(BFloat16{});
    case Dtype::kFloat16: return body(Float16{});
    default: return body(float{});
  }
}

template <template <class> class Cell>
constexpr CellKernels cell_kernels() {
  return {
      [](const Layer& layer, bool save, int threads) {
        return with_storage(layer.dtype, [&](auto storage) {
          return Forward<Cell<decltype(storage)>>(layer, save, threads, nullptr).workspace();
        });
      },
      [](const Layer& layer, const ForwardArguments& arguments, void* workspace, const Parallel& parallel) {
        with_storage(layer.dtype, [&](auto storage) {
          Forward<Cell<decltype(storage)>>(layer, arguments.gates != nullptr, parallel.threads, workspace)
              .run(arguments, parallel);
        });
      },
      [](const Layer& layer, bool needs_input, bool needs_weights, int threads) {
        return with_storage(layer.dtype, [&](auto storage) {
          return Backward<Cell<decltype(storage)>>(layer, needs_input, needs_weights, threads, nullptr).workspace();
        });
      },
      [](const Layer& layer, const BackwardArguments& arguments, void* workspace, const Parallel& parallel) {
        with_storage(layer.dtype, [&](auto storage) {
          Backward<Cell<decltype(storage)>>(layer, arguments.grad_input != nullptr, arguments.needs_weights,
                                            parallel.threads, workspace)
              .run(arguments, parallel);
        });
      },
  };
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA
