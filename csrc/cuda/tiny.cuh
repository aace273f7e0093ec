// Classes that one warp holds in registers, a row in each of its teams: a block is a warp. Nothing
// is read, exponentiated or stored twice, there is no shared memory, and nobody waits.
//
// Sums over the rows meet by halves: a team and another exchange half of their columns, then each
// half of that with a third one, and so on, until every column is with one team. That one takes its
// logarithm, and the logarithms come back by the same ways. For this, team t holds its packs in an
// order of its own: what it gives away is always the second half of what it has.
#pragma once

#include <cstring>

#include "rows.cuh"
#include "values.cuh"

namespace cmik {
namespace gpu {

// kLogUnit log2(x) for x >= 0, where all below the smallest normal number count as about that; some
// number for NaN.
template <class T>
constexpr T kLogUnit = 1;
template <>
constexpr float kLogUnit<float> = 0x1p23f;

CMIK_DEVICE float scaled_log2(float x) {
  constexpr uint32_t sqrt_of_half = 0x3f3504f3;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t power = (bits - sqrt_of_half) & 0xff800000u;  // kLogUnit times the exponent
  bits -= power;
  memcpy(&x, &bits, sizeof bits);
  const float s = (x - 1) * quick_reciprocal(x + 1);
  return multiply_add(s, log2_ratio(s * s), float(int32_t(power)));
}
CMIK_DEVICE double scaled_log2(double x) { return log2_of(at_least_normal(x)); }

// Teams of a warp, and packs that all of them hold in the same order.
template <Team kTeam>
constexpr int kTinyTeams = kTeam == Team::lanes4 ? 8 : 4;
template <class S, Team kTeam>
constexpr int kTinyTurned = thread_packs(sizeof(S), Form::packed) > kTinyTeams<kTeam>
                                ? thread_packs(sizeof(S), Form::packed) / kTinyTeams<kTeam>
                                : 1;

// The part of a row that a thread holds, and of the class's sums.
template <class S, Team kTeam>
struct TinyPart : RowPart<S, Form::full, kTeam, kTinyTurned<S, kTeam> > {
  using Base = RowPart<S, Form::full, kTeam, kTinyTurned<S, kTeam> >;
  using T = ArithmeticOf<S>;
  static constexpr int kPacks = Base::kPacks, kEntries = Base::kEntries;
  static constexpr int kTeams = kTinyTeams<kTeam>;
  static constexpr int kSteps = kTeams == 8 ? 3 : 2;  // log2(kTeams)
  static constexpr int kOwn = kPacks * kEntries / kTeams;

  T e[kPacks][kEntries];  // 2^z: P of the row, times its total
  T sums[kOwn];           // of the team's own columns: the centroid times `least`
  T least;                // of the rows' totals

  template <class Source>
  CMIK_DEVICE TinyPart(const Task& task, TeamOf<T, kTeam>& team, const Source& source)
      : Base(task, team, source) {
#pragma unroll
    for (int step = 1; step <= kSteps; ++step)
      if (thread() & kWarpThreads >> step) this->turn |= kPacks >> step;
  }

  // As where column vectors are in shared memory; all of the warp together.
  template <class Visit>
  CMIK_DEVICE void each_pack_with(int /* kCentroid */, Visit visit) const {
    const T scale = reciprocal(least);
    T centroid[kOwn], all[kPacks][kEntries];
#pragma unroll
    for (int n = 0; n < kOwn; ++n) centroid[n] = sums[n] * scale;
    gather(centroid, all);
    this->each_pack([&](int k) { visit(k, all[k]); });
  }
  CMIK_DEVICE bool agreed(bool holds) const { return !any_in_warp(!holds); }

  // The smallest number of the rows.
  CMIK_DEVICE T least_of_teams(T number) const {
#pragma unroll
    for (int mask = kWarpThreads / kTeams; mask < kWarpThreads; mask *= 2)
      number = -maximum(-number, -exchange(number, mask));
    return number;
  }

  // Sums of e factor over the teams, of the team's own columns.
  CMIK_DEVICE void sum_teams(T factor) {
    constexpr int half = kPacks * kEntries / 2;
    const auto entry = [&](int n) { return e[n / kEntries][n % kEntries]; };
    T halves[half];
#pragma unroll
    for (int n = 0; n < half; ++n)
      halves[n] =
          multiply_add(entry(n), factor, exchange(entry(n + half) * factor, kWarpThreads / 2));
    add_halves<1>(halves);
#pragma unroll
    for (int n = 0; n < kOwn; ++n) sums[n] = halves[n];
  }
  template <int kStep, int kCount>
  CMIK_DEVICE void add_halves(T (&numbers)[kCount]) const {
    if constexpr (kStep < kSteps) {
      constexpr int mask = kWarpThreads / 2 >> kStep, half = kPacks * kEntries / 2 >> kStep;
#pragma unroll
      for (int n = 0; n < half; ++n) {
        T mine = numbers[n], away = numbers[n + half];
        if constexpr (half < kEntries) swap_if(thread() & mask, mine, away);
        numbers[n] = mine + exchange(away, mask);
      }
      add_halves<kStep + 1>(numbers);
    }
  }

  // The columns of all teams from what each has of its own.
  CMIK_DEVICE void gather(const T (&own)[kOwn], T (&all)[kPacks][kEntries]) const {
    T numbers[kPacks * kEntries];
#pragma unroll
    for (int n = 0; n < kOwn; ++n) numbers[n] = own[n];
    join_halves<kSteps>(numbers);
#pragma unroll
    for (int n = 0; n < kPacks * kEntries; ++n) all[n / kEntries][n % kEntries] = numbers[n];
  }
  template <int kStep>
  CMIK_DEVICE void join_halves(T (&numbers)[kPacks * kEntries]) const {
    if constexpr (kStep > 0) {
      constexpr int mask = kWarpThreads >> kStep, half = kPacks * kEntries >> kStep;
#pragma unroll
      for (int n = 0; n < half; ++n) {
        T here = numbers[n], there = exchange(here, mask);
        if constexpr (half < kEntries) swap_if(thread() & mask, here, there);
        numbers[n] = here, numbers[n + half] = there;
      }
      join_halves<kStep - 1>(numbers);
    }
  }
  // Where a pack is divided, the order of packs does not say whose a half is.
  static CMIK_DEVICE void swap_if(bool second, T& a, T& b) {
    const T first = second ? b : a;
    b = second ? a : b, a = first;
  }
};

// For accurate_divergence(): as for other parts, from what is in registers.
template <class S, Team kTeam, class T>
CMIK_DEVICE T long_series(const TinyPart<S, kTeam>& part, const S*, const RowStats<T>& stats) {
  const T share = exp2_of(-part.slack(stats));
  T sum = 0;
  part.each_pack_with(kCentroid, [&](int k, const auto& centroid) {
#pragma unroll
    for (int i = 0; i < part.kEntries; ++i)
      sum += divergence(part.e[k][i] * stats.factor, centroid[i] * share, part.z[k][i] * kLog2<T>,
                        T(0));
  });
  return sum;
}

template <class S, Team kTeam>
struct TinyWorker {
  using T = ArithmeticOf<S>;
  using Part = TinyPart<S, kTeam>;

  const Task& task;
  TeamOf<T, kTeam>& team;
  Part& part;
  T weight = 0;      // of a row in the gradient
  double total = 0;  // of the rows whose first lane this is

  // As finish_rows() has it.
  CMIK_DEVICE T weight_of_row(int cls, int count) const {
    return class_weight<T>(task, cls, count) * (factors_of<T>(task).inverse_tau * kLog2<T>);
  }

  CMIK_DEVICE void run() {
    const cmik_problem& p = task.problem;
    if (p.reduction != CMIK_CLASS) weight = weight_of_row(0, 1);
    for (int cls = int(block()); cls < int(p.classes); cls += task.class_step) {
      const ClassRows rows = rows_of_class(task, cls);
      const int count = int(rows.count);
      if (p.reduction == CMIK_CLASS) {
        if (team.any(leave_alone<T>(task, cls))) continue;
        weight = weight_of_row(cls, count);
      }
      if (team.any(count > 0))
        work_on(cls, uint32_t(rows.first), count);
      else
        write_empty(cls);
    }
    if (!p.value || (p.reduction != CMIK_MEAN && p.reduction != CMIK_SUM)) return;
    add_up_blocks<S>(task, reduce_warp(total, kWarpThreads, Sum{}));
  }

  CMIK_DEVICE void work_on(int cls, uint32_t first, int count) {
    // A team without a row of its own takes the last, for nothing.
    const bool active = team.offset() < count;
    const uint32_t row = source_row(task, first + (active ? team.offset() : count - 1));
    const S* features = static_cast<const S*>(task.problem.features);
    part.load(features + row * task.problem.row_stride + team.lane() * Part::kEntries);
    part.take_exponents(part.peak());
    part.powers(part.e);
    const T sum = part.fold(Sum{}, [&](int k, int i) { return part.e[k][i]; });
    part.least = part.least_of_teams(sum);
    const T factor = multiply_add(part.least, T(0), reciprocal(sum));  // NaN where any row is
    // P and the centroid by that scale have small logarithms where KL is small.
    const T relative = factor * part.least, share = relative * reciprocal(T(count));
    part.sum_teams(active ? share : T(0));
    if (task.problem.means) write_means(cls);
    take_target();
    const T slope = count == 1 ? T(0) : weight;
    T mean = fold_mean(factor, !(fabs(slope) <= T(0.5)));
    if (task.has_value)
      write_value(cls, count, row, active, divergence_of(relative, factor, mean, count));
    if (task.has_gradient && active) write_gradient(row, mean, factor * slope);
  }

  // z becomes d but for log2(relative), which all entries of the row share.
  CMIK_DEVICE void take_target() {
    T target[Part::kOwn], all[Part::kPacks][Part::kEntries];
#pragma unroll
    for (int n = 0; n < Part::kOwn; ++n) target[n] = scaled_log2(part.sums[n]);
    part.gather(target, all);
    part.each_pack([&](int k) {
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i)
        part.z[k][i] = multiply_add(all[k][i], -1 / kLogUnit<T>, part.z[k][i]);
    });
  }

  // The mean of d. Where a probability of 0 may come with a d that makes NaN of it, or does, d is
  // raised to what serves as well: to -infinity, or to one that overflows in the gradient.
  CMIK_DEVICE T fold_mean(T factor, bool careful) {
    T mean = mean_of_d(factor);
    if (team.any(careful || mean != mean)) {
      part.each_entry([&](T& d) { d = maximum(d, kLowestExponent<T>); });
      mean = mean_of_d(factor);
    }
    return mean;
  }
  CMIK_DEVICE T mean_of_d(T factor) const {
    return factor * part.fold_products([&](int k, int i) { return part.e[k][i]; },
                                       [&](int k, int i) { return part.z[k][i]; });
  }

  // KL of the row. Changes z and the mean by the same.
  CMIK_DEVICE T divergence_of(T relative, T factor, T& mean, int count) {
    const T scaled_offset = scaled_log2(relative);
    T kl = multiply_add(scaled_offset, 1 / kLogUnit<T>, mean) * kLog2<T>;
    if (team.any(is_small(kl, T(0)))) {
      const T offset = scaled_offset * (1 / kLogUnit<T>);
      part.each_entry([&](T& d) { d += offset; });
      mean += offset;
      const T scale = reciprocal(part.least);
      const T slack = multiply_add(relative, scale, -factor) * part.least;
      const RowStats<T> stats{T(0), factor, T(0), slack * (1 / kLog2<T>)};
      kl = accurate_divergence(part, static_cast<const S*>(nullptr), stats, part.e, T(0),
                               (mean - stats.slack) * kLog2<T>);
    }
    return count == 1 ? kl * 0 : kl;
  }

  CMIK_DEVICE void write_value(int cls, int count, uint32_t row, bool active, T kl) {
    const cmik_problem& p = task.problem;
    const bool mine = active && team.lane() == 0;
    if (p.reduction < CMIK_CLASS) {
      if (mine) total += double(kl);
    } else if (p.reduction == CMIK_NONE) {
      if (mine) static_cast<T*>(p.value)[row] = T(p.weight) * kl;
    } else {
      const double sum = reduce_warp(mine ? double(kl) : 0.0, kWarpThreads, Sum{});
      if (thread() == 0) static_cast<T*>(p.value)[cls] = T(p.weight * sum / double(count));
    }
  }

  CMIK_DEVICE void write_gradient(uint32_t row, T mean, T slope) const {
    S* out = static_cast<S*>(task.problem.gradient) + uint64_t(row) * uint32_t(part.row_entries()) +
             team.lane() * Part::kEntries;
    const T level = -mean * slope;
    part.each_pack([&](int k) {
      T g[Part::kEntries];
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i)
        g[i] = part.e[k][i] * multiply_add(part.z[k][i], slope, level);
      reinterpret_cast<Pack<S>*>(out)[part.at(k) * team.lanes()] = pack_of(S{}, g);
    });
  }

  // By the first team, whose packs are in their own order.
  CMIK_DEVICE void write_means(int cls) const {
    T* out = static_cast<T*>(task.problem.means) + cls * task.problem.channels;
    part.each_pack_with(kCentroid, [&](int k, const T(&centroid)[Part::kEntries]) {
      if (team.offset() > 0) return;
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i)
        out[(k * team.lanes() + team.lane()) * Part::kEntries + i] = centroid[i];
    });
  }

  CMIK_DEVICE void write_empty(int cls) const {
    const cmik_problem& p = task.problem;
    if (p.value && p.reduction == CMIK_CLASS && thread() == 0) static_cast<T*>(p.value)[cls] = T(0);
    if (!p.means) return;
    T* out = static_cast<T*>(p.means) + cls * p.channels;
    for (int j = thread(); j < p.channels; j += kWarpThreads) out[j] = 0;
  }
};

template <class S, Team kTeam>
__global__ void __launch_bounds__(kWarpThreads, kProcessorThreads / kWarpThreads)
    tiny_kernel(const CMIK_CONSTANT Task task) {
  using T = ArithmeticOf<S>;
  if (task.problem.reduction != CMIK_CLASS && any_in_warp(leave_alone<T>(task, 0))) return;
  TeamOf<T, kTeam> team(task);
  TinyPart<S, kTeam> part(task, team, SlotSource<S>{task, 0, 0});
  TinyWorker<S, kTeam>{task, team, part}.run();
}

}  // namespace gpu
}  // namespace cmik
