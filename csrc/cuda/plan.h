// Which schedule and tile compute a pass of a layer, and why: plain C++, the same on any machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "costs.h"

namespace rnnkernels::cuda {

enum class CellName { kLstm, kGru };
// Of tensors' dtypes; float32 is multiplied as one product of tf32 or as three, as torch's switch for recurrent layers says.
enum class ProductName { kBFloat16, kFloat16, kTf32, kTf32x3, kFloat64 };
enum class Pass { kForward, kBackward };
enum class Schedule { kOneCta, kCluster, kGrid, kStepwise };
enum class TileName { kNarrow, kBroad, kTall, kDeep, kThin, kEven, kWide };

struct DeviceLimits {
  int compute_capability;    // 90 for 9.0
  int multiprocessors;
  int64_t shared_bytes;      // a CTA may ask for
  int most_cluster;          // CTAs of a cluster: 1 without clusters, 8 everywhere else, 16 where the driver agrees
};

struct Request {
  CellName cell;
  ProductName product;
  Pass pass;
  int64_t hidden, batch;
  int directions;
  bool projected;  // LSTM's proj_size
};

struct Plan {
  Schedule schedule;
  TileName tile;        // of the persistent schedules
  Partition partition;  // likewise
  int rows;             // of a batch slice
  int slices_at_once;   // of the grid, whose CTAs wait for each other: more slices are further launches. Otherwise all
  int threads;          // of a CTA
  int64_t shared_bytes;
  double microseconds;  // per step, estimated
  bool measured;        // chosen by the table of measurements
  std::string reason;   // one line: what was chosen over what
};

// A measurement: this schedule was the fastest for hidden sizes and batches up to these, above the entry before.
struct Measured {
  CellName cell;
  ProductName product;
  Pass pass;
  int compute_capability;
  int64_t hidden, batch;
  Schedule schedule;
  TileName tile;
  int ctas;  // of the grid: any, they follow from the tile
};

// What somebody who measures or tests asks for instead of the fastest.
struct Wish {
  std::optional<Schedule> schedule;
  std::optional<TileName> tile;
  int ctas = 0;  // 0: any

  bool any() const { return schedule.has_value() || tile.has_value() || ctas != 0; }
  bool granted(const Plan& plan) const;
};

// From names, empty for what does not matter; throws std::invalid_argument for unknown ones.
Wish wish_for(const std::string& schedule, const std::string& tile, int ctas);

// The committed table of measurements.
const std::vector<Measured>& measurements();

// Of the schedules that fit, the one measured to be fastest, or else estimated to be. Never fails: stepwise always fits. A wish
// that cannot be granted gives stepwise and the reason, too.
Plan choose(const Request& request, const DeviceLimits& device, const std::vector<Measured>& table = measurements(),
            const Wish& wish = {});

// Every plan that fits: the persistent ones, fewest CTAs first, and stepwise.
std::vector<Plan> candidates(const Request& request, const DeviceLimits& device);

// The plan for exactly this schedule; schedule is kStepwise, with the reason, where it does not fit. Tiles of the grid have as
// many CTAs as the units take, whatever `ctas` says.
Plan plan_of(const Request& request, const DeviceLimits& device, TileName tile, int ctas, const Costs& costs = {});

const char* name(Schedule schedule);
const char* name(TileName tile);

}  // namespace rnnkernels::cuda
