// Where rows are, and the part of a row that a thread holds in registers.
#pragma once

#include "teams.cuh"

namespace cmik {
namespace gpu {

// A class's rows, or some of them: those of a slot in global memory, with what is known of them.
template <class S>
struct SlotSource {
  using T = ArithmeticOf<S>;

  const Task& task;
  int64_t first;  // position in class-sorted order
  int count;

  CMIK_DEVICE bool in_tile() const { return false; }
  CMIK_DEVICE const S* tile_row(int) const { return nullptr; }
  CMIK_DEVICE RowStats<T>& stats(int r) const {
    return static_cast<RowStats<T>*>(task.stats)[first + r];
  }
};

// Those of a block's share of a class, in shared memory where the form says so and the chip can.
template <class S, Form form>
struct ShareSource {
  using T = ArithmeticOf<S>;

  const Task& task;
  int64_t first;
  int count;
  int stage;

  CMIK_DEVICE bool in_tile() const { return form != Form::any && has_bulk_copies(); }
  CMIK_DEVICE S* tile_row(int r) const {
    return in_shared<S>(task.shared.tiles) +
           (stage * task.plan.share_rows + r) * int(task.problem.channels);
  }
  CMIK_DEVICE RowStats<T>& stats(int r) const {
    return in_shared<RowStats<T>>(task.shared.stats)[r];
  }
};

// The entries of one row that a thread holds.
template <class S, Form form>
struct RowPart {
  using T = ArithmeticOf<S>;
  static constexpr int kEntries = pack_entries(sizeof(S));
  static constexpr int kPacks = thread_packs(sizeof(S), form);
  static constexpr int kChains = 2;  // of dependent additions, side by side

  struct alignas(kPackBytes) Pack {
    S entries[kEntries];
  };
  // The numbers of a column vector that belong to a pack, read 16 bytes at a time.
  struct alignas(kPackBytes) PackColumns {
    T of[kEntries];
  };
  static CMIK_DEVICE PackColumns& columns(T* vector, int pack) {
    return reinterpret_cast<PackColumns*>(vector)[pack];
  }

  const Task& task;
  Team<T>& team;
  T z[kPacks][kEntries];

  CMIK_DEVICE RowPart(const Task& a_task, Team<T>& a_team) : task(a_task), team(a_team) {}

  // Whether this lane has a k-th pack, and visit(k, pack) for all that it has.
  CMIK_DEVICE bool has(int k) const {
    return form == Form::full || k * team.lanes() + team.lane() < task.packs;
  }
  template <class Visit>
  CMIK_DEVICE void each_pack(Visit visit) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (has(k)) visit(k, k * team.lanes() + team.lane());
  }

  template <class Source>
  CMIK_DEVICE void load(const Source& source, int r) {
    if (source.in_tile()) return load_packs(source.tile_row(r));
    const cmik_problem& p = task.problem;
    const int64_t row = source_row(task, source.first + r);
    const S* memory = static_cast<const S*>(p.features) + row * p.row_stride;
    if (form != Form::any)
      load_packs(memory);
    else
      load_entries(memory);
  }

  CMIK_DEVICE void load_packs(const S* memory) {
    clear();
    const Pack* packs = reinterpret_cast<const Pack*>(memory);
    each_pack([&](int k, int pack) {
      const Pack entries = packs[pack];
#pragma unroll
      for (int i = 0; i < kEntries; ++i) z[k][i] = to_arithmetic(entries.entries[i]);
    });
  }

  CMIK_DEVICE void load_entries(const S* memory) {
    clear();
    const cmik_problem& p = task.problem;
    each_pack([&](int k, int pack) {
      int left = int(p.channels) - pack * kEntries;
      const S* entry = memory + pack * kEntries * p.channel_stride;
#pragma unroll
      for (int i = 0; i < kEntries; ++i) {
        if (left > 0) z[k][i] = to_arithmetic(*entry);
        entry += p.channel_stride;
        --left;
      }
    });
  }

  // What lies beyond the row has probability 0.
  CMIK_DEVICE void clear() {
    if constexpr (form != Form::full)
#pragma unroll
      for (int k = 0; k < kPacks; ++k)
#pragma unroll
        for (int i = 0; i < kEntries; ++i) z[k][i] = T(-INFINITY);
  }

  // All entries of f(k, i) put together, over this thread's chains and then the team.
  template <class Op, class F>
  CMIK_DEVICE T fold(Op op, F f) const {
    T chains[kChains];
#pragma unroll
    for (int n = 0; n < kPacks * kEntries; ++n) {
      const T term = f(n / kEntries, n % kEntries);
      chains[n % kChains] = n < kChains ? term : op(chains[n % kChains], term);
    }
    return team.reduce(op(chains[0], chains[1]), op);
  }

  // z becomes z - peak; returns the peak.
  CMIK_DEVICE T take_peak() {
    const T peak = fold(Largest{}, [&](int k, int i) { return z[k][i]; });
    subtract(peak);
    return peak;
  }

  CMIK_DEVICE void subtract(T peak) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) z[k][i] -= peak;
  }

  // e = exp(z / tau)
  CMIK_DEVICE void exponentials(T (&e)[kPacks][kEntries]) const {
    const T scale = factors_of<T>(task).exponent_scale;
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) e[k][i] = exp2_of(z[k][i] * scale);
  }
};

}  // namespace gpu
}  // namespace cmik
