// Few or huge classes: blocks for slots of rows of one class, in three launches. The last takes the
// slots from the end, because what was read last may still be in L2.
#pragma once

#include "rows.cuh"
#include "values.cuh"

namespace cmik {
namespace gpu {

template <class S>
struct SlotRows {
  using T = ArithmeticOf<S>;

  int64_t cls;
  ClassRows all, mine;
  RowStats<T>* stats;

  CMIK_DEVICE SlotRows(const Task& task, int64_t slot)
      : cls(class_of_slot(task, slot)),
        all(rows_of_class(task, cls)),
        mine(rows_of_slot(task, cls, slot)),
        stats(static_cast<RowStats<T>*>(task.stats) + mine.first) {}

  CMIK_DEVICE SlotSource<S> source(const Task& task) const {
    return {task, mine.first, int(mine.count)};
  }
};

template <class S, Form form, Team kTeam>
__global__ void __launch_bounds__(kMostThreads, 1)
    slot_sums_kernel(const CMIK_CONSTANT Task task, bool second) {
  using T = ArithmeticOf<S>;
  const SlotRows<S> slot(task, block());
  if (slot.mine.count == 0 || leave_alone<T>(task, slot.cls)) return;
  TeamOf<T, kTeam> team(task);
  sum_rows<S, form, kTeam>(task, slot.all.first, slot.source(task), second, team);
  using Order = ColumnOrder<S>;
  const int channels = int(task.problem.channels), width = task.packs * pack_entries(sizeof(S));
  T* out = static_cast<T*>(task.slot_sums) + block() * channels;
  for (int pack = thread(); pack < width / Order::kTogether; pack += threads()) {
    const auto sums = column_sums<S>(task, width, pack);
#pragma unroll
    for (int i = 0; i < Order::kTogether; ++i) {
      const int j = Order::column(width, pack * Order::kTogether + i);
      if (j < channels) out[j] = sums.of[i];
    }
  }
}

// Centroids from the sums of slots, or rho the second time: a warp for 32 columns of some slots.
template <class S>
__global__ void __launch_bounds__(kMeanColumns* kMeanThreads, 1)
    class_means_kernel(const CMIK_CONSTANT Task task, bool second) {
  using T = ArithmeticOf<S>;
  const cmik_problem& p = task.problem;
  const int64_t tiles = ceil_div(p.channels, kMeanColumns);
  const int64_t cls = block() / tiles;
  const int64_t j = block() % tiles * kMeanColumns + thread() % kMeanColumns;
  const int part = thread() / kMeanColumns;
  if (leave_alone<T>(task, cls)) return;
  const int64_t count = rows_of_class(task, cls).count;
  const int64_t begin = slots_before(task, cls);
  const int64_t end = begin + ceil_div(count, task.plan.rows_per_slot);
  double* sums = in_shared<double>(0);
  double sum = 0;
  if (j < p.channels)
    for (int64_t slot = begin + part; slot < end; slot += kMeanThreads)
      sum += double(static_cast<const T*>(task.slot_sums)[slot * p.channels + j]);
  sums[thread()] = sum;
  sync_block();
  if (part > 0 || j >= p.channels) return;
  for (int other = 1; other < kMeanThreads; ++other) sum += sums[other * kMeanColumns + thread()];
  const T mean = count > 0 ? T(sum / double(count)) : T(0);
  T* centroid = static_cast<T*>(task.centroids) + cls * p.channels + j;
  if (second)
    static_cast<T*>(task.rho)[cls * p.channels + j] = mean / at_least_normal(*centroid);
  else
    *centroid = mean;
}

template <class S, Form form, Team kTeam>
__global__ void __launch_bounds__(kMostThreads, 1) slot_rows_kernel(const CMIK_CONSTANT Task task) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;
  const cmik_problem& p = task.problem;
  const SlotRows<S> slot(task, blocks() - 1 - block());
  if (leave_alone<T>(task, slot.cls)) return;
  double value = 0;
  if (slot.mine.count > 0) {
    const int width = task.packs * pack_entries(sizeof(S));
    const Columns<T> columns{width};
    TeamOf<T, kTeam> team(task);
    if (p.centroids) {
      take_given<S, Part>(task, slot.cls, columns, slot.source(task));
    } else {
      const T* centroid = static_cast<const T*>(task.centroids) + slot.cls * p.channels;
      const T* rho = static_cast<const T*>(task.rho) + slot.cls * p.channels;
      fill_vector<S>(columns.centroid(), width,
                     [&](int j) { return j < p.channels ? centroid[j] : T(0); });
      if (task.weighted)
        fill_vector<S>(columns.rho(), width, [&](int j) { return j < p.channels ? rho[j] : T(0); });
      prepare_target<S, Part>(task, columns, slot.source(task), T(0), false);
    }
    finish_rows<S, form, kTeam>(task, slot.cls, slot.all.count, slot.source(task), columns, team,
                                value);
  }
  if (!p.value || p.reduction == CMIK_NONE) return;
  finish_value<S>(task, blocks() - 1 - block(),
                  reduce_block(value, in_shared<double>(kReductionAt), Sum{}));
}

}  // namespace gpu
}  // namespace cmik
