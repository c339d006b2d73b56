// Round trips through e4m3 and e2m1 with a power-of-two scale per group, and through int8.
#pragma once
#include "lanes.h"

namespace rounding {

enum Trip { NO_TRIP, FP8_TRIP, INT8_TRIP, TRIPS };  // of the input of a product; the numbers of dsv4_kernels/trips.py
constexpr long FP8_GROUP = 128, INT8_GROUP = 32;

static inline uint32_t bits_of(float v) {
  uint32_t b;
  memcpy(&b, &v, 4);
  return b;
}

static inline float float_of(uint32_t b) {
  float v;
  memcpy(&v, &b, 4);
  return v;
}

// Biased exponent of the smallest power of two s with amax <= largest * s; amax is at least a normal floor.
static inline int32_t scale_exponent(float amax, float largest) {
  const uint32_t b = bits_of(amax / largest);
  return (int32_t)(b >> 23) + ((b & 0x7FFFFF) != 0);
}

static inline float group_amax(const float* x, long n) {
  lanes::i16 most{};  // the bits of magnitudes are in the order of the magnitudes
  lanes::for_runs(n, [&](long i, long count) {
    const lanes::i16 bits = (lanes::i16)lanes::load_run(x + i, count) & lanes::splat_int(0x7FFFFFFF);
    most = bits > most && bits <= lanes::splat_int(0x7F800000) ? bits : most;  // what is no number does not count
  });
  float amax = 0.0f;
  for (int i = 0; i < lanes::WIDTH; i++) amax = float_of((uint32_t)most[i]) > amax ? float_of((uint32_t)most[i]) : amax;
  return amax;
}

// Nearest multiple of 2^quantum, ties to even, for |v| < 2^(quantum + 22); the sign of zero is kept.
static inline float to_multiple(float v, int quantum) {
  const float magic = float_of((uint32_t)(quantum + 23 + 127) << 23) * 1.5f;
  return std::copysign((v + magic) - magic, v);
}

static inline float e4m3(float v) {  // |v| <= 448
  const float coarse = to_multiple(v, -9);  // subnormals: multiples of 2^-9 below 2^-6
  uint32_t b = bits_of(v);
  b += 0x7FFFF + ((b >> 20) & 1);  // three mantissa bits, nearest even
  return std::fabs(v) < 0.015625f ? coarse : float_of(b & 0xFFF00000u);
}

static inline float e2m1(float v) {  // |v| <= 6
  const float m = std::fabs(v);
  return m < 2.0f ? to_multiple(v, -1) : m < 4.0f ? to_multiple(v, 0) : to_multiple(v, 1);
}

template <float (*Round)(float)>
static inline void round_group(const float* x, float* y, long n, float floor, float largest) {
  const float amax = group_amax(x, n);
  const int32_t exponent = scale_exponent(amax > floor ? amax : floor, largest);
  const float scale = float_of((uint32_t)exponent << 23), inverse = float_of((uint32_t)(254 - exponent) << 23);
  for (long i = 0; i < n; i++) {
    const float v = x[i] * inverse;  // exact: a power of two
    const float low = v < -largest ? -largest : v;
    y[i] = Round(low > largest ? largest : low) * scale;
  }
}

static inline void fp8_row(const float* x, float* y, long n, long group) {
  for (long i = 0; i < n; i += group) round_group<e4m3>(x + i, y + i, n - i < group ? n - i : group, 1e-4f, 448.0f);
}

static inline void fp4_row(const float* x, float* y, long n, long group) {
  const float floor = 6.0f * 1.17549435e-38f;  // 6 * 2^-126
  for (long i = 0; i < n; i += group) round_group<e2m1>(x + i, y + i, n - i < group ? n - i : group, floor, 6.0f);
}

// A 127th of the largest magnitude, rounded up to 17 bits: its products with integers of 8 bits are exact.
static inline float int8_scale(float amax) {
  const float floor = 127.0f * 1.17549435e-38f;  // 127 * 2^-126
  return float_of((bits_of((amax > floor ? amax : floor) / 127.0f) + 127u) & ~127u);
}

static inline float int8(float v) { return to_multiple(v, 0); }

static inline void int8_row(const float* x, float* y, long n, long group) {
  for (long i = 0; i < n; i += group) {
    const long count = n - i < group ? n - i : group;
    const float scale = int8_scale(group_amax(x + i, count));
    for (long k = i; k < i + count; k++) y[k] = int8(x[k] / scale) * scale;
  }
}

// The round trip that the input of a product makes.
static inline void input_row(int trip, const float* x, float* y, long n) {
  trip == INT8_TRIP ? int8_row(x, y, n, INT8_GROUP) : fp8_row(x, y, n, FP8_GROUP);
}

}  // namespace rounding
