// The value from its parts, one or more of each block that worked on rows.
#pragma once

#include "teams.cuh"

namespace cmik {
namespace gpu {

// The value of all rows, by the block that is done last: in an order that is always the same.
template <class S>
CMIK_DEVICE void add_up_parts(const Task& task, int64_t count) {
  using T = ArithmeticOf<S>;
  double sum = 0;
  for (int64_t i = thread(); i < count; i += threads()) sum += task.parts[i];
  sum = threads() == kWarpThreads ? reduce_warp(sum, kWarpThreads, Sum{})
                                  : reduce_block(sum, in_shared<double>(kReductionAt), Sum{});
  if (thread() == 0) *static_cast<T*>(task.problem.value) = T(task.full.row_scale * sum);
}

// A warp for each class.
template <class S>
__global__ void __launch_bounds__(kMostThreads, 1)
    class_values_kernel(const CMIK_CONSTANT Task task) {
  using T = ArithmeticOf<S>;
  const cmik_problem& p = task.problem;
  const int64_t cls = block() * (threads() / kWarpThreads) + thread() / kWarpThreads;
  if (cls >= p.classes) return;
  const int64_t count = rows_of_class(task, cls).count;
  const bool slotted = task.plan.kind != Kind::classes;
  const int64_t begin = slotted ? slots_before(task, cls) : cls * task.plan.cluster;
  const int64_t parts =
      slotted ? ceil_div(count, task.plan.rows_per_slot) : int64_t(task.plan.cluster);
  double sum = 0;
  for (int64_t i = thread() % kWarpThreads; i < parts; i += kWarpThreads)
    sum += task.parts[begin + i];
  sum = reduce_warp(sum, kWarpThreads, Sum{});
  if (thread() % kWarpThreads == 0)
    static_cast<T*>(p.value)[cls] = count > 0 ? T(p.weight * sum / double(count)) : T(0);
}

}  // namespace gpu
}  // namespace cmik
