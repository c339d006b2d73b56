// FP4 weights times int8 activations, summed in integers (tiles.h): an activation that made the int8 round trip is an
// integer from -127 to 127 times its group's scale.
#pragma once
#include "tiles.h"

namespace bytes {

// The integers in their places; corrections for them, and for their sum.
struct Group {
  static constexpr float UNIT = 0.5f;
  int32_t quads[8], corrections, correction;
  float scale;

  int32_t integer(long at) const { return ((const int8_t*)quads)[at]; }

#if defined(TWO_TILES)
  template <int QUADS, class I> __attribute__((always_inline)) I sum(const I* w) const {
    return tiles::byte_sum<QUADS>(w, quads) + correction;
  }
#elif defined(__AVX2__)
  template <int QUADS> __attribute__((always_inline)) tiles::i8 sum(const tiles::i8* w) const {
    return tiles::byte_sum<QUADS>(w, quads, corrections, 0);
  }
#endif
};

// The integer of each activation, and the scale of their group of up to 32: no number if an activation is none.
static inline float integers(const float* x, long n, int32_t* out) {
  const float scale = rounding::int8_scale(rounding::group_amax(x, n));
  float defect = 0.0f;
  for (long i = 0; i < n; i++) {
    const float v = rounding::int8(x[i] / scale), low = v > -127.0f ? v : -127.0f;
    defect += v - v;
    out[i] = (int32_t)(low < 127.0f ? low : 127.0f);
  }
  return scale + defect;
}

static inline void split(const int32_t* values, long size, float scale, Group& out) {
  int8_t to[32] = {};
  int32_t sum = 0;
  for (long i = 0; i < size; i++) to[i] = (int8_t)values[i], sum += values[i];
  tiles::put_in_place(to);
  memcpy(out.quads, to, sizeof to);
  out.corrections = tiles::corrections(to, size);
  out.correction = -tiles::OFFSET * sum;
  out.scale = scale;
}

// A row of K activations; K is a multiple of the weight's group, of `size` columns.
static inline void split_row(const float* x, long K, long size, Group* out) {
  int32_t values[rounding::INT8_GROUP];
  for (long k = 0; k < K; k += rounding::INT8_GROUP) {
    const long n = std::min(rounding::INT8_GROUP, K - k);
    const float scale = integers(x + k, n, values);
    for (long i = 0; i < n; i += size) split(values + i, size, scale, out[(k + i) / size]);
  }
}

}  // namespace bytes
