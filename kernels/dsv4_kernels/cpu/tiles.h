// FP4 weights times integers, eight rows of the weight at a time.
//
// A weight is an integer from -12 to 12 times half its group's scale, and enters as the unsigned 2 v + 12. `Group` is one
// group of one activation row: its scale, `sum` with eight rows of weights, exact in 32 bits, for scalar code `integer`,
// and UNIT, what a sum of products is worth. Over the groups runs a chain of fused multiply-adds in float32, in order, in
// slabs whose sums are added in order. So the bits are the same on every instruction set, and for any number of rows.
#pragma once
#include "packed.h"

namespace tiles {

using namespace packed;

constexpr int32_t OFFSET = 12;
constexpr long AHEAD = 2048;  // bytes: where memory is asked for what comes later

static inline long group_size(const Weight& w) { return w.format == MXFP4 ? 32 : 16; }

// Where the integer of column i of a group stands among bytes of which every four are even or odd columns of eight.
static inline long place(long i) { return i / 8 * 8 + (i & 1) * 4 + i % 8 / 2; }

// Two 16-bit numbers: -12 times the sum of the integers in the first and in the last two bytes of each four.
static inline int32_t corrections(const int8_t* at, long size) {
  int32_t first = 0, last = 0;
  for (long i = 0; i < size; i++) (i & 2 ? last : first) += at[i];
  return (int32_t)((uint32_t)(-OFFSET * first) & 0xFFFFu) | (int32_t)((uint32_t)(-OFFSET * last) << 16);
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

static inline f8 scales_of(const Weight& w, long e, const uint8_t* scales) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)scales));
  if (w.format == MXFP4) return (f8)_mm256_max_epi32(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(1 << 22));
  const __m256i sign = _mm256_slli_epi32(bytes, 24), half = _mm256_srai_epi32(sign, 4);
  const f8 value = (f8)_mm256_and_si256(half, _mm256_set1_epi32((int)0x87F00000u));  // times 2^-120
  return value * splat8(rounding::float_of((120u + 127u) << 23)) * splat8(w.globals[e]);
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
// Bytes of a group against eight rows: `total` plus the sum of (2 v + 12) * byte. Two chains, which the CPU computes side
// by side.
template <int QUADS> INLINE __m256i byte_sum(const __m256i* w, const int32_t* quads, __m256i total) {
  __m256i odd = _mm256_setzero_si256();
  for (int i = 0; i < QUADS; i += 2) {
    total = _mm256_dpbusd_epi32(total, w[i], _mm256_set1_epi32(quads[i]));
    odd = _mm256_dpbusd_epi32(odd, w[i + 1], _mm256_set1_epi32(quads[i + 1]));
  }
  return _mm256_add_epi32(total, odd);
}
#else
// Bytes of a group against eight rows: the sum of 2 v * byte, times 2^shift. 16-bit sums wrap around on the way, and end
// within 16 * 12 * 127.
template <int QUADS> INLINE __m256i byte_sum(const __m256i* w, const int32_t* quads, int32_t corrections, int shift) {
  __m256i total = _mm256_set1_epi32(corrections);
  for (int i = 0; i < QUADS; i++)
    total = _mm256_add_epi16(total, _mm256_maddubs_epi16(w[i], _mm256_set1_epi32(quads[i])));
  return _mm256_madd_epi16(total, _mm256_set1_epi16((short)(1 << shift)));
}
#endif

// Groups [begin, end) of M rows, whose sums stay in registers, added to acc.
template <int QUADS, int M, class Group>
INLINE void slab(const Weight& w, long e, const uint8_t* codes, const uint8_t* scales, const Group* const* rows,
                 long begin, long end, f8* acc) {
  f8 kept[M] = {};
  for (long g = begin; g < end; g++) {
    const uint8_t* from = codes + g * QUADS * 16;
    __m256i v[QUADS];
    for (int i = 0; i < QUADS; i += 2) weights_of(from + i / 2 * 32, v[i], v[i + 1]);
    for (long line = 0; line < QUADS * 16; line += 64) _mm_prefetch((const char*)from + AHEAD + line, _MM_HINT_T0);
    const f8 scale = scales_of(w, e, scales + g * TILE);
    for (int m = 0; m < M; m++) {
      const Group& x = rows[m][g];
      kept[m] = fma((f8)_mm256_cvtepi32_ps(x.template sum<QUADS>(v)), scale * splat8(x.scale), kept[m]);
    }
  }
  for (int m = 0; m < M; m++) acc[m] = acc[m] + kept[m];
}
#else
template <int QUADS, int M, class Group>
static inline void slab(const Weight& w, long e, const uint8_t* codes, const uint8_t* scales, const Group* const* rows,
                        long begin, long end, f8* acc) {
  constexpr long SIZE = QUADS * 4;
  for (int m = 0; m < M; m++) {
    f8 kept{};
    for (long g = begin; g < end; g++) {
      const Group& x = rows[m][g];
      f8 total{}, scale{};
      for (long r = 0; r < TILE; r++) {
        int32_t sum = 0;
        for (long i = 0; i < SIZE; i++) {
          const uint8_t byte = codes[(g * SIZE + i / 8 * 8) * TILE / 2 + r * 4 + i % 8 / 2];
          sum += (int32_t)(2.0f * rows::tables().e2m1[byte >> (4 * (i & 1)) & 15]) * x.integer(place(i));
        }
        total[r] = (float)sum, scale[r] = fp4_scale(w, e, scales[g * TILE + r]);
      }
      kept = fma(total, scale * splat8(x.scale), kept);
    }
    acc[m] = acc[m] + kept;
  }
}
#endif

template <int QUADS, class Group>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, f8* acc) {
  constexpr long SIZE = QUADS * 4, STEP = SLAB / SIZE;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  for (long m = 0; m < M; m++) acc[m] = f8{};
  for (long g = 0; g < groups; g += STEP) {
    const long end = std::min(groups, g + STEP);
    long m = 0;
    for (; m + 8 <= M; m += 8) slab<QUADS, 8>(w, e, codes, scales, rows + m, g, end, acc + m);
    for (; m + 4 <= M; m += 4) slab<QUADS, 4>(w, e, codes, scales, rows + m, g, end, acc + m);
    for (; m + 2 <= M; m += 2) slab<QUADS, 2>(w, e, codes, scales, rows + m, g, end, acc + m);
    if (m < M) slab<QUADS, 1>(w, e, codes, scales, rows + m, g, end, acc + m);
  }
}

// The products of the given rows with columns [first, first + N) of matrix e through put(row, column - first, value);
// first is a multiple of 8.
template <class Group, class Put>
static inline void products(const Group* const* rows, long M, const Weight& w, long e, long first, long N, Put put) {
  f8 acc[MOST_ROWS];
  for (long n = 0; n < N; n += TILE) {
    const long t = (first + n) / TILE, columns = std::min(TILE, N - n);
    w.format == MXFP4 ? tile<8>(w, e, t, rows, M, acc) : tile<4>(w, e, t, rows, M, acc);
    for (long m = 0; m < M; m++)
      for (long c = 0; c < columns; c++) put(m, n + c, acc[m][c] * Group::UNIT);
  }
}

}  // namespace tiles
