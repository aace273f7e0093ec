// The work on rows, by teams of threads: probabilities summed over rows, then value and gradient.
//
// Lane l of a team of L holds the packs l, l + L, l + 2 L ... of its row in registers, so that for
// all rows of a block a thread meets the same columns. Rows go to teams in turn. Logarithms are in
// base 2 here.
#pragma once

#include "row_part.cuh"

namespace cmik {
namespace gpu {

template <class T>
constexpr T kLog2 = T(0.693147180559945309);

// Sums of P over rows, by column, for column_sums(). The second time with the weights of the rows,
// less that of the class's first: rho does not depend on what is subtracted.
template <class S, Form form, Team kTeam, class Source>
CMIK_DEVICE void sum_rows(const Task& task, int64_t class_first, const Source& source, bool second,
                          TeamOf<ArithmeticOf<S>, kTeam>& team) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;
  if (form != Form::any) second = false;
  const T weight = factors_of<T>(task).row_scale;
  T weight_of_first = 0;
  if (second) weight_of_first = row_weight(task, weight, source_row(task, class_first));
  Part part(task, team, source);
  RowStats<T>* const all_stats = source.stats();
  T acc[Part::kPacks][Part::kEntries] = {};
  for (int base = team.first(); base < source.count; base += team.step()) {
    // A team without a row of its own takes the last, for nothing.
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    part.load(part.row_of(source, r));
    RowStats<T> stats;
    if (second)
      stats = all_stats[r];
    else
      stats.peak = part.peak();
    part.take_exponents(stats.peak);
    T e[Part::kPacks][Part::kEntries];
    part.powers(e);
    if (!second) {
      stats.shift = part.fold(Sum{}, [&](int k, int i) { return e[k][i]; });
      stats.factor = reciprocal(stats.shift);
      stats.slack = 0;  // until prepare_row() knows it
      if (active && team.lane() == 0) all_stats[r] = stats;
    }
    T factor = stats.factor;
    if (second)
      factor *= row_weight(task, weight, source_row(task, source.first + r)) - weight_of_first;
    if (!active) factor = 0;
#pragma unroll
    for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) acc[k][i] = multiply_add(e[k][i], factor, acc[k][i]);
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
  const int width = part.width();
  const int all = task.sum_rows;
  const int mine = team.within_warp() ? thread() / kWarpThreads : team.number();
  T* sums = in_shared<T>(task.shared.sums) + mine % kMostSumRows * width;
  const auto put = [&] {
    if (!team.speaks_for_warp()) return;
    part.each_pack(
        [&](int k) { Part::Order::write(sums, width, k * team.lanes() + team.lane(), acc[k]); });
  };
  for (int from = kMostSumRows; from < all; from += kMostSumRows) {
    if (mine / kMostSumRows == from / kMostSumRows) put();
    sync_block();
    if (mine < kMostSumRows && mine + from < all && team.speaks_for_warp())
      part.each_pack([&](int k) {
        T more[Part::kEntries];
        Part::Order::read(sums, width, k * team.lanes() + team.lane(), more);
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) acc[k][i] += more[i];
      });
    sync_block();
  }
  if (mine < kMostSumRows) put();
  sync_block();
}

// What sum_rows() has made of columns that stand together (see ColumnOrder). They may then be
// written over by whoever read them.
template <class S>
CMIK_DEVICE typename ColumnOrder<S>::Together column_sums(const Task& task, int width, int pack) {
  using Order = ColumnOrder<S>;
  using Together = typename Order::Together;
  const auto* sums = in_shared<Together>(task.shared.sums) + pack;
  const int rows = task.sum_rows;
  Together sum = *sums;
#pragma unroll
  for (int row = 1; row < kMostSumRows; ++row) {
    if (row >= rows) continue;
    const Together more = sums[row * (width / Order::kTogether)];
#pragma unroll
    for (int i = 0; i < Order::kTogether; ++i) sum.of[i] += more.of[i];
  }
  return sum;
}

// What rows of a class are compared with, in shared memory: registers are scarce. Column vectors
// are in the order of ColumnOrder; beyond the row the centroid is 0 and the target some number.
template <class T>
struct Columns {
  int width;

  CMIK_DEVICE T* vector(int number) const { return in_shared<T>(kVectorsAt) + number * width; }
  CMIK_DEVICE T* centroid() const { return vector(kCentroid); }
  // log2(Q / max Q)
  CMIK_DEVICE T* target() const { return vector(kTarget); }
  // with row weights: mean of w P / Q
  CMIK_DEVICE T* rho() const { return vector(kRho); }
  // max Q, at most 1, and not so small that P / max Q could overflow
  CMIK_DEVICE T& top() const { return in_shared<T>(kTopAt)[0]; }
  // 1 - sum_j Q of a given centroid
  CMIK_DEVICE T& missing_mass() const { return in_shared<T>(kTopAt)[1]; }
};

// What the second sweep takes from the first, of a row.
template <class Part, class T>
CMIK_DEVICE void prepare_row(const Task& task, T top, RowStats<T>& stats) {
  // As sweep 1 has rounded it: a bare product could be fused into the sums below.
  const T shift = multiply_add(stats.peak, factors_of<T>(task).exponent_scale, T(0));
  const T total = stats.shift;
  // P / max Q is the smallest number whose logarithm serves: rounded, it is exact where KL is
  // small.
  const T offset = task.has_value ? log2_of(total * top) : T(0);
  if (!Part::is_small_shift(shift)) {
    stats.shift = T(NAN), stats.slack = offset;
    if (task.has_value) stats.factor = top;
    return;
  }
  // The rounding error of a sum, exactly.
  stats.shift = shift + offset;
  const T rounded_offset = stats.shift - shift, rounded_shift = stats.shift - rounded_offset;
  stats.slack = (shift - rounded_shift) + (offset - rounded_offset);
  if (task.has_value) stats.factor = top * exp2_of(-stats.slack);
}

// number(column) into the column vector, in the order in which threads read it later.
template <class S, class F>
CMIK_DEVICE void fill_vector(ArithmeticOf<S>* vector, int width, F number) {
  using Order = ColumnOrder<S>;
#pragma unroll 1
  for (int pack = thread(); pack < width / Order::kTogether; pack += threads()) {
    typename Order::Together numbers;
#pragma unroll
    for (int i = 0; i < Order::kTogether; ++i)
      numbers.of[i] = number(Order::column(width, pack * Order::kTogether + i));
    reinterpret_cast<typename Order::Together*>(vector)[pack] = numbers;
  }
}

// Target and the rest from the centroid, which every thread has put where packs thread,
// thread + threads ... are. `owned`: the owners of columns have put log2 of significands into
// target.
template <class S, class Part, class Source>
CMIK_DEVICE void prepare_target(const Task& task, const Columns<ArithmeticOf<S>>& columns,
                                const Source& source, ArithmeticOf<S> missing_mass, bool owned) {
  using T = ArithmeticOf<S>;
  using Order = ColumnOrder<S>;
  using Together = typename Order::Together;
  auto* centroid = reinterpret_cast<Together*>(columns.centroid());
  auto* target = reinterpret_cast<Together*>(columns.target());
  const int packs = columns.width / Order::kTogether;
  T top = 0;
#pragma unroll 1
  for (int pack = thread(); pack < packs; pack += threads()) {
    const Together q = centroid[pack];
#pragma unroll
    for (int i = 0; i < Order::kTogether; ++i) top = maximum(top, q.of[i]);
  }
  top = reduce_block(top, in_shared<T>(kPeakAt), Largest{});
  // Less than this is the largest of a given centroid that is next to nothing everywhere.
  constexpr T least = T(1) / (1 << 24);
  top = top > 1 ? T(1) : top < least ? least : top;
  if (thread() == 0) columns.top() = top, columns.missing_mass() = missing_mass;
  const T share = 1 / top, of_top = owned ? log2_of(significand_of(top)) : T(0);
#pragma unroll 1
  for (int pack = thread(); pack < packs; pack += threads()) {
    const Together q = centroid[pack];
    Together logarithm;
    if (owned) logarithm = target[pack];
#pragma unroll
    for (int i = 0; i < Order::kTogether; ++i) {
      const T entry = at_least_normal(q.of[i]);
      logarithm.of[i] = owned
                            ? T(exponent_of(entry) - exponent_of(top)) + (logarithm.of[i] - of_top)
                            : log2_of(entry * share);
    }
    target[pack] = logarithm;
  }
  if (!task.given)
#pragma unroll 1
    for (int r = thread(); r < source.count; r += threads())
      prepare_row<Part>(task, top, source.stats()[r]);
  sync_block();
}

// The class's given centroid.
template <class S, class Part, class Source>
CMIK_DEVICE void take_given(const Task& task, int64_t cls, const Columns<ArithmeticOf<S>>& columns,
                            const Source& source) {
  using T = ArithmeticOf<S>;
  const cmik_problem& p = task.problem;
  const T* given = static_cast<const T*>(p.centroids) + cls * p.channels;
  double sum = 0;
  fill_vector<S>(columns.centroid(), columns.width, [&](int j) {
    const T q = j < p.channels ? at_least_normal(given[j]) : T(0);
    sum += double(q);
    return q;
  });
  sum = reduce_block(sum, in_shared<double>(kReductionAt), Sum{});
  prepare_target<S, Part>(task, columns, source, T(1 - sum), false);
}

// Adds up this thread's P f(d) / factor, where all its d are small; returns whether they are.
template <class Series, class Part>
CMIK_DEVICE bool add_series(const Part& part, const float (&e)[Part::kPacks][Part::kEntries],
                            float& sum) {
  float largest = 0;  // square
  part.each_pack([&](int k) {
#pragma unroll
    for (int i = 0; i < Part::kEntries; i += 2) {
      float squares[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float x = part.z[k][i + n];
        squares[n] = x * x;
        sum = multiply_add(e[k][i + n], squares[n] * Series::at(x), sum);
      }
      largest = largest_square(largest, squares[0], squares[1]);
    }
  });
  return largest <= Series::largest_square;
}

// The sum of P f(d) whatever d is, from the row once more: this is rare. As in add_series(), the
// centroid is what P and d make of it, with the slack in d.
template <class Part, class S, class T>
CMIK_DEVICE T long_series(const Part& part, const S* row, const RowStats<T>& stats) {
  const T share = exp2_of(-part.slack(stats));
  T sum = 0;
#pragma unroll 1
  for (int k = 0; k < Part::kPacks; ++k) {
    if (!part.has(k)) continue;
    Pack<S> pack;
    T z[Part::kEntries], target[Part::kEntries], centroid[Part::kEntries];
    part.load(row, k, pack, z);
    part.read_column(kTarget, k, target);
    part.read_column(kCentroid, k, centroid);
#pragma unroll
    for (int i = 0; i < Part::kEntries; ++i) {
      const T x = part.careful_exponent(z[i], stats);
      const T p = exp2_of(x) * stats.factor, d = (x - target[i]) * kLog2<T>;
      sum += divergence(p, centroid[i] * share, d, T(0));
    }
  }
  return sum;
}

// KL of the row more accurately than `kl`, which is the direct form, where that is worth it.
template <class Part, class S, class T>
CMIK_DEVICE T accurate_divergence(const Part& part, const S* row, const RowStats<T>& stats,
                                  const T (&e)[Part::kPacks][Part::kEntries], T missing_mass,
                                  T kl) {
  const bool small = is_small(kl, missing_mass);
  if (!part.team.any(small)) return kl;  // who exchange numbers do the same
  const bool tiny = is_tiny(kl, part.task.problem.reduction != CMIK_NONE);
  T accurate = kl;
  if (part.team.any(small && !tiny)) {
    T balance = 0;
    part.each_pack_with(kCentroid, [&](int k, const T(&centroid)[Part::kEntries]) {
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i)
        balance += multiply_add(e[k][i], -stats.factor, centroid[i]);
    });
    balance = part.team.reduce(balance, Sum{});
    if (small && !tiny) accurate = kl + (balance + missing_mass);
  }
  if (part.team.any(small && tiny)) {
    T series = 0;
    bool done = false;
    if constexpr (sizeof(T) == sizeof(float))
      done = kl < SmallSeries::usual_kl ? add_series<SmallSeries>(part, e, series)
                                        : add_series<WideSeries>(part, e, series);
    done = part.agreed(done);
    series = part.team.reduce(done ? series * stats.factor : long_series(part, row, stats), Sum{});
    // Exponents that are too large by the slack change the sum in second order alone.
    const T slack = part.slack(stats) * kLog2<T>;
    if (small && tiny) accurate = series + (missing_mass - slack * (slack / 2 + missing_mass));
  }
  return accurate;
}

// Value and gradient of the rows. Adds to `value` the KL of those whose first lane this is.
// Peaks and totals are made here where centroids are given.
template <class S, Form form, Team kTeam, class Source>
CMIK_DEVICE void finish_rows(const Task& task, int64_t cls, int64_t class_count,
                             const Source& source, const Columns<ArithmeticOf<S>>& columns,
                             TeamOf<ArithmeticOf<S>, kTeam>& team, double& value) {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;
  const cmik_problem& p = task.problem;
  const bool weighted = form == Form::any && task.weighted;
  // A class of one row is its own centroid: exactly nothing, or NaN if the row is.
  const bool alone = !p.centroids && class_count == 1;
  const T inverse_tau = factors_of<T>(task).inverse_tau;
  const T weight_of_class =
      alone ? T(0) : class_weight<T>(task, cls, class_count) * (inverse_tau * kLog2<T>);
  S* const gradient =
      static_cast<S*>(p.gradient) + (form == Form::any ? 0 : team.lane() * Part::kEntries);
  Part part(task, team, source);
  RowStats<T>* const all_stats = source.stats();
  // Whether a probability of 0 may come with a logarithm that makes NaN of it: -infinity, or one
  // that overflows when it is multiplied with the row's weight.
  bool careful =
      form == Form::any || task.given || task.has_row_weights || !(fabs(weight_of_class) <= T(0.5));
  for (int base = team.first(); base < source.count; base += team.step()) {
    const bool active = base + team.offset() < source.count;
    const int r = active ? base + team.offset() : source.count - 1;
    const S* memory = part.row_of(source, r);
    part.load(memory);
    RowStats<T> stats;
    T e[Part::kPacks][Part::kEntries];  // P / factor
    if (task.given) {
      stats.peak = part.peak(), stats.shift = T(NAN), stats.slack = 0;
      part.take_exponents_carefully(stats);
      part.powers(e);
      const T total = part.fold(Sum{}, [&](int k, int i) { return e[k][i]; });
      stats.factor = columns.top(), stats.slack = log2_of(total * stats.factor);
      part.each_entry([&](T& exponent) { exponent -= stats.slack; });
      const T inverse = 1 / (total * stats.factor);
#pragma unroll
      for (int k = 0; k < Part::kPacks; ++k)
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) e[k][i] *= inverse;
    } else {
      stats = all_stats[r];
      if (careful)
        part.take_exponents_carefully(stats);
      else
        part.take_exponents(stats);
      part.powers(e);
    }

    // z becomes d
    part.each_pack_with(kTarget, [&](int k, const T(&target)[Part::kEntries]) {
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i) part.z[k][i] -= target[i];
    });
    const T mean = stats.factor * part.fold_products([&](int k, int i) { return e[k][i]; },
                                                     [&](int k, int i) { return part.z[k][i]; });
    if (!careful && team.any(mean != mean)) {
      careful = true;  // from this row on
      base -= team.step();
      continue;
    }
    if (task.has_value) {
      T kl = accurate_divergence(part, memory, stats, e, columns.missing_mass(),
                                 (mean - part.slack(stats)) * kLog2<T>);
      if (alone) kl *= 0;
      if (active && team.lane() == 0) {
        if (p.reduction == CMIK_NONE)
          static_cast<T*>(p.value)[source_row(task, source.first + r)] = T(p.weight) * kl;
        else
          value += double(kl);
      }
    }

    T rho_mean = 0;
    if (weighted) {
      part.each_pack_with(kRho, [&](int k, const T(&rho)[Part::kEntries]) {
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) rho_mean += e[k][i] * rho[i];
      });
      rho_mean = team.reduce(rho_mean, Sum{}) * stats.factor;
    }
    if (!task.has_gradient || !active) continue;
    uint32_t row = uint32_t(source.first) + uint32_t(r);
    T slope = stats.factor * weight_of_class;
    if (task.scattered) {
      if (task.has_order) row = source_row(task, source.first + r);
      if (task.has_row_weights) slope *= static_cast<const T*>(p.incoming)[row];
    }
    S* out = gradient + uint64_t(row) * uint32_t(part.row_entries());
    const T level = -mean * slope;
    part.each_pack([&](int k) {
      T g[Part::kEntries];
#pragma unroll
      for (int i = 0; i < Part::kEntries; ++i)
        g[i] = e[k][i] * multiply_add(part.z[k][i], slope, level);
      if (weighted) {
        T rho[Part::kEntries];
        part.read_column(kRho, k, rho);
        const T mass = alone ? T(0) : stats.factor * inverse_tau;
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i) g[i] += e[k][i] * mass * (rho_mean - rho[i]);
      }
      const Pack<S> rounded = pack_of(S{}, g);
      if constexpr (form != Form::any) {
        Pack<S>* const place = reinterpret_cast<Pack<S>*>(out) + k * team.lanes();
        if constexpr (Source::kMayHaveTile)
          *place = rounded;
        else
          store_streaming(place, rounded);  // L2 is for rows that are read again
      } else {
        const int pack = k * team.lanes() + team.lane();
#pragma unroll
        for (int i = 0; i < Part::kEntries; ++i)
          if (pack * Part::kEntries + i < p.channels)
            out[pack * Part::kEntries + i] = entry_of(rounded, i);
      }
    });
  }
}

}  // namespace gpu
}  // namespace cmik
