// The work on rows, by teams of threads: probabilities summed over rows, then value and gradient.
//
// Lane l of a team of L holds the packs l, l + L, l + 2 L ... of its row in registers, so that for
// all rows of a block a thread meets the same columns. Rows go to teams in turn.
#pragma once

#include "task.cuh"

namespace cmik {
namespace gpu {

// Stands for the log of probability 0, so that 0 * d is 0.
constexpr float kLowest = -1e30f;

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
  const Team<T>& team;
  T z[kPacks][kEntries];

  CMIK_DEVICE RowPart(const Task& a_task, const Team<T>& a_team) : task(a_task), team(a_team) {}

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
  CMIK_DEVICE T fold(Team<T>& meeting, Op op, F f) const {
    T chains[kChains];
#pragma unroll
    for (int n = 0; n < kPacks * kEntries; ++n) {
      const T term = f(n / kEntries, n % kEntries);
      chains[n % kChains] = n < kChains ? term : op(chains[n % kChains], term);
    }
    return meeting.reduce(op(chains[0], chains[1]), op);
  }

  // z becomes z - peak; returns the peak.
  CMIK_DEVICE T take_peak(Team<T>& meeting) {
    const T peak = fold(meeting, Largest{}, [&](int k, int i) { return z[k][i]; });
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

// Sums of P over rows, by column, for column_sum(). The second time with the weights of the rows,
// less that of the class's first: rho does not depend on what is subtracted.
template <class S, Form form, class Source>
CMIK_DEVICE void sum_rows(const Task& task, int64_t class_first, const Source& source, bool second,
                          Team<ArithmeticOf<S>>& team) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form>;
  if (form != Form::any) second = false;
  const T weight = factors_of<T>(task).row_scale;
  T weight_of_first = 0;
  if (second) weight_of_first = row_weight(task, weight, source_row(task, class_first));
  Part part(task, team);
  T acc[Part::kPacks][Part::kEntries] = {};
  for (int base = team.first(); base < source.count; base += team.step()) {
    // A team without a row of its own takes the last, for nothing.
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    part.load(source, r);
    RowStats<T> stats{};
    if (second) {
      stats = source.stats(r);
      part.subtract(stats.peak);
    } else {
      stats.peak = part.take_peak(team);
    }
    T e[Part::kPacks][Part::kEntries];
    part.exponentials(e);
    if (!second) {
      stats.total = part.fold(team, Sum{}, [&](int k, int i) { return e[k][i]; });
      if (active && team.lane() == 0) source.stats(r) = stats;
    }
    T factor = 1 / stats.total;
    if (second)
      factor *= row_weight(task, weight, source_row(task, source.first + r)) - weight_of_first;
    if (!active) factor = 0;
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += e[k][i] * factor;
  }

#pragma unroll
  for (int mask = 1; mask < kWarpThreads; mask *= 2) {
    if (mask < team.lanes()) continue;
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += exchange(acc[k][i], mask);
  }
  // Whoever has no row of sums brings its own to one that has.
  const int width = task.packs * Part::kEntries;
  const int all = task.sum_rows;
  const int mine = team.within_warp() ? thread() / kWarpThreads : team.number();
  T* sums = in_shared<T>(task.shared.sums) + mine % kMostSumRows * width;
  const auto put = [&] {
    if (!team.speaks_for_warp()) return;
    part.each_pack([&](int k, int pack) {
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) Part::columns(sums, pack).of[i] = acc[k][i];
    });
  };
  for (int from = kMostSumRows; from < all; from += kMostSumRows) {
    if (mine / kMostSumRows == from / kMostSumRows) put();
    sync_block();
    if (mine < kMostSumRows && mine + from < all && team.speaks_for_warp())
      part.each_pack([&](int k, int pack) {
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += Part::columns(sums, pack).of[i];
      });
    sync_block();
  }
  if (mine < kMostSumRows) put();
  sync_block();
}

// What sum_rows() has made of a column. It may then be written over by whoever read it.
template <class T>
CMIK_DEVICE T column_sum(const Task& task, int width, int j) {
  const T* sums = in_shared<T>(task.shared.sums);
  const int rows = task.sum_rows;
  T sum = sums[j];
#pragma unroll
  for (int row = 1; row < kMostSumRows; ++row)
    if (row < rows) sum += sums[row * width + j];
  return sum;
}

// What rows of a class are compared with, in shared memory: registers are scarce. Column vectors
// are (width); beyond the row the centroid is 0 and the target some number.
template <class T>
struct Columns {
  const Task& task;

  CMIK_DEVICE T* centroid() const { return in_shared<T>(task.shared.centroid); }
  // log(Q / max Q)
  CMIK_DEVICE T* target() const { return in_shared<T>(task.shared.target); }
  // with row weights: mean of w P / Q
  CMIK_DEVICE T* rho() const { return in_shared<T>(task.shared.rho); }
  // max Q, at most 1
  CMIK_DEVICE T& top() const { return in_shared<T>(task.shared.top)[0]; }
  // 1 - sum_j Q of a given centroid
  CMIK_DEVICE T& missing_mass() const { return in_shared<T>(task.shared.top)[1]; }
};

// Target and the rest from the centroid, which every thread has put where columns j = thread,
// thread + threads ... are.
template <class T>
CMIK_DEVICE void aim(const Task& task, int width, const Columns<T>& columns, T missing_mass) {
  T top = 0;
#pragma unroll 1
  for (int j = thread(); j < width; j += threads()) top = maximum(top, columns.centroid()[j]);
  top = reduce_block(top, in_shared<T>(task.shared.reduction), Largest{});
  top = top > 1 ? T(1) : top;
  if (thread() == 0) columns.top() = top, columns.missing_mass() = missing_mass;
  const T share = 1 / top;
#pragma unroll 1
  for (int j = thread(); j < width; j += threads())
    columns.target()[j] = log_of(at_least_normal(columns.centroid()[j]) * share);
  sync_block();
}

// The class's given centroid.
template <class T>
CMIK_DEVICE void take_given(const Task& task, int64_t cls, int width, const Columns<T>& columns) {
  const cmik_problem& p = task.problem;
  const T* given = static_cast<const T*>(p.centroids) + cls * p.channels;
  double sum = 0;
#pragma unroll 1
  for (int j = thread(); j < width; j += threads()) {
    columns.centroid()[j] = j < p.channels ? at_least_normal(given[j]) : T(0);
    sum += double(columns.centroid()[j]);
  }
  sum = reduce_block(sum, in_shared<double>(task.shared.reduction), Sum{});
  aim(task, width, columns, T(1 - sum));
}

// Value and gradient of the rows. Returns the sum of their KL, of the block's rows on every thread.
// Peaks and totals are made here where centroids are given.
template <class S, Form form, class Source>
CMIK_DEVICE double finish_rows(const Task& task, int64_t cls, int64_t class_count,
                               const Source& source, const Columns<ArithmeticOf<S>>& columns,
                               Team<ArithmeticOf<S>>& team) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form>;
  const cmik_problem& p = task.problem;
  const bool weighted = form == Form::any && task.weighted;
  const T inverse_tau = factors_of<T>(task).inverse_tau;
  // A class of one row is its own centroid: exactly nothing, or NaN if the row is.
  const bool alone = !p.centroids && class_count == 1;
  const T weight_of_class = class_weight<T>(task, cls, class_count) * (alone ? T(0) : T(1));
  Part part(task, team);
  double value = 0;  // of the rows whose first lane this is
  for (int base = team.first(); base < source.count; base += team.step()) {
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    part.load(source, r);
    RowStats<T> stats{0, 1};
    if (p.centroids) {
      part.take_peak(team);
    } else {
      if (active) stats = source.stats(r);
      part.subtract(stats.peak);
    }
    T e[Part::kPacks][Part::kEntries];  // P total
    part.exponentials(e);
    if (p.centroids) stats.total = part.fold(team, Sum{}, [&](int k, int i) { return e[k][i]; });
    const T inverse_total = 1 / stats.total, offset = log_of(stats.total * columns.top());

    // z becomes d = log(P / Q)
    part.each_pack([&](int k, int pack) {
      const auto target = Part::columns(columns.target(), pack);
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) {
        T& d = part.z[k][i];
        d = maximum((d * inverse_tau - target.of[i]) - offset, T(kLowest));
      }
    });
    const auto kl_term = [&](int k, int i) { return part.has(k) ? e[k][i] * part.z[k][i] : T(0); };
    const T kl = part.fold(team, Sum{}, kl_term) * inverse_total;

    if (p.value) {
      T accurate = kl;
      const bool wanted = needs_accurate_form(kl, columns.missing_mass());
      if (team.any(wanted)) {  // those who exchange numbers do the same
        T near = 0, far = 0;   // times total, and not
        part.each_pack([&](int k, int pack) {
          T farthest = 0;
#pragma unroll
          for (int i = 0; i < Part::kEntries; ++i)
            farthest = maximum(farthest, T(fabs(part.z[k][i])));
          if (farthest <= Limits<T>::series_reach) {
#pragma unroll
            for (int i = 0; i < Part::kEntries; ++i)
              near += near_divergence(e[k][i], part.z[k][i], T(0));
          } else {
            const auto centroid = Part::columns(columns.centroid(), pack);
#pragma unroll
            for (int i = 0; i < Part::kEntries; ++i)
              far += divergence(e[k][i] * inverse_total, centroid.of[i], part.z[k][i], T(0));
          }
        });
        near = team.reduce(near * inverse_total + far, Sum{}) + columns.missing_mass();
        if (wanted) accurate = near;
      }
      if (alone) accurate *= 0;
      if (active && team.lane() == 0) {
        if (p.reduction == CMIK_NONE)
          static_cast<T*>(p.value)[source_row(task, source.first + r)] = T(p.weight) * accurate;
        else
          value += double(accurate);
      }
    }

    T rho_mean = 0;
    if (weighted) {
      part.each_pack([&](int k, int pack) {
        const auto rho = Part::columns(columns.rho(), pack);
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) rho_mean += e[k][i] * rho.of[i];
      });
      rho_mean = team.reduce(rho_mean, Sum{}) * inverse_total;
    }
    if (!p.gradient || !active) continue;
    const int64_t row = source_row(task, source.first + r);
    S* out = static_cast<S*>(p.gradient) + row * p.channels;
    const T weight = row_weight(task, weight_of_class, row);
    const T slope = inverse_total * (weight * inverse_tau);
    part.each_pack([&](int k, int pack) {
      T g[Part::kEntries];
      // The probability first, so that 0 wins over whatever d is.
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) g[i] = e[k][i] * slope * (part.z[k][i] - kl);
      if (weighted) {
        const auto rho = Part::columns(columns.rho(), pack);
        const T mass = alone ? T(0) : inverse_total * inverse_tau;
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) g[i] += e[k][i] * mass * (rho_mean - rho.of[i]);
      }
      typename Part::Pack rounded;
#pragma unroll
      for (int i = 0; i < Part::kEntries; i += 2) {
        S pair[2];
        round_pair(g[i], g[i + 1], pair);
        rounded.entries[i] = pair[0], rounded.entries[i + 1] = pair[1];
      }
      if (form != Form::any) {
        reinterpret_cast<typename Part::Pack*>(out)[pack] = rounded;
      } else {
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i)
          if (pack * Part::kEntries + i < p.channels)
            out[pack * Part::kEntries + i] = rounded.entries[i];
      }
    });
  }
  if (!p.value || p.reduction == CMIK_NONE) return 0;
  return reduce_block(value, in_shared<double>(task.shared.reduction), Sum{});
}

}  // namespace gpu
}  // namespace cmik
