// The mathematics every kernel shares, written once for scalars and vectors, host and device.
//
//   KL_s = sum_j P_sj d_sj,  d = log P - log Q                        (direct form)
//        = sum_j Q_j f(d_sj) + (1 - sum_j Q_j),  f(d) = e^d (d - 1) + 1   (non-negative form)
//
// Rounding in the direct form is absolute, about 1e-7 of 1, so it serves rows whose KL is well
// above that. In float32 a row's value takes one of three forms:
//
//   direct    from a KL of `direct_form_floor` on: the sum of P d.
//   balanced  from `balanced_form_floor` on, for values that go into a sum over rows: the direct
//             form, plus the sum of Q - P, plus the missing mass 1 - sum Q. This takes away what
//             the rounding of Q and of the row's sum add to the direct form.
//   series    below, and for values that are returned row by row: every term has full relative
//             accuracy, as P (d - 1 + e^-d) by its series where |d| <= `series_reach` and as
//             P d - P + Q beyond.
//
// A row whose given centroid is as far from summing to 1 as the first floor stays direct.
//
// The floors are where a simulation of base-2 sweeps in float32 kept the value of classes of 3 to
// 50 rows and 16 to 2048 channels within 1e-6. Its worst errors, in units of 1e-7, of means, class
// values and rows:
//
//   KL                 0.03       0.06       0.125      0.25
//   direct             22 42 41   20 24 24   5 5 13     9 9 9
//   balanced           5 8 23     2 6 13     2 3 8      1 1 6
//   and exp 4e-8 high  19 20 29   9 9 15     6 6 9      3 3 6
//
// The last line is the balanced form with an exponential that is 4e-8 too large in the mean, about
// what cutting off its last bit would be: no sum over P and Q shows such an error, and the value is
// off by as much.
#pragma once

#include <cfloat>
#include <cmath>

#if defined(__CUDACC__)
#define CMIK_SHARED __host__ __device__ inline
#else
#define CMIK_SHARED inline
#endif

namespace cmik {

// A row whose direct-form KL is at least a tier's floor may take that tier.
template <class T>
struct Limits;

template <>
struct Limits<float> {
  static constexpr float direct_form_floor = 0.25f;
  static constexpr float balanced_form_floor = 0.0625f;
  static constexpr float series_reach = 1.0f;
  static constexpr float largest_shift = 1024;       // that may be rounded like any number
  static constexpr float smallest_normal = FLT_MIN;  // floor of a given centroid's entries
  static constexpr float lowest_exponent = -126.0f;  // 2^x below this counts as 0
};

template <>
struct Limits<double> {
  static constexpr double direct_form_floor = 0.25;
  static constexpr double balanced_form_floor = 0.25;  // no middle tier
  static constexpr double series_reach = 0.5;
  static constexpr double largest_shift = 1048576;
  static constexpr double smallest_normal = DBL_MIN;
  static constexpr double lowest_exponent = -1022.0;
};

// Horner's rule, highest coefficient last in the array. V is T or a vector of T.
template <int N, class V, class T>
CMIK_SHARED V polynomial(V x, const T (&coefficients)[N]) {
  V sum = V{} + coefficients[N - 1];
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// Q f(d) / (P d^2) = (d - 1 + e^-d) / d^2 for |d| <= series_reach. float: minimax fit, 1e-7
// relative at worst; double: Taylor.
template <class V>
CMIK_SHARED V divergence_series(V d, float) {
  constexpr float c[] = {0.5f,           -0.166666955f,    0.0416665152f,  -0.00833093002f,
                         0.00138913351f, -0.000203254836f, 2.49608129e-05f};
  return polynomial(d, c);
}

template <class V>
CMIK_SHARED V divergence_series(V d, double) {
  // (-1)^k / (k + 2)!
  constexpr double c[] = {1.0 / 2,
                          -1.0 / 6,
                          1.0 / 24,
                          -1.0 / 120,
                          1.0 / 720,
                          -1.0 / 5040,
                          1.0 / 40320,
                          -1.0 / 362880,
                          1.0 / 3628800,
                          -1.0 / 39916800,
                          1.0 / 479001600,
                          -1.0 / 6227020800,
                          1.0 / 87178291200,
                          -1.0 / 1307674368000,
                          1.0 / 20922789888000};
  return polynomial(d, c);
}

// Q f(d) / (P x^2) of x = d / log(2), for x^2 up to two bounds. Minimax fits, 3e-7 and 2e-7
// relative at worst.
struct SmallSeries {
  static constexpr float largest_square = 0.333f;
  static constexpr float usual_kl = 0.006f;  // up to which most rows are within it
  static CMIK_SHARED float at(float x) {
    constexpr float c[] = {0.2402265019f, -0.0555035809f, 0.009618205614f, -0.001339709967f,
                           0.000154218358f};
    return polynomial(x, c);
  }
};
struct WideSeries {
  static constexpr float largest_square = 2.08f;
  static CMIK_SHARED float at(float x) {
    constexpr float c[] = {0.240226512f,    -0.055504207f,   0.00961809423f, -0.00133297135f,
                           0.000154062437f, -1.56249676e-5f, 1.33003299e-6f};
    return polynomial(x, c);
  }
};

// Q f(d) to full relative accuracy: near 0, and anywhere.
template <class V, class T>
CMIK_SHARED V near_divergence(V p, V d, T) {
  return (p * d) * (d * divergence_series(d, T(0)));
}
template <class V, class T>
CMIK_SHARED V divergence(V p, V q, V d, T) {
  const V series = near_divergence(p, d, T(0)), direct = p * d + (q - p);
  return d * d <= Limits<T>::series_reach * Limits<T>::series_reach ? series : direct;
}

// Whether a row whose direct form gives `kl` takes another. NaN does not, so that it stays what it
// is.
template <class T>
CMIK_SHARED bool is_small(T kl, T missing_mass) {
  constexpr T floor = Limits<T>::direct_form_floor;
  return std::fabs(kl) < floor && std::fabs(missing_mass) < floor;
}
// Whether that is the series. `summed`: the value goes into a mean, a sum or a class's value and is
// not returned by itself.
template <class T>
CMIK_SHARED bool is_tiny(T kl, bool summed) {
  return !summed || std::fabs(kl) < Limits<T>::balanced_form_floor;
}
// What the logarithm of a centroid's entry is taken of.
template <class T>
CMIK_SHARED T at_least_normal(T q) {
  return q < Limits<T>::smallest_normal ? Limits<T>::smallest_normal : q;
}

// The whole number nearest to log2(q), about, of a normal q; and q less that power of 2, which lies
// between sqrt(1/2) and sqrt(2). So log2(q) is known to a number's last bit where it is near
// others.
CMIK_SHARED int exponent_of(float q) {
  int bits;
  __builtin_memcpy(&bits, &q, sizeof bits);
  return (bits - 0x3f3504f3) >> 23;
}
CMIK_SHARED float significand_of(float q) {
  int bits;
  __builtin_memcpy(&bits, &q, sizeof bits);
  bits -= exponent_of(q) * (1 << 23);
  __builtin_memcpy(&q, &bits, sizeof bits);
  return q;
}
CMIK_SHARED int exponent_of(double q) {
  long long bits;
  __builtin_memcpy(&bits, &q, sizeof bits);
  return int((bits - 0x3fe6a09e667f3bcd) >> 52);
}
CMIK_SHARED double significand_of(double q) {
  long long bits;
  __builtin_memcpy(&bits, &q, sizeof bits);
  bits -= exponent_of(q) * (1LL << 52);
  __builtin_memcpy(&q, &bits, sizeof bits);
  return q;
}

// 2^r for |r| <= 1/2. float: minimax fit, 9e-8 relative, exact at 0; double: Taylor.
template <class V>
CMIK_SHARED V exp2_fraction(V r, float) {
  constexpr float c[] = {1.0f,          0.693147004f,   0.240222424f,
                         0.0555073358f, 0.00967151299f, 0.00132647273f};
  return polynomial(r, c);
}

template <class V>
CMIK_SHARED V exp2_fraction(V r, double) {
  // log(2)^k / k!
  constexpr double c[] = {1.0,
                          0.693147180559945309,
                          0.240226506959100712,
                          0.0555041086648215800,
                          0.00961812910762847716,
                          0.00133335581464284434,
                          0.000154035303933816099,
                          1.52527338040598403e-05,
                          1.32154867901443095e-06,
                          1.01780860092396997e-07,
                          7.05491162080112333e-09,
                          4.44553827187081150e-10,
                          2.56784359934882051e-11,
                          1.36914888539041289e-12};
  return polynomial(r, c);
}

// (2^r - 1) / r for |r| <= 1/32, 7e-9 relative.
template <class V>
CMIK_SHARED V exp2_sixteenth(V r) {
  constexpr float c[] = {0.69314718f, 0.2402265f, 0.0555041f};
  return polynomial(r, c);
}

// 2^23 log2((1 + s) / (1 - s)) / s of z = s^2, for |s| <= 3 - sqrt(8): minimax fit, 1.2e-7
// relative.
CMIK_SHARED float log2_ratio(float z) {
  constexpr float unit = 1 << 23;
  constexpr float c[] = {unit * 2.88539052f, unit * 0.961588323f, unit * 0.59578073f};
  return polynomial(z, c);
}

// (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f < sqrt(2), 1e-9 relative in the log.
template <class V>
CMIK_SHARED V log1p_tail(V f) {
  constexpr float c[] = {0.333333135f,  -0.250000089f, 0.200021192f,  -0.166679963f, 0.142195523f,
                         -0.124055892f, 0.118881620f,  -0.116756521f, 0.0674664006f};
  return polynomial(f, c);
}

// 2 (atanh(s) - s) / s^3 as a series in s^2, for s^2 <= 0.0295.
template <class V>
CMIK_SHARED V atanh_tail(V square) {
  constexpr double c[] = {2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                          2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
  return polynomial(square, c);
}

}  // namespace cmik
