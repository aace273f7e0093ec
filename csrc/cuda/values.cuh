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

// Adds up the blocks' sums, of which thread 0 has this block's, in the block that comes last.
template <class S>
CMIK_DEVICE void add_up_blocks(const Task& task, double sum) {
  bool is_last = false;
  if (thread() == 0) {
    task.parts[block()] = sum;
    const uint32_t last = uint32_t(blocks() - 1);
    is_last = take_number(task.ticket, last) == last;
  }
  if (threads() == kWarpThreads) {
    sync_block();
    is_last = any_in_warp(is_last);
  } else {
    int& shared = *in_shared<int>(kTopAt);
    if (thread() == 0) shared = is_last;
    sync_block();
    is_last = shared;
  }
  if (is_last) add_up_parts<S>(task, blocks());
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
