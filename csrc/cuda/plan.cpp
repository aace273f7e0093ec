#include "plan.hpp"

#include <algorithm>
#include <utility>

namespace cmik {
namespace {

// How a class may be held: the fastest by the estimate below serves. Blocks of a multiprocessor
// have 512 threads between them, which is what its registers serve, and share its memory. With two
// stages the next class arrives while one is worked on.
struct Holding {
  int threads, cluster;
};
constexpr Holding kHoldings[] = {
    {32, 1},  {64, 1},  {128, 1}, {128, 2},  {128, 4}, {128, 8}, {256, 1},  {256, 2},
    {256, 4}, {256, 8}, {512, 1}, {256, 16}, {512, 4}, {512, 8}, {512, 16},
};
constexpr int64_t kMostShareRows = 4096;  // of a class in a block: their statistics stay there
constexpr int64_t kSlotsPerProcessor = 16;
constexpr int64_t kSlotBytes = 64 << 10;  // at least, so that to take it is little beside the work
constexpr double kBusyThreads = 256;  // of a multiprocessor, from which on it issues what it can
constexpr int kWideThreads = 256;
constexpr int64_t kFarAway = INT32_MAX;  // an offset beyond all shared memory

// The estimate, in instructions that a multiprocessor could have issued, 128 a cycle: counted in
// the machine code (docs/design/cuda.md), or in its place an H200's time for the rest.
constexpr double kEntryCost = 17;       // of a feature: sums of P, value and gradient
constexpr double kByteCost = 6.7;       // moved to or from memory, by all multiprocessors at once
constexpr double kCachedMoves = 2.7;    // of a feature's bytes, where it is read again from L2
constexpr double kMostShares = 2;       // of the memory's rate, that one of few takes: assumed
constexpr double kClusterCost = 1.5e5;  // of a class in a cluster: its blocks wait for others
constexpr double kLaunchCost = 3e5;     // of a launch more, or of waiting for all blocks
constexpr double kTinyCost = 20;        // of an entry that a warp has room for, with everything

int64_t power_of_2(int64_t number) {
  int64_t power = 1;
  while (power < number) power *= 2;
  return power;
}

// The form of rows, and threads of a team: as few as hold a row, for the fewest exchanges between
// them; but eight where the row has as many packs, for reads of 128 bytes.
void share_row(const Shape& shape, Plan& plan) {
  plan.form = shape.aligned && !shape.weighted ? Form::packed : Form::any;
  const int64_t packs = ceil_div(shape.channels, pack_entries(shape.element_bytes));
  const int64_t held = thread_packs(shape.element_bytes, plan.form);
  const int64_t lanes =
      std::max(power_of_2(ceil_div(packs, held)), std::min<int64_t>(8, power_of_2(packs)));
  plan.lanes = int32_t(std::min<int64_t>(lanes, 2 * kMostThreads));
  const bool within_warp = lanes >= 8 && lanes <= kWarpThreads;
  if (plan.form == Form::packed && within_warp && packs == lanes * held) plan.form = Form::full;
}

template <size_t N>
int64_t index_in(const int (&numbers)[N], int wanted) {
  return std::find(numbers, numbers + N, wanted) - numbers;
}

// Clusters, or single blocks, that the chip holds at once. Those beyond would start when all
// classes of the first ones are done.
int64_t resident_clusters(const Chip& chip, const Holding& holding) {
  const int64_t blocks = int64_t(chip.processors) * (kProcessorThreads / holding.threads);
  if (holding.cluster == 1) return blocks;
  const int64_t size = index_in(kClusterSizes, holding.cluster);
  const int64_t resident = chip.resident_clusters[size][index_in(kClusterThreads, holding.threads)];
  return std::min(resident, blocks / holding.cluster);
}

// Multiprocessors without work leave their share of the memory's rate to the others.
double byte_cost(double processors, const Chip& chip) {
  return kByteCost * std::clamp(processors / chip.processors, 1 / kMostShares, 1.0);
}

// Arithmetic hides in the time that memory takes, or the other way round, the better the more
// pieces of work are under way.
double together(double memory, double arithmetic, double under_way) {
  return std::max(memory, arithmetic) + std::min(memory, arithmetic) / under_way;
}

// The plan for that holding and its estimate, which is negative where it cannot serve.
double hold(const Shape& shape, const Chip& chip, const Holding& holding, Plan& plan) {
  plan.threads = holding.threads;
  plan.cluster = holding.cluster;
  const int64_t resident = resident_clusters(chip, holding);
  if (resident == 0 || plan.threads < plan.lanes) return -1;
  if (plan.lanes > kWarpThreads && plan.threads < kFewestMeeting) return -1;
  const int64_t share_rows = ceil_div(shape.largest, holding.cluster);
  if (share_rows > kMostShareRows) return -1;
  plan.share_rows = int32_t(share_rows);
  const int64_t row_bytes = shape.channels * shape.element_bytes;
  const int64_t budget = shared_budget(chip, holding.threads);
  const int64_t blocks_together = kProcessorThreads / holding.threads;
  const int64_t clusters = std::min(shape.classes, resident);
  plan.blocks = clusters * plan.cluster;
  plan.stages = 0;
  const int64_t room = budget - shared_layout(shape, plan).bytes;
  const int64_t held_bytes = round_up(share_rows * row_bytes, kPackBytes);
  if (room < 0) return -1;
  if (plan.form != Form::any && chip.capability >= 90) {
    const int64_t fit = std::min(ceil_div(shape.classes, clusters), room / held_bytes);
    plan.stages = fit >= 4 ? 4 : fit >= 2 ? 2 : int32_t(fit);
    if (plan.stages == 0) return -1;
  }
  plan.shared_bytes = shared_layout(shape, plan).bytes;

  // What is not held is read again: from L2 if the classes at work fit it.
  const double class_bytes = double(ceil_div(shape.rows, shape.classes) * row_bytes);
  const bool cached = class_bytes * double(clusters) * 4 <= double(chip.cache_bytes) * 3;
  const double bytes_moved = shape.element_bytes * (plan.stages > 0 ? 2
                                                    : cached        ? kCachedMoves
                                                                    : 3);
  const int64_t blocks_at_work = std::min(blocks_together, ceil_div(plan.blocks, chip.processors));
  const double busy = std::min(1.0, double(blocks_at_work * plan.threads) / kBusyThreads);
  const int64_t teams = plan.threads / plan.lanes;
  const double moving = byte_cost(double(plan.blocks) / double(blocks_at_work), chip);
  const auto block_cost = [&](int64_t rows) {
    const double entries = double(round_up(rows, teams) * shape.channels);
    const double columns =
        double(shape.channels) * (kColumnCost + (plan.cluster > 1 ? kRemoteCost : 0));
    return std::pair(double(rows * shape.channels) * bytes_moved * moving,
                     (entries * kEntryCost + columns) / busy);
  };
  // All classes of the average size on the multiprocessor that has the most of them, or the largest
  // class alone.
  const auto [memory, arithmetic] =
      block_cost(ceil_div(ceil_div(shape.rows, shape.classes), plan.cluster));
  const double turns = double(ceil_div(shape.classes, clusters) * blocks_at_work);
  const double under_way = double(blocks_together) * std::max(1, plan.stages);
  const double waiting = plan.cluster > 1 ? kClusterCost : 0;  // while other blocks go on
  const auto [largest_memory, largest_arithmetic] = block_cost(plan.share_rows);
  return std::max(
      turns * (together(memory, arithmetic, under_way) + waiting / double(blocks_at_work)),
      together(largest_memory, largest_arithmetic, 1) + waiting);
}

// Blocks of so many threads; the plan has them and the lanes.
void divide_into_slots(const Shape& shape, const Chip& chip, Plan& plan) {
  const int64_t row_bytes = shape.channels * shape.element_bytes;
  const int64_t fewest =
      std::clamp(ceil_div(shape.rows, 2 * chip.processors), kFewestRowsPerSlot, kFewRowsPerSlot);
  plan.rows_per_slot = std::max(fewest, ceil_div(shape.rows, kSlotsPerProcessor * chip.processors));
  // Smaller ones where L2 can hold a class: less is read in between when rows are read again.
  if (shape.largest * row_bytes <= chip.cache_bytes)
    plan.rows_per_slot =
        std::min(plan.rows_per_slot, std::max(kFewRowsPerSlot, kSlotBytes / row_bytes));
  // Of unequal classes, class y's slots start at offsets[y] / rows_per_slot + y.
  plan.slots = shape.ragged ? shape.rows / plan.rows_per_slot + shape.classes
                            : shape.classes * ceil_div(shape.largest, plan.rows_per_slot);
  const int64_t served = int64_t(chip.processors) * (kProcessorThreads / plan.threads);
  plan.lead = ceil_div(served, 2);
  // As many as are resident; the kernel for wide rows takes fewer registers.
  plan.blocks = std::min(plan.slots, plan.kind == Kind::wide ? 2 * served : served);
  const int64_t between = (shape.largest + plan.lead * plan.rows_per_slot) * row_bytes;
  plan.read_once = between * 4 <= chip.cache_bytes * 3;
}

int slot_threads(const Plan& plan) { return std::max(128, plan.lanes); }

// Shared memory of a block that makes means: a number of each thread.
int64_t means_bytes(int threads) {
  return round_up(kVectorsAt + threads * int64_t(sizeof(double)), 128);
}

double slots_cost(const Shape& shape, const Chip& chip, Plan plan) {
  plan.threads = slot_threads(plan);
  divide_into_slots(shape, chip, plan);
  const double rows = double(std::min(plan.rows_per_slot, shape.largest));
  const double used = double(shape.rows) / rows;  // slots that have rows, about
  const double moving = byte_cost(used, chip);
  const double bytes_moved = shape.element_bytes * (plan.read_once ? kCachedMoves : 3);
  const double slot =
      rows * double(shape.channels) * together(bytes_moved * moving, kEntryCost, 2) +
      double(shape.channels) * (2 * kColumnCost + kSumBytes * moving);
  return std::max(used / chip.processors, 1.0) * slot + 3 * kLaunchCost;
}

// The plan where a warp holds a class, and its estimate, which is negative where none can.
double hold_in_warps(const Shape& shape, const Chip& chip, Plan& plan) {
  if (!shape.aligned || shape.given || shape.weighted) return -1;
  const int64_t entries = pack_entries(shape.element_bytes);
  const int64_t held = thread_packs(shape.element_bytes, Form::full);
  const int64_t packs = ceil_div(shape.channels, entries);
  for (const int lanes : kTinyLanes) {
    if (packs != lanes * held) continue;
    if (shape.largest > kWarpThreads / lanes) return -1;
    plan.kind = Kind::tiny;
    plan.form = Form::full;
    plan.lanes = lanes;
    plan.threads = kWarpThreads;
    plan.cluster = 1;
    plan.share_rows = int32_t(shape.largest);
    const int64_t together_most = kProcessorThreads / kWarpThreads;
    plan.blocks = std::min(shape.classes, chip.processors * together_most);
    const int64_t at_work = std::min(together_most, ceil_div(plan.blocks, chip.processors));
    const double busy = std::min(1.0, double(at_work * kWarpThreads) / kBusyThreads);
    const double moving = byte_cost(double(plan.blocks) / double(at_work), chip);
    const double bytes = double(shape.rows * shape.channels * shape.element_bytes);
    const double memory = 2 * bytes / double(shape.classes) * moving;
    const double arithmetic = double(kWarpThreads * held * entries) * kTinyCost / busy;
    return double(ceil_div(shape.classes, plan.blocks) * at_work) *
           together(memory, arithmetic, double(at_work));
  }
  return -1;
}

// The fastest holding, if it is faster than slots.
bool plan_classes(const Shape& shape, const Chip& chip, Plan& plan) {
  double best = slots_cost(shape, chip, plan);
  bool found = false;
  for (const Holding& holding : kHoldings) {
    Plan candidate = plan;
    const double cost = hold(shape, chip, holding, candidate);
    // Later ones are larger: they have to be clearly faster.
    if (cost < 0 || cost > (found ? 0.95 : 1.0) * best) continue;
    best = cost;
    plan = candidate;
    found = true;
  }
  Plan tiny{};
  const double in_warps = hold_in_warps(shape, chip, tiny);
  if (in_warps < 0 || in_warps > 1.05 * best) return found;  // the estimate is no closer
  plan = tiny;
  return true;
}

}  // namespace

int64_t shared_budget(const Chip& chip, int threads) {
  const int64_t blocks = kProcessorThreads / threads;
  return std::min(chip.block_bytes, chip.processor_bytes / blocks - kReservedBytes) / 128 * 128;
}

int64_t slice_packs(const Shape& shape, const Plan& plan) {
  const int64_t number = arithmetic_bytes(shape.element_bytes);
  const int64_t width = round_up(shape.channels, pack_entries(shape.element_bytes));
  return power_of_2(ceil_div(width * number / kPackBytes, plan.cluster));
}

SharedLayout shared_layout(const Shape& shape, const Plan& plan) {
  const int64_t number = arithmetic_bytes(shape.element_bytes);
  const int64_t width = round_up(shape.channels, pack_entries(shape.element_bytes)) * number;
  const int64_t sum_rows = std::min(sum_rows_of(plan.threads, plan.lanes), kMostSumRows);
  SharedLayout at{};
  int64_t used = kVectorsAt;
  const auto take = [&used](int64_t bytes) {
    const int64_t start = used;
    used += round_up(std::max<int64_t>(bytes, 0), kPackBytes);
    return int32_t(std::min(start, kFarAway));
  };
  if (shape.weighted) take((kRho + 1) * width);
  at.sums = take((shape.weighted ? sum_rows : std::max<int64_t>(sum_rows, kTarget + 1)) * width);
  at.stats = take(plan.kind == Kind::classes ? kRowStats * plan.share_rows * number : 0);
  const bool meets = plan.kind == Kind::classes && plan.cluster > 1;
  at.inbox = take(meets ? plan.cluster * slice_packs(shape, plan) * kPackBytes : 0);
  at.tiles = take(int64_t(plan.stages) * plan.share_rows * shape.channels * shape.element_bytes);
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
  at.counters = take(plan.slots > 0 ? counters_bytes(shape.classes) : 0);
  at.parts = take(plan.parts * int64_t(sizeof(double)));
  at.stats = take(plan.slots > 0 ? kRowStats * shape.rows * number : 0);
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
  share_row(shape, plan);
  plan.kind = Kind::classes;
  const bool fits = plan.lanes <= kMostThreads;
  if (!fits || !plan_classes(shape, chip, plan)) {
    plan = Plan{};
    plan.kind = Kind::slots;
    share_row(shape, plan);
    plan.threads = slot_threads(plan);
    plan.shared_bytes = std::max(shared_layout(shape, plan).bytes, means_bytes(plan.threads));
    if (!fits || plan.shared_bytes > chip.block_bytes) {
      plan.kind = Kind::wide;
      plan.lanes = plan.threads = kWideThreads;
      plan.shared_bytes = means_bytes(kWideThreads);
    }
    plan.cluster = 1;
    divide_into_slots(shape, chip, plan);
  }
  plan.parts = plan.slots > 0               ? plan.slots
               : plan.kind == Kind::classes ? shape.classes * plan.cluster
                                            : plan.blocks;
  plan.workspace_bytes = workspace_layout(shape, plan).bytes;
  return plan;
}

}  // namespace cmik
