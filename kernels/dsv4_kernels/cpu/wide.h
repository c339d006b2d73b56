// Five to eight rows of floats times BF16 or FP8 weights, which are decoded in registers, sixteen columns at a time: what
// packed.h does for fewer rows in halves of eight, which are as fast then. The sums have the bits of packed::products.
#pragma once
#include "pairs.h"

#if defined(__AVX512F__)
#define WIDE

namespace wide {

using namespace lanes;

constexpr long MOST = 8, COLUMNS = 2;  // rows, and rows of the weight at a time: sixteen accumulators

// Lines of weights as vectors of sixteen columns.
struct Bf16 {
  typedef packed::Bf16Row Row;
  static constexpr int VECTORS = 2;

  __attribute__((always_inline)) void load(const uint8_t* line, f16* out) const {
    const __m512i v = _mm512_loadu_si512(line);
    const __m512i low = _mm512_slli_epi32(v, 16), high = _mm512_and_si512(v, _mm512_set1_epi32((int)0xFFFF0000u));
    out[0] = (f16)_mm512_shuffle_i32x4(low, high, 0x44), out[1] = (f16)_mm512_shuffle_i32x4(low, high, 0xEE);
  }
};

#if defined(PAIRS)
struct Fp8 {  // times 2^-120, as packed::Fp8Row
  typedef packed::Fp8Row Row;
  static constexpr int VECTORS = 4;
  const pairs::Decoder decoder{pairs::tables<true>()};

  __attribute__((always_inline)) void load(const uint8_t* line, f16* out) const {
    __m512i pairs[2];
    decoder.pairs(line, pairs[0], pairs[1]);
    for (int i = 0; i < 2; i++) {
      out[2 * i] = (f16)_mm512_and_si512(pairs[i], _mm512_set1_epi32((int)0xFFFF0000u));
      out[2 * i + 1] = (f16)_mm512_slli_epi32(pairs[i], 16);
    }
  }
};
#endif

// M x N dot products with rows of one tile.
template <int M, int N, class Lines>
__attribute__((noinline)) static void dots(const float* const* a, const typename Lines::Row* rows, long lines, float* out) {
  const Lines decoder;
  const uint8_t *codes[N], *ahead = packed::later(rows[0].codes, lines * packed::QUAD * packed::LINE);
  const float* x[M];
  f16 sums[M][N] = {};
  for (int n = 0; n < N; n++) codes[n] = rows[n].codes;
  for (int m = 0; m < M; m++) x[m] = a[m];
  for (long line = 0, k = 0; line < lines; line++, k += Lines::VECTORS * WIDTH) {
    f16 y[N][Lines::VECTORS];
    for (int n = 0; n < N; n++) {
      decoder.load(codes[n] + line * packed::QUAD * packed::LINE, y[n]);
      Lines::Row::fetch(ahead + (line * packed::QUAD + n) * packed::LINE);
    }
    for (int i = 0; i < Lines::VECTORS; i++)
      for (int m = 0; m < M; m++) {
        const f16 v = load(x[m] + k + i * WIDTH);
        for (int n = 0; n < N; n++) sums[m][n] = fma(v, y[n][i], sums[m][n]);
      }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) out[m * N + n] = sum(sums[m][n]);
}

template <int M, int N, class Lines, class Put>
static inline void some(const float* const* a, const typename Lines::Row* rows, long n, long lines, Put put) {
  float out[M * N];
  dots<M, N, Lines>(a, rows + n, lines, out);
  for (int m = 0; m < M; m++)
    for (int c = 0; c < N; c++) put(m, n + c, out[m * N + c]);
}

template <int M, class Lines, class Put>
static inline void all(const float* const* a, const typename Lines::Row* rows, long N, long lines, Put put) {
  long n = 0;
  for (; n + COLUMNS <= N; n += COLUMNS) some<M, COLUMNS, Lines>(a, rows, n, lines, put);
  for (; n < N; n++) some<M, 1, Lines>(a, rows, n, lines, put);
}

template <class Lines, class Put, int... I>
static inline void products(const float* const* a, long M, const typename Lines::Row* rows, long N, long length, Put put,
                            std::integer_sequence<int, I...>) {
  constexpr int FEWER = packed::FEW_ROWS + 1;
  ((M == FEWER + I ? all<FEWER + I, Lines>(a, rows, N, length / (Lines::VECTORS * WIDTH), put) : void()), ...);
}

template <class Lines, class Put>
static inline void products(const float* const* a, long M, const typename Lines::Row* rows, long N, long length, Put put) {
  products<Lines>(a, M, rows, N, length, put, std::make_integer_sequence<int, MOST - packed::FEW_ROWS>());
}

// As packed::products; false if it is left to it.
template <class Put>
static inline bool multiply(const float* const* a, long M, const Weight& w, long e, long first, long N, Floats& room,
                            Put put) {
  if (M <= packed::FEW_ROWS || M > MOST) return false;
  if (w.format == packed::BF16 && w.columns % packed::Bf16Row::COLUMNS == 0) {
    packed::Bf16Row rows[packed::MOST_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = packed::bf16_row(w, e, first + n);
    products<Bf16>(a, M, rows, N, w.columns, put);
    return true;
  }
#if defined(PAIRS)
  if (w.format == packed::FP8 && first / packed::FP8_BLOCK == (first + N - 1) / packed::FP8_BLOCK) {
    packed::Fp8Row rows[packed::MOST_COLUMNS];
    const float* scaled[MOST];
    for (long n = 0; n < N; n++) rows[n] = packed::fp8_row(w, e, first + n);
    if (!packed::scale_rows(a, M, rows[0].scales, w.columns, room, scaled)) return false;
    products<Fp8>(scaled, M, rows, N, packed::padded(w.columns, packed::LINE), put);
    return true;
  }
#endif
  return false;
}

}  // namespace wide
#endif
