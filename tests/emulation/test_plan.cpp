// The choice of schedule and tile, on machines that need not be there.
#include <string>
#include <vector>

#include "../../csrc/cuda/plan.h"
#include "../cpp/harness.h"

using namespace rnnkernels::cuda;

namespace {

constexpr DeviceLimits kHopper{90, 132, 232448, 16};
constexpr DeviceLimits kAmpere{80, 108, 166912, 1};

Request request(CellName cell, ProductName product, Pass pass, int64_t hidden, int64_t batch) {
  return {cell, product, pass, hidden, batch, 1, false};
}

void every_plan_fits() {
  for (const DeviceLimits& device : {kHopper, kAmpere}) {
    for (const CellName cell : {CellName::kLstm, CellName::kGru}) {
      for (const ProductName product : {ProductName::kBFloat16, ProductName::kFloat16, ProductName::kTf32x3}) {
        for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
          for (int64_t hidden = 1; hidden <= 1100; hidden += hidden < 40 ? 1 : 37) {
            for (const int64_t batch : {1, 9, 64, 1000}) {
              const Plan plan = choose(request(cell, product, pass, hidden, batch), device);
              const std::string name = "H " + std::to_string(hidden) + " N " + std::to_string(batch) + ": " + plan.reason;
              CHECK(!plan.reason.empty() && plan.microseconds > 0, name);
              if (plan.schedule == Schedule::kStepwise) continue;
              CHECK(plan.partition.ctas * plan.partition.units >= hidden, name);
              CHECK(plan.partition.ctas <= device.most_cluster, name);
              CHECK(plan.shared_bytes <= device.shared_bytes, name);
              CHECK(plan.threads % 32 == 0 && plan.threads > 0 && plan.threads <= 256, name);
              CHECK((plan.partition.ctas == 1) == (plan.schedule == Schedule::kOneCta), name);
            }
          }
        }
      }
    }
  }
}

void capacities() {
  const auto schedule = [](const DeviceLimits& device, int64_t hidden) {
    return choose(request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, hidden, 16), device).schedule;
  };
  CHECK(schedule(kAmpere, 64) == Schedule::kOneCta, "a small layer needs no cluster");
  CHECK(schedule(kAmpere, 128) == Schedule::kOneCta, "128 units fit one CTA");
  CHECK(schedule(kAmpere, 512) == Schedule::kStepwise, "no clusters below 9.0");
  CHECK(schedule(kHopper, 512) == Schedule::kCluster, "512 units take a cluster");
  CHECK(schedule(kHopper, 2048) == Schedule::kStepwise, "2048 units fit no cluster");
}

void refusals() {
  const auto refused = [](Request r, const DeviceLimits& device, TileName tile, int ctas, const std::string& why) {
    const Plan plan = plan_of(r, device, tile, ctas);
    CHECK(plan.schedule == Schedule::kStepwise && plan.reason.find(why) != std::string::npos, why + ": " + plan.reason);
  };
  Request r = request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, 128, 8);
  refused(r, kAmpere, TileName::kNarrow, 2, "clusters need compute capability 9.0");
  refused(r, kHopper, TileName::kNarrow, 32, "not available here");
  refused(r, kHopper, TileName::kNarrow, 1, "more than 8 warps hold");
  refused(r, {75, 80, 65536, 1}, TileName::kBroad, 1, "compute capability 8.0");
  r.projected = true;
  refused(r, kHopper, TileName::kBroad, 1, "projected");
  r.projected = false;
  r.hidden = 900;
  refused(r, kHopper, TileName::kNarrow, 16, "shared memory");
  r.hidden = 5000;
  refused(r, kHopper, TileName::kNarrow, 16, "larger than any cluster");
}

void measurements_win() {
  const Request r = request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, 120, 16);
  const Plan estimated = choose(r, kHopper, {});
  CHECK(!estimated.measured, "an empty table decides nothing");
  const std::vector<Measured> table = {
      {r.cell, r.product, r.pass, 90, 256, 64, Schedule::kStepwise, TileName::kNarrow, 1},
      {r.cell, r.product, r.pass, 90, 128, 64, Schedule::kCluster, TileName::kTall, 16},
      {r.cell, r.product, r.pass, 80, 128, 16, Schedule::kOneCta, TileName::kBroad, 1},
  };
  const Plan plan = choose(r, kHopper, table);
  CHECK(plan.measured && plan.tile == TileName::kTall && plan.partition.ctas == 16,
        "the nearest measurement decides: " + plan.reason);
  DeviceLimits portable = kHopper;
  portable.most_cluster = 8;
  CHECK(!choose(r, portable, table).measured, "a measured schedule that does not fit here is not taken");
  Request larger = r;
  larger.hidden = 200;
  CHECK(choose(larger, kHopper, table).schedule == Schedule::kStepwise, "the next larger measurement covers it");
}

}  // namespace

void run_tests() {
  every_plan_fits();
  capacities();
  refusals();
  measurements_win();
}
