// The choice of schedule and tile, on machines that need not be there.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/plan.h"
#include "../cpp/harness.h"

using namespace rnnkernels::cuda;

namespace {

constexpr DeviceLimits kHopper{90, 132, 232448, 16};
constexpr DeviceLimits kAmpere{80, 108, 166912, 1};

constexpr ProductName kProducts[] = {ProductName::kBFloat16, ProductName::kFloat16, ProductName::kTf32, ProductName::kTf32x3,
                                     ProductName::kFloat64};

Request request(CellName cell, ProductName product, Pass pass, int64_t hidden, int64_t batch) {
  return {cell, product, pass, hidden, batch, 1, false};
}

void every_plan_fits() {
  for (const DeviceLimits& device : {kHopper, kAmpere}) {
    for (const CellName cell : {CellName::kLstm, CellName::kGru}) {
      for (const ProductName product : kProducts) {
        for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
          for (int64_t hidden = 1; hidden <= 2200; hidden += hidden < 40 ? 1 : 37) {
            for (const int64_t batch : {1, 9, 64, 1000}) {
              const Plan plan = choose(request(cell, product, pass, hidden, batch), device);
              const std::string name = "H " + std::to_string(hidden) + " N " + std::to_string(batch) + ": " + plan.reason;
              CHECK(!plan.reason.empty() && plan.microseconds > 0, name);
              if (plan.schedule == Schedule::kStepwise) continue;
              CHECK(plan.partition.ctas * plan.partition.units >= hidden, name);
              const bool grid = plan.schedule == Schedule::kGrid;
              CHECK(plan.partition.ctas <= (grid ? device.multiprocessors : device.most_cluster), name);
              const int at_once = plan.slices_at_once * plan.partition.ctas;
              CHECK(at_once > 0 && (!grid || at_once <= device.multiprocessors), name);
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
  const auto fits = [](const DeviceLimits& device, int64_t hidden, TileName tile, int ctas) {
    return plan_of(request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, hidden, 16), device, tile, ctas).schedule;
  };
  CHECK(fits(kAmpere, 128, TileName::kBroad, 1) == Schedule::kOneCta, "128 units fit one CTA");
  CHECK(schedule(kAmpere, 512) == Schedule::kGrid, "no clusters below 9.0");
  CHECK(fits(kHopper, 512, TileName::kNarrow, 8) == Schedule::kCluster, "512 units fit a cluster");
  CHECK(schedule(kHopper, 1024) == Schedule::kGrid, "1024 units fit no cluster");
  CHECK(schedule(kHopper, 2048) == Schedule::kGrid, "2048 units fit the whole grid");
  CHECK(schedule(kHopper, 2600) == Schedule::kStepwise, "2600 units do not");
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
  r.product = ProductName::kFloat64;
  refused(r, kHopper, TileName::kBroad, 1, "float64");
  r.product = ProductName::kBFloat16;
  r.hidden = 900;
  refused(r, kHopper, TileName::kNarrow, 16, "shared memory");
  r.hidden = 5000;
  refused(r, kHopper, TileName::kNarrow, 16, "larger than any cluster");
  refused(r, kHopper, TileName::kEven, 0, "larger than any grid");
  r.hidden = 1100;
  refused(r, kHopper, TileName::kThin, 0, "138 CTAs are more than the 132 multiprocessors");
  refused(r, kHopper, TileName::kWide, 0, "shared memory");
  r.directions = 2;
  refused(r, kHopper, TileName::kEven, 0, "138 CTAs");
  r.hidden = 16;
  refused(r, kHopper, TileName::kEven, 0, "one CTA has all units");
  r.cell = CellName::kGru;
  refused(r, kHopper, TileName::kThin, 0, "not compiled");
  r.product = ProductName::kTf32;
  refused(r, kHopper, TileName::kWide, 0, "not compiled");
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

// As many slices run together as the multiprocessors hold; the others wait for the next launch, and cost its time.
void slices_share_the_grid() {
  const auto plan = [](int64_t batch, int directions, Pass pass = Pass::kForward) {
    Request r = request(CellName::kLstm, ProductName::kBFloat16, pass, 1024, batch);
    r.directions = directions;
    return plan_of(r, kHopper, TileName::kEven, 0);
  };
  CHECK(plan(8, 1).partition.ctas == 64 && plan(8, 1).slices_at_once == 1, "one slice");
  CHECK(plan(16, 1).slices_at_once == 2 && plan(16, 1).microseconds == plan(8, 1).microseconds, "two at once");
  CHECK(plan(100, 1).slices_at_once == 2, "as many as fit");
  CHECK(std::fabs(plan(33, 1).microseconds / plan(16, 1).microseconds - 3) < 1e-9, "five slices are three launches");
  CHECK(plan(16, 2).slices_at_once == 1, "directions share it, too");
  CHECK(plan(1, 1, Pass::kBackward).microseconds < plan(8, 1, Pass::kBackward).microseconds, "fewer sequences, fewer bytes");
}

void stepwise_serves_the_rest() {
  Request r = request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, 2600, 8);
  const auto check = [&](const DeviceLimits& device, const std::string& why) {
    const Plan plan = choose(r, device);
    CHECK(plan.schedule == Schedule::kStepwise && plan.reason.find("nothing persistent fits: ") != std::string::npos &&
              plan.reason.find(why) != std::string::npos,
          why + ": " + plan.reason);
  };
  check(kHopper, "163 CTAs are more than");
  r.hidden = 64;
  check({75, 40, 65536, 1}, "compute capability 8.0");
  r.projected = true;
  check(kHopper, "projected");
  r.projected = false;
  r.product = ProductName::kFloat64;
  check(kHopper, "float64");
  // Where weights are small and batches are huge, slices of 16 sequences are not worth their while.
  r = request(CellName::kLstm, ProductName::kTf32, Pass::kForward, 512, 4096);
  const Plan plan = choose(r, kHopper);
  CHECK(plan.schedule == Schedule::kStepwise && plan.reason.find("estimated to be fastest: stepwise") == 0, plan.reason);
}

void one_product_of_tf32_is_faster_than_three() {
  const auto step = [](ProductName product) {
    double least = 1e9;
    for (const Plan& plan : candidates(request(CellName::kLstm, product, Pass::kForward, 256, 64), kHopper))
      least = std::min(least, plan.microseconds);
    return least;
  };
  CHECK(step(ProductName::kTf32) < step(ProductName::kTf32x3), "tf32 is faster");
  CHECK(step(ProductName::kBFloat16) < step(ProductName::kTf32), "half the bytes are faster");
}

void wishes() {
  const Request r = request(CellName::kLstm, ProductName::kBFloat16, Pass::kForward, 120, 16);
  const auto wished = [&](const DeviceLimits& device, const std::string& schedule, const std::string& tile, int ctas) {
    return choose(r, device, measurements(), wish_for(schedule, tile, ctas));
  };
  CHECK(wished(kHopper, "stepwise", "", 0).schedule == Schedule::kStepwise, "stepwise");
  CHECK(wished(kHopper, "stepwise", "", 0).reason.find("asked for: ") == 0, "the reason says so");
  CHECK(wished(kHopper, "one CTA", "", 0).tile == TileName::kBroad, "the tile that fits");
  const Plan plan = wished(kHopper, "cluster", "tall", 16);
  CHECK(plan.schedule == Schedule::kCluster && plan.tile == TileName::kTall && plan.partition.ctas == 16, plan.reason);
  const auto refused = [&](const DeviceLimits& device, const char* schedule, const char* tile, int ctas, const std::string& why) {
    const Wish wish = wish_for(schedule, tile, ctas);
    const Plan instead = choose(r, device, measurements(), wish);
    CHECK(!wish.granted(instead) && instead.reason.find(why) != std::string::npos, why + ": " + instead.reason);
  };
  refused(kAmpere, "cluster", "", 0, "clusters need compute capability 9.0");
  refused(kHopper, "one CTA", "narrow", 0, "more than 8 warps hold");
  refused(kHopper, "cluster", "", 32, "not available here");
  refused(kHopper, "stepwise", "broad", 0, "not compiled");
  CHECK(wished(kAmpere, "grid", "", 0).tile == TileName::kThin, "the grid needs no clusters");
  CHECK(wished(kHopper, "grid", "wide", 4).partition.ctas == 4, "a grid of four");
  refused(kHopper, "grid", "thin", 4, "no schedule is all of what was asked for");
  for (const auto& [schedule, tile] : {std::pair<const char*, const char*>{"grid of dreams", ""}, {"", "vast"}}) {
    std::string message;
    try {
      wish_for(schedule, tile, 0);
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK(message.find("there is no") == 0, "an unknown name is an error: " + message);
  }
}

void candidates_are_what_fits() {
  const Request r = request(CellName::kGru, ProductName::kTf32, Pass::kBackward, 200, 16);
  const std::vector<Plan> plans = candidates(r, kHopper);
  CHECK(plans.size() > 3 && plans.back().schedule == Schedule::kStepwise, "several, and stepwise last");
  for (const Plan& plan : plans) {
    const Wish wish = wish_for(name(plan.schedule), plan.schedule == Schedule::kStepwise ? "" : name(plan.tile),
                               plan.schedule == Schedule::kStepwise ? 0 : plan.partition.ctas);
    const Plan same = choose(r, kHopper, measurements(), wish);
    CHECK(same.schedule == plan.schedule && same.shared_bytes == plan.shared_bytes, "each can be asked for: " + plan.reason);
  }
}

}  // namespace

void run_tests() {
  every_plan_fits();
  capacities();
  refusals();
  measurements_win();
  slices_share_the_grid();
  stepwise_serves_the_rest();
  one_product_of_tf32_is_faster_than_three();
  wishes();
  candidates_are_what_fits();
}
