// The sweeps over a row, or a few of them, that the passes are made of.

// Rows finished together: they share loads of the class's columns and hide one another's latencies.
constexpr int kPair = 2;
// Rows whose exponentials are added to the centroid in one sweep.
constexpr int64_t kGroup = 4;
// kGroup rounded up to whole vectors.
constexpr int64_t kSumLanes = kGroup > kWidth<double> ? kGroup : kWidth<double>;
// A row whose KL is below this has, as a rule, no d beyond the reach of the series.
constexpr double kUsuallyNear = 1.0 / 64;
// Stands for log of probability 0, so that 0 * d is 0.
constexpr double kLowest = -1e30;

template <class T>
int64_t padded(int64_t channels) {
  const int64_t lanes = kAlign / int64_t(sizeof(T));
  return (channels + lanes - 1) / lanes * lanes;
}

template <class T>
struct Peak {
  T value;            // the largest entry
  bool finite_range;  // all entries are finite and their exponentials normal numbers
  bool poisoned;      // there is NaN or +inf, or nothing but -inf
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
  peak.finite_range = (peak.value + largest) * scale < -Limits<T>::lowest_exponent - 2;
  peak.poisoned = false;
  if (!(largest < infinity)) {
    peak.poisoned = !(peak.value < infinity) || peak.value == -infinity;
    for (int64_t j = 0; j < channels && !peak.poisoned; ++j) peak.poisoned = z[j] != z[j];
  }
  return peak;
}

// e = exp((z - peak) / tau) with zeros up to the padding; returns the sum. Meanwhile the memory at
// `next` is called for: arithmetic hides its way here.
template <class T, bool FiniteRange>
inline double row_exponentials_as(const T* z, int64_t channels, T peak, T scale, T* e,
                                  const char* next) {
  const Exponential<T, FiniteRange> exponential{peak, scale};
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
          __builtin_prefetch(next + j * int64_t(sizeof(T)));
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
inline double row_exponentials(const T* z, int64_t channels, T peak, T scale, bool finite_range,
                               T* e, const char* next) {
  return finite_range ? row_exponentials_as<T, true>(z, channels, peak, scale, e, next)
                      : row_exponentials_as<T, false>(z, channels, peak, scale, e, next);
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

// Turns an entry of a row into d = log P - log Q. In a row of finite range every d is finite. In
// others -inf becomes a number, so that 0 * d is 0.
template <class T, bool FiniteRange>
struct RowLogRatio {
  T peak, inverse_tau, offset;
  inline Vec<T> operator()(Vec<T> z, Vec<T> target) const {
    const Vec<T> d = (z - peak) * inverse_tau - target - offset;
    if constexpr (FiniteRange) return d;
    return maximum<T>(Vec<T>{} + T(kLowest), d);
  }
};

// The rows at hand: entries, exponentials and what makes d of them.
template <class T, bool FiniteRange, int R>
struct Rows {
  const T* z[R];
  const T* e[R];
  RowLogRatio<T, FiniteRange> log_ratio[R];
};

// sums_r = sum_j e_rj d_rj and, with row weights, rho_sums_r = sum_j e_rj rho_j.
template <class T, bool FiniteRange, bool Weighted, int R>
inline void rows_direct(const Rows<T, FiniteRange, R>& at_hand, int64_t channels, const T* target,
                        const T* rho, double (&sums)[R], double (&rho_sums)[R]) {
  const Rows<T, FiniteRange, R> rows = at_hand;  // kept in registers
  constexpr int unroll = kUnroll / R;
  for (int r = 0; r < R; ++r) sums[r] = rho_sums[r] = 0;
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = begin + kChunk < channels ? begin + kChunk : channels;
    Vec<T> parts[R][unroll] = {}, rho_parts[R][unroll] = {};
    const auto add = [&](Vec<T> v, int r, int64_t j, int k) {
      const Vec<T> mass = load(rows.e[r] + j);
      parts[r][k] += mass * rows.log_ratio[r](v, load(target + j));
      if constexpr (Weighted) rho_parts[r][k] += mass * load(rho + j);
    };
    sweep<T, unroll>(
        begin, end,
        [&](int64_t j, int k) {
          for (int r = 0; r < R; ++r) add(load(rows.z[r] + j), r, j, k);
        },
        [&](int64_t j, int64_t count) {
          for (int r = 0; r < R; ++r)
            add(load_part(rows.z[r] + j, count, rows.log_ratio[r].peak), r, j, 0);
        });
    for (int r = 0; r < R; ++r) {
      sums[r] += double(horizontal_sum<T>(combine<T>(parts[r])));
      if constexpr (Weighted) rho_sums[r] += double(horizontal_sum<T>(combine<T>(rho_parts[r])));
    }
  }
}

// Total over the channels of term(z_j, j), a vector at a time.
template <class T, class Term>
inline double row_total(const T* z, int64_t channels, T filler, Term&& term) {
  double total = 0;
  for (int64_t begin = 0; begin < channels; begin += kChunk) {
    const int64_t end = begin + kChunk < channels ? begin + kChunk : channels;
    Vec<T> sums[kUnroll] = {};
    sweep<T>(
        begin, end, [&](int64_t j, int k) { sums[k] += term(load(z + j), j, k); },
        [&](int64_t j, int64_t count) { sums[0] += term(load_part(z + j, count, filler), j, 0); });
    total += double(horizontal_sum<T>(combine<T>(sums)));
  }
  return total;
}

// sum_j Q_j f(d_j), every term to full relative accuracy. Where `near` expects every |d| within the
// reach of the series, the series alone is tried first, a quarter less work; `near` becomes false
// where that was in vain.
template <class T, bool FiniteRange>
inline double row_accurate(const T* z, const T* e, int64_t channels,
                           const RowLogRatio<T, FiniteRange>& log_ratio, T inverse_sum,
                           const T* target, const T* centroid, bool& near) {
  if (near) {
    Vec<T> farthest[kUnroll] = {};  // squares of d
    const double total = row_total(z, channels, log_ratio.peak, [&](Vec<T> v, int64_t j, int k) {
      const Vec<T> d = log_ratio(v, load(target + j)), square = d * d;
      farthest[k] = maximum<T>(square, farthest[k]);
      return load(e + j) * square * divergence_series(d, T(0));
    });
    for (int k = 1; k < kUnroll; ++k) farthest[0] = maximum<T>(farthest[k], farthest[0]);
    constexpr T reach = Limits<T>::series_reach;
    near = horizontal_max<T>(farthest[0]) <= reach * reach;
    if (near) return total * double(inverse_sum);
  }
  return row_total(z, channels, log_ratio.peak, [&](Vec<T> v, int64_t j, int) {
    const Vec<T> d = log_ratio(v, load(target + j));
    return divergence(load(e + j) * inverse_sum, load(centroid + j), d, T(0));
  });
}

// What turns d into gradient: g_j = e_j (slope d_j + (lift - row_factor rho_j)).
template <class T>
struct RowSlope {
  T slope, lift, row_factor;
};

template <class T, bool FiniteRange, bool Weighted, int R>
inline void rows_gradient(const Rows<T, FiniteRange, R>& at_hand, int64_t channels, const T* target,
                          const T* rho, const RowSlope<T> (&all_slopes)[R],
                          T* const (&gradients)[R]) {
  const Rows<T, FiniteRange, R> rows = at_hand;  // kept in registers, which stores cannot touch
  RowSlope<T> slopes[R];
  T* g[R];
  for (int r = 0; r < R; ++r) slopes[r] = all_slopes[r], g[r] = gradients[r];
  const auto value = [&](Vec<T> v, int r, int64_t j) -> Vec<T> {
    const Vec<T> d = rows.log_ratio[r](v, load(target + j));
    const RowSlope<T>& s = slopes[r];
    const Vec<T> mass = load(rows.e[r] + j);  // first, so that 0 wins over whatever d is
    const Vec<T> own = mass * s.slope * d;
    if constexpr (Weighted) return own + mass * (s.lift - load(rho + j) * s.row_factor);
    return own;
  };
  sweep<T, kUnroll / R>(
      0, channels,
      [&](int64_t j, int) {
        Vec<T> values[R];  // all before the first store, which might alias what they are made from
        for (int r = 0; r < R; ++r) values[r] = value(load(rows.z[r] + j), r, j);
        for (int r = 0; r < R; ++r) store(g[r] + j, values[r]);
      },
      [&](int64_t j, int64_t count) {
        for (int r = 0; r < R; ++r)
          store_part(g[r] + j, count,
                     value(load_part(rows.z[r] + j, count, rows.log_ratio[r].peak), r, j));
      });
}
