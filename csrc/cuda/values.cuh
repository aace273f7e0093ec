// The value from its parts, one or more of each block that worked on rows.
#pragma once

#include "teams.cuh"

namespace cmik {
namespace gpu {

// At the end of a kernel that works on rows: thread 0 brings a part of the value. The block that is
// done last adds up all of them, in an order that is always the same; those of the reduction
// "class" are left to class_values_kernel.
template <class S>
CMIK_DEVICE void finish_value(const Task& task, int64_t number, double part) {
  using T = ArithmeticOf<S>;
  if (thread() == 0) task.parts[number] = part;
  if (task.problem.reduction == CMIK_CLASS) return;
  int& is_last = *in_shared<int>(kTopAt);
  if (thread() == 0) {
    const uint32_t last = uint32_t(blocks() - 1);
    is_last = take_number(task.ticket, last) == last;
  }
  sync_block();
  if (!is_last) return;
  double sum = 0;
  for (int64_t i = thread(); i < blocks(); i += threads()) sum += task.parts[i];
  sum = reduce_block(sum, in_shared<double>(kReductionAt), Sum{});
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
