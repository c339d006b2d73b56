// FP4 weights times int8 activations, summed in integers: digits.h with one digit instead of two or three.
//
// An activation that made the int8 round trip is an integer from -127 to 127 times its group's scale; a weight is an
// integer from -12 to 12 times half its group's scale, and enters as the unsigned 2 v + 12. The sum over a group of the
// weight is exact; over the groups it is a chain of fused multiply-adds in float32, in order, in slabs whose sums are
// added in order. So the bits are the same on every instruction set.
#pragma once
#include "digits.h"

namespace bytes {

using namespace packed;

constexpr long SLAB_COLUMNS = 512;  // summed in one chain; longer chains lose a digit
constexpr float UNIT = 0.5f;        // of a sum of products

// One group of one activation row. Every four bytes are the even or the odd columns of eight; `corrections` holds two
// 16-bit numbers, -12 times the sum of the first and of the last two bytes of each four, `correction` both together.
struct Group {
  int32_t quads[8], corrections, correction;
  float scale;
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

static inline void place(const int32_t* values, long size, float scale, Group& out) {
  int8_t to[32] = {};
  int32_t first = 0, last = 0;
  for (long i = 0; i < size; i++) {
    to[i / 8 * 8 + (i & 1) * 4 + i % 8 / 2] = (int8_t)values[i];
    (i % 8 / 2 & 2 ? last : first) += values[i];
  }
  memcpy(out.quads, to, sizeof to);
  const int32_t low = -digits::OFFSET * first, high = -digits::OFFSET * last;
  out.corrections = (int32_t)(((uint32_t)low & 0xFFFFu) | (uint32_t)high << 16);
  out.correction = low + high;
  out.scale = scale;
}

// A row of K activations; K is a multiple of the weight's group, of `size` columns.
static inline void split_row(const float* x, long K, long size, Group* out) {
  int32_t values[rounding::INT8_GROUP];
  for (long k = 0; k < K; k += rounding::INT8_GROUP) {
    const long n = std::min(rounding::INT8_GROUP, K - k);
    const float scale = integers(x + k, n, values);
    for (long i = 0; i < n; i += size) place(values + i, size, scale, out[(k + i) / size]);
  }
}

#if defined(__AVX2__)
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
// A group against eight rows: the sum of 2 v * integer. Two chains, which the CPU computes side by side.
template <int QUADS> INLINE __m256i group_sum(const __m256i* w, const Group& x) {
  __m256i even = _mm256_set1_epi32(x.correction), odd = _mm256_setzero_si256();
  for (int i = 0; i < QUADS; i += 2) {
    even = _mm256_dpbusd_epi32(even, w[i], _mm256_set1_epi32(x.quads[i]));
    odd = _mm256_dpbusd_epi32(odd, w[i + 1], _mm256_set1_epi32(x.quads[i + 1]));
  }
  return _mm256_add_epi32(even, odd);
}
#else
// The same; 16-bit sums wrap around on the way, and end within 16 * 12 * 127.
template <int QUADS> INLINE __m256i group_sum(const __m256i* w, const Group& x) {
  __m256i total = _mm256_set1_epi32(x.corrections);
  for (int i = 0; i < QUADS; i++)
    total = _mm256_add_epi16(total, _mm256_maddubs_epi16(w[i], _mm256_set1_epi32(x.quads[i])));
  return _mm256_madd_epi16(total, _mm256_set1_epi16(1));
}
#endif

// One slab of FEW rows whose sums stay in registers, or with 0 of M rows, added to acc.
template <int QUADS, int FEW>
INLINE void slab(const Weight& w, long e, const uint8_t* codes, const uint8_t* scales, const Group* const* rows, long M,
                 long begin, long end, f8* acc) {
  f8 kept[FEW ? FEW : MOST_ROWS];
  if (FEW) M = FEW;
  for (long m = 0; m < M; m++) kept[m] = f8{};
  for (long g = begin; g < end; g++) {
    const uint8_t* from = codes + g * QUADS * 16;
    __m256i v[QUADS];
    for (int i = 0; i < QUADS; i += 2) digits::weights_of(from + i / 2 * 32, v[i], v[i + 1]);
    for (long line = 0; line < QUADS * 16; line += 64)
      _mm_prefetch((const char*)from + digits::AHEAD + line, _MM_HINT_T0);
    const f8 scale = digits::scales_of(w, e, scales + g * TILE);
    for (long m = 0; m < M; m++) {
      const Group& x = rows[m][g];
      kept[m] = fma((f8)_mm256_cvtepi32_ps(group_sum<QUADS>(v, x)), scale * splat8(x.scale), kept[m]);
    }
  }
  for (long m = 0; m < M; m++) acc[m] = acc[m] + kept[m];
}

template <int QUADS>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  constexpr long SIZE = QUADS * 4, STEP = SLAB_COLUMNS / SIZE;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  for (long m = 0; m < M; m++) acc[m] = f8{};
  for (long g = 0; g < groups; g += STEP) {
    const long end = std::min(groups, g + STEP);
    long m = 0;
    for (; m + 8 <= M; m += 8) slab<QUADS, 8>(w, e, codes, scales, rows + m, 8, g, end, acc + m);
    for (; m + 4 <= M; m += 4) slab<QUADS, 4>(w, e, codes, scales, rows + m, 4, g, end, acc + m);
    for (; m + 2 <= M; m += 2) slab<QUADS, 2>(w, e, codes, scales, rows + m, 2, g, end, acc + m);
    if (m < M) slab<QUADS, 1>(w, e, codes, scales, rows + m, 1, g, end, acc + m);
  }
}
#else
template <int QUADS>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  constexpr long SIZE = QUADS * 4, STEP = SLAB_COLUMNS / SIZE;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  for (long m = 0; m < M; m++) {
    f8 sum{}, kept{};
    for (long g = 0; g < groups; g++) {
      const Group& x = rows[m][g];
      const int8_t* at = (const int8_t*)x.quads;
      f8 total{}, scale{};
      for (long r = 0; r < TILE; r++) {
        int32_t product = 0;
        for (long i = 0; i < SIZE; i++) {
          const uint8_t byte = codes[(g * SIZE + i / 8 * 8) * TILE / 2 + r * 4 + i % 8 / 2];
          const int32_t v = (int32_t)(2.0f * rows::tables().e2m1[byte >> (4 * (i & 1)) & 15]);
          product += v * at[i / 8 * 8 + (i & 1) * 4 + i % 8 / 2];
        }
        total[r] = (float)product, scale[r] = fp4_scale(w, e, scales[g * TILE + r]);
      }
      kept = fma(total, scale * splat8(x.scale), kept);
      if ((g + 1) % STEP == 0 || g + 1 == groups) sum = sum + kept, kept = f8{};
    }
    acc[m] = sum;
  }
}
#endif

// As digits::products.
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

}  // namespace bytes
