#include "plan.hpp"

#include <algorithm>

namespace cmik {
namespace {

// How a class may be held, in order of preference: the first that it fits into. Blocks of a
// multiprocessor have 512 threads between them, which is what its registers serve, and share its
// memory; two stages let the next class arrive while one is worked on.
struct Holding {
  int threads, cluster, stages;
};
constexpr Holding kHoldings[] = {
    {128, 1, 2}, {128, 2, 2},  {128, 4, 2},  {128, 8, 2}, {256, 8, 2},
    {256, 8, 1}, {256, 16, 1}, {512, 16, 1}, {256, 1, 1}, {512, 1, 1},
};
constexpr int kProcessorThreads = 512;
constexpr int64_t kReservedBytes = 1024;  // of a block's shared memory, by the system

constexpr int64_t kMostShareRows = 4096;  // of a class in a block: its row statistics stay there
constexpr int64_t kFewRowsPerSlot = 32;   // at least, so that sums take little memory
constexpr int64_t kSlotsPerProcessor = 16;
constexpr int64_t kFarAway = INT32_MAX;      // an offset beyond all shared memory
constexpr int64_t kLargeElements = 1 << 20;  // below, launches cost more than a second reading
constexpr int kWideThreads = 256;

int64_t power_of_2(int64_t number) {
  int64_t power = 1;
  while (power < number) power *= 2;
  return power;
}

// Threads of a team: as few as hold a row, for the fewest exchanges between them; but eight where
// the row has as many packs, for reads of 128 bytes.
int64_t team_lanes(const Shape& shape) {
  const int64_t packs = ceil_div(shape.channels, pack_entries(shape.element_bytes));
  const int64_t least = power_of_2(ceil_div(packs, thread_packs(shape.element_bytes)));
  return std::max(least, std::min<int64_t>(8, power_of_2(packs)));
}

// A class that takes much longer than the average keeps its cluster at work when all others rest.
bool lopsided(const Shape& shape) {
  return shape.classes * shape.largest > 4 * shape.rows &&
         shape.rows * shape.channels > kLargeElements / 4;
}

int64_t shared_budget(const Chip& chip, int threads) {
  const int64_t blocks = kProcessorThreads / threads;
  return std::min(chip.block_bytes, chip.processor_bytes / blocks - kReservedBytes) / 128 * 128;
}

// The plan for that holding, with as many stages up to the holding's as there are classes for, and
// no stage where rows are not copied in bulk. False if a class does not fit.
bool hold(const Shape& shape, const Chip& chip, const Holding& holding, bool streamed, Plan& plan) {
  plan.threads = holding.threads;
  plan.cluster = holding.cluster;
  const int64_t share_rows = ceil_div(shape.largest, holding.cluster);
  if (share_rows > kMostShareRows) return false;
  plan.share_rows = int32_t(share_rows);
  const bool bulk = shape.aligned && chip.capability >= 90;
  const int64_t row_bytes = shape.channels * shape.element_bytes;
  plan.stages = holding.stages;
  plan.tile_rows = plan.share_rows;
  const int64_t budget = shared_budget(chip, holding.threads);
  const int64_t needed = shared_layout(shape, plan).bytes;
  if (needed > budget) {
    if (!streamed) return false;
    const int64_t beyond = ceil_div(needed - budget, row_bytes);
    if (beyond > plan.tile_rows) return false;
    plan.tile_rows -= int32_t(beyond);
  }
  if (!bulk) plan.stages = 0, plan.tile_rows = 0;
  const int64_t resident = std::max<int64_t>(
      1, int64_t(chip.processors) * (kProcessorThreads / plan.threads) / plan.cluster);
  const int64_t clusters = std::min(shape.classes, resident);
  if (bulk) {
    plan.stages = int32_t(std::min<int64_t>(kMostStages, ceil_div(shape.classes, clusters)));
    while (plan.stages > 1 && shared_layout(shape, plan).bytes > budget) --plan.stages;
  }
  plan.blocks = clusters * plan.cluster;
  plan.shared_bytes = shared_layout(shape, plan).bytes;
  return plan.shared_bytes <= budget;
}

bool plan_classes(const Shape& shape, const Chip& chip, Plan& plan) {
  const int64_t class_bytes = shape.largest * shape.channels * shape.element_bytes;
  bool found = false;
  for (const Holding& holding : kHoldings) {
    if (holding.cluster > chip.largest_cluster || holding.threads < plan.lanes) continue;
    found = hold(shape, chip, holding, false, plan);
    if (!found) continue;
    // Few classes: more blocks for each, while every team keeps a row.
    Holding wider = holding;
    while (shape.classes * wider.cluster < chip.processors &&
           wider.cluster * 2 <= std::min(chip.largest_cluster, 8) &&
           shape.largest >= 4 * wider.cluster * (wider.threads / plan.lanes)) {
      wider.cluster *= 2;
      hold(shape, chip, wider, false, plan);
    }
    break;
  }
  if (!found && chip.largest_cluster > 1) {
    // Most of the class in shared memory; what is read twice should still be in L2.
    const Holding largest = {kMostThreads, std::min(chip.largest_cluster, 16), 1};
    const int64_t at_work = std::max(1, chip.processors / largest.cluster);
    if (class_bytes * at_work <= chip.cache_bytes / 4 * 3)
      found = hold(shape, chip, largest, true, plan);
  }
  if (!found) return false;
  const bool idle = shape.classes * plan.cluster * 2 < chip.processors;
  return !(idle && shape.rows * shape.channels > kLargeElements);
}

}  // namespace

SharedLayout shared_layout(const Shape& shape, const Plan& plan) {
  const int64_t number = arithmetic_bytes(shape.element_bytes);
  const int64_t width = round_up(shape.channels, pack_entries(shape.element_bytes)) * number;
  const int64_t warps = plan.threads / kWarpThreads;
  const int64_t sum_rows = plan.lanes <= kWarpThreads ? warps : plan.threads / plan.lanes;
  SharedLayout at{};
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t start = used;
    used += round_up(bytes, kPackBytes);
    return int32_t(std::min(start, kFarAway));
  };
  at.reduction = take(warps * int64_t(sizeof(double)));
  at.exchange = take(2 * warps * number);
  at.barriers = take(kMostStages * int64_t(sizeof(uint64_t)));
  at.sums = take(sum_rows * width);
  at.centroid = take(width);
  at.target = take(width);
  at.rho = take(shape.weighted ? width : 0);
  at.stats = take(plan.kind == Kind::classes ? 2 * plan.share_rows * number : 0);
  at.tiles = take(int64_t(plan.stages) * plan.tile_rows * shape.channels * shape.element_bytes);
  at.bytes = round_up(used, 128);
  return at;
}

Workspace workspace_layout(const Shape& shape, const Plan& plan) {
  const int64_t number = arithmetic_bytes(shape.element_bytes);
  const bool own = plan.slots > 0 && !shape.given;
  Workspace at{};
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t start = used;
    used += round_up(bytes, 256);
    return start;
  };
  at.parts = take(plan.parts * int64_t(sizeof(double)));
  at.stats = take(plan.slots > 0 ? 2 * shape.rows * number : 0);
  // Also where targets are, in wide rows.
  const bool sums = own || plan.kind == Kind::wide;
  at.sums = take(sums ? plan.slots * shape.channels * number : 0);
  at.centroids = take(own ? shape.classes * shape.channels * number : 0);
  at.rho = take(own && shape.weighted ? shape.classes * shape.channels * number : 0);
  at.bytes = used;
  return at;
}

Plan make_plan(const Shape& shape, const Chip& chip) {
  Plan plan{};
  plan.lanes = int32_t(std::min<int64_t>(team_lanes(shape), 2 * kMostThreads));
  plan.kind = Kind::classes;
  const bool fits = plan.lanes <= kMostThreads;
  if (!fits || lopsided(shape) || !plan_classes(shape, chip, plan)) {
    const int32_t lanes = plan.lanes;
    plan = Plan{};
    plan.kind = Kind::slots;
    plan.lanes = lanes;
    plan.threads = std::max(128, plan.lanes);
    plan.shared_bytes = shared_layout(shape, plan).bytes;
    if (!fits || plan.shared_bytes > chip.block_bytes) {
      plan.kind = Kind::wide;
      plan.lanes = plan.threads = kWideThreads;
      plan.shared_bytes = kWideThreads / kWarpThreads * int64_t(sizeof(double)) * 2;
    }
    plan.cluster = 1;
    plan.rows_per_slot =
        std::max(kFewRowsPerSlot, ceil_div(shape.rows, kSlotsPerProcessor * chip.processors));
    // Of unequal classes, class y's slots start at offsets[y] / rows_per_slot + y.
    plan.slots = shape.ragged ? shape.rows / plan.rows_per_slot + shape.classes
                              : shape.classes * ceil_div(shape.largest, plan.rows_per_slot);
    plan.blocks = plan.slots;
  }
  plan.parts = plan.slots > 0 ? plan.slots : shape.classes * plan.cluster;
  plan.workspace_bytes = workspace_layout(shape, plan).bytes;
  return plan;
}

}  // namespace cmik
