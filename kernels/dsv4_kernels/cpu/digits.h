// FP4 weights times FP8 activations, summed in integers (tiles.h).
//
// An activation that made the FP8 round trip is an integer times 2^-9 and its group's scale: |integer| <= 448 * 512. It
// is written as 2048 h + 16 m + l with small signed digits, which are multiplied one after the other. The low digit is
// zero unless an activation is a thousandth of its group's largest; a group without low digits skips them, which adds
// nothing else than zeros.
#pragma once
#include "tiles.h"

namespace digits {

constexpr long DIGITS = 3, HIGH_SHIFT = 11, MIDDLE_SHIFT = 4;
constexpr int32_t HIGH_UNIT = 1 << HIGH_SHIFT, MIDDLE_UNIT = 1 << MIDDLE_SHIFT;

// The digits in their places; corrections for each of them, and for the sum of the integers.
struct Group {
  static constexpr float UNIT = 1.0f / 1024;  // of a sum of products: 2^-9 of the activation, 2^-1 of the weight
  int32_t quads[DIGITS][8], corrections[DIGITS], has_low, correction;
  float scale;

  int32_t integer(long at) const {
    const int8_t* digit = (const int8_t*)quads;
    return digit[at] * HIGH_UNIT + digit[32 + at] * MIDDLE_UNIT + digit[64 + at];
  }

#if defined(TWO_TILES)
  template <int QUADS, class I> __attribute__((always_inline)) I sum(const I* w) const {
    const I high = tiles::byte_sum<QUADS>(w, quads[0]) << HIGH_SHIFT;
    const I total = high + (tiles::byte_sum<QUADS>(w, quads[1]) << MIDDLE_SHIFT) + correction;
    return has_low ? total + tiles::byte_sum<QUADS>(w, quads[2]) : total;
  }
#elif defined(__AVX2__)
  template <int QUADS> __attribute__((always_inline)) tiles::i8 sum(const tiles::i8* w) const {
    const tiles::i8 total = tiles::byte_sum<QUADS>(w, quads[0], corrections[0], HIGH_SHIFT) +
                            tiles::byte_sum<QUADS>(w, quads[1], corrections[1], MIDDLE_SHIFT);
    return has_low ? total + tiles::byte_sum<QUADS>(w, quads[2], corrections[2], 0) : total;
  }
#endif
};

// The integer of each activation, 2^9 too large, and the scale of their group of up to 128.
static inline float integers(const float* x, long n, int32_t* out) {
  const float amax = rounding::group_amax(x, n);
  const int32_t exponent = rounding::scale_exponent(amax > 1e-4f ? amax : 1e-4f, 448.0f);
  const float inverse = rounding::float_of((uint32_t)(254 - exponent) << 23);
  for (long i = 0; i < n; i++) {
    const float v = x[i] * inverse, low = v < -448.0f ? -448.0f : v;
    out[i] = (int32_t)(rounding::e4m3(low > 448.0f ? 448.0f : low) * 512.0f);
  }
  return rounding::float_of((uint32_t)exponent << 23);
}

static inline void split(const int32_t* values, long size, Group& out) {
  int8_t place[DIGITS][32] = {};
  int32_t low = 0, sum = 0;
  for (long i = 0; i < size; i++) {
    sum += values[i];
    const int32_t h = (values[i] + HIGH_UNIT / 2) >> HIGH_SHIFT, rest = values[i] - h * HIGH_UNIT;
    const int32_t m = (rest + MIDDLE_UNIT / 2) >> MIDDLE_SHIFT, l = rest - m * MIDDLE_UNIT;
    place[0][i] = (int8_t)h, place[1][i] = (int8_t)m, place[2][i] = (int8_t)l;
    low |= l;
  }
  for (long d = 0; d < DIGITS; d++) {
    tiles::put_in_place(place[d]);
    out.corrections[d] = tiles::corrections(place[d], size);
  }
  memcpy(out.quads, place, sizeof place);
  out.has_low = low != 0;
  out.correction = -tiles::OFFSET * sum;
}

// A row of K activations; K is a multiple of the group.
static inline void split_row(const float* x, long K, long size, Group* out) {
  int32_t values[rounding::FP8_GROUP];
  for (long k = 0; k < K; k += rounding::FP8_GROUP) {
    const long n = std::min(rounding::FP8_GROUP, K - k);
    const float scale = integers(x + k, n, values);
    for (long i = 0; i < n; i += size) {
      Group& group = out[(k + i) / size];
      split(values + i, size, group);
      group.scale = scale;
    }
  }
}

}  // namespace digits
