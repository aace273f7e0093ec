// Threads that put numbers together: warps, blocks, and the teams that share a row.
#pragma once

#include "task.cuh"

namespace cmik {
namespace gpu {

struct Sum {
  template <class T>
  CMIK_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <class T>
  CMIK_DEVICE T operator()(T a, T b) const {
    return maximum(a, b);
  }
};

// The numbers of `lanes` threads put together in an order that is always the same; all get the
// result.
template <class T, class Op>
CMIK_DEVICE T reduce_warp(T value, int lanes, Op op) {
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const T other = exchange(value, mask);  // in all lanes: a branch would cost more
    if (mask < lanes) value = op(value, other);
  }
  return value;
}
template <class T, class Op>
CMIK_DEVICE T reduce_block(T value, void* memory, Op op) {
  T* of_warps = static_cast<T*>(memory);
  value = reduce_warp(value, kWarpThreads, op);
  sync_block();  // whoever read the memory before has done so
  if (thread() % kWarpThreads == 0) of_warps[thread() / kWarpThreads] = value;
  sync_block();
  value = of_warps[0];
#pragma unroll 1
  for (int warp = 1; warp < threads() / kWarpThreads; ++warp) value = op(value, of_warps[warp]);
  return value;
}

// The threads that share a row with this one. Rows first() + offset(), first() + offset() + step(),
// ... are the team's; first() and step() are the same for all who go through loops together: a warp
// of several teams, or the block where teams are several warps.
template <class T>
struct Team {
  const Task& task;
  int turn = 0;

  CMIK_DEVICE explicit Team(const Task& a_task) : task(a_task) {}

  CMIK_DEVICE int lanes() const { return task.plan.lanes; }
  CMIK_DEVICE int lane() const { return thread() & (lanes() - 1); }
  CMIK_DEVICE int number() const { return thread() >> task.lanes_bits; }
  CMIK_DEVICE int step() const { return task.teams; }
  CMIK_DEVICE bool within_warp() const { return lanes() <= kWarpThreads; }
  CMIK_DEVICE int offset() const {
    return (within_warp() ? thread() % kWarpThreads : thread()) >> task.lanes_bits;
  }
  CMIK_DEVICE int first() const { return number() - offset(); }
  // Whether it is the first team of its warp, or several warps.
  CMIK_DEVICE bool speaks_for_warp() const { return !within_warp() || offset() == 0; }

  // Whether it holds for any who goes through loops with this thread.
  CMIK_DEVICE bool any(bool holds) const {
    return within_warp() ? any_in_warp(holds) : any_in_block(holds);
  }

  template <class Op>
  CMIK_DEVICE T reduce(T value, Op op) {
    value = reduce_warp(value, lanes(), op);
    if (within_warp()) return value;
    // Two numbers a warp by turns: who writes the same one again has met the others in between.
    // All teams meet, because barriers for some of a block's threads would be taken from others.
    T* of_warps = in_shared<T>(task.shared.exchange) + turn * (threads() / kWarpThreads);
    turn ^= 1;
    if (thread() % kWarpThreads == 0) of_warps[thread() / kWarpThreads] = value;
    sync_block();
    of_warps += number() * (lanes() / kWarpThreads);
    value = of_warps[0];
#pragma unroll 1
    for (int warp = 1; warp < lanes() / kWarpThreads; ++warp) value = op(value, of_warps[warp]);
    return value;
  }
};

}  // namespace gpu
}  // namespace cmik
