// As test_mutant.cpp, for CTAs of a grid: short rings, and a state that looks like a word that has not come.
#include "layer.h"

using namespace emulated;

namespace {

struct ShortRing {
  static constexpr bool kHasMbarriers = false;
  using Forward = cuda::GridGather<6>;
  using Backward = cuda::GridScatter;
};

template <class Product>
void check(const Shape& shape, bool nan) {
  using S = typename Product::Storage;
  using Run = Layer<cuda::Lstm, Product, cuda::Tile<1, 1, 4, 1, 2, 1>, ShortRing>;
  const Problem p = problem<S>(true, shape, 5);
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    Tensors<Product> data(p, Run::slices(shape));
    if (nan) std::memset(static_cast<void*>(data.h0.data()), 0xff, sizeof(S));
    const auto forward = Run::forward(shape, p, data, seed);
    CHECK(forward.ok(), "forward: " + forward.error);
    if (!forward.ok() || nan) return;
    const auto backward = Run::backward(shape, p, data, seed);
    CHECK(backward.ok(), "backward: " + backward.error);
    if (!backward.ok()) return;
    for (const Compared& c : compare(p, data, Run::slices(shape)))
      CHECK(c.ours <= 2 * c.plain + 4 * Precision<Product>::storage, c.name + " is off by " + std::to_string(c.ours));
  }
}

}  // namespace

void run_tests() {
  // One sequence: a single word that is not what it seems is enough to go on. Many: words of one store that come apart.
  check<cuda::BFloat16Product>({37, 1, 22, 1, false, 5}, false);
  check<cuda::BFloat16Product>({21, 1, 6, 8, true, 3}, false);
  check<cuda::Tf32x3Product>({12, 1, 2, 1, false, 2}, true);
}
