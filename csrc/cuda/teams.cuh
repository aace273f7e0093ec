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

// The numbers of `lanes` threads, at most `kMost`, put together in an order that is always the
// same; all get the result, with the same bits.
template <int kMost = kWarpThreads, class T, class Op>
CMIK_DEVICE T reduce_warp(T value, int lanes, Op op) {
#pragma unroll
  for (int mask = kMost / 2; mask > 0; mask /= 2) {
    const T other = exchange(value, mask);  // in all lanes: a branch would cost more
    if (mask < lanes) value = op(value, other);
  }
  return value;
}
// The block has to meet before the memory is used again.
template <class T, class Op>
CMIK_DEVICE T reduce_block(T value, void* memory, Op op) {
  T* of_warps = static_cast<T*>(memory);
  value = reduce_warp(value, kWarpThreads, op);
  if (thread() % kWarpThreads == 0) of_warps[thread() / kWarpThreads] = value;
  sync_block();
  value = of_warps[0];
#pragma unroll 1
  for (int warp = 1; warp < threads() / kWarpThreads; ++warp) value = op(value, of_warps[warp]);
  return value;
}

// The threads that share a row with this one. Rows first() + offset(), first() + offset() + step(),
// ... are the team's; first() and step() are the same for all who go through loops together, which
// are the teams of a warp, or one team of several warps.
template <class T, Team kTeam>
struct TeamOf {
  const Task& task;
  int turn = 0;

  CMIK_DEVICE explicit TeamOf(const Task& a_task) : task(a_task) {}

  static constexpr bool kWithinWarp = kTeam != Team::warps;
  static constexpr int kMostLanes = kTeam == Team::lanes4    ? 4
                                    : kTeam == Team::lanes8  ? 8
                                    : kTeam == Team::lanes16 ? 16
                                                             : 32;

  static CMIK_DEVICE constexpr bool within_warp() { return kWithinWarp; }
  CMIK_DEVICE int lanes() const {
    return kTeam == Team::lanes || kTeam == Team::warps ? task.plan.lanes : kMostLanes;
  }
  CMIK_DEVICE int lane() const { return thread() & (lanes() - 1); }
  CMIK_DEVICE int number() const { return thread() >> task.lanes_bits; }
  CMIK_DEVICE int step() const { return task.teams; }
  CMIK_DEVICE int offset() const { return within_warp() ? thread() % kWarpThreads / lanes() : 0; }
  CMIK_DEVICE int first() const { return number() - offset(); }
  // Whether it is the first team of its warp, or several warps.
  CMIK_DEVICE bool speaks_for_warp() const { return offset() == 0; }

  // Whether it holds for any who goes through loops with this thread. All of a team agree.
  CMIK_DEVICE bool any(bool holds) const { return within_warp() ? any_in_warp(holds) : holds; }

  template <class Op>
  CMIK_DEVICE T reduce(T value, Op op) {
    value = reduce_warp<kMostLanes>(value, kWithinWarp ? lanes() : kWarpThreads, op);
    if constexpr (kWithinWarp) return value;
    // Two numbers a warp by turns: who writes the same one again has met the others in between.
    T* of_warps = in_shared<T>(kExchangeAt) + turn * (threads() / kWarpThreads);
    turn ^= 1;
    if (thread() % kWarpThreads == 0) of_warps[thread() / kWarpThreads] = value;
    sync_threads(1 + number(), lanes());
    of_warps += number() * (lanes() / kWarpThreads);
    value = of_warps[0];
#pragma unroll 1
    for (int warp = 1; warp < lanes() / kWarpThreads; ++warp) value = op(value, of_warps[warp]);
    return value;
  }
};

}  // namespace gpu
}  // namespace cmik
