// The CPU kernels. Built once per instruction set, with CMIK_ISA naming it.
//
// A row costs five sweeps over data that is in the nearest cache from the second on:
//   first pass    peak; exponentials and their sum; their share of the centroid (four rows at once)
//   second pass   KL; gradient
// Between the passes the class's exponentials stay in a tile, or are made again where the class is
// larger than the tile. Only features are read from memory and only gradients are written to it.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.hpp"
#include "job.hpp"
#include "math/cmi_math.hpp"

namespace cmik {
namespace CMIK_ISA {

// The .inl files are no headers but parts of this one: they stand in this order in the namespace of
// the instruction set. Nothing in them may be a function that the linker could merge with that of
// another set.
#include "convert.inl"
#include "vector.inl"
// after both
#include "sweeps.inl"

// Kernels for features stored as S and computed in T.
template <class S, class T>
struct Passes {
  static int64_t source_row(const cmik_problem& p, int64_t position) {
    return p.order ? p.order[position] : position;
  }

  static int64_t block_end(const ClassRows& rows, int64_t block) {
    const int64_t end = (block + 1) * rows.block_rows;
    return end < rows.count ? end : rows.count;
  }

  static const char* row_memory(const cmik_problem& p, int64_t position) {
    return static_cast<const char*>(p.features) +
           source_row(p, position) * p.row_stride * int64_t(sizeof(S));
  }

  // The row in the arithmetic type: where it stands, or converted into one of the scratch rows.
  static const T* row_values(const cmik_problem& p, int64_t position, Scratch& scratch, int slot) {
    const S* row = reinterpret_cast<const S*>(row_memory(p, position));
    if constexpr (std::is_same_v<S, T>)
      if (p.channel_stride == 1) return row;
    T* values = reinterpret_cast<T*>(scratch.rows) + slot * padded<T>(p.channels);
    widen(row, p.channel_stride, p.channels, values);
    return values;
  }

  // Where the exponentials of row r of the class stand, or a spare row of the tile.
  static T* row_exponents(const Job& job, const ClassRows& rows, int64_t r, const Scratch& scratch,
                          int64_t tile_base, int64_t spare) {
    const cmik_problem& p = job.problem;
    if (tile_base == kInGradient)
      return static_cast<T*>(p.gradient) + source_row(p, rows.first + r) * p.channels;
    const int64_t tile_row = tile_base == kNowhere ? spare : r - tile_base;
    return reinterpret_cast<T*>(scratch.tile) + tile_row * padded<T>(p.channels);
  }

  // dL/dKL of a row.
  static double row_weight(const Job& job, const ClassState<T>& state, int64_t position) {
    const cmik_problem& p = job.problem;
    if (!job.row_weights) return state.weight;
    return state.weight * double(static_cast<const T*>(p.incoming)[source_row(p, position)]);
  }

  static void first_pass(const Job& job, const ClassRows& rows, int64_t block, void* class_state,
                         Scratch& scratch, int64_t tile_base) {
    const cmik_problem& p = job.problem;
    auto& state = *static_cast<ClassState<T>*>(class_state);
    const int64_t width = padded<T>(p.channels);
    const T scale = T(job.exponent_scale);
    auto* stats = static_cast<RowStats<T>*>(job.row_stats);
    T* sums = state.partial + block * width;
    T* weighted_sums = state.weighted_partial + block * width;
    const bool own = !p.centroids, weighted = job.has_rho;
    if (own)
      for (int64_t j = 0; j < width; j += kWidth<T>) store(sums + j, Vec<T>{});
    if (weighted)
      for (int64_t j = 0; j < width; j += kWidth<T>) store(weighted_sums + j, Vec<T>{});

    const int64_t begin = block * rows.block_rows, end = block_end(rows, block);
    for (int64_t group = begin; group < end; group += kGroup) {
      const int64_t count = end - group < kGroup ? end - group : kGroup;
      const T* e[kGroup];
      T factor[kGroup], weighted_factor[kGroup];
      double sums_of_rows[kSumLanes], logs_of_sums[kSumLanes];
      for (double& sum : sums_of_rows) sum = 1;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t position = rows.first + group + i;
        const T* z = row_values(p, position, scratch, 0);
        T* exponentials = row_exponents(job, rows, group + i, scratch, tile_base, i);
        const Peak<T> peak = row_peak(z, p.channels, scale);
        double sum =
            row_exponentials(z, p.channels, peak.value, scale, peak.finite_range, exponentials,
                             row_memory(p, position + 1 < p.rows ? position + 1 : position));
        if (peak.poisoned) sum = std::numeric_limits<double>::quiet_NaN();
        stats[position].peak = peak.value;
        stats[position].finite_range = peak.finite_range;
        sums_of_rows[i] = sum;
        e[i] = exponentials;
      }
      for (int64_t i = 0; i < kSumLanes; i += kWidth<double>)
        store(logs_of_sums + i, log_normal(load(sums_of_rows + i)));
      for (int64_t i = 0; i < count; ++i) {
        RowStats<T>& row = stats[rows.first + group + i];
        // The vector logarithm is for numbers only.
        row.log_sum = sums_of_rows[i] == sums_of_rows[i] ? logs_of_sums[i] : sums_of_rows[i];
        row.inverse_sum = factor[i] = T(1 / sums_of_rows[i]);
        if (weighted)
          weighted_factor[i] =
              factor[i] * T(row_weight(job, state, rows.first + group + i) - state.mean_weight);
      }
      if (own) add_rows(sums, width, e, factor, count);
      if (weighted) add_rows(weighted_sums, width, e, weighted_factor, count);
    }
  }

  static void start_class(const Job& job, const ClassRows& rows, int64_t cls, void* class_state) {
    const cmik_problem& p = job.problem;
    auto& state = *static_cast<ClassState<T>*>(class_state);
    const bool by_class = p.reduction == CMIK_CLASS;
    state.weight = by_class ? p.weight / double(rows.count) : job.row_scale;
    if (p.incoming && !job.row_weights)
      state.weight *= double(static_cast<const T*>(p.incoming)[by_class ? cls : 0]);
    if (!job.has_rho) return;
    double sum = 0;
    for (int64_t i = 0; i < rows.count; ++i) sum += row_weight(job, state, rows.first + i);
    state.mean_weight = sum / double(rows.count);
  }

  static void finish_class(const Job& job, const ClassRows& rows, int64_t cls, void* class_state) {
    const cmik_problem& p = job.problem;
    auto& state = *static_cast<ClassState<T>*>(class_state);
    const int64_t width = padded<T>(p.channels);
    const T tiny = Limits<T>::smallest_normal;
    state.missing_mass = 0;
    if (p.centroids) {
      const T* given = static_cast<const T*>(p.centroids) + cls * p.channels;
      double sum = 0;
      for (int64_t j = 0; j < width; ++j) {
        state.centroid[j] = j < p.channels ? at_least_normal(given[j]) : T(0);
        sum += double(state.centroid[j]);
      }
      state.missing_mass = 1 - sum;
    } else {
      const T share = T(1 / double(rows.count));
      add_blocks(state.centroid, state.partial, rows.blocks, width, share);
      if (job.has_rho) add_blocks(state.rho, state.weighted_partial, rows.blocks, width, share);
      if (p.means) {
        T* out = static_cast<T*>(p.means) + cls * p.channels;
        for (int64_t j = 0; j < p.channels; ++j) out[j] = state.centroid[j];
      }
    }
    if (!p.value && !p.gradient) return;

    // An own centroid below the smallest normal number belongs to probabilities of that size, whose
    // share of value and gradient is nothing: any finite target serves.
    // Relative to the largest entry, so that close centroids differ by small, exact numbers.
    Vec<T> highest = Vec<T>{};
    for (int64_t j = 0; j < width; j += kWidth<T>)
      highest = maximum<T>(load(state.centroid + j), highest);
    const T top = std::fmin(horizontal_max<T>(highest), T(1));  // a given one may be beyond 1
    state.level = -std::log(double(top));
    const T share = T(1 / double(top));
    for (int64_t j = 0; j < width; j += kWidth<T>) {
      const Vec<T> q = load(state.centroid + j);
      // The logarithm is for numbers; NaN stays what it is.
      const Vec<T> log_q = q <= std::numeric_limits<T>::max() ? log_normal(q * share) : q;
      store(state.target + j, q < tiny ? Vec<T>{} : log_q);
    }
    if (job.has_rho)
      for (int64_t j = 0; j < width; j += kWidth<T>) {
        const Vec<T> q = load(state.centroid + j);
        store(state.rho + j, q < tiny ? Vec<T>{} : load(state.rho + j) / q);
      }
  }

  static void add_blocks(T* total, const T* partial, int64_t blocks, int64_t width, T share) {
    for (int64_t j = 0; j < width; j += kWidth<T>) {
      Vec<T> sum = load(partial + j);
      for (int64_t b = 1; b < blocks; ++b) sum += load(partial + b * width + j);
      store(total + j, sum * share);
    }
  }

  static double second_pass(const Job& job, const ClassRows& rows, int64_t block,
                            const void* class_state, Scratch& scratch, int64_t tile_base) {
    return job.has_rho ? second_pass_as<true>(job, rows, block, class_state, scratch, tile_base)
                       : second_pass_as<false>(job, rows, block, class_state, scratch, tile_base);
  }

  // What the row before in the block was, and so the next one probably is.
  struct RowBefore {
    bool small = false;  // its value took the series
    bool near = false;   // every |d| was within the reach of the series
  };

  template <bool Weighted>
  static double second_pass_as(const Job& job, const ClassRows& rows, int64_t block,
                               const void* class_state, Scratch& scratch, int64_t tile_base) {
    const auto& state = *static_cast<const ClassState<T>*>(class_state);
    const int64_t begin = block * rows.block_rows, end = block_end(rows, block);
    double block_value = 0;
    RowBefore before;
    int64_t r = begin;
    for (; r + kPair <= end; r += kPair)
      block_value += finish_rows<Weighted, kPair>(job, rows, r, state, scratch, tile_base, before);
    for (; r < end; ++r)
      block_value += finish_rows<Weighted, 1>(job, rows, r, state, scratch, tile_base, before);
    return block_value;
  }

  // Whether a row takes the series; else it stays direct. The balanced form is within the bound
  // only near the direct form's floor here (docs/design/cpu_kernel.md).
  static bool takes_series(double kl, const ClassState<T>& state) {
    return is_small(T(kl), T(state.missing_mass));
  }

  template <bool Weighted, int R>
  static double finish_rows(const Job& job, const ClassRows& rows, int64_t first,
                            const ClassState<T>& state, Scratch& scratch, int64_t tile_base,
                            RowBefore& before) {
    bool finite_range = true;
    for (int r = 0; r < R; ++r)
      finite_range &=
          static_cast<const RowStats<T>*>(job.row_stats)[rows.first + first + r].finite_range;
    return finite_range ? finish_rows_as<true, Weighted, R>(job, rows, first, state, scratch,
                                                            tile_base, before)
                        : finish_rows_as<false, Weighted, R>(job, rows, first, state, scratch,
                                                             tile_base, before);
  }

  // Gradient and value of R rows of the class from `first` on; returns the sum of their KL.
  template <bool FiniteRange, bool Weighted, int R>
  static double finish_rows_as(const Job& job, const ClassRows& rows, int64_t first,
                               const ClassState<T>& state, Scratch& scratch, int64_t tile_base,
                               RowBefore& before) {
    const cmik_problem& p = job.problem;
    const int64_t channels = p.channels, width = padded<T>(channels);
    const RowStats<T>* stats = static_cast<const RowStats<T>*>(job.row_stats) + rows.first + first;
    Rows<T, FiniteRange, R> at_hand;
    for (int r = 0; r < R; ++r) {
      const T* z = row_values(p, rows.first + first + r, scratch, r);
      T* e = row_exponents(job, rows, first + r, scratch, tile_base, r);
      if (tile_base == kNowhere)
        row_exponentials_as<T, FiniteRange>(z, channels, stats[r].peak, T(job.exponent_scale), e,
                                            reinterpret_cast<const char*>(z));
      at_hand.z[r] = z;
      at_hand.e[r] = e;
      at_hand.log_ratio[r] = {stats[r].peak, T(job.inverse_tau), T(stats[r].log_sum - state.level)};
    }

    double kl[R], rho_mean[R] = {};
    const bool accurate = p.value && !Weighted && before.small;
    if (!accurate)
      rows_direct<T, FiniteRange, Weighted, R>(at_hand, channels, state.target, state.rho, kl,
                                               rho_mean);
    for (int r = 0; r < R; ++r) {
      if (!accurate) {
        kl[r] *= double(stats[r].inverse_sum);
        rho_mean[r] *= double(stats[r].inverse_sum);
        if (!p.value || !takes_series(kl[r], state)) continue;
        before.near = kl[r] < kUsuallyNear;
      }
      kl[r] = row_accurate(at_hand.z[r], at_hand.e[r], channels, at_hand.log_ratio[r],
                           stats[r].inverse_sum, state.target, state.centroid, before.near) +
              state.missing_mass;
      before.small = takes_series(kl[r], state);
    }

    // A class of one row is its own centroid: exactly nothing, or NaN if the row is.
    const double has_peers = !p.centroids && rows.count == 1 ? 0 : 1;
    double sum = 0;
    RowSlope<T> slopes[R];
    S* out[R];
    T* g[R];
    for (int r = 0; r < R; ++r) {
      kl[r] *= has_peers;
      sum += kl[r];
      const int64_t position = rows.first + first + r, target_row = source_row(p, position);
      if (p.value && p.reduction == CMIK_NONE)
        static_cast<T*>(p.value)[target_row] = T(p.weight * kl[r]);
      at_hand.log_ratio[r].offset = T(stats[r].log_sum - state.level + kl[r]);
      const double mass = has_peers * double(stats[r].inverse_sum) * job.inverse_tau;
      slopes[r] = {T(row_weight(job, state, position) * mass), T(rho_mean[r] * mass), T(mass)};
      out[r] = static_cast<S*>(p.gradient) + target_row * channels;
      if constexpr (std::is_same_v<S, T>)
        g[r] = out[r];
      else
        g[r] = reinterpret_cast<T*>(scratch.gradients) + r * width;
    }
    if (!p.gradient) return sum;
    rows_gradient<T, FiniteRange, Weighted, R>(at_hand, channels, state.target, state.rho, slopes,
                                               g);
    if constexpr (!std::is_same_v<S, T>)
      for (int r = 0; r < R; ++r) narrow(g[r], channels, out[r]);
    return sum;
  }

  static constexpr Kernels table{first_pass, start_class, finish_class, second_pass};
};

}  // namespace CMIK_ISA

const Kernels& CMIK_CONCAT(kernels_, CMIK_ISA)(int dtype) {
  using namespace CMIK_ISA;
  switch (dtype) {
    case CMIK_FLOAT64:
      return Passes<double, double>::table;
    case CMIK_BFLOAT16:
      return Passes<Bfloat16, float>::table;
    case CMIK_FLOAT16:
      return Passes<Float16, float>::table;
    default:
      return Passes<float, float>::table;
  }
}

}  // namespace cmik
