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
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cmi_math.hpp"
#include "job.hpp"

#if defined(__AVX512F__)
#define CMIK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CMIK_VECTOR_BYTES 32
#else
#define CMIK_VECTOR_BYTES 16
#endif

namespace cmik {
namespace CMIK_ISA {

#include "convert.hpp"
#include "vector.hpp"

// Vectors in flight at once, to cover the latency of dependent additions.
constexpr int kUnroll = 4;
// Channels summed in the arithmetic type before the sum moves to double.
constexpr int64_t kChunk = 4096;
// Rows whose exponentials are added to the centroid in one sweep.
constexpr int64_t kGroup = 4;
// kGroup rounded up to whole vectors.
constexpr int64_t kSumLanes = kGroup > kWidth<double> ? kGroup : kWidth<double>;
// Stands for log of probability 0, so that 0 * d is 0.
constexpr double kLowest = -1e30;

template <class T>
int64_t padded(int64_t channels) {
  const int64_t lanes = kAlign / int64_t(sizeof(T));
  return (channels + lanes - 1) / lanes * lanes;
}

// Call f(j, k) for full vectors at channel j, adding into accumulator k, and tail(j, count) for the
// channels left over.
template <class T, class Full, class Tail>
inline void sweep(int64_t begin, int64_t end, Full&& f, Tail&& tail) {
  constexpr int64_t W = kWidth<T>;
  int64_t j = begin;
  for (; j + kUnroll * W <= end; j += kUnroll * W) {
    f(j, 0);
    f(j + W, 1);
    f(j + 2 * W, 2);
    f(j + 3 * W, 3);
  }
  for (; j + W <= end; j += W) f(j, 0);
  if (j < end) tail(j, end - j);
}

template <class T>
inline Vec<T> combine(const Vec<T> (&sums)[kUnroll]) {
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
struct Peak {
  T value;        // the largest entry
  bool tame;      // all entries are finite and their exponentials of normal size
  bool poisoned;  // there is NaN or +inf, or nothing but -inf
};

template <class T>
inline Peak<T> row_peak(const T* z, int64_t channels, T scale) {
  using Bits = typename Lanes<T>::Bits;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Vec<T> top[kUnroll];
  Bits magnitude[kUnroll];  // ordered like the numbers; NaN above infinity
  for (int k = 0; k < kUnroll; ++k) {
    top[k] = Vec<T>{} - infinity;
    magnitude[k] = Bits{};
  }
  const auto look = [&](Vec<T> v, int k) {
    top[k] = maximum<T>(v, top[k]);
    const Bits bits = reinterpret_cast<Bits>(v) & std::numeric_limits<BitsOf<T>>::max();
    magnitude[k] = bits > magnitude[k] ? bits : magnitude[k];
  };
  sweep<T>(
      0, channels, [&](int64_t j, int k) { look(load(z + j), k); },
      [&](int64_t j, int64_t count) { look(load_part(z + j, count, z[0]), 0); });
  for (int k = 1; k < kUnroll; ++k) {
    top[0] = maximum<T>(top[k], top[0]);
    magnitude[0] = magnitude[k] > magnitude[0] ? magnitude[k] : magnitude[0];
  }
  Peak<T> peak;
  peak.value = horizontal_max<T>(top[0]);
  const BitsOf<T> largest_bits =
      fold<kWidth<T> / 2, BitsOf<T>>(magnitude[0], [](Bits a, Bits b) { return a > b ? a : b; });
  T largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof largest);
  // No entry is further below the peak than the peak's distance to -largest.
  peak.tame = (peak.value + largest) * scale < -Limits<T>::lowest_exponent - 2;
  peak.poisoned = false;
  if (!(largest < infinity)) {
    peak.poisoned = !(peak.value < infinity) || peak.value == -infinity;
    for (int64_t j = 0; j < channels && !peak.poisoned; ++j) peak.poisoned = z[j] != z[j];
  }
  return peak;
}

// e = exp((z - peak) / tau) with zeros up to the padding; returns the sum.
template <class T, bool Tame>
inline double row_exponentials_as(const T* z, int64_t channels, T peak, T scale, T* e) {
  const Exponential<T, Tame> exponential{peak, scale};
  double total = 0;
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = begin + kChunk < channels ? begin + kChunk : channels;
    Vec<T> sums[kUnroll] = {};
    sweep<T>(
        begin, end,
        [&](int64_t j, int k) {
          const Vec<T> value = exponential(load(z + j));
          store(e + j, value);
          sums[k] += value;
        },
        [&](int64_t j, int64_t count) {
          const Exponential<T, false> any{peak, scale};
          const Vec<T> part = load_part(z + j, count, -std::numeric_limits<T>::infinity());
          const Vec<T> value = any(part);
          store(e + j, value);
          sums[0] += value;
        });
    total += double(horizontal_sum<T>(combine<T>(sums)));
  }
  for (int64_t j = (channels + kWidth<T> - 1) / kWidth<T> * kWidth<T>; j < padded<T>(channels);
       j += kWidth<T>)
    store(e + j, Vec<T>{});
  return total;
}

template <class T>
inline double row_exponentials(const T* z, int64_t channels, T peak, T scale, bool tame, T* e) {
  return tame ? row_exponentials_as<T, true>(z, channels, peak, scale, e)
              : row_exponentials_as<T, false>(z, channels, peak, scale, e);
}

// sums_j += sum_r factor_r e_rj over up to four rows.
template <class T>
inline void add_rows(T* sums, int64_t width, const T* const* e, const T* factor, int64_t rows) {
  if (rows == kGroup) {
    const T *e0 = e[0], *e1 = e[1], *e2 = e[2], *e3 = e[3];
    const T f0 = factor[0], f1 = factor[1], f2 = factor[2], f3 = factor[3];
    for (int64_t j = 0; j < width; j += kWidth<T>)
      store(sums + j, load(sums + j) + ((load(e0 + j) * f0 + load(e1 + j) * f1) +
                                        (load(e2 + j) * f2 + load(e3 + j) * f3)));
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < width; j += kWidth<T>)
      store(sums + j, load(sums + j) + load(e[r] + j) * factor[r]);
}

// What turns an entry of a row into d = log P - log Q. Of a tame row all d are finite; elsewhere
// -inf becomes a number, so that 0 * d is 0.
template <class T, bool Tame>
struct RowLogRatio {
  T peak, inverse_tau, offset;
  const T* target;
  inline Vec<T> operator()(Vec<T> z, int64_t j) const {
    const Vec<T> d = (z - peak) * inverse_tau - load(target + j) - offset;
    if constexpr (Tame) return d;
    return maximum<T>(Vec<T>{} + T(kLowest), d);
  }
};

// sum_j e_j d_j and, with row weights, sum_j e_j rho_j.
template <class T, bool Tame, bool Weighted>
inline double row_direct(const T* z, const T* e, int64_t channels,
                         const RowLogRatio<T, Tame>& log_ratio, const T* rho, double& rho_sum) {
  double total = 0;
  rho_sum = 0;
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = begin + kChunk < channels ? begin + kChunk : channels;
    Vec<T> sums[kUnroll] = {}, rho_sums[kUnroll] = {};
    const auto add = [&](Vec<T> v, int64_t j, int k) {
      const Vec<T> mass = load(e + j);
      sums[k] += mass * log_ratio(v, j);
      if constexpr (Weighted) rho_sums[k] += mass * load(rho + j);
    };
    sweep<T>(
        begin, end, [&](int64_t j, int k) { add(load(z + j), j, k); },
        [&](int64_t j, int64_t count) { add(load_part(z + j, count, log_ratio.peak), j, 0); });
    total += double(horizontal_sum<T>(combine<T>(sums)));
    if constexpr (Weighted) rho_sum += double(horizontal_sum<T>(combine<T>(rho_sums)));
  }
  return total;
}

// sum_j Q_j f(d_j), every term to full relative accuracy.
template <class T, bool Tame>
inline double row_accurate(const T* z, const T* e, int64_t channels,
                           const RowLogRatio<T, Tame>& log_ratio, T inverse_sum,
                           const T* centroid) {
  double total = 0;
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = begin + kChunk < channels ? begin + kChunk : channels;
    Vec<T> sums[kUnroll] = {};
    const auto add = [&](Vec<T> v, int64_t j, int k) {
      const Vec<T> d = log_ratio(v, j);
      const Vec<T> p = load(e + j) * inverse_sum;
      const Vec<T> q = load(centroid + j);
      const Vec<T> square = d * d;
      const Vec<T> series = q * square * divergence_series(d, T(0));
      const Vec<T> direct = p * d + (q - p);
      sums[k] += square <= Limits<T>::series_reach * Limits<T>::series_reach ? series : direct;
    };
    sweep<T>(
        begin, end, [&](int64_t j, int k) { add(load(z + j), j, k); },
        [&](int64_t j, int64_t count) { add(load_part(z + j, count, log_ratio.peak), j, 0); });
    total += double(horizontal_sum<T>(combine<T>(sums)));
  }
  return total;
}

// g_j = e_j (slope d_j + (lift - tilt rho_j)).
template <class T, bool Tame, bool Weighted>
inline void row_gradient(const T* z, const T* e, int64_t channels,
                         const RowLogRatio<T, Tame>& log_ratio, T slope, T lift, T tilt,
                         const T* rho, T* g, bool stream) {
  const auto value = [&](Vec<T> v, int64_t j) -> Vec<T> {
    const Vec<T> d = log_ratio(v, j);
    if constexpr (Weighted) return load(e + j) * (d * slope + (lift - load(rho + j) * tilt));
    return load(e + j) * slope * d;
  };
  const auto tail = [&](int64_t j, int64_t count) {
    store_part(g + j, count, value(load_part(z + j, count, log_ratio.peak), j));
  };
  if (stream)
    sweep<T>(
        0, channels, [&](int64_t j, int) { store_streaming(g + j, value(load(z + j), j)); }, tail);
  else
    sweep<T>(0, channels, [&](int64_t j, int) { store(g + j, value(load(z + j), j)); }, tail);
}

// Kernels for features stored as S and computed in T.
template <class S, class T>
struct Passes {
  static int64_t source_row(const cmik_problem& p, int64_t position) {
    return p.order ? p.order[position] : position;
  }

  static const T* row_values(const cmik_problem& p, int64_t position, Scratch& scratch) {
    const S* row = static_cast<const S*>(p.features) + source_row(p, position) * p.row_stride;
    if constexpr (std::is_same_v<S, T>)
      if (p.channel_stride == 1) return row;
    T* values = reinterpret_cast<T*>(scratch.row);
    widen(row, p.channel_stride, p.channels, values);
    return values;
  }

  static T exponent_scale(const cmik_problem& p) {
    // Bounded so that 0 * scale stays 0 for the smallest temperatures.
    const double scale = 1.44269504088896340736 / p.temperature;
    const double most = double(std::numeric_limits<T>::max()) / 4;
    return T(scale < most ? scale : most);
  }

  static double row_weight(const cmik_problem& p, int64_t position) {
    return double(static_cast<const T*>(p.row_weights)[source_row(p, position)]);
  }

  static void first_pass(const Job& job, const ClassRows& rows, int64_t block, void* class_state,
                         Scratch& scratch, int64_t tile_base) {
    const cmik_problem& p = job.problem;
    auto& state = *static_cast<ClassState<T>*>(class_state);
    const int64_t width = padded<T>(p.channels);
    const T scale = exponent_scale(p);
    T* tile = reinterpret_cast<T*>(scratch.tile);
    auto* stats = static_cast<RowStats<T>*>(job.row_stats);
    T* sums = state.partial + block * width;
    T* weighted_sums = state.weighted_partial + block * width;
    const bool own = !p.centroids, weighted = own && p.row_weights;
    if (own)
      for (int64_t j = 0; j < width; j += kWidth<T>) store(sums + j, Vec<T>{});
    if (weighted)
      for (int64_t j = 0; j < width; j += kWidth<T>) store(weighted_sums + j, Vec<T>{});

    const int64_t begin = block * rows.block_rows;
    const int64_t end = begin + rows.block_rows < rows.count ? begin + rows.block_rows : rows.count;
    for (int64_t group = begin; group < end; group += kGroup) {
      const int64_t count = end - group < kGroup ? end - group : kGroup;
      const T* e[kGroup];
      T factor[kGroup], weighted_factor[kGroup];
      double sums_of_rows[kSumLanes], logs_of_sums[kSumLanes];
      for (double& sum : sums_of_rows) sum = 1;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t position = rows.first + group + i;
        const T* z = row_values(p, position, scratch);
        T* exponentials = tile + (tile_base < 0 ? i : group + i - tile_base) * width;
        const Peak<T> peak = row_peak(z, p.channels, scale);
        double sum = row_exponentials(z, p.channels, peak.value, scale, peak.tame, exponentials);
        if (peak.poisoned) sum = std::numeric_limits<double>::quiet_NaN();
        stats[position].peak = peak.value;
        stats[position].tame = peak.tame;
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
              factor[i] * T(row_weight(p, rows.first + group + i) - state.mean_weight);
      }
      if (own) add_rows(sums, width, e, factor, count);
      if (weighted) add_rows(weighted_sums, width, e, weighted_factor, count);
    }
  }

  static void start_class(const Job& job, const ClassRows& rows, void* class_state) {
    const cmik_problem& p = job.problem;
    auto& state = *static_cast<ClassState<T>*>(class_state);
    if (!p.row_weights) return;
    double sum = 0;
    for (int64_t i = 0; i < rows.count; ++i) sum += row_weight(p, rows.first + i);
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
        state.centroid[j] = j >= p.channels ? T(0) : given[j] < tiny ? tiny : given[j];
        sum += double(state.centroid[j]);
      }
      state.missing_mass = 1 - sum;
    } else {
      const T share = T(1 / double(rows.count));
      add_blocks(state.centroid, state.partial, rows.blocks, width, share);
      if (p.row_weights) add_blocks(state.rho, state.weighted_partial, rows.blocks, width, share);
      if (p.mean_probabilities) {
        T* out = static_cast<T*>(p.mean_probabilities) + cls * p.channels;
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
      store(state.target + j, q < tiny ? Vec<T>{} : log_normal(q * share));
    }
    if (p.row_weights && !p.centroids)
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
    return job.problem.row_weights && !job.problem.centroids
               ? second_pass_as<true>(job, rows, block, class_state, scratch, tile_base)
               : second_pass_as<false>(job, rows, block, class_state, scratch, tile_base);
  }

  template <bool Weighted>
  static double second_pass_as(const Job& job, const ClassRows& rows, int64_t block,
                               const void* class_state, Scratch& scratch, int64_t tile_base) {
    const auto& state = *static_cast<const ClassState<T>*>(class_state);
    const auto* stats = static_cast<const RowStats<T>*>(job.row_stats);
    const int64_t begin = block * rows.block_rows;
    const int64_t end = begin + rows.block_rows < rows.count ? begin + rows.block_rows : rows.count;
    double block_value = 0;
    bool expect_small = false;  // what the row before was
    for (int64_t r = begin; r < end; ++r) {
      T* e = reinterpret_cast<T*>(scratch.tile) +
             (tile_base < 0 ? 0 : r - tile_base) * padded<T>(job.problem.channels);
      const auto finish =
          stats[rows.first + r].tame ? finish_row<true, Weighted> : finish_row<false, Weighted>;
      block_value += finish(job, rows, r, state, scratch, e, tile_base < 0, expect_small);
    }
    if (job.stream) streaming_fence();
    return block_value;
  }

  // KL and gradient of row r of the class; returns KL.
  template <bool Tame, bool Weighted>
  static double finish_row(const Job& job, const ClassRows& rows, int64_t r,
                           const ClassState<T>& state, Scratch& scratch, T* e, bool cold,
                           bool& expect_small) {
    const cmik_problem& p = job.problem;
    const int64_t position = rows.first + r, channels = p.channels;
    const RowStats<T>& row = static_cast<const RowStats<T>*>(job.row_stats)[position];
    const T* z = row_values(p, position, scratch);
    if (cold) row_exponentials_as<T, Tame>(z, channels, row.peak, exponent_scale(p), e);

    RowLogRatio<T, Tame> log_ratio{row.peak, T(1 / p.temperature), T(row.log_sum - state.level),
                                   state.target};
    double kl = 0, rho_mean = 0;
    bool accurate = p.value && !Weighted && expect_small;
    if (!accurate) {
      kl = row_direct<T, Tame, Weighted>(z, e, channels, log_ratio, state.rho, rho_mean);
      kl *= double(row.inverse_sum);
      rho_mean *= double(row.inverse_sum);
      accurate = p.value && std::fabs(kl) < double(Limits<T>::direct_form_floor);
    }
    if (accurate) {
      kl = row_accurate<T, Tame>(z, e, channels, log_ratio, row.inverse_sum, state.centroid);
      kl += state.missing_mass;
      expect_small = std::fabs(kl) < double(Limits<T>::direct_form_floor);
    }
    // A class of one row is its own centroid: exactly nothing, or NaN if the row is.
    const double distinct = !p.centroids && rows.count == 1 ? 0 : 1;
    kl *= distinct;
    const int64_t target_row = source_row(p, position);
    if (p.value && p.reduction == CMIK_NONE)
      static_cast<T*>(p.value)[target_row] = T(p.weight * kl);
    if (!p.gradient) return kl;

    log_ratio.offset = T(row.log_sum - state.level + kl);
    const double mass = distinct * double(row.inverse_sum) / p.temperature;
    const double w = p.row_weights               ? row_weight(p, position)
                     : p.reduction == CMIK_MEAN  ? p.weight / double(p.rows)
                     : p.reduction == CMIK_CLASS ? p.weight / double(rows.count)
                                                 : p.weight;
    S* out = static_cast<S*>(p.gradient) + target_row * channels;
    T* g;
    if constexpr (std::is_same_v<S, T>)
      g = out;
    else
      g = reinterpret_cast<T*>(scratch.gradient);
    row_gradient<T, Tame, Weighted>(z, e, channels, log_ratio, T(w * mass), T(rho_mean * mass),
                                    T(mass), state.rho, g, job.stream);
    if constexpr (!std::is_same_v<S, T>) narrow(g, channels, out);
    return kl;
  }

  static constexpr Kernels table{first_pass, start_class, finish_class, second_pass};
};

}  // namespace CMIK_ISA

#define CMIK_CONCAT_(a, b) a##b
#define CMIK_CONCAT(a, b) CMIK_CONCAT_(a, b)
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
