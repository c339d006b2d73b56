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

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define TWO_TILES
#endif

constexpr int32_t OFFSET = 12;

static inline long group_size(const Weight& w) { return w.format == MXFP4 ? 32 : 16; }

// Where the integer of column i of a group stands among bytes of which every four are even or odd columns of eight.
static inline long place(long i) { return i / 8 * 8 + (i & 1) * 4 + i % 8 / 2; }

// Moves the bytes of up to 32 columns from their order to their places.
static inline void put_in_place(int8_t* at) {
  typedef int8_t Bytes __attribute__((vector_size(32)));
  Bytes v;
  memcpy(&v, at, sizeof v);
  v = __builtin_shuffle(v, Bytes{0,  2,  4,  6,  1,  3,  5,  7,  8,  10, 12, 14, 9,  11, 13, 15,
                                 16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30, 25, 27, 29, 31});
  memcpy(at, &v, sizeof v);
}

// Two 16-bit numbers: -12 times the sum of the integers in the first and in the last two bytes of each four.
static inline int32_t corrections([[maybe_unused]] const int8_t* at, [[maybe_unused]] long size) {
#if defined(TWO_TILES)
  return 0;  // nobody asks: 32-bit sums need none
#else
  int32_t first = 0, last = 0;
  for (long i = 0; i < size; i++) (i & 2 ? last : first) += at[i];
  return (int32_t)((uint32_t)(-OFFSET * first) & 0xFFFFu) | (int32_t)((uint32_t)(-OFFSET * last) << 16);
#endif
}

#if defined(__AVX2__)
typedef int32_t i8 __attribute__((vector_size(32)));

// Codes as a vector of 2 v + 12 for the even columns and one for the odd ones.
#if defined(__AVX512VBMI__) && defined(__AVX512VL__)
// A byte selects by its lower five or six bits, of which four are the code: what the others are makes no difference.
INLINE void values_of(__m256i codes, i8& even, i8& odd) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  even = (i8)_mm256_permutexvar_epi8(codes, table);
  odd = (i8)_mm256_permutexvar_epi8(_mm256_srli_epi16(codes, 4), table);
}
#else
INLINE void values_of(__m256i codes, i8& even, i8& odd) {
  const __m256i table = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0,  //
                                         12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  const __m256i low = _mm256_set1_epi8(15);
  even = (i8)_mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
  odd = (i8)_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));
}
#endif

INLINE __m256i vector_of(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }

// The weights of eight columns: one tile.
INLINE void weights_of(const uint8_t* codes, long, i8& even, i8& odd) { values_of(vector_of(codes), even, odd); }

INLINE f8 scales_of(const Weight& w, long e, const uint8_t* scales) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)scales));
  if (w.format == MXFP4) return (f8)_mm256_max_epi32(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(1 << 22));
  const __m256i sign = _mm256_slli_epi32(bytes, 24), half = _mm256_srai_epi32(sign, 4);
  const f8 value = (f8)_mm256_and_si256(half, _mm256_set1_epi32((int)0x87F00000u));  // times 2^-120
  return value * splat8(rounding::float_of((120u + 127u) << 23)) * splat8(w.globals[e]);
}

INLINE void scales_of(const Weight& w, long e, const uint8_t* scales, long, f8& out) { out = scales_of(w, e, scales); }

#if defined(TWO_TILES)
// The same columns of two tiles, `next` bytes apart, side by side.
INLINE void weights_of(const uint8_t* codes, long next, i16& even, i16& odd) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(vector_of(codes)), vector_of(codes + next), 1);
#if defined(__AVX512VBMI__)
  even = (i16)_mm512_permutexvar_epi8(v, table);
  odd = (i16)_mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), table);
#else
  const __m512i low = _mm512_set1_epi8(15);
  even = (i16)_mm512_shuffle_epi8(table, _mm512_and_si512(v, low));
  odd = (i16)_mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
#endif
}

INLINE void scales_of(const Weight& w, long e, const uint8_t* scales, long next, f16& out) {
  const f8 parts[2] = {scales_of(w, e, scales), scales_of(w, e, scales + next)};
  out = (f16)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)parts[0]), (__m256)parts[1], 1);
}

// total += the products of four bytes per lane. Written out, because compilers load and spread `quad` by itself.
INLINE void add_bytes(i8& total, i8 w, const int32_t& quad) {
  asm("vpdpbusd %2%{1to8%}, %1, %0" : "+v"(total) : "v"(w), "m"(quad));
}
INLINE void add_bytes(i16& total, i16 w, const int32_t& quad) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(total) : "v"(w), "m"(quad));
}

// Bytes of a group against the rows of one tile or two: the sum of (2 v + 12) * byte. Two chains, which the CPU computes
// side by side.
template <int QUADS, class I> INLINE I byte_sum(const I* w, const int32_t* quads) {
  I even{}, odd{};
  for (int i = 0; i < QUADS; i += 2) add_bytes(even, w[i], quads[i]), add_bytes(odd, w[i + 1], quads[i + 1]);
  return even + odd;
}
#else
// Bytes of a group against eight rows: the sum of 2 v * byte, times 2^shift. 16-bit sums wrap around on the way, and end
// within 16 * 12 * 127.
template <int QUADS> INLINE i8 byte_sum(const i8* w, const int32_t* quads, int32_t corrections, int shift) {
  __m256i total = _mm256_set1_epi32(corrections);
  for (int i = 0; i < QUADS; i++)
    total = _mm256_add_epi16(total, _mm256_maddubs_epi16((__m256i)w[i], _mm256_set1_epi32(quads[i])));
  return (i8)_mm256_madd_epi16(total, _mm256_set1_epi16((short)(1 << shift)));
}
#endif

template <class F> struct Integers;
template <> struct Integers<f8> { typedef i8 Type; };
template <> struct Integers<f16> { typedef i16 Type; };

// Groups [begin, end) of M rows, whose sums stay in registers, added to acc: one tile (F is f8), or it and the next (f16).
template <int QUADS, int M, class F, class Group>
INLINE void slab(const Weight& w, long e, const uint8_t* codes, const uint8_t* scales, const Group* const* rows,
                 long begin, long end, F* acc) {
  constexpr long TILES = sizeof(F) / sizeof(f8);
  const long next = w.columns * TILE / 2, next_scales = w.columns / (QUADS * 4) * TILE;
  F kept[M] = {};
  const long over = TILES > 1 ? AHEAD / next * next : 0, within = AHEAD - AHEAD / next * next;  // other pairs of tiles
  for (long g = begin; g < end; g++) {
    const uint8_t* from = codes + g * QUADS * 16;
    typename Integers<F>::Type v[QUADS];
    for (int i = 0; i < QUADS; i += 2) weights_of(from + i / 2 * 32, next, v[i], v[i + 1]);
    const uint8_t* ahead = from + AHEAD + over + (TILES > 1 && g * QUADS * 16 + within >= next ? next : 0);
    for (long tile = 0; tile < TILES; tile++)
      for (long line = 0; line < QUADS * 16; line += 64) fetch(ahead + tile * next + line);
    F scale;
    scales_of(w, e, scales + g * TILE, next_scales, scale);
    for (int m = 0; m < M; m++) {
      const Group& x = rows[m][g];
      kept[m] = fma(__builtin_convertvector(x.template sum<QUADS>(v), F), scale * x.scale, kept[m]);
    }
  }
  for (int m = 0; m < M; m++) acc[m] = acc[m] + kept[m];
}
#else
template <int QUADS, int M, class F, class Group>
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

template <int QUADS, class F, class Group>
__attribute__((noinline)) static void tile(const Weight& w, long e, long t, const Group* const* rows, long M, F* acc) {
  constexpr long SIZE = QUADS * 4, STEP = SLAB / SIZE;
  const long groups = w.columns / SIZE;
  const uint8_t* codes = w.codes + e * w.code_bytes + t * w.columns * TILE / 2;
  const uint8_t* scales = w.scales + e * w.scale_bytes + t * groups * TILE;
  for (long m = 0; m < M; m++) acc[m] = F{};
  for (long g = 0; g < groups; g += STEP) {
    const long end = std::min(groups, g + STEP);
    long m = 0;
    for (; m + 8 <= M; m += 8) slab<QUADS, 8, F>(w, e, codes, scales, rows + m, g, end, acc + m);
    for (; m + 4 <= M; m += 4) slab<QUADS, 4, F>(w, e, codes, scales, rows + m, g, end, acc + m);
    for (; m + 2 <= M; m += 2) slab<QUADS, 2, F>(w, e, codes, scales, rows + m, g, end, acc + m);
    if (m < M) slab<QUADS, 1, F>(w, e, codes, scales, rows + m, g, end, acc + m);
  }
}

// The products with up to N columns from `first` on, of one tile or two.
template <class F, class Group, class Put>
static inline void some(const Group* const* rows, long M, const Weight& w, long e, long first, long N, Put put) {
  F acc[MOST_ROWS];
  w.format == MXFP4 ? tile<8>(w, e, first / TILE, rows, M, acc) : tile<4>(w, e, first / TILE, rows, M, acc);
  for (long m = 0; m < M; m++)
    for (long c = 0; c < N; c++) put(m, c, acc[m][c] * Group::UNIT);
}

// The products of the given rows with columns [first, first + N) of matrix e through put(row, column - first, value);
// first is a multiple of 8.
template <class Group, class Put>
static inline void products(const Group* const* rows, long M, const Weight& w, long e, long first, long N, Put put) {
  long n = 0;
#if defined(TWO_TILES)
  for (; M > 1 && n + 2 * TILE <= N; n += 2 * TILE)  // one row waits for memory, which is read fastest as one stream
    some<f16>(rows, M, w, e, first + n, 2 * TILE, [&](long m, long c, float v) { put(m, n + c, v); });
#endif
  for (; n < N; n += TILE)
    some<f8>(rows, M, w, e, first + n, std::min(TILE, N - n), [&](long m, long c, float v) { put(m, n + c, v); });
}

}  // namespace tiles
