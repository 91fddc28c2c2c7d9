// csrc/cuda/recurrence.h on the emulated machine: what lets the operators of csrc/bindings/ run whole, without a GPU. Of the
// persistent schedules the narrow tile and the grid's even one, of bfloat16 and float32: test_schedules.cpp and test_grid.cpp
// have the others.
#include <algorithm>
#include <cstring>
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
void run(const char* name, int blocks, int directions, int threads, int cluster, int64_t shared_bytes, const Kernel& kernel,
         bool cooperative = false) {
  const auto outcome = emulation::run({blocks, directions, threads, cluster, size_t(shared_bytes), cooperative, seed++}, kernel);
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

// use(Cell(), Product(), Tile()).
template <class Use>
void with_kernels(const Request& request, const Plan& plan, const Use& use) {
  const auto with_tile = [&](auto cell, auto product) {
    using Shipped = Tiles<decltype(cell), decltype(product)>;
    switch (plan.tile) {
      case TileName::kNarrow: return use(cell, product, typename Shipped::Narrow());
      case TileName::kEven: return use(cell, product, typename Shipped::Even());
      default: throw std::logic_error("only the narrow and the even tile are emulated with the operators");
    }
  };
  with_cell(request.cell, [&](auto cell) {
    switch (request.product) {
      case ProductName::kBFloat16: return with_tile(cell, BFloat16Product());
      case ProductName::kTf32: return with_tile(cell, Tf32Product());
      case ProductName::kTf32x3: return with_tile(cell, Tf32x3Product());
      default: throw std::logic_error("only bfloat16 and float32 are emulated with the operators");
    }
  });
}

template <class Cell, class Product, class Tile>
int64_t packed_count(Pass pass, const Partition& partition) {
  return pass == Pass::kForward ? ForwardShared<Cell, Product, Tile>::packed_count(partition)
                                : BackwardDivision<Cell, Product, Tile>(partition).packed_count(partition.ctas);
}

template <class Cell, class Product, class Tile, class Exchange>
void recurrence(const ForwardArguments& a) {
  forward<Cell, Product, Tile, Exchange>(a);
}
template <class Cell, class Product, class Tile, class Exchange>
void recurrence(const BackwardArguments& a) {
  backward<Cell, Product, Tile, Exchange>(a);
}

void initialise(const ForwardArguments& a, const Workspace& room) {
  std::memset(a.exchange, 0xff, size_t(room.exchange_bytes));
  std::fill_n(a.flags, room.flags, 0u);
}
void initialise(const BackwardArguments& a, const Workspace& room) { std::memset(a.exchange, 0, size_t(room.exchange_bytes)); }

template <class Arguments>
void launch_pass(const Request& request, const Plan& plan, const PackArguments& pack, Arguments arguments) {
  with_kernels(request, plan, [&](auto of_cell, auto of_product, auto of_tile) {
    using Cell = decltype(of_cell);
    using Product = decltype(of_product);
    using Tile = decltype(of_tile);
    run_simple("pack", packed_count<Cell, Product, Tile>(request.pass, plan.partition), request.directions, [&] {
      request.pass == Pass::kForward ? pack_forward<Cell, Product, Tile>(pack) : pack_backward<Cell, Product, Tile>(pack);
    });
    const int ctas = plan.partition.ctas, slices = int((request.batch + plan.rows - 1) / plan.rows);
    if constexpr (Tile::kDirect) {
      initialise(arguments, workspace(request, plan));
      for (int first = 0; first < slices; first += plan.slices_at_once) {
        arguments.first_slice = first;
        run(
            "recurrence", std::min(plan.slices_at_once, slices - first) * ctas, request.directions, plan.threads, 1,
            plan.shared_bytes, [&] { recurrence<Cell, Product, Tile, GridExchange>(arguments); }, true);
      }
    } else {
      run("recurrence", slices * ctas, request.directions, plan.threads, ctas, plan.shared_bytes, [&] {
        ctas == 1 ? recurrence<Cell, Product, Tile, LocalExchange>(arguments)
                  : recurrence<Cell, Product, Tile, ClusterExchange>(arguments);
      });
    }
  });
}

}  // namespace

const DeviceLimits& device_limits(int) {
  static const DeviceLimits limits{90, 132, 232448, 16};
  return limits;
}

int64_t packed_bytes(const Request& request, const Plan& plan) {
  int64_t count = 0;
  with_kernels(request, plan, [&](auto cell, auto product, auto tile) {
    count = packed_count<decltype(cell), decltype(product), decltype(tile)>(request.pass, plan.partition);
  });
  return count * int64_t(sizeof(Vector16));
}

Workspace workspace(const Request& request, const Plan& plan) {
  if (plan.schedule != Schedule::kGrid) return {0, 0};
  const int64_t meetings = (request.batch + plan.rows - 1) / plan.rows * request.directions;
  const bool forward = request.pass == Pass::kForward;
  int64_t bytes = 0;
  with_kernels(request, plan, [&](auto cell, auto product, auto tile) {
    using Forward = ForwardShared<decltype(cell), decltype(product), decltype(tile)>;
    using Backward = BackwardShared<decltype(cell), decltype(product), decltype(tile)>;
    bytes = forward ? Forward::exchange_bytes(plan.partition) : Backward::exchange_bytes(plan.partition);
  });
  return {meetings * bytes, forward ? meetings * plan.partition.ctas : 0};
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
    run_simple("states_before", a.sequence.rows * kLanes, a.sequence.directions,
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
