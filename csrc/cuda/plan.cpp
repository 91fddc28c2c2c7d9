#include "plan.h"

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <utility>

#include "schedules/backward.h"
#include "schedules/forward.h"
#include "tiles.h"

namespace rnnkernels::cuda {
namespace {

constexpr std::initializer_list<Schedule> kSchedules = {Schedule::kOneCta, Schedule::kCluster, Schedule::kGrid, Schedule::kStepwise};
constexpr std::initializer_list<TileName> kTiles = {TileName::kNarrow, TileName::kBroad, TileName::kTall, TileName::kDeep};
constexpr std::initializer_list<TileName> kGridTiles = {TileName::kThin, TileName::kEven, TileName::kWide};
constexpr int64_t kLargestHidden = 4096;  // beyond it no tile fits anyway; keeps the sizes below within an int

// What estimates need to know of a tile in a partition.
struct Layout {
  int units_of_warp, splits, rows;
  int64_t shared_bytes;
  int warps;
  int64_t tiles_per_warp;    // accumulator tiles of 16 x 8, over all passes
  int64_t windows_per_tile;  // of a warp
  int64_t register_windows;  // windows times tiles of 16 rows that cost no shared memory traffic
  int64_t weight_windows;    // windows times tiles of 16 rows, all
  int parts;                 // of K, backward: a CTA's shares of each d(h)
};

template <class Cell, class Product, class Tile>
Layout layout_of(Pass pass, const Partition& partition) {
  using Own = Ownership<Cell, Tile>;
  const int warps = Own::warps(partition.units);
  if (pass == Pass::kForward) {
    using Shared = ForwardShared<Cell, Product, Tile>;
    const int64_t tiles = Own::kMatrixTiles, windows = Shared::most_windows(partition);
    return {Own::kUnits, Tile::kSplits, Tile::kRows, Shared(nullptr, partition).bytes, warps, tiles * Tile::kColumnTiles, windows,
            tiles * std::min<int64_t>(windows, Tile::kForwardWindows), tiles * windows, 1};
  }
  const BackwardDivision<Cell, Product, Tile> division(partition);
  const int64_t tiles = int64_t(division.passes) * Tile::kBackwardTiles, windows = division.most_windows();
  return {Own::kUnits, Tile::kSplits, Tile::kRows, BackwardShared<Cell, Product, Tile>(nullptr, partition).bytes, warps,
          tiles * Tile::kColumnTiles, windows, Tile::kBackwardTiles * std::min<int64_t>(windows, Tile::kBackwardWindows),
          tiles * windows, division.parts};
}

template <class Cell, class Product>
Layout layout_of(TileName tile, Pass pass, const Partition& partition) {
  using Shipped = Tiles<Cell, Product>;
  switch (tile) {
    case TileName::kNarrow: return layout_of<Cell, Product, typename Shipped::Narrow>(pass, partition);
    case TileName::kBroad: return layout_of<Cell, Product, typename Shipped::Broad>(pass, partition);
    case TileName::kTall: return layout_of<Cell, Product, typename Shipped::Tall>(pass, partition);
    case TileName::kThin: return layout_of<Cell, Product, typename Shipped::Thin>(pass, partition);
    case TileName::kEven: return layout_of<Cell, Product, typename Shipped::Even>(pass, partition);
    case TileName::kWide: return layout_of<Cell, Product, typename Shipped::Wide>(pass, partition);
    case TileName::kDeep: break;
  }
  return layout_of<Cell, Product, typename Shipped::Deep>(pass, partition);
}

template <class Cell>
Layout layout_of(const Request& request, TileName tile, const Partition& partition) {
  switch (request.product) {
    case ProductName::kBFloat16: return layout_of<Cell, BFloat16Product>(tile, request.pass, partition);
    case ProductName::kFloat16: return layout_of<Cell, Float16Product>(tile, request.pass, partition);
    case ProductName::kTf32: return layout_of<Cell, Tf32Product>(tile, request.pass, partition);
    case ProductName::kTf32x3:
    case ProductName::kFloat64: break;  // refused before anybody asks
  }
  return layout_of<Cell, Tf32x3Product>(tile, request.pass, partition);
}

Layout layout_of(const Request& request, TileName tile, const Partition& partition) {
  return request.cell == CellName::kLstm ? layout_of<Lstm>(request, tile, partition) : layout_of<Gru>(request, tile, partition);
}

bool is_of_grid(TileName tile) { return tile == TileName::kThin || tile == TileName::kEven || tile == TileName::kWide; }

// See tiles.h.
bool is_compiled_for_grid(const Request& request, TileName tile) {
  if (tile == TileName::kThin) return request.cell == CellName::kLstm;
  return tile == TileName::kEven || request.product == ProductName::kBFloat16 || request.product == ProductName::kFloat16;
}

// What recurrence.cu compiles of the others: the broad tile is for one CTA alone, the tall and deep ones are for clusters.
bool is_compiled(TileName tile, int ctas) {
  if (tile == TileName::kNarrow) return true;
  return (tile == TileName::kBroad) == (ctas == 1);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Clusters of this size that run at once: fewer than fit by count, since a cluster must lie within one group of
// multiprocessors.
double resident(int ctas, const DeviceLimits& device, const Costs& costs) {
  const double of_132[] = {132, costs.clusters_of_2, costs.clusters_of_4, costs.clusters_of_8, costs.clusters_of_16};
  int i = 0;
  for (int c = ctas; c > 1; c /= 2) ++i;
  return std::max(1.0, double(int(of_132[i] * device.multiprocessors / 132)));
}

// Microseconds per step.
double estimate(const Request& request, const DeviceLimits& device, const Partition& partition, const Layout& layout,
                const Costs& costs) {
  const bool half = request.product == ProductName::kBFloat16 || request.product == ProductName::kFloat16;
  // A window is two instructions, of half types at full rate; those of tf32 take as long, and may come three at a time.
  const double instructions = request.product == ProductName::kTf32x3 ? 6 : 2, operand = half ? 2 : 4;
  const double products = double(layout.warps * layout.tiles_per_warp * layout.windows_per_tile) * instructions;
  const double chain = double(layout.windows_per_tile) * instructions * costs.product_latency;
  const double traffic = double(layout.warps * (layout.weight_windows - layout.register_windows)) * 1024 +
                         double(layout.warps * layout.windows_per_tile * layout.rows) * kWindowBytes;
  double cycles = std::max({products / costs.products_per_cycle, chain, traffic / costs.shared_bytes_per_cycle});
  const double elements = double(partition.units) * layout.rows, special = request.cell == CellName::kLstm ? 10 : 6;
  cycles += costs.cell_latency + elements * special / 16 + costs.rest;
  const bool backward = request.pass == Pass::kBackward;
  if (backward) cycles += costs.cta_barrier;
  if (partition.ctas == 1) {
    cycles += costs.cta_barrier;
  } else {
    const double sent = double(partition.units) * (partition.ctas - 1) * layout.rows * (backward ? 4 : operand);
    cycles += costs.remote_latency + sent / costs.remote_bytes_per_cycle;
  }
  const double clusters = double(divide_up(request.batch, layout.rows) * request.directions);
  const double at_once = resident(partition.ctas, device, costs);
  return double(int64_t((clusters + at_once - 1) / at_once)) * cycles / costs.cycles_per_microsecond;
}

// The same for a grid: forward, a CTA reads h of all units while it multiplies; backward, it writes a share of d(h) for all units
// and reads as many of its own. Rows that the batch does not have cost products, but no bytes between CTAs.
double estimate_grid(const Request& request, const Partition& partition, const Layout& layout, int slices_at_once,
                     const Costs& costs) {
  const bool half = request.product == ProductName::kBFloat16 || request.product == ProductName::kFloat16;
  const bool backward = request.pass == Pass::kBackward;
  const double instructions = request.product == ProductName::kTf32x3 ? 6 : 2;
  const double products = double(layout.warps * layout.tiles_per_warp * layout.windows_per_tile) * instructions;
  const double chain = double(layout.windows_per_tile) * instructions * costs.product_latency;
  const double weights = double(layout.warps * (layout.weight_windows - layout.register_windows)) * 1024;
  const double multiply = std::max({products / costs.products_per_cycle, chain, weights / costs.shared_bytes_per_cycle});
  const double rows = double(std::min<int64_t>(layout.rows, request.batch)), units = double(partition.ctas) * partition.units;
  const double moved = units * rows * (backward ? 4.0 * layout.parts : half ? 2 : 4) / costs.cache_bytes_per_cycle;
  // Forward, parts of sums go through shared memory.
  const double parts = double(layout.warps * layout.tiles_per_warp) * 512 / costs.shared_bytes_per_cycle;
  const double elements = double(partition.units) * layout.rows, special = request.cell == CellName::kLstm ? 10 : 6;
  const double step = backward ? 2 * costs.cta_barrier + 2 * moved + multiply
                               : costs.cta_barrier + std::max(moved, multiply) + 2 * parts;
  const double cycles = costs.hand_over + step + costs.cell_latency + elements * special / 16 + costs.rest;
  return double(divide_up(divide_up(request.batch, layout.rows), slices_at_once)) * cycles / costs.cycles_per_microsecond;
}

// Bytes of an element, and operations per microsecond of a library's product.
struct Rate {
  double bytes, operations;
};

Rate rate_of(ProductName product) {
  switch (product) {
    case ProductName::kBFloat16:
    case ProductName::kFloat16: return {2, 3e8};
    case ProductName::kTf32: return {4, 1.5e8};
    case ProductName::kTf32x3: return {4, 4e7};  // the library multiplies in float32
    case ProductName::kFloat64: break;
  }
  return {8, 3e7};
}

// One library product and one small kernel per step, and with a projection a second of each, for both directions together.
double estimate_stepwise(const Request& request) {
  constexpr Costs costs;
  const double weights = double(request.hidden) * double(request.hidden) * (request.cell == CellName::kLstm ? 4 : 3);
  const Rate rate = rate_of(request.product);
  const double operations = 2 * weights * double(request.batch);
  const double product = std::max(weights * rate.bytes / costs.stepwise_bytes_per_microsecond, operations / rate.operations);
  return (request.projected ? 2 : 1) * costs.stepwise_launches + request.directions * product;
}

Plan stepwise(const Request& request, std::string reason) {
  return {Schedule::kStepwise, TileName::kNarrow, {1, 0}, 0, 0, 0, 0, estimate_stepwise(request), false, std::move(reason)};
}

std::string describe(const Plan& plan) {
  char text[200];
  if (plan.schedule == Schedule::kStepwise) {
    std::snprintf(text, sizeof text, "stepwise, about %.1f us per step", plan.microseconds);
  } else {
    const std::string at_once = plan.schedule == Schedule::kGrid ? ", " + std::to_string(plan.slices_at_once) + " at once" : "";
    std::snprintf(text, sizeof text, "%s of %d CTA%s, %s tile, %d units each, slices of %d%s, about %.2f us per step",
                  name(plan.schedule), plan.partition.ctas, plan.partition.ctas == 1 ? "" : "s", name(plan.tile),
                  plan.partition.units, plan.rows, at_once.c_str(), plan.microseconds);
  }
  return text;
}

Plan too_large(const Request& request, const DeviceLimits& device, int64_t shared_bytes) {
  return stepwise(request, "it needs " + std::to_string(shared_bytes) + " bytes of shared memory of " +
                               std::to_string(device.shared_bytes));
}

Plan grid_plan_of(const Request& request, const DeviceLimits& device, TileName tile, const Costs& costs) {
  if (!is_compiled_for_grid(request, tile))
    return stepwise(request, std::string("the ") + name(tile) + " tile is not compiled for this cell and dtype");
  if (request.hidden > kLargestHidden) return stepwise(request, "the weights are larger than any grid's memory");
  Partition partition{2, 32};
  partition.units = layout_of(request, tile, partition).units_of_warp;
  partition.ctas = int(divide_up(request.hidden, partition.units));
  if (partition.ctas < 2) return stepwise(request, "one CTA has all units");
  const int all = partition.ctas * request.directions;
  if (all > device.multiprocessors)
    return stepwise(request, std::to_string(all) + " CTAs are more than the " + std::to_string(device.multiprocessors) +
                                 " multiprocessors run at once");
  const Layout layout = layout_of(request, tile, partition);
  if (layout.shared_bytes > device.shared_bytes) return too_large(request, device, layout.shared_bytes);
  const int slices = int(std::min<int64_t>(divide_up(request.batch, layout.rows), device.multiprocessors / all));
  Plan plan{Schedule::kGrid, tile, partition, layout.rows, slices, layout.warps * kLanes, layout.shared_bytes,
            estimate_grid(request, partition, layout, slices, costs), false, ""};
  plan.reason = describe(plan);
  return plan;
}

// Whose refusal says most about why nothing was found.
TileName tile_in_question(const Wish& wish) {
  if (wish.tile.has_value()) return *wish.tile;
  return wish.ctas == 0 && wish.schedule.value_or(Schedule::kGrid) == Schedule::kGrid ? TileName::kEven : TileName::kNarrow;
}

int ctas_in_question(const DeviceLimits& device, const Wish& wish) {
  if (wish.ctas != 0) return wish.ctas;
  if (wish.schedule == Schedule::kOneCta) return 1;
  return std::max(device.most_cluster, wish.schedule == Schedule::kCluster ? 2 : 1);
}

}  // namespace

const char* name(Schedule schedule) {
  switch (schedule) {
    case Schedule::kOneCta: return "one CTA";
    case Schedule::kCluster: return "cluster";
    case Schedule::kGrid: return "grid";
    case Schedule::kStepwise: break;
  }
  return "stepwise";
}

const char* name(TileName tile) {
  switch (tile) {
    case TileName::kNarrow: return "narrow";
    case TileName::kBroad: return "broad";
    case TileName::kTall: return "tall";
    case TileName::kThin: return "thin";
    case TileName::kEven: return "even";
    case TileName::kWide: return "wide";
    case TileName::kDeep: break;
  }
  return "deep";
}

const std::vector<Measured>& measurements() {
  static const std::vector<Measured> table = {
#include "measurements.inc"
  };
  return table;
}

Plan plan_of(const Request& request, const DeviceLimits& device, TileName tile, int ctas, const Costs& costs) {
  if (request.projected) return stepwise(request, "persistent schedules have no projected state");
  if (request.product == ProductName::kFloat64) return stepwise(request, "persistent schedules do not multiply in float64");
  if (device.compute_capability < 80) return stepwise(request, "the tensor cores of compute capability 8.0 are needed");
  if (is_of_grid(tile)) return grid_plan_of(request, device, tile, costs);
  if (ctas > 1 && device.compute_capability < 90) return stepwise(request, "clusters need compute capability 9.0");
  if (ctas > device.most_cluster)
    return stepwise(request, "clusters of " + std::to_string(ctas) + " CTAs are not available here");
  if (!is_compiled(tile, ctas))
    return stepwise(request, std::string("the ") + name(tile) + " tile is not compiled for so many CTAs");
  if (request.hidden > kLargestHidden) return stepwise(request, "the weights are larger than any cluster's memory");
  Partition partition{ctas, 32};  // any multiple of what a warp has, to ask what that is
  const int unit = layout_of(request, tile, partition).units_of_warp;
  partition.units = int(divide_up(divide_up(request.hidden, ctas), unit) * unit);
  const Layout layout = layout_of(request, tile, partition);
  if (layout.warps > kMostWarps)
    return stepwise(
        request, std::to_string(partition.units) + " units per CTA are more than " + std::to_string(kMostWarps) + " warps hold");
  if (layout.shared_bytes > device.shared_bytes) return too_large(request, device, layout.shared_bytes);
  const int slices = int(divide_up(request.batch, layout.rows));
  Plan plan{ctas == 1 ? Schedule::kOneCta : Schedule::kCluster, tile, partition, layout.rows, slices, layout.warps * kLanes,
            layout.shared_bytes, estimate(request, device, partition, layout, costs), false, ""};
  plan.reason = describe(plan);
  return plan;
}

std::vector<Plan> candidates(const Request& request, const DeviceLimits& device) {
  std::vector<Plan> plans;
  for (const int ctas : {1, 2, 4, 8, 16}) {
    for (const TileName tile : kTiles) {
      Plan plan = plan_of(request, device, tile, ctas);
      if (plan.schedule != Schedule::kStepwise) plans.push_back(std::move(plan));
    }
  }
  for (const TileName tile : kGridTiles) {
    Plan plan = plan_of(request, device, tile, 0);
    if (plan.schedule != Schedule::kStepwise) plans.push_back(std::move(plan));
  }
  plans.push_back(stepwise(request, ""));
  plans.back().reason = describe(plans.back());
  return plans;
}

bool Wish::granted(const Plan& plan) const {
  const bool persistent = plan.schedule != Schedule::kStepwise;
  return (!schedule.has_value() || *schedule == plan.schedule) && (!tile.has_value() || (persistent && *tile == plan.tile)) &&
         (ctas == 0 || (persistent && ctas == plan.partition.ctas));
}

Wish wish_for(const std::string& schedule, const std::string& tile, int ctas) {
  Wish wish;
  for (const Schedule known : kSchedules)
    if (schedule == name(known)) wish.schedule = known;
  for (const auto tiles : {kTiles, kGridTiles})
    for (const TileName known : tiles)
      if (tile == name(known)) wish.tile = known;
  if (!schedule.empty() && !wish.schedule.has_value()) throw std::invalid_argument("there is no CUDA schedule " + schedule);
  if (!tile.empty() && !wish.tile.has_value()) throw std::invalid_argument("there is no tile " + tile);
  wish.ctas = ctas;
  return wish;
}

Plan choose(const Request& request, const DeviceLimits& device, const std::vector<Measured>& table, const Wish& wish) {
  // The smallest measured point that covers the request.
  const Measured* nearest = nullptr;
  for (const Measured& entry : table) {
    if (entry.cell != request.cell || entry.product != request.product || entry.pass != request.pass) continue;
    if (entry.compute_capability != device.compute_capability) continue;
    if (entry.hidden < request.hidden || entry.batch < request.batch * request.directions) continue;
    if (nearest == nullptr || entry.hidden < nearest->hidden || (entry.hidden == nearest->hidden && entry.batch < nearest->batch))
      nearest = &entry;
  }
  if (nearest != nullptr && !wish.any()) {
    Plan plan =
        nearest->schedule == Schedule::kStepwise ? stepwise(request, "") : plan_of(request, device, nearest->tile, nearest->ctas);
    if (plan.schedule == nearest->schedule) {
      plan.measured = true;
      plan.reason = "measured to be fastest: " + describe(plan);
      return plan;
    }
  }
  std::optional<Plan> best;
  bool persistent = false;
  // Stepwise first, then more and more CTAs, which are worth it only for a gain that is larger than what estimates are off by
  // between neighbours.
  std::vector<Plan> plans = candidates(request, device);
  std::rotate(plans.begin(), plans.end() - 1, plans.end());
  for (const Plan& plan : plans) {
    persistent = persistent || plan.schedule != Schedule::kStepwise;
    if (wish.granted(plan) && (!best.has_value() || plan.microseconds < 0.9 * best->microseconds)) best = plan;
  }
  if (best.has_value() && (persistent || wish.any())) {
    best->reason = (wish.any() ? "asked for: " : "estimated to be fastest: ") + describe(*best);
    return *best;
  }
  const Plan nearby = plan_of(request, device, tile_in_question(wish), ctas_in_question(device, wish));
  const bool fits = nearby.schedule != Schedule::kStepwise;
  const std::string reason = fits ? "no schedule is all of what was asked for" : nearby.reason;
  Plan plan = stepwise(request, "");
  plan.reason = wish.any() ? reason : describe(plan) + "; nothing persistent fits: " + reason;
  return plan;
}

}  // namespace rnnkernels::cuda
