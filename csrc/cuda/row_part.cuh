// Where rows are, and the part of a row that a thread holds in registers.
#pragma once

#include "teams.cuh"

namespace cmik {
namespace gpu {

// A class's rows, or some of them: those of a slot in global memory, with what is known of them.
template <class S>
struct SlotSource {
  using T = ArithmeticOf<S>;
  static constexpr bool kMayHaveTile = false;

  const Task& task;
  int64_t first;  // position in class-sorted order
  int count;

  CMIK_DEVICE S* tile() const { return nullptr; }
  CMIK_DEVICE RowStats<T>* stats() const { return static_cast<RowStats<T>*>(task.stats) + first; }
};

// Those of a block's share of a class, in shared memory where the form says so and the chip can.
template <class S, Form form>
struct ShareSource {
  using T = ArithmeticOf<S>;
  static constexpr bool kMayHaveTile = form != Form::any;

  const Task& task;
  int64_t first;
  int count;
  int stage;

  CMIK_DEVICE S* tile() const {
    return in_shared<S>(task.shared.tiles) +
           stage * task.plan.share_rows * int(task.problem.channels);
  }
  CMIK_DEVICE RowStats<T>* stats() const {
    return keep_address(in_shared<RowStats<T>>(task.shared.stats));
  }
};

// Column vectors in shared memory are read 16 bytes at a time by neighbouring threads. Where a pack
// has 32 bytes of one, its halves lie in two planes, so that neighbours read neighbouring bytes.
template <class S>
struct ColumnOrder {
  using T = ArithmeticOf<S>;
  static constexpr int kEntries = pack_entries(sizeof(S));
  static constexpr int kTogether = kPackBytes / int(sizeof(T));
  static constexpr int kPlanes = kEntries / kTogether;

  struct alignas(kPackBytes) Together {
    T of[kTogether];
  };

  // The column at a position of a vector.
  static CMIK_DEVICE int column(int width, int position) {
    if constexpr (kPlanes == 1) return position;
    const int plane = position >= width / 2, within = position - plane * (width / 2);
    return within / kTogether * kEntries + plane * kTogether + within % kTogether;
  }
  // The numbers that belong to a pack; `vector` is where those of pack 0 are.
  static CMIK_DEVICE void read(const T* vector, int width, int pack, T (&out)[kEntries]) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      const T* at = vector + plane * (width / kPlanes) + pack * kTogether;
      const Together numbers = *reinterpret_cast<const Together*>(at);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) out[plane * kTogether + i] = numbers.of[i];
    }
  }
  static CMIK_DEVICE void write(T* vector, int width, int pack, const T (&in)[kEntries]) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      Together numbers;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) numbers.of[i] = in[plane * kTogether + i];
      T* at = vector + plane * (width / kPlanes) + pack * kTogether;
      *reinterpret_cast<Together*>(at) = numbers;
    }
  }
};

// 2^this is 0, and so are the products with it.
template <class T>
constexpr T kLowestExponent = T(2 * Limits<T>::lowest_exponent);

// The entries of one row that a thread holds. Where not all teams hold their packs in the same
// order, `kTurned` packs stay together.
template <class S, Form form, Team kTeam, int kTurned = 0>
struct RowPart {
  using T = ArithmeticOf<S>;
  using Order = ColumnOrder<S>;
  static constexpr int kEntries = pack_entries(sizeof(S));
  static constexpr int kPacks = thread_packs(sizeof(S), form);
  static constexpr int kChains = 2;  // of dependent additions, side by side

  const Task& task;
  TeamOf<T, kTeam>& team;
  const S* tile = nullptr;  // the lane's first pack of the first row there
  const T* vectors;         // what belongs to the lane's first pack in the column vectors
  Pack<S> packs[kPacks];    // as they were read; not of the form `any`
  T z[kPacks][kEntries];
  int turn = 0;  // the packs' order, see at()

  template <class Source>
  CMIK_DEVICE RowPart(const Task& a_task, TeamOf<T, kTeam>& a_team, const Source& source)
      : task(a_task), team(a_team) {
    if constexpr (Source::kMayHaveTile)
      if (has_bulk_copies()) tile = keep_address(source.tile() + team.lane() * kEntries);
    vectors = keep_address(in_shared<T>(kVectorsAt) + team.lane() * Order::kTogether);
  }

  CMIK_DEVICE int row_packs() const {
    return form == Form::full ? kPacks * team.lanes() : task.packs;
  }
  CMIK_DEVICE int row_entries() const {
    return form == Form::full ? row_packs() * kEntries : int(task.problem.channels);
  }
  CMIK_DEVICE int width() const { return row_packs() * kEntries; }

  // Which of the lane's packs is the k-th that it holds.
  CMIK_DEVICE int at(int k) const {
    if constexpr (kTurned == 0)
      return k;
    else
      return (k / kTurned * kTurned ^ turn) + k % kTurned;
  }
  // Whether this lane has a k-th pack, and visit(k) for all that it has.
  CMIK_DEVICE bool has(int k) const {
    return form == Form::full || k * team.lanes() + team.lane() < task.packs;
  }
  template <class Visit>
  CMIK_DEVICE void each_pack(Visit visit) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (has(k)) visit(k);
  }
  // Those with the numbers of a column vector that belong to them: visit(k, numbers).
  template <class Visit>
  CMIK_DEVICE void each_pack_with(int vector, Visit visit) const {
    each_pack([&](int k) {
      T numbers[kEntries];
      read_column(vector, k, numbers);
      visit(k, numbers);
    });
  }
  CMIK_DEVICE void read_column(int vector, int k, T (&numbers)[kEntries]) const {
    Order::read(vectors + vector * width(), width(), k * team.lanes(), numbers);
  }

  // Where a row's first entry is, or in packs the lane's first.
  template <class Source>
  CMIK_DEVICE const S* row_of(const Source& source, int r) const {
    if constexpr (Source::kMayHaveTile)
      if (has_bulk_copies()) return tile + r * row_entries();
    const cmik_problem& p = task.problem;
    const int64_t row = source_row(task, source.first + r);
    const int own = form == Form::any ? 0 : team.lane() * kEntries;
    return static_cast<const S*>(p.features) + row * p.row_stride + own;
  }

  CMIK_DEVICE void load(const S* row) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) load(row, k, packs[k], z[k]);
  }
  // What lies beyond the row is as if it were -infinity, and so has probability 0.
  CMIK_DEVICE void load(const S* row, int k, Pack<S>& pack, T (&entries)[kEntries]) const {
    if constexpr (form == Form::any) {
      const int number = k * team.lanes() + team.lane();
      const int64_t stride = task.problem.channel_stride;
      const int left = int(task.problem.channels) - number * kEntries;
      const S* entry = row + number * kEntries * stride;
#pragma unroll
      for (int i = 0; i < kEntries; ++i) {
        entries[i] = i < left ? to_arithmetic(*entry) : T(-INFINITY);
        entry += stride;
      }
    } else {
      pack =
          has(k) ? reinterpret_cast<const Pack<S>*>(row)[at(k) * team.lanes()] : lowest_pack(S{});
      unpack(pack, entries);
    }
  }

  template <class Visit>
  CMIK_DEVICE void each_entry(Visit visit) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) visit(z[k][i]);
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
  // Sum of a(k, i) b(k, i).
  template <class A, class B>
  CMIK_DEVICE T fold_products(A a, B b) const {
    T chains[kChains] = {};
#pragma unroll
    for (int n = 0; n < kPacks * kEntries; ++n) {
      T& chain = chains[n % kChains];
      if (has(n / kEntries))
        chain = multiply_add(a(n / kEntries, n % kEntries), b(n / kEntries, n % kEntries), chain);
    }
    return team.reduce(chains[0] + chains[1], Sum{});
  }

  // The largest entry.
  CMIK_DEVICE T peak() const {
    if constexpr (form == Form::any) return fold(Largest{}, [&](int k, int i) { return z[k][i]; });
    Pack<S> largest = packs[0];
#pragma unroll
    for (int k = 1; k < kPacks; ++k) largest = larger_entries(largest, packs[k]);
    return team.reduce(largest_entry(largest), Largest{});
  }

  // z becomes (z - peak) log2(e) / tau, but for a rounding that all entries of the row share. Where
  // that would not be small, the peak is subtracted first.
  CMIK_DEVICE void take_exponents(T peak) {
    const T scale = factors_of<T>(task).exponent_scale, shift = peak * scale;
    if (is_small_shift(shift))
      each_entry([&](T& entry) { entry = multiply_add(entry, scale, -shift); });
    else
      each_entry([&](T& entry) { entry = (entry - peak) * scale; });
  }
  static CMIK_DEVICE bool is_small_shift(T shift) {
    return form != Form::any && fabs(shift) <= Limits<T>::largest_shift;
  }

  // z becomes the exponents of the second sweep. They are all NaN where the peak must be subtracted
  // first, and -infinity or very low where P is 0, which careful_exponent() mends.
  CMIK_DEVICE void take_exponents(const RowStats<T>& stats) {
    const T scale = factors_of<T>(task).exponent_scale;
    each_entry([&](T& entry) { entry = multiply_add(entry, scale, -stats.shift); });
  }
  CMIK_DEVICE void take_exponents_carefully(const RowStats<T>& stats) {
    each_entry([&](T& entry) { entry = careful_exponent(entry, stats); });
  }
  CMIK_DEVICE T careful_exponent(T entry, const RowStats<T>& stats) const {
    const T scale = factors_of<T>(task).exponent_scale;
    const T exponent = stats.shift == stats.shift ? multiply_add(entry, scale, -stats.shift)
                                                  : (entry - stats.peak) * scale - stats.slack;
    return maximum(exponent, kLowestExponent<T>);
  }

  // What exponents are too large by.
  static CMIK_DEVICE T slack(const RowStats<T>& stats) {
    return stats.shift == stats.shift ? stats.slack : T(0);
  }

  // Whether it holds for all who must go through long_series() together: each thread by itself.
  static CMIK_DEVICE bool agreed(bool holds) { return holds; }

  // e = 2^z
  CMIK_DEVICE void powers(T (&e)[kPacks][kEntries]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) e[k][i] = exp2_of(z[k][i]);
  }
};

}  // namespace gpu
}  // namespace cmik
