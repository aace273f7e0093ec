// Few or huge classes: slots of rows of one class, for two sweeps in one launch.
//
// There are three steps: sums of each slot, means of each class, and rows of each slot. Blocks take
// items of these from a counter, in an order that is fixed, until none is left. Some have to wait
// until others of their class are done. Those have been taken before, so that whoever has the first
// item that is not done never waits, however many blocks there are.
//
// Sums are ahead of the rest by `lead` slots, so that there is work while a class's last sums and
// its means are made; and not by more, so that rows are read again while they may still be in L2.
// Those of a class that were read last come first.
#pragma once

#include "rows.cuh"
#include "values.cuh"

namespace cmik {
namespace gpu {

enum class Step : int32_t { sums, means, rows };

struct Item {
  Step step;
  bool second;     // with the weights of rows
  int64_t cls;     // whose items are counted
  int64_t number;  // of the slot, or of the tile of means
  int64_t after;   // so many items of the class
};

struct ItemOrder {
  const Task& task;
  int64_t tiles;  // of a class's means
  int phases;     // of sums and means

  CMIK_DEVICE explicit ItemOrder(const Task& a_task)
      : task(a_task),
        tiles(ceil_div(task.problem.channels, kMeanColumns)),
        phases(task.given ? 0 : 1 + int(task.weighted)) {}

  // Slots whose sums come before all else of the class that has so many slots before it.
  CMIK_DEVICE int64_t sums_before(int64_t slots) const {
    if (phases == 0 || slots == 0) return 0;
    const int64_t ahead = slots + task.plan.lead;
    return ahead < task.plan.slots ? ahead : task.plan.slots;
  }
  // The class's first item; that of the class after the last is how many there are.
  CMIK_DEVICE int64_t first(int64_t cls) const {
    const int sweeps = (phases > 1) + (task.has_value || task.has_gradient);
    const int64_t slots = slots_before(task, cls);
    return sums_before(slots) + sweeps * slots + phases * cls * tiles;
  }

  CMIK_DEVICE Item operator[](int64_t item) const {
    const int64_t cls = last_class(task, [&](int64_t each) { return first(each) <= item; });
    item -= first(cls);
    const int64_t begin = slots_before(task, cls), end = slots_before(task, cls + 1);
    const int64_t ahead = sums_before(begin), more = sums_before(end) - ahead;
    if (item < more) {
      const int64_t slot = ahead + item;
      return {Step::sums, false, class_of_slot(task, slot), slot, 0};
    }
    item -= more;
    int64_t after = end - begin;
    for (int phase = 0; phase < phases; ++phase) {
      if (phase > 0) {
        if (item < end - begin) return {Step::sums, true, cls, begin + item, after};
        item -= end - begin;
        after += end - begin;
      }
      if (item < tiles) return {Step::means, phase > 0, cls, item, after};
      item -= tiles;
      after += tiles;
    }
    return {Step::rows, false, cls, end - 1 - item, phases > 0 ? after : 0};
  }
};

// Centroids from the sums of slots, or rho the second time, of some columns.
template <class S>
CMIK_DEVICE void make_means(const Task& task, const Item& item) {
  using T = ArithmeticOf<S>;
  const cmik_problem& p = task.problem;
  const int64_t j = item.number * kMeanColumns + thread() % kMeanColumns;
  const int part = thread() / kMeanColumns, parts = threads() / kMeanColumns;
  const int64_t count = rows_of_class(task, item.cls).count;
  const int64_t begin = slots_before(task, item.cls);
  const int64_t end = begin + ceil_div(count, task.plan.rows_per_slot);
  double* sums = in_shared<double>(kVectorsAt);
  double sum = 0;
  if (j < p.channels) {
    const T* const column = static_cast<const T*>(task.slot_sums) + j;
#pragma unroll 8
    for (int64_t slot = begin + part; slot < end; slot += parts)
      sum += double(column[slot * p.channels]);
  }
  sums[thread()] = sum;
  sync_block();
  if (part > 0 || j >= p.channels) return;
  for (int other = 1; other < parts; ++other) sum += sums[other * kMeanColumns + thread()];
  const T mean = count > 0 ? T(sum / double(count)) : T(0);
  T* centroid = static_cast<T*>(task.centroids) + item.cls * p.channels + j;
  if (item.second)
    static_cast<T*>(task.rho)[item.cls * p.channels + j] = mean / at_least_normal(*centroid);
  else
    *centroid = mean;
}

// All items that this block comes to. `Work` knows how to sum up a slot's rows, and to finish them.
template <class S, class Work>
CMIK_DEVICE void take_items(const Task& task) {
  using T = ArithmeticOf<S>;
  const cmik_problem& p = task.problem;
  if (leave_alone<T>(task, 0) && p.reduction != CMIK_CLASS) return;
  const ItemOrder order(task);
  const int64_t items = order.first(p.classes);
  uint32_t& taken = *in_shared<uint32_t>(kParityAt);
  Item& item = *in_shared<Item>(kTotalsAt);
  uint32_t* const done = task.counters + 1;  // items of each class
  for (;;) {
    if (thread() == 0) {
      taken = take_number(task.counters, UINT32_MAX);
      if (taken < items) {
        item = order[taken];
        await_count(done + item.cls, uint32_t(item.after));
      }
    }
    sync_block();
    if (taken >= items) break;
    const int64_t cls = item.cls, number = item.number;
    const Step step = item.step;
    double part = 0;
    if (!leave_alone<T>(task, cls)) {
      if (step == Step::means)
        make_means<S>(task, item);
      else if (step == Step::sums)
        Work::sum(task, cls, number, item.second);
      else
        part = Work::finish(task, cls, number);
    }
    sync_block();
    if (thread() != 0) continue;
    if (step != Step::rows)
      count_one(done + cls);
    else if (p.value)
      task.parts[number] = part;
  }
  const bool is_last = taken == items + blocks() - 1;
  if (is_last && p.value && (p.reduction == CMIK_MEAN || p.reduction == CMIK_SUM))
    add_up_parts<S>(task, task.plan.slots);
}

template <class S>
struct SlotRows {
  using T = ArithmeticOf<S>;

  ClassRows all, mine;
  RowStats<T>* stats;

  CMIK_DEVICE SlotRows(const Task& task, int64_t cls, int64_t slot)
      : all(rows_of_class(task, cls)),
        mine(rows_of_slot(task, cls, slot)),
        stats(static_cast<RowStats<T>*>(task.stats) + mine.first) {}

  CMIK_DEVICE SlotSource<S> source(const Task& task) const {
    return {task, mine.first, int(mine.count)};
  }
};

template <class S, Form form, Team kTeam>
struct SlotWork {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;
  using Order = ColumnOrder<S>;

  static CMIK_DEVICE void sum(const Task& task, int64_t cls, int64_t number, bool second) {
    const SlotRows<S> slot(task, cls, number);
    if (slot.mine.count == 0) return;
    TeamOf<T, kTeam> team(task);
    sum_rows<S, form, kTeam>(task, slot.all.first, slot.source(task), second, team);
    const int channels = int(task.problem.channels), width = task.packs * pack_entries(sizeof(S));
    T* out = static_cast<T*>(task.slot_sums) + number * channels;
    for (int pack = thread(); pack < width / Order::kTogether; pack += threads()) {
      const auto sums = column_sums<S>(task, width, pack);
#pragma unroll
      for (int i = 0; i < Order::kTogether; ++i) {
        const int j = Order::column(width, pack * Order::kTogether + i);
        if (j < channels) out[j] = sums.of[i];
      }
    }
  }

  // Returns the slot's part of the value, in thread 0.
  static CMIK_DEVICE double finish(const Task& task, int64_t cls, int64_t number) {
    const cmik_problem& p = task.problem;
    const SlotRows<S> slot(task, cls, number);
    double value = 0;
    if (slot.mine.count == 0) return value;
    const int width = task.packs * pack_entries(sizeof(S));
    const Columns<T> columns{width};
    TeamOf<T, kTeam> team(task);
    if (p.centroids) {
      take_given<S, Part>(task, cls, columns, slot.source(task));
    } else {
      const T* centroid = static_cast<const T*>(task.centroids) + cls * p.channels;
      const T* rho = static_cast<const T*>(task.rho) + cls * p.channels;
      fill_vector<S>(columns.centroid(), width,
                     [&](int j) { return j < p.channels ? centroid[j] : T(0); });
      if (task.weighted)
        fill_vector<S>(columns.rho(), width, [&](int j) { return j < p.channels ? rho[j] : T(0); });
      prepare_target<S, Part>(task, columns, slot.source(task), T(0), false);
    }
    finish_rows<S, form, kTeam>(task, cls, slot.all.count, slot.source(task), columns, team, value);
    if (!p.value || p.reduction == CMIK_NONE) return value;
    return reduce_block(value, in_shared<double>(kReductionAt), Sum{});
  }
};

template <class S, Form form, Team kTeam>
__global__ void __launch_bounds__(kMostThreads, 1) slots_kernel(const CMIK_CONSTANT Task task) {
  take_items<S, SlotWork<S, form, kTeam>>(task);
}

}  // namespace gpu
}  // namespace cmik
