// FP4 weights times FP8 activations, summed in integers.
//
// An activation that made the FP8 round trip is an integer times 2^-9 and its group's scale: |integer| <= 448 * 512. It
// is written as 2048 h + 16 m + l with small signed digits; a weight is an integer from -12 to 12 times half its group's
// scale, and enters as the unsigned 2 v + 12. The sum over a group of 16 or 32 columns is exact in 32 bits; over the groups
// it is a chain of fused multiply-adds in float32, in order. So the bits are the same on every instruction set, and more
// exact than a sum of products in float32. The low digit is zero unless an activation is a thousandth of its group's
// largest; a group without low digits skips them, which adds nothing else than zeros.
#pragma once
#include "packed.h"

namespace digits {

using namespace packed;

constexpr long ROUND_GROUP = 128, DIGITS = 3, HIGH_SHIFT = 11, MIDDLE_SHIFT = 4, OFFSET = 12;
constexpr int32_t HIGH_UNIT = 1 << HIGH_SHIFT, MIDDLE_UNIT = 1 << MIDDLE_SHIFT;
constexpr long AHEAD = 2048;  // bytes: where memory is asked for what comes later
constexpr float UNIT = 1.0f / 1024;  // of a sum of products: 2^-9 of the activation, 2^-1 of the weight

// One group of one activation row. Every four bytes are the even or the odd columns of eight; a correction holds two
// 16-bit numbers, -12 times the sum of the first and of the last two bytes of each four; `correction` is -12 times the sum
// of the integers.
struct Group {
  int32_t quads[DIGITS][8], corrections[DIGITS], has_low, correction;
  float scale;
};

static inline long group_size(const Weight& w) { return w.format == MXFP4 ? 32 : 16; }

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
    const long at = i / 8 * 8 + (i & 1) * 4 + i % 8 / 2;
    place[0][at] = (int8_t)h, place[1][at] = (int8_t)m, place[2][at] = (int8_t)l;
    low |= l;
  }
  for (long d = 0; d < DIGITS; d++) {
    int32_t first = 0, last = 0;
    for (long i = 0; i < size; i++) (i & 2 ? last : first) += place[d][i];
    out.corrections[d] = (int32_t)((uint32_t)(-OFFSET * first) & 0xFFFFu) | (int32_t)((uint32_t)(-OFFSET * last) << 16);
  }
  memcpy(out.quads, place, sizeof place);
  out.has_low = low != 0;
  out.correction = -OFFSET * sum;
}

// A row of K activations; K is a multiple of the group.
static inline void split_row(const float* x, long K, long size, Group* out) {
  int32_t values[ROUND_GROUP];
  for (long k = 0; k < K; k += ROUND_GROUP) {
    const long n = std::min(ROUND_GROUP, K - k);
    const float scale = integers(x + k, n, values);
    for (long i = 0; i < n; i += size) {
      Group& group = out[(k + i) / size];
      split(values + i, size, group);
      group.scale = scale;
    }
  }
}

#if defined(__AVX2__)
// Eight nibbles of eight rows as two vectors of 2 v + 12: the even columns, the odd ones.
static inline void weights_of(const uint8_t* codes, __m256i& even, __m256i& odd) {
  const __m256i table = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,  //
                                         12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  const __m256i low = _mm256_set1_epi8(15), v = _mm256_loadu_si256((const __m256i*)codes);
  even = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
  odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
// One digit of a group against eight rows: the sum of (2 v + 12) * digit. Two chains, which the CPU computes side by side.
template <int QUADS> INLINE __m256i digit_sum(const __m256i* w, const int32_t* quads) {
  __m256i even = _mm256_setzero_si256(), odd = even;
  for (int i = 0; i < QUADS; i += 2) {
    even = _mm256_dpbusd_epi32(even, w[i], _mm256_set1_epi32(quads[i]));
    odd = _mm256_dpbusd_epi32(odd, w[i + 1], _mm256_set1_epi32(quads[i + 1]));
  }
  return _mm256_add_epi32(even, odd);
}

// A group against eight rows: the sum of 2 v * integer.
template <int QUADS> INLINE __m256i group_sum(const __m256i* w, const Group& x) {
  const __m256i high = _mm256_slli_epi32(digit_sum<QUADS>(w, x.quads[0]), HIGH_SHIFT);
  const __m256i middle = _mm256_slli_epi32(digit_sum<QUADS>(w, x.quads[1]), MIDDLE_SHIFT);
  const __m256i total = _mm256_add_epi32(_mm256_add_epi32(high, middle), _mm256_set1_epi32(x.correction));
  return x.has_low ? _mm256_add_epi32(total, digit_sum<QUADS>(w, x.quads[2])) : total;
}
#else
// One digit of a group against eight rows: the sum of 2 v * digit, times 2^shift.
template <int QUADS> INLINE __m256i digit_sum(const __m256i* w, const int32_t* quads, int32_t correction, int shift) {
  __m256i total = _mm256_set1_epi32(correction);
  for (int i = 0; i < QUADS; i++)
    total = _mm256_add_epi16(total, _mm256_maddubs_epi16(w[i], _mm256_set1_epi32(quads[i])));
  return _mm256_madd_epi16(total, _mm256_set1_epi16((short)(1 << shift)));
}

// A group against eight rows: the sum of 2 v * integer.
template <int QUADS> INLINE __m256i group_sum(const __m256i* w, const Group& x) {
  const __m256i total = _mm256_add_epi32(digit_sum<QUADS>(w, x.quads[0], x.corrections[0], HIGH_SHIFT),
                                         digit_sum<QUADS>(w, x.quads[1], x.corrections[1], MIDDLE_SHIFT));
  return x.has_low ? _mm256_add_epi32(total, digit_sum<QUADS>(w, x.quads[2], x.corrections[2], 0)) : total;
}
#endif

static inline f8 scales_of(const Weight& w, long e, const uint8_t* scales) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)scales));
  if (w.format == MXFP4) return (f8)_mm256_max_epi32(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(1 << 22));
  const __m256i sign = _mm256_slli_epi32(bytes, 24), half = _mm256_srai_epi32(sign, 4);
  const f8 value = (f8)_mm256_and_si256(half, _mm256_set1_epi32((int)0x87F00000u));  // times 2^-120
  return value * splat8(rounding::float_of((120u + 127u) << 23)) * splat8(w.globals[e]);
}

// FEW rows whose sums stay in registers, or with 0 any number of them.
template <int QUADS, int FEW>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  constexpr long SIZE = QUADS * 4;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  f8 kept[FEW + 1] = {};
  f8* sums = FEW ? kept : acc;
  if (FEW) M = FEW;
  for (long m = 0; m < M; m++) sums[m] = f8{};
  for (long g = 0; g < groups; g++, codes += SIZE * TILE / 2, scales += TILE) {
    __m256i v[QUADS];
    for (int i = 0; i < QUADS; i += 2) weights_of(codes + i / 2 * 32, v[i], v[i + 1]);
    for (long line = 0; line < SIZE * TILE / 2; line += 64) _mm_prefetch((const char*)codes + AHEAD + line, _MM_HINT_T0);
    const f8 scale = scales_of(w, e, scales);
    for (long m = 0; m < M; m++) {
      const Group& x = rows[m][g];
      sums[m] = fma((f8)_mm256_cvtepi32_ps(group_sum<QUADS>(v, x)), scale * splat8(x.scale), sums[m]);
    }
  }
  for (long m = 0; m < FEW; m++) acc[m] = kept[m];
}

template <int QUADS>
static inline void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  switch (M) {
    case 1: return tile<QUADS, 1>(w, e, t, rows, M, acc);
    case 2: return tile<QUADS, 2>(w, e, t, rows, M, acc);
    default: return tile<QUADS, 0>(w, e, t, rows, M, acc);
  }
}
#else
template <int QUADS>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  constexpr long SIZE = QUADS * 4;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  for (long m = 0; m < M; m++) {
    acc[m] = f8{};
    for (long g = 0; g < groups; g++) {
      const Group& x = rows[m][g];
      const int8_t* digit = (const int8_t*)x.quads;
      f8 total{}, scale{};
      for (long r = 0; r < TILE; r++) {
        int32_t sum = 0;
        for (long i = 0; i < SIZE; i++) {
          const uint8_t byte = codes[(g * SIZE + i / 8 * 8) * TILE / 2 + r * 4 + i % 8 / 2];
          const int32_t v = (int32_t)(2.0f * rows::tables().e2m1[byte >> (4 * (i & 1)) & 15]);
          const long at = i / 8 * 8 + (i & 1) * 4 + i % 8 / 2;
          sum += v * (digit[at] * HIGH_UNIT + digit[32 + at] * MIDDLE_UNIT + digit[64 + at]);
        }
        total[r] = (float)sum, scale[r] = fp4_scale(w, e, scales[g * TILE + r]);
      }
      acc[m] = fma(total, scale * splat8(x.scale), acc[m]);
    }
  }
}
#endif

// The products of the given rows with columns [first, first + N) of matrix e through put(row, column - first, value);
// first is a multiple of 8.
template <class Put>
static inline void products(const Group* const* rows, long M, const Weight& w, long e, long first, long N, Put put) {
  f8 acc[MOST_ROWS];
  for (long n = 0; n < N; n += TILE) {
    const long t = (first + n) / TILE, columns = std::min(TILE, N - n);
    w.format == MXFP4 ? tile<8>(w, e, t, rows, M, acc) : tile<4>(w, e, t, rows, M, acc);
    for (long m = 0; m < M; m++)
      for (long c = 0; c < columns; c++) put(m, n + c, acc[m][c] * UNIT);
  }
}

}  // namespace digits
