// csrc/cuda/recurrence.h on the emulated machine: what lets the operators of csrc/bindings/ run whole, without a GPU. Of the
// persistent schedules the narrow tile of bfloat16 and float32: test_schedules.cpp has the others.
#include <stdexcept>
#include <type_traits>

#include "../../csrc/cuda/recurrence.h"
#include "../../csrc/cuda/schedules/backward.h"
#include "../../csrc/cuda/schedules/forward.h"
#include "../../csrc/cuda/schedules/stepwise.h"
#include "../../csrc/cuda/tiles.h"

namespace rnnkernels::cuda {
namespace {

uint64_t seed = 1;  // of the next launch: any order of threads must do

template <class Kernel>
void run(const char* name, int blocks, int directions, int threads, int cluster, int64_t shared_bytes, const Kernel& kernel) {
  const auto outcome = emulation::run({blocks, directions, threads, cluster, size_t(shared_bytes), false, seed++}, kernel);
  if (!outcome.ok()) throw std::runtime_error(std::string("emulated ") + name + ": " + outcome.error);
}

template <class Kernel>
void run_simple(const char* name, int64_t count, int directions, const Kernel& kernel) {
  constexpr int kThreads = 64;
  if (count > 0) run(name, int((count + kThreads - 1) / kThreads), directions, kThreads, 1, 0, kernel);
}

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

template <class Use>
void with_cell(CellName cell, const Use& use) {
  if (cell == CellName::kLstm) {
    use(Lstm());
  } else {
    use(Gru());
  }
}

template <class Use>
void with_kernels(const Request& request, const Plan& plan, const Use& use) {
  if (plan.tile != TileName::kNarrow) throw std::logic_error("only the narrow tile is emulated with the operators");
  with_cell(request.cell, [&](auto cell) {
    switch (request.product) {
      case ProductName::kBFloat16: return use(cell, BFloat16Product());
      case ProductName::kTf32: return use(cell, Tf32Product());
      case ProductName::kTf32x3: return use(cell, Tf32x3Product());
      default: throw std::logic_error("only bfloat16 and float32 are emulated with the operators");
    }
  });
}

template <class Cell, class Product>
int64_t packed_count(Pass pass, const Partition& partition) {
  using Tile = typename Tiles<Cell, Product>::Narrow;
  return pass == Pass::kForward ? ForwardShared<Cell, Product, Tile>::packed_count(partition)
                                : BackwardDivision<Cell, Product, Tile>(partition).packed_count(partition.ctas);
}

template <class Cell, class Product, class Exchange>
void recurrence(const ForwardArguments& a) {
  forward<Cell, Product, typename Tiles<Cell, Product>::Narrow, Exchange>(a);
}
template <class Cell, class Product, class Exchange>
void recurrence(const BackwardArguments& a) {
  backward<Cell, Product, typename Tiles<Cell, Product>::Narrow, Exchange>(a);
}

template <class Arguments>
void launch_pass(const Request& request, const Plan& plan, const PackArguments& pack, const Arguments& arguments) {
  with_kernels(request, plan, [&](auto of_cell, auto of_product) {
    using Cell = decltype(of_cell);
    using Product = decltype(of_product);
    using Tile = typename Tiles<Cell, Product>::Narrow;
    run_simple("pack", packed_count<Cell, Product>(request.pass, plan.partition), request.directions, [&] {
      request.pass == Pass::kForward ? pack_forward<Cell, Product, Tile>(pack) : pack_backward<Cell, Product, Tile>(pack);
    });
    const int ctas = plan.partition.ctas, blocks = int((request.batch + plan.rows - 1) / plan.rows) * ctas;
    run("recurrence", blocks, request.directions, plan.threads, ctas, plan.shared_bytes, [&] {
      ctas == 1 ? recurrence<Cell, Product, LocalExchange>(arguments) : recurrence<Cell, Product, ClusterExchange>(arguments);
    });
  });
}

}  // namespace

const DeviceLimits& device_limits(int) {
  static const DeviceLimits limits{90, 132, 232448, 16};
  return limits;
}

int64_t packed_bytes(const Request& request, const Plan& plan) {
  int64_t count = 0;
  with_kernels(request, plan, [&](auto cell, auto product) {
    count = packed_count<decltype(cell), decltype(product)>(request.pass, plan.partition);
  });
  return count * int64_t(sizeof(Vector16));
}

void launch(const Request& request, const Plan& plan, const PackArguments& pack, const ForwardArguments& a, Stream) {
  launch_pass(request, plan, pack, a);
}
void launch(const Request& request, const Plan& plan, const PackArguments& pack, const BackwardArguments& a, Stream) {
  launch_pass(request, plan, pack, a);
}

void launch(CellName cell, ProductName product, const StepForwardArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    with_cell(cell, [&](auto of) {
      run_simple("step_forward", rows_at_work(a.sequence, a.step) * a.sequence.hidden, a.sequence.directions,
                 [&] { step_forward<decltype(of), decltype(storage)>(a); });
    });
  });
}

void launch(CellName cell, ProductName product, const StepBackwardArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    with_cell(cell, [&](auto of) {
      run_simple("step_backward", rows_at_work(a.sequence, a.step, a.dh) * a.sequence.hidden, a.sequence.directions,
                 [&] { step_backward<decltype(of), decltype(storage)>(a); });
    });
  });
}

void launch(ProductName product, const StepProjectionArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    run_simple("step_projection", rows_at_work(a.sequence, a.step) * a.sequence.hidden, a.sequence.directions,
               [&] { step_projection<decltype(storage)>(a); });
  });
}

void launch(ProductName product, const StepProjectionBackwardArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    run_simple("step_projection_backward", rows_at_work(a.sequence, a.step, a.dh) * a.sequence.hidden, a.sequence.directions,
               [&] { step_projection_backward<decltype(storage)>(a); });
  });
}

void write_offsets(const int64_t* offsets, int64_t count, int64_t* to, Stream) {
  OffsetsArguments a{to, int(count), {}};
  for (int64_t i = 0; i < count; ++i) a.values[i] = offsets[i];
  run_simple("write_offsets", 1, 1, [&] { write_offsets(a); });
}

void states_before(ProductName product, const StatesBeforeArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    run_simple("states_before", a.sequence.rows * a.sequence.hidden, a.sequence.directions,
               [&] { states_before<decltype(storage)>(a); });
  });
}

void unprojected_states(ProductName product, const UnprojectedStatesArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    run_simple("unprojected_states", a.rows * a.hidden, 1, [&] { unprojected_states<decltype(storage)>(a); });
  });
}

void bias_gradients(CellName cell, ProductName product, int directions, const BiasGradientsArguments& a, Stream) {
  with_storage(product, [&](auto storage) {
    with_cell(cell, [&](auto of) {
      using Cell = decltype(of);
      run_simple("bias_gradients", Cell::kGates * a.hidden, directions, [&] { bias_gradients<Cell, decltype(storage)>(a); });
    });
  });
}

}  // namespace rnnkernels::cuda
