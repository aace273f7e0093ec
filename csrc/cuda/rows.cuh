// The work on rows, by teams of threads: probabilities summed over rows, then value and gradient.
//
// Lane l of a team of L holds the packs l, l + L, l + 2 L ... of its row in registers, so that for
// all rows of a block a thread meets the same columns. Rows go to teams in turn.
#pragma once

#include "row_part.cuh"

namespace cmik {
namespace gpu {

// Stands for the log of probability 0, so that 0 * d is 0.
constexpr float kLowest = -1e30f;

// d = log(P / Q) from z less the row's peak, log(Q / max Q), and log(total max Q) of the row.
template <class T>
CMIK_DEVICE T log_ratio(const Task& task, T z, T target, T offset) {
  return maximum((z * factors_of<T>(task).inverse_tau - target) - offset, T(kLowest));
}

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
      stats.peak = part.take_peak();
    }
    T e[Part::kPacks][Part::kEntries];
    part.exponentials(e);
    if (!second) {
      stats.total = part.fold(Sum{}, [&](int k, int i) { return e[k][i]; });
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
CMIK_DEVICE void prepare_target(const Task& task, int width, const Columns<T>& columns,
                                T missing_mass) {
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
  prepare_target(task, width, columns, T(1 - sum));
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
      part.take_peak();
    } else {
      if (active) stats = source.stats(r);
      part.subtract(stats.peak);
    }
    T e[Part::kPacks][Part::kEntries];  // P total
    part.exponentials(e);
    if (p.centroids) stats.total = part.fold(Sum{}, [&](int k, int i) { return e[k][i]; });
    const T inverse_total = 1 / stats.total, offset = log_of(stats.total * columns.top());

    // z becomes d = log(P / Q)
    part.each_pack([&](int k, int pack) {
      const auto target = Part::columns(columns.target(), pack);
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) {
        T& d = part.z[k][i];
        d = log_ratio(task, d, target.of[i], offset);
      }
    });
    const auto kl_term = [&](int k, int i) { return part.has(k) ? e[k][i] * part.z[k][i] : T(0); };
    const T kl = part.fold(Sum{}, kl_term) * inverse_total;

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
