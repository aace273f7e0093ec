// Vectors of the widest registers this translation unit is compiled for, on the compilers' vector
// extension: operators work elementwise, comparisons give lane masks, `mask ? a : b` selects.
//
// Included once per instruction set, inside that set's namespace. Nothing here may be a function
// that the linker could merge with the same function built for another instruction set.

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vector __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef float Unaligned __attribute__((vector_size(CMIK_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  static constexpr int mantissa_bits = 23;
  static constexpr int32_t exponent_bias = 127;
  static constexpr float round_magic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
};
template <>
struct Lanes<double> {
  typedef double Vector __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  typedef double Unaligned __attribute__((vector_size(CMIK_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(CMIK_VECTOR_BYTES), may_alias));
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t exponent_bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
};

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

// Past the caches, for rows nobody reads soon. `p` must be aligned to a whole vector.
template <class T>
inline void store_streaming(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#else
  store(p, v);
#endif
}
inline void streaming_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
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

// Fixed tree, so that the result does not depend on how the compiler would add.
template <class T>
inline T horizontal_sum(Vec<T> v) {
  T lane[kWidth<T>];
  __builtin_memcpy(lane, &v, sizeof v);
  for (int64_t half = kWidth<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class T>
inline T horizontal_max(Vec<T> v) {
  T lane[kWidth<T>];
  __builtin_memcpy(lane, &v, sizeof v);
  for (int64_t half = kWidth<T> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

// 2^(x * scale) for x * scale <= 0, exactly 0 below the smallest normal number and at -inf.
// NaN gives 0: rows that hold NaN are found by `row_peak` and marked there.
template <class T>
inline Vec<T> exp2_scaled(Vec<T> x, T scale) {
  using L = Lanes<T>;
  const Vec<T> rounded = x * scale + L::round_magic;
  const Vec<T> whole = rounded - L::round_magic;
  const Vec<T> fraction = x * scale - whole;
  const Vec<T> power = exp2_fraction(fraction, T(0));
  // Adding to the exponent field multiplies by 2^whole.
  const auto bits = reinterpret_cast<typename L::Bits>(power) +
                    (reinterpret_cast<typename L::Bits>(rounded) << L::mantissa_bits);
  const auto normal = whole >= Limits<T>::lowest_exponent;
  return reinterpret_cast<Vec<T>>(normal ? bits : typename L::Bits{});
}

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
  for (int64_t i = 0; i < kWidth<double>; ++i) q[i] = __builtin_log(q[i]);
  return q;
}
