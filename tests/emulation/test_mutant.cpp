// A few small layers, quick to compile: what mutate.py runs deliberately broken copies of the kernels on.
#include "layer.h"

using namespace emulated;

namespace {

template <class Tile, class Exchange>
void check(const Shape& shape) {
  using Run = Layer<cuda::Lstm, cuda::BFloat16Product, Tile, Exchange>;
  const Problem p = problem<cuda::BFloat16>(true, shape, 5);
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    Tensors<cuda::BFloat16Product> data(p, Run::slices(shape));
    const auto forward = Run::forward(shape, p, data, seed);
    CHECK(forward.ok(), "forward: " + forward.error);
    if (!forward.ok()) return;
    const auto backward = Run::backward(shape, p, data, seed);
    CHECK(backward.ok(), "backward: " + backward.error);
    if (!backward.ok()) return;
    for (const Compared& c : compare(p, data, Run::slices(shape)))
      CHECK(c.ours <= 2 * c.plain + 4 * 0x1p-9, c.name + " is off by " + std::to_string(c.ours));
  }
}

}  // namespace

void run_tests() {
  check<cuda::Tile<1, 1, 1, 1, 2, 1>, cuda::LocalExchange>({24, 1, 5, 3, false, 1});
  check<cuda::Tile<1, 1, 1, 1, 2, 1>, cuda::ClusterExchange>({24, 1, 5, 3, true, 2});
  check<cuda::Tile<1, 1, 2, 1, 2, 1>, cuda::ClusterExchange>({28, 1, 5, 3, false, 2});
}
