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

// Everyone's number put together in an order that is always the same; all get the result.
template <class T, class Op>
CMIK_DEVICE T reduce_warp(T value, int lanes, Op op) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = op(value, exchange(value, mask));
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
  for (int warp = 1; warp < threads() / kWarpThreads; ++warp) value = op(value, of_warps[warp]);
  return value;
}

// The threads that share a row with this one. Rows first() + offset(), first() + offset() + step(),
// ... are the team's; first() and step() are the same for all of a warp, whose threads go through
// loops together.
template <class T>
struct Team {
  const Task& task;
  int turn = 0;

  CMIK_DEVICE explicit Team(const Task& a_task) : task(a_task) {}

  CMIK_DEVICE int lanes() const { return task.plan.lanes; }
  CMIK_DEVICE int lane() const { return thread() & (lanes() - 1); }
  CMIK_DEVICE int number() const { return thread() >> task.lanes_bits; }
  CMIK_DEVICE int step() const { return threads() >> task.lanes_bits; }
  CMIK_DEVICE bool within_warp() const { return lanes() <= kWarpThreads; }
  CMIK_DEVICE int offset() const {
    return within_warp() ? thread() % kWarpThreads >> task.lanes_bits : 0;
  }
  CMIK_DEVICE int first() const { return number() - offset(); }

  template <class Op>
  CMIK_DEVICE T reduce(T value, Op op) {
    value = reduce_warp(value, within_warp() ? lanes() : kWarpThreads, op);
    if (within_warp()) return value;
    // Two numbers a warp by turns: who writes the same one again has met the others in between.
    T* of_warps = in_shared<T>(task.shared.exchange) + turn * (threads() / kWarpThreads);
    turn ^= 1;
    if (thread() % kWarpThreads == 0) of_warps[thread() / kWarpThreads] = value;
    if (lanes() == threads())
      sync_block();
    else
      sync_group(1 + number(), lanes());
    of_warps += number() * (lanes() / kWarpThreads);
    value = of_warps[0];
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

  CMIK_DEVICE const S* in_memory(int, int64_t row) const {
    return static_cast<const S*>(task.problem.features) + row * task.problem.row_stride;
  }
  CMIK_DEVICE RowStats<T>& stats(int r) const {
    return static_cast<RowStats<T>*>(task.stats)[first + r];
  }
};

// The same in shared memory, of all rows or the first of them.
template <class S>
struct TileSource {
  using T = ArithmeticOf<S>;

  const Task& task;
  int64_t first;
  int count;
  int resident;
  const S* tile;

  CMIK_DEVICE const S* in_memory(int r, int64_t row) const {
    const cmik_problem& p = task.problem;
    return r < resident ? tile + r * int(p.channels)
                        : static_cast<const S*>(p.features) + row * p.row_stride;
  }
  CMIK_DEVICE RowStats<T>& stats(int r) const {
    return in_shared<RowStats<T>>(task.shared.stats)[r];
  }
};

// The entries of one row that a thread holds.
template <class S>
struct RowPart {
  using T = ArithmeticOf<S>;
  static constexpr int kEntries = pack_entries(sizeof(S));
  static constexpr int kPacks = thread_packs(sizeof(S));

  struct alignas(kPackBytes) Pack {
    S entries[kEntries];
  };
  // The numbers of a column vector that belong to a pack, read 16 bytes at a time.
  struct alignas(kPackBytes) PackColumns {
    T of[kEntries];
  };
  static CMIK_DEVICE PackColumns columns(const T* vector, int pack) {
    return reinterpret_cast<const PackColumns*>(vector)[pack];
  }

  T z[kPacks][kEntries];

  // What lies beyond the row has probability 0.
  CMIK_DEVICE void load(const Task& task, const S* memory, const Team<T>& team) {
    const cmik_problem& p = task.problem;
    const T nothing = T(-INFINITY);
    if (task.packed) {
      const Pack* packs = reinterpret_cast<const Pack*>(memory) + team.lane();
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (k * team.lanes() + team.lane() < task.packs) {
          const Pack pack = packs[k * team.lanes()];
#pragma unroll
          for (int i = 0; i < kEntries; ++i) z[k][i] = to_arithmetic(pack.entries[i]);
        } else {
#pragma unroll
          for (int i = 0; i < kEntries; ++i) z[k][i] = nothing;
        }
      }
    } else {
      const S* entry = memory + team.lane() * kEntries * p.channel_stride;
      int left = int(p.channels) - team.lane() * kEntries;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kEntries; ++i)
          z[k][i] = i < left ? to_arithmetic(entry[i * p.channel_stride]) : nothing;
        entry += team.lanes() * kEntries * p.channel_stride;
        left -= team.lanes() * kEntries;
      }
    }
  }

  // z becomes z - peak; returns the peak.
  CMIK_DEVICE T take_peak(Team<T>& team) {
    T peak = z[0][0];
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) peak = maximum(peak, z[k][i]);
    peak = team.reduce(peak, Largest{});
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
  CMIK_DEVICE void exponentials(T exponent_scale, T (&e)[kPacks][kEntries]) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
#pragma unroll
      for (int i = 0; i < kEntries; ++i) e[k][i] = exp2_of(z[k][i] * exponent_scale);
  }
};

template <class T, int K, int I>
CMIK_DEVICE T sum_of(const T (&e)[K][I], Team<T>& team) {
  T sum = 0;
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < I; ++i) sum += e[k][i];
  return team.reduce(sum, Sum{});
}

// Sums of P over rows, by column: into the first row of the sums in shared memory. The second time
// with the weights of the rows, less that of the class's first: rho does not depend on what is
// subtracted.
template <class S, class Source>
CMIK_DEVICE void sum_rows(const Task& task, int64_t class_first, const Source& source, bool second,
                          Team<ArithmeticOf<S>>& team) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S>;
  const T scale = factors_of<T>(task).exponent_scale;
  const T weight = factors_of<T>(task).row_scale;
  T weight_of_first = 0;
  if (second) weight_of_first = row_weight(task, weight, source_row(task, class_first));
  T acc[Part::kPacks][Part::kEntries] = {};
  for (int base = team.first(); base < source.count; base += team.step()) {
    // A warp's teams go on together; one without a row of its own takes the last, for nothing.
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    const int64_t row = source_row(task, source.first + r);
    Part part;
    part.load(task, source.in_memory(r, row), team);
    RowStats<T> stats{};
    if (second) {
      stats = source.stats(r);
      part.subtract(stats.peak);
    } else {
      stats.peak = part.take_peak(team);
    }
    T e[Part::kPacks][Part::kEntries];
    part.exponentials(scale, e);
    if (!second) {
      stats.total = sum_of(e, team);
      if (active && team.lane() == 0) source.stats(r) = stats;
    }
    T factor = 1 / stats.total;
    if (second) factor *= row_weight(task, weight, row) - weight_of_first;
    if (!active) factor = 0;
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += e[k][i] * factor;
  }

  const int width = task.packs * Part::kEntries;
  T* sums = in_shared<T>(task.shared.sums);
  const int sum_row = team.within_warp() ? thread() / kWarpThreads : team.number();
  const int sum_rows = team.within_warp() ? threads() / kWarpThreads : team.step();
  for (int mask = team.lanes(); mask < kWarpThreads; mask *= 2)
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += exchange(acc[k][i], mask);
#pragma unroll
  for (int k = 0; k < Part::kPacks; ++k) {
    const int pack = k * team.lanes() + team.lane();
    if (pack >= task.packs || team.offset() > 0) break;
#pragma unroll
    for (int i = 0; i < Part::kEntries; ++i)
      sums[sum_row * width + pack * Part::kEntries + i] = acc[k][i];
  }
  sync_block();
  for (int j = thread(); j < width; j += threads()) {
    T sum = sums[j];
    for (int other = 1; other < sum_rows; ++other) sum += sums[other * width + j];
    sums[j] = sum;
  }
  sync_block();
}

// What rows of a class are compared with. Column vectors are (width); beyond the row the centroid
// is 0 and the target some number.
template <class T>
struct Columns {
  const Task& task;
  T top;           // max Q, at most 1
  T missing_mass;  // 1 - sum_j Q of a given centroid

  CMIK_DEVICE explicit Columns(const Task& a_task) : task(a_task), top(1), missing_mass(0) {}
  CMIK_DEVICE T* centroid() const { return in_shared<T>(task.shared.centroid); }
  // log(Q / max Q)
  CMIK_DEVICE T* target() const { return in_shared<T>(task.shared.target); }
  // with row weights: mean of w P / Q
  CMIK_DEVICE T* rho() const { return in_shared<T>(task.shared.rho); }
};

// Target and top from the centroid, which every thread has put where columns j = thread, thread +
// threads ... are.
template <class T>
CMIK_DEVICE void aim(const Task& task, int width, Columns<T>& columns) {
  T* memory = in_shared<T>(task.shared.reduction);
  T top = 0;
  for (int j = thread(); j < width; j += threads()) top = maximum(top, columns.centroid()[j]);
  top = reduce_block(top, memory, Largest{});
  columns.top = top > 1 ? T(1) : top;
  for (int j = thread(); j < width; j += threads())
    columns.target()[j] = log_of(at_least_normal(columns.centroid()[j]) / columns.top);
  sync_block();
}

// The class's given centroid.
template <class T>
CMIK_DEVICE void take_given(const Task& task, int64_t cls, int width, Columns<T>& columns) {
  const cmik_problem& p = task.problem;
  const T* given = static_cast<const T*>(p.centroids) + cls * p.channels;
  double sum = 0;
  for (int j = thread(); j < width; j += threads()) {
    columns.centroid()[j] = j < p.channels ? at_least_normal(given[j]) : T(0);
    sum += double(columns.centroid()[j]);
  }
  columns.missing_mass = T(1 - reduce_block(sum, in_shared<double>(task.shared.reduction), Sum{}));
  aim(task, width, columns);
}

// Value and gradient of the rows. Returns the sum of their KL, of the block's rows on every thread.
// Peaks and totals are made here where centroids are given.
template <class S, class Source>
CMIK_DEVICE double finish_rows(const Task& task, int64_t cls, int64_t class_count,
                               const Source& source, const Columns<ArithmeticOf<S>>& columns,
                               Team<ArithmeticOf<S>>& team) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S>;
  const cmik_problem& p = task.problem;
  const T scale = factors_of<T>(task).exponent_scale, inverse_tau = factors_of<T>(task).inverse_tau;
  // A class of one row is its own centroid: exactly nothing, or NaN if the row is.
  const T distinct = !p.centroids && class_count == 1 ? T(0) : T(1);
  const T weight_of_class = class_weight<T>(task, cls, class_count);
  for (int base = team.first(); base < source.count; base += team.step()) {
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    Part part;
    part.load(task, source.in_memory(r, source_row(task, source.first + r)), team);
    RowStats<T> stats{};
    if (p.centroids) {
      part.take_peak(team);
    } else {
      if (active) stats = source.stats(r);
      part.subtract(stats.peak);
    }
    T e[Part::kPacks][Part::kEntries];  // P total
    part.exponentials(scale, e);
    const T total = p.centroids ? sum_of(e, team) : stats.total;
    const T inverse_total = 1 / total, offset = log_of(total * columns.top);

    // z becomes d = log(P / Q)
    T kl = 0, rho_mean = 0;
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      const int pack = k * team.lanes() + team.lane();
      if (pack >= task.packs) break;
      const auto target = Part::columns(columns.target(), pack);
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) {
        T& d = part.z[k][i];
        d = maximum((d * inverse_tau - target.of[i]) - offset, T(kLowest));
        kl += e[k][i] * d;
      }
      if (task.weighted) {
        const auto rho = Part::columns(columns.rho(), pack);
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) rho_mean += e[k][i] * rho.of[i];
      }
    }
    kl = team.reduce(kl, Sum{}) * inverse_total;
    if (task.weighted) rho_mean = team.reduce(rho_mean, Sum{}) * inverse_total;

    if (p.value) {
      T accurate = kl;
      const bool wanted = needs_accurate_form(kl, columns.missing_mass);
      // A warp goes the same way, because its threads exchange numbers.
      if (any_in_warp(wanted)) {
        T sum = 0;
#pragma unroll
        for (int k = 0; k < Part::kPacks; ++k) {
          const int pack = k * team.lanes() + team.lane();
          if (pack >= task.packs) break;
          const auto centroid = Part::columns(columns.centroid(), pack);
#pragma unroll
          for (int i = 0; i < Part::kEntries; ++i)
            sum += divergence(e[k][i] * inverse_total, centroid.of[i], part.z[k][i], T(0));
        }
        sum = team.reduce(sum, Sum{}) + columns.missing_mass;
        if (wanted) accurate = sum;
      }
      accurate *= distinct;
      if (active && team.lane() == 0) {
        if (p.reduction == CMIK_NONE)
          static_cast<T*>(p.value)[source_row(task, source.first + r)] = T(p.weight) * accurate;
        else
          source.stats(r).peak = accurate;  // which has done its service
      }
    }

    if (!p.gradient || !active) continue;
    const int64_t row = source_row(task, source.first + r);
    S* out = static_cast<S*>(p.gradient) + row * p.channels;
    const T weight = row_weight(task, weight_of_class, row);
    const T mass = distinct * inverse_total * inverse_tau;
    const T slope = distinct * inverse_total * (weight * inverse_tau);
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k) {
      const int pack = k * team.lanes() + team.lane();
      if (pack >= task.packs) break;
      T g[Part::kEntries];
      // The probability first, so that 0 wins over whatever d is.
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) g[i] = e[k][i] * slope * (part.z[k][i] - kl);
      if (task.weighted) {
        const auto rho = Part::columns(columns.rho(), pack);
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
      if (task.packed_gradient) {
        *reinterpret_cast<typename Part::Pack*>(out + pack * Part::kEntries) = rounded;
      } else {
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i)
          if (pack * Part::kEntries + i < p.channels)
            out[pack * Part::kEntries + i] = rounded.entries[i];
      }
    }
  }
  if (!p.value || p.reduction == CMIK_NONE) return 0;
  sync_block();
  double value = 0;
  for (int r = thread(); r < source.count; r += threads()) value += double(source.stats(r).peak);
  return reduce_block(value, in_shared<double>(task.shared.reduction), Sum{});
}

}  // namespace gpu
}  // namespace cmik
