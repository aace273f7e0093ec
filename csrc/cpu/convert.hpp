// Rows between their stored type and the arithmetic type. Included like vector.hpp.

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_arithmetic(float x) { return x; }
inline double to_arithmetic(double x) { return x; }
inline float to_arithmetic(Bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline float to_arithmetic(Float16 x) {
  _Float16 half;
  __builtin_memcpy(&half, &x, 2);
  return float(half);
}

// Nearest, ties to even; NaN stays NaN.
inline void narrow_one(float x, Bfloat16& out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = uint16_t(x != x ? (bits >> 16) | 0x40 : rounded);
}
inline void narrow_one(float x, Float16& out) {
  const _Float16 half = _Float16(x);
  __builtin_memcpy(&out, &half, 2);
}

template <class S, class T>
inline void widen(const S* row, int64_t stride, int64_t channels, T* values) {
  int64_t j = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, Float16>)
    if (stride == 1)
      for (; j + 16 <= channels; j += 16)
        _mm512_storeu_ps(values + j,
                         _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(row + j))));
#elif defined(__F16C__)
  if constexpr (std::is_same_v<S, Float16>)
    if (stride == 1)
      for (; j + 8 <= channels; j += 8)
        _mm256_storeu_ps(values + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(row + j))));
#endif
  if (stride == 1)
    for (; j < channels; ++j) values[j] = to_arithmetic(row[j]);
  else
    for (; j < channels; ++j) values[j] = to_arithmetic(row[j * stride]);
}

template <class S>
inline void narrow(const float* values, int64_t channels, S* row) {
  int64_t j = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, Float16>)
    for (; j + 16 <= channels; j += 16)
      _mm256_storeu_si256((__m256i*)(row + j), _mm512_cvtps_ph(_mm512_loadu_ps(values + j), 0));
#elif defined(__F16C__)
  if constexpr (std::is_same_v<S, Float16>)
    for (; j + 8 <= channels; j += 8)
      _mm_storeu_si128((__m128i*)(row + j), _mm256_cvtps_ph(_mm256_loadu_ps(values + j), 0));
#endif
  for (; j < channels; ++j) narrow_one(values[j], row[j]);
}
