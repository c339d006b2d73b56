// Cache rows as they are stored (dsv4_kernels/rows.py), and what they are worth as floats.
#pragma once
#include "rounding.h"

struct CacheRows {  // laid out as _Rows in table.py
  const uint8_t* data;
  int64_t count, bytes, format, width, rope;
};

namespace rows {

enum Format { FP32, BF16, PACKED, FP8, FP4 };
constexpr long PACKED_GROUP = 64, FP4_GROUP = 32, SCALE_PADDING = 8;

static inline long padded_scales(long codes) {
  const long groups = (codes + PACKED_GROUP - 1) / PACKED_GROUP;
  return (groups + SCALE_PADDING - 1) / SCALE_PADDING * SCALE_PADDING;
}

static inline float bf16_value(const uint8_t* p) {
  uint16_t b;
  memcpy(&b, p, 2);
  return rounding::float_of((uint32_t)b << 16);
}

static inline uint16_t bf16_bits(float v) {
  uint32_t b = rounding::bits_of(v);
  if (v != v) return (uint16_t)(b >> 16 | 0x40);
  return (uint16_t)((b + 0x7FFF + ((b >> 16) & 1)) >> 16);
}

static inline float power(uint8_t exponent) {  // 2^(exponent - 127); byte 0 is subnormal
  return exponent ? rounding::float_of((uint32_t)exponent << 23) : rounding::float_of(1u << 22);
}

// The values of all codes, computed once.
struct Tables {
  float e4m3[256], e2m1[16];
  Tables() {
    for (int c = 0; c < 256; c++) {
      const int exponent = c >> 3 & 15, mantissa = c & 7;
      float v = exponent ? std::ldexp(1.0f + mantissa / 8.0f, exponent - 7) : std::ldexp(mantissa / 8.0f, -6);
      if ((c & 127) == 127) v = NAN;
      e4m3[c] = c & 128 ? -v : v;
    }
    const float magnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    for (int c = 0; c < 16; c++) e2m1[c] = c & 8 ? -magnitudes[c & 7] : magnitudes[c & 7];
  }
};

static inline const Tables& tables() {
  static const Tables instance;
  return instance;
}

static inline void unpack_packed(const uint8_t* p, long codes, long rope, float* out) {
  const Tables& t = tables();
  const uint8_t* scales = p + codes;
  for (long first = 0; first < codes; first += PACKED_GROUP) {
    const float scale = power(scales[first / PACKED_GROUP]);
    const long last = first + PACKED_GROUP < codes ? first + PACKED_GROUP : codes;
    for (long i = first; i < last; i++) out[i] = t.e4m3[p[i]] * scale;
  }
  const uint8_t* wide = scales + padded_scales(codes);
  for (long i = 0; i < rope; i++) out[codes + i] = bf16_value(wide + 2 * i);
}

static inline void unpack_fp4(const uint8_t* p, long width, float* out) {
  const Tables& t = tables();
  const uint8_t* scales = p + (width + 1) / 2;
  for (long i = 0; i < width; i++) out[i] = t.e2m1[p[i / 2] >> (4 * (i & 1)) & 15] * power(scales[i / FP4_GROUP]);
}

// The floats of a row: in place where they are stored as such, else in `scratch`.
static inline const float* read(const CacheRows& cache, long row, float* scratch) {
  const uint8_t* p = cache.data + row * cache.bytes;
  const long width = cache.width;
  switch (cache.format) {
    case FP32:
      return (const float*)p;
    case BF16:
      for (long i = 0; i < width; i++) scratch[i] = bf16_value(p + 2 * i);
      break;
    case PACKED:
      unpack_packed(p, width - cache.rope, cache.rope, scratch);
      break;
    case FP8: {
      float scale;
      memcpy(&scale, p + width, 4);
      for (long i = 0; i < width; i++) scratch[i] = tables().e4m3[p[i]] * scale;
      break;
    }
    default:
      unpack_fp4(p, width, scratch);
  }
  return scratch;
}

static inline uint8_t e4m3_code(float v) {  // v is an e4m3 value
  const uint32_t b = rounding::bits_of(v), sign = b >> 24 & 0x80;
  const float m = std::fabs(v);
  if (m < 0.015625f) return (uint8_t)(sign | (uint32_t)(m * 512.0f));
  return (uint8_t)(sign | (((b >> 20) & 0x7FF) - (120 << 3)));
}

static inline uint8_t e2m1_code(float v) {  // v is an e2m1 value
  const float m = std::fabs(v);
  const uint8_t code = m < 2.0f ? (uint8_t)(m * 2.0f) : m < 4.0f ? (uint8_t)(m + 2.0f) : (uint8_t)(m / 2.0f + 4.0f);
  return code | (std::signbit(v) ? 8 : 0);
}

// One group to codes through put(i, code); returns the scale's exponent byte.
template <float (*Round)(float), uint8_t (*Code)(float), class Put>
static inline uint8_t pack_group(const float* x, long n, float floor, float largest, Put put) {
  const float amax = rounding::group_amax(x, n);
  const int32_t exponent = rounding::scale_exponent(amax > floor ? amax : floor, largest);
  const float inverse = rounding::float_of((uint32_t)(254 - exponent) << 23);
  for (long i = 0; i < n; i++) {
    const float v = x[i] * inverse, low = v < -largest ? -largest : v;
    put(i, Code(Round(low > largest ? largest : low)));
  }
  return (uint8_t)exponent;
}

static inline void pack_packed(const float* x, long codes, long rope, uint8_t* p) {
  uint8_t* scales = p + codes;
  memset(scales, 0, padded_scales(codes));
  for (long i = 0; i < codes; i += PACKED_GROUP) {
    const long n = codes - i < PACKED_GROUP ? codes - i : PACKED_GROUP;
    scales[i / PACKED_GROUP] = pack_group<rounding::e4m3, e4m3_code>(
        x + i, n, 1e-4f, 448.0f, [&](long j, uint8_t code) { p[i + j] = code; });
  }
  uint8_t* wide = scales + padded_scales(codes);
  for (long i = 0; i < rope; i++) {
    const uint16_t bits = bf16_bits(x[codes + i]);
    memcpy(wide + 2 * i, &bits, 2);
  }
}

static inline void pack_fp4(const float* x, long width, uint8_t* p) {
  memset(p, 0, (width + 1) / 2);
  uint8_t* scales = p + (width + 1) / 2;
  for (long i = 0; i < width; i += FP4_GROUP) {
    const long n = width - i < FP4_GROUP ? width - i : FP4_GROUP;
    scales[i / FP4_GROUP] = pack_group<rounding::e2m1, e2m1_code>(
        x + i, n, 6.0f * 1.17549435e-38f, 6.0f,
        [&](long j, uint8_t code) { p[(i + j) / 2] |= code << (4 * ((i + j) & 1)); });
  }
}

static inline void pack_fp8(const float* x, long width, uint8_t* p) {
  const float scale = power(
      pack_group<rounding::e4m3, e4m3_code>(x, width, 1e-4f, 448.0f, [&](long i, uint8_t code) { p[i] = code; }));
  memcpy(p + width, &scale, 4);
}

}  // namespace rows
