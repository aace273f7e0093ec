// Rows between their stored type and the arithmetic type, rounding to nearest even. Branch-free, so
// that compilers make vectors of the loops.

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float to_arithmetic(float x) { return x; }
inline double to_arithmetic(double x) { return x; }
inline float to_arithmetic(Bfloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
inline float to_arithmetic(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  // The multiplication moves the exponent's bias and normalises what is denormal.
  const uint32_t finite = to_bits(from_bits(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000 | magnitude << 13;
  return from_bits(sign | (magnitude >= 0x7c00 ? special : finite));
}

inline void round_to(float x, Bfloat16& out) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out.bits = uint16_t(x != x ? bits >> 16 | 0x40 : rounded);
}
inline void round_to(float x, Float16& out) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Half a denormal's last place is the last place of 1/2.
  const uint32_t denormal = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? denormal : normal;
  const uint32_t infinite = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  out.bits = uint16_t(sign | (magnitude >= 0x47800000 ? infinite : finite));
}

template <class S, class T>
inline void widen(const S* row, int64_t stride, int64_t channels, T* values) {
  if (stride == 1)
    for (int64_t j = 0; j < channels; ++j) values[j] = to_arithmetic(row[j]);
  else
    for (int64_t j = 0; j < channels; ++j) values[j] = to_arithmetic(row[j * stride]);
}

template <class S>
inline void narrow(const float* values, int64_t channels, S* row) {
  for (int64_t j = 0; j < channels; ++j) round_to(values[j], row[j]);
}
