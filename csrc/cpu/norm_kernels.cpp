// Norm, activation and pooling of a group of channels of one row, its derivative and that one's.
// Built once per instruction set, with CMIK_ISA naming it.
//
// With m and r the mean and 1 / deviation of the group's n entries, xhat = (x - m) r,
// y = gamma xhat + beta + residual, g the gradient of `out` spread over the entries that it is the
// mean of, u = act'(y) g and P(v) = v - mean v - xhat mean(v xhat):
//
//   backward   dx = r P(gamma u),  dgamma = sum u xhat,  dbeta = sum u,  dresidual = u
//
// For cotangents v of dx, w of dgamma, b of dbeta, s of dresidual, act' being constant:
//
//   of g       act'(y) (gamma r P(v) + w xhat + b + s), to be pooled
//   of gamma   r sum u P(v)
//   of x       r P(c) - r^2 xhat / n sum v P(gamma u),
//              c = w u - r (v mean(gamma u xhat) + gamma u mean(v xhat))
//
// A group is read from memory once and then found in the nearest caches.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.hpp"
#include "math/cmi_math.hpp"
#include "norm.hpp"

namespace cmik {
namespace CMIK_ISA {

#include "convert.inl"
#include "vector.inl"

// The first `count` of a vector's numbers; all of them, as a rule.
template <class T>
inline Vec<T> load_some(const T* p, int64_t count, T fill) {
  return count == kWidth<T> ? load(p) : load_part(p, count, fill);
}
template <class T>
inline void store_some(T* p, int64_t count, Vec<T> v) {
  if (count == kWidth<T>)
    store(p, v);
  else
    store_part(p, count, v);
}

// Call f(j, count) for each vector of n numbers.
template <class T, class F>
inline void each(int64_t n, F&& f) {
  sweep<T>(
      0, n, [&](int64_t j, int) { f(j, kWidth<T>); },
      [&](int64_t j, int64_t count) { f(j, count); });
}

// K totals over n numbers of the vectors that terms(j, count, into) puts there.
template <class T, int K, class Terms>
inline void totals(int64_t n, double (&sums)[K], Terms&& terms) {
  constexpr int unroll = K < kUnroll ? kUnroll / K : 1;
  for (int i = 0; i < K; ++i) sums[i] = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = begin + kChunk < n ? begin + kChunk : n;
    Vec<T> parts[K][unroll] = {};
    const auto add = [&](int64_t j, int64_t count, int k) {
      Vec<T> some[K];
      terms(j, count, some);
      for (int i = 0; i < K; ++i) parts[i][k] += some[i];
    };
    sweep<T, unroll>(
        begin, end, [&](int64_t j, int k) { add(j, kWidth<T>, k); },
        [&](int64_t j, int64_t count) { add(j, count, 0); });
    for (int i = 0; i < K; ++i) sums[i] += double(horizontal_sum<T>(combine<T>(parts[i])));
  }
}

// Every second number of two vectors, from `First` on.
template <int First, class V, int... I>
inline V every_second(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + 2 * I)...);
}
// Each number of half a vector twice.
template <int First, class V, int... I>
inline V doubled(V a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, (First + I / 2)...);
}

// Means of 2 x 2 entries of a map; a last odd row or column is left out.
template <class T>
inline void pool_map(const T* map, int64_t height, int64_t width, T* out) {
  constexpr auto lanes = std::make_integer_sequence<int, int(kWidth<T>)>{};
  for (int64_t i = 0; i < height / 2; ++i) {
    const T *upper = map + 2 * i * width, *lower = upper + width;
    T* to = out + i * (width / 2);
    int64_t j = 0;
    for (; j + kWidth<T> <= width / 2; j += kWidth<T>) {
      const Vec<T> a = load(upper + 2 * j) + load(lower + 2 * j);
      const Vec<T> b = load(upper + 2 * j + kWidth<T>) + load(lower + 2 * j + kWidth<T>);
      store(to + j, (every_second<0>(a, b, lanes) + every_second<1>(a, b, lanes)) * T(0.25));
    }
    for (; j < width / 2; ++j)
      to[j] = ((upper[2 * j] + lower[2 * j]) + (upper[2 * j + 1] + lower[2 * j + 1])) * T(0.25);
  }
}

// What each entry of a map has of the gradient of its means.
template <class T>
inline void spread_map(const T* means, int64_t height, int64_t width, T* map) {
  constexpr auto lanes = std::make_integer_sequence<int, int(kWidth<T>)>{};
  const int64_t last = width / 2 * 2;
  for (int64_t i = 0; i < height / 2; ++i) {
    const T* from = means + i * (width / 2);
    T *upper = map + 2 * i * width, *lower = upper + width;
    int64_t j = 0;
    for (; j + kWidth<T> <= width / 2; j += kWidth<T>) {
      const Vec<T> v = load(from + j) * T(0.25);
      const Vec<T> a = doubled<0>(v, lanes), b = doubled<int(kWidth<T> / 2)>(v, lanes);
      store(upper + 2 * j, a), store(upper + 2 * j + kWidth<T>, b);
      store(lower + 2 * j, a), store(lower + 2 * j + kWidth<T>, b);
    }
    for (; j < width / 2; ++j)
      upper[2 * j] = upper[2 * j + 1] = lower[2 * j] = lower[2 * j + 1] = from[j] * T(0.25);
    if (last < width) upper[last] = lower[last] = 0;
  }
  if (height % 2)
    for (int64_t j = 0; j < width; ++j) map[(height - 1) * width + j] = 0;
}

// The mean, and the sum of squares about it, of numbers whose squares are beyond the arithmetic
// type.
template <class T, class At>
double large_moments(int64_t count, T& mean, At&& at) {
  long double sum = 0, squares = 0;
  for (int64_t j = 0; j < count; ++j) sum += at(j);
  mean = T(sum / count);
  for (int64_t j = 0; j < count; ++j) squares += (at(j) - sum / count) * (at(j) - sum / count);
  return double(squares);
}

// The activation, kept finite below: 0 times infinity is NaN.
template <class T>
inline Vec<T> activated(Vec<T> y, T slope) {
  constexpr T lowest = std::numeric_limits<T>::lowest();
  return y < T(0) ? (y < lowest ? Vec<T>{} + lowest : y) * slope : y;
}

// A group of a row, for maps stored as S and computed in T.
template <class S, class T>
struct Group {
  const cmik_norm_call& call;
  const NormScratch& scratch;
  int64_t row, maps, area, count;  // maps, entries of each, entries of all
  int64_t first_map, first_parameter;
  T mean, deviation_inverse;
  const T *x, *residual;

  Group(const cmik_norm_call& c, int64_t item, const NormScratch& s) : call(c), scratch(s) {
    row = item / c.groups;
    maps = c.channels / c.groups;
    area = c.height * c.width;
    count = maps * area;
    const int64_t channel = item % c.groups * maps;
    first_map = row * c.channels + channel;
    first_parameter = row / (c.rows / c.sets) * c.channels + channel;
    x = whole(c.x, 0);
    residual = c.residual ? whole(c.residual, 1) : nullptr;
    find_moments();
  }

  void find_moments() {
    double sum[1];
    totals<T>(count, sum,
              [&](int64_t j, int64_t n, Vec<T>(&some)[1]) { some[0] = load_some(x + j, n, T(0)); });
    mean = T(sum[0] / double(count));
    totals<T>(count, sum, [&](int64_t j, int64_t n, Vec<T>(&some)[1]) {
      const Vec<T> d = load_some(x + j, n, mean) - mean;
      some[0] = d * d;
    });
    if (!std::isfinite(sum[0]))
      sum[0] = large_moments(count, mean, [&](int64_t j) { return x[j]; });
    deviation_inverse = T(1 / std::sqrt(sum[0] / double(count) + call.eps));
  }

  T* plane(int number) const { return reinterpret_cast<T*>(scratch.planes[number]); }
  int64_t out_area() const { return (call.height / call.pool) * (call.width / call.pool); }

  // Numbers of the group in the arithmetic type: where they stand, or converted into a plane.
  const T* numbers(const void* all, int64_t each_map, int number) const {
    const S* from = static_cast<const S*>(all) + first_map * each_map;
    if constexpr (std::is_same_v<S, T>) {
      return from;
    } else {
      widen(from, 1, maps * each_map, plane(number));
      return plane(number);
    }
  }
  const T* whole(const void* all, int number) const { return numbers(all, area, number); }

  const T* zeros(int number) const {
    for (int64_t j = 0; j < count; ++j) plane(number)[j] = 0;
    return plane(number);
  }

  // Where numbers are made that belong to `all`; `finish` brings them there.
  T* place(void* all, int64_t each_map, int number) const {
    if constexpr (std::is_same_v<S, T>)
      return static_cast<S*>(all) + first_map * each_map;
    else
      return plane(number);
  }
  void finish(void* all, int64_t each_map, const T* made) const {
    if constexpr (!std::is_same_v<S, T>)
      narrow(made, maps * each_map, static_cast<S*>(all) + first_map * each_map);
  }

  // The gradient of `out`, spread over the entries; in `number`, where it is not in memory.
  const T* spread_gradient(int number) const {
    if (call.pool == 1) return whole(call.grad, number);
    const T* means = numbers(call.grad, out_area(), number + 1);
    for (int64_t k = 0; k < maps; ++k)
      spread_map(means + k * out_area(), call.height, call.width, plane(number) + k * area);
    return plane(number);
  }

  // Bring entries of all maps to `all`, pooled.
  void pool_to(void* all, const T* entries, int number) const {
    T* out = place(all, out_area(), number);
    for (int64_t k = 0; k < maps; ++k)
      pool_map(entries + k * area, call.height, call.width, out + k * out_area());
    finish(all, out_area(), out);
  }

  T parameter(const void* all, int64_t map, T otherwise) const {
    return all ? static_cast<const T*>(all)[first_parameter + map] : otherwise;
  }
  T gamma(int64_t map) const { return parameter(call.weight, map, T(1)); }

  // x - m, and y, of a vector of a map; entries that are not there are at the mean.
  Vec<T> centred(int64_t j, int64_t n) const { return load_some(x + j, n, mean) - mean; }
  template <bool kResidual>
  struct Before {
    const Group& g;
    T scale, shift;

    Vec<T> operator()(Vec<T> centred, int64_t j, int64_t n) const {
      Vec<T> y = centred * scale + shift;
      if constexpr (kResidual) y += load_some(g.residual + j, n, T(0));
      return y;
    }
  };
  template <bool kResidual>
  Before<kResidual> before(int64_t map) const {
    return {*this, gamma(map) * deviation_inverse, parameter(call.bias, map, T(0))};
  }
  // f(std::bool_constant<there is a residual>)
  template <class F>
  void by_residual(F&& f) const {
    if (residual)
      f(std::true_type{});
    else
      f(std::false_type{});
  }
};

template <class S, class T>
struct NormOrders {
  static void forward(const NormJob& job, int64_t item, const NormScratch& scratch) {
    const cmik_norm_call& c = job.call;
    const Group<S, T> g(c, item, scratch);
    const T slope = T(c.slope);
    T* y = c.pool == 1 ? g.place(c.out, g.area, 2) : g.plane(2);
    g.by_residual([&](auto has_residual) {
      for (int64_t k = 0; k < g.maps; ++k) {
        const auto before = g.template before<has_residual>(k);
        const int64_t start = k * g.area;
        each<T>(g.area, [&](int64_t i, int64_t n) {
          const int64_t j = start + i;
          store_some(y + j, n, activated<T>(before(g.centred(j, n), j, n), slope));
        });
      }
    });
    if (c.pool == 1)
      g.finish(c.out, g.area, y);
    else
      g.pool_to(c.out, y, 3);
  }

  static void backward(const NormJob& job, int64_t item, const NormScratch& scratch) {
    const cmik_norm_call& c = job.call;
    const Group<S, T> g(c, item, scratch);
    const T slope = T(c.slope), r = g.deviation_inverse;
    const T* spread = g.spread_gradient(2);
    T* u = c.residual_grad ? g.place(c.residual_grad, g.area, 4) : g.plane(4);
    double mean_h = 0, mean_h_xhat = 0;  // of gamma u
    g.by_residual([&](auto has_residual) {
      for (int64_t k = 0; k < g.maps; ++k) {
        const auto before = g.template before<has_residual>(k);
        const int64_t start = k * g.area;
        double sums[2];
        totals<T>(g.area, sums, [&](int64_t i, int64_t n, Vec<T>(&some)[2]) {
          const int64_t j = start + i;
          const Vec<T> d = g.centred(j, n), v = load_some(spread + j, n, T(0));
          some[0] = before(d, j, n) > T(0) ? v : v * slope;
          some[1] = some[0] * (d * r);
          store_some(u + j, n, some[0]);
        });
        share(job, g, k, sums[1], sums[0]);
        mean_h += double(g.gamma(k)) * sums[0] / double(g.count);
        mean_h_xhat += double(g.gamma(k)) * sums[1] / double(g.count);
      }
    });
    if (c.residual_grad) g.finish(c.residual_grad, g.area, u);
    if (!c.x_grad) return;
    T* dx = g.place(c.x_grad, g.area, 2);
    const T level = T(double(r) * mean_h), tilt = T(double(r) * double(r) * mean_h_xhat);
    for (int64_t k = 0; k < g.maps; ++k) {
      const T scale = r * g.gamma(k);
      const int64_t start = k * g.area;
      each<T>(g.area, [&](int64_t i, int64_t n) {
        const int64_t j = start + i;
        store_some(dx + j, n, load_some(u + j, n, T(0)) * scale - level - g.centred(j, n) * tilt);
      });
    }
    g.finish(c.x_grad, g.area, dx);
  }

  static void double_backward(const NormJob& job, int64_t item, const NormScratch& scratch) {
    const cmik_norm_call& c = job.call;
    const Group<S, T> g(c, item, scratch);
    const double r = double(g.deviation_inverse), count = double(g.count);
    const T slope = T(c.slope);
    const T* spread = g.spread_gradient(2);
    T* u = g.plane(4);
    const T* v = c.x_cotangent ? g.whole(c.x_cotangent, 5) : g.zeros(5);
    const T* s = c.residual_cotangent ? g.whole(c.residual_cotangent, 6) : nullptr;

    // Means over the group; those of c's first part come with w.
    double mean_h = 0, mean_h_xhat = 0, mean_v = 0, mean_v_xhat = 0, h_v = 0, w_u = 0, w_u_xhat = 0;
    g.by_residual([&](auto has_residual) {
      for (int64_t k = 0; k < g.maps; ++k) {
        const auto before = g.template before<has_residual>(k);
        const int64_t start = k * g.area;
        double sums[5];  // of u, u xhat, v, v xhat, u v
        totals<T>(g.area, sums, [&](int64_t i, int64_t n, Vec<T>(&some)[5]) {
          const int64_t j = start + i;
          const Vec<T> d = g.centred(j, n), gradient = load_some(spread + j, n, T(0));
          some[0] = before(d, j, n) > T(0) ? gradient : gradient * slope;
          store_some(u + j, n, some[0]);
          some[1] = some[0] * (d * g.deviation_inverse);
          some[2] = load_some(v + j, n, T(0));
          some[3] = some[2] * (d * g.deviation_inverse);
          some[4] = some[2] * some[0];
        });
        const double gamma = double(g.gamma(k)), w = double(g.parameter(c.weight_cotangent, k, 0));
        mean_h += gamma * sums[0] / count;
        mean_h_xhat += gamma * sums[1] / count;
        mean_v += sums[2] / count;
        mean_v_xhat += sums[3] / count;
        h_v += gamma * sums[4];
        w_u += w * sums[0] / count;
        w_u_xhat += w * sums[1] / count;
      }
    });

    const double inner = h_v - count * (mean_v * mean_h + mean_v_xhat * mean_h_xhat);
    const double mean_c = w_u - r * (mean_v * mean_h_xhat + mean_h * mean_v_xhat);
    const double mean_c_xhat = w_u_xhat - 2 * r * mean_v_xhat * mean_h_xhat;
    const T level = T(r * mean_c), tilt = T(r * (r * mean_c_xhat + r * r * inner / count));
    const T of_v = T(-r * r * mean_h_xhat), v_mean = T(mean_v), v_tilt = T(mean_v_xhat * r);
    T* dx = c.x_grad ? g.place(c.x_grad, g.area, 7) : g.plane(7);
    T* dg = c.grad_grad && c.pool == 1 ? g.place(c.grad_grad, g.area, 2) : g.plane(2);
    g.by_residual([&](auto has_residual) {
      for (int64_t k = 0; k < g.maps; ++k) {
        const auto before = g.template before<has_residual>(k);
        const double gamma = double(g.gamma(k)), w = double(g.parameter(c.weight_cotangent, k, 0));
        const T of_u = T(r * w - r * r * gamma * mean_v_xhat), scale = T(gamma * r);
        const T of_d = T(w * r), shift = g.parameter(c.bias_cotangent, k, T(0));
        const int64_t start = k * g.area;
        double u_projected[1];
        totals<T>(g.area, u_projected, [&](int64_t i, int64_t n, Vec<T>(&some)[1]) {
          const int64_t j = start + i;
          const Vec<T> d = g.centred(j, n), at_u = load_some(u + j, n, T(0));
          const Vec<T> at_v = load_some(v + j, n, T(0)), projected = at_v - v_mean - d * v_tilt;
          some[0] = at_u * projected;
          store_some(dx + j, n, at_u * of_u + at_v * of_v - level - d * tilt);
          Vec<T> a = projected * scale + d * of_d + shift;
          if (s) a += load_some(s + j, n, T(0));
          store_some(dg + j, n, before(d, j, n) > T(0) ? a : a * slope);
        });
        share(job, g, k, r * u_projected[0], 0);
      }
    });
    if (c.x_grad) g.finish(c.x_grad, g.area, dx);
    if (!c.grad_grad) return;
    if (c.pool == 1)
      g.finish(c.grad_grad, g.area, dg);
    else
      g.pool_to(c.grad_grad, dg, 5);
  }

 private:
  static void share(const NormJob& job, const Group<S, T>& g, int64_t map, double weight,
                    double bias) {
    if (job.weight_shares) job.weight_shares[g.first_map + map] = weight;
    if (job.bias_shares) job.bias_shares[g.first_map + map] = bias;
  }
};

#include "norm_channels_last.inl"

template <class S, class T>
constexpr NormKernels kNormTable{
    {NormOrders<S, T>::forward, NormOrders<S, T>::backward, NormOrders<S, T>::double_backward},
    ChannelsLast<S, T>::forward};

}  // namespace CMIK_ISA

const NormKernels& CMIK_CONCAT(norm_kernels_, CMIK_ISA)(int dtype) {
  using namespace CMIK_ISA;
  switch (dtype) {
    case CMIK_FLOAT64:
      return kNormTable<double, double>;
    case CMIK_BFLOAT16:
      return kNormTable<Bfloat16, float>;
    case CMIK_FLOAT16:
      return kNormTable<Float16, float>;
    default:
      return kNormTable<float, float>;
  }
}

}  // namespace cmik
