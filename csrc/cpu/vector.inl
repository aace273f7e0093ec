// Vectors of the widest registers this translation unit is compiled for, on the compilers' vector
// extension: operators work elementwise, comparisons give lane masks, `mask ? a : b` selects.

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef float Unaligned __attribute__((vector_size(CMIK_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef uint32_t Words __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));  // may wrap
  static constexpr int mantissa_bits = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr float round_magic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef double Unaligned __attribute__((vector_size(CMIK_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef uint64_t Words __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
};

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
using Vec = typename Lanes<T>::Vector;
template <class T>
constexpr int64_t kWidth = CMIK_VECTOR_BYTES / int64_t(sizeof(T));

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(p);
}
template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Unaligned*>(p) = v;
}

// The first `count` lanes from memory, `fill` in the others.
template <class T>
inline Vec<T> load_part(const T* p, int64_t count, T fill) {
  Vec<T> v = Vec<T>{} + fill;
  __builtin_memcpy(&v, p, size_t(count) * sizeof(T));
  return v;
}
template <class T>
inline void store_part(T* p, int64_t count, Vec<T> v) {
  __builtin_memcpy(p, &v, size_t(count) * sizeof(T));
}

// Of two lanes the larger; the second where either is NaN.
template <class T>
inline Vec<T> maximum(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return reinterpret_cast<Vec<T>>(
        _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
  else
    return reinterpret_cast<Vec<T>>(
        _mm512_max_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b)));
#else
  return a > b ? a : b;
#endif
}

// Lanes rotated by `Shift`.
template <int Shift, class V, int... I>
inline V rotated(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, ((I + Shift) % int(sizeof...(I)))...);
}
// All lanes folded into one by a fixed tree of op.
template <int Shift, class T, class V, class Op>
inline T fold(V v, Op op) {
  constexpr int lanes = int(sizeof(V) / sizeof(T));
  v = op(v, rotated<Shift>(v, std::make_integer_sequence<int, lanes>{}));
  if constexpr (Shift > 1)
    return fold<Shift / 2, T>(v, op);
  else
    return v[0];
}
template <class T>
inline T horizontal_sum(Vec<T> v) {
  return fold<kWidth<T> / 2, T>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}
template <class T>
inline T horizontal_max(Vec<T> v) {
  return fold<kWidth<T> / 2, T>(v, [](Vec<T> a, Vec<T> b) { return maximum<T>(a, b); });
}

// Vectors in flight at once, to cover the latency of dependent additions.
constexpr int kUnroll = 4;
// Numbers summed in the arithmetic type before the sum moves to double.
constexpr int64_t kChunk = 4096;

// Call f(j, k) for full vectors at entry j, adding into accumulator k < Unroll, and
// tail(j, count) for the entries left over.
template <class T, int Unroll = kUnroll, class Full, class Tail>
inline void sweep(int64_t begin, int64_t end, Full&& f, Tail&& tail) {
  constexpr int64_t W = kWidth<T>;
  int64_t j = begin;
  for (; j + Unroll * W <= end; j += Unroll * W)
    for (int k = 0; k < Unroll; ++k) f(j + k * W, k);
  for (; j + W <= end; j += W) f(j, 0);
  if (j < end) tail(j, end - j);
}

template <class T, int N>
inline Vec<T> combine(const Vec<T> (&sums)[N]) {
  Vec<T> total = sums[0];
  for (int k = 1; k < N; ++k) total += sums[k];
  return total;
}

// exp((z - peak) / tau) for z <= peak, with scale = log2(e) / tau.
//
// `FiniteRange` promises that z is finite and that every result is a normal number. Without it,
// results below the smallest normal number are exactly 0, as they are for -inf. NaN then gives 0 or
// NaN, and the caller marks such rows.
template <class T, bool FiniteRange>
inline Vec<T> flush_small(Vec<T> log2_of_it, Vec<T> value) {
  if constexpr (FiniteRange) return value;
  return log2_of_it >= Limits<T>::lowest_exponent ? value : Vec<T>{};
}

template <class T, bool FiniteRange>
struct Exponential {
  T peak, scale;

  inline Vec<T> operator()(Vec<T> z) const {
    using L = Lanes<T>;
    const Vec<T> x = z - peak;
    const Vec<T> rounded = x * scale + L::round_magic;
    const Vec<T> whole = rounded - L::round_magic;
    const Vec<T> power = exp2_fraction(x * scale - whole, T(0));
    // Adding to the exponent field multiplies by 2^whole.
    const auto bits = reinterpret_cast<typename L::Words>(power) +
                      (reinterpret_cast<typename L::Words>(rounded) << L::mantissa_bits);
    return flush_small<T, FiniteRange>(whole, reinterpret_cast<Vec<T>>(bits));
  }
};

#if defined(__AVX512F__)
// A table of sixteenths of an octave in one register saves two of five polynomial steps.
template <bool FiniteRange>
struct Exponential<float, FiniteRange> {
  float peak, scale;

  inline Vec<float> operator()(Vec<float> z) const {
    using Words = Lanes<float>::Words;
    constexpr float magic = Lanes<float>::round_magic / 16;  // rounds to sixteenths
    // Words of 2^(k/16), less k where the shift below puts it.
    constexpr Words table = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                             0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                             0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
    const Vec<float> x = z - peak;
    const Vec<float> rounded = x * scale + magic;
    const Vec<float> whole = rounded - magic;
    const Vec<float> r = x * scale - whole;
    const Words steps = reinterpret_cast<Words>(rounded);
    const Words entry = reinterpret_cast<Words>(_mm512_permutexvar_epi32(
        reinterpret_cast<__m512i>(steps), reinterpret_cast<__m512i>(table)));
    const Vec<float> base =
        reinterpret_cast<Vec<float>>(entry + (steps << (Lanes<float>::mantissa_bits - 4)));
    return flush_small<float, FiniteRange>(whole, base * r * exp2_sixteenth(r) + base);
  }
};
#endif

// log q for positive normal q.
inline Vec<float> log_normal(Vec<float> q) {
  using Bits = Lanes<float>::Bits;
  const Bits raw = reinterpret_cast<Bits>(q);
  // Exponent and mantissa split at sqrt(1/2), so that |f| stays small.
  const Bits shifted = raw - 0x3f3504f3;
  const Bits exponent = shifted >> 23;
  const Vec<float> f = reinterpret_cast<Vec<float>>(raw - (exponent << 23)) - 1.0f;
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);
  const Vec<float> square = f * f;
  const Vec<float> tail = f * square * log1p_tail(f) + e * -2.12194440e-4f;
  return e * 0.693359375f + (f + (tail - 0.5f * square));
}
inline Vec<double> log_normal(Vec<double> q) {
  using Bits = Lanes<double>::Bits;
  const Bits raw = reinterpret_cast<Bits>(q);
  const Bits shifted = raw - 0x3fe6a09e667f3bcd;
  const Bits exponent = shifted >> 52;
  const Vec<double> f = reinterpret_cast<Vec<double>>(raw - (exponent << 52)) - 1.0;
  const Vec<double> e = __builtin_convertvector(exponent, Vec<double>);
  const Vec<double> s = f / (f + 2.0);  // log(1 + f) = 2 atanh(s)
  const Vec<double> tail = s * (s * s) * atanh_tail(s * s);
  return e * 0.693147180369123816490 + (e * 1.90821492927058770002e-10 + (s + (s + tail)));
}
