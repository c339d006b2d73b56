// FP8 weights times activations that are bfloat16 numbers, as after their FP8 round trip: two columns per lane and
// instruction.
//
// VDPBF16PS adds the product of the higher halves of a lane, then that of the lower ones, each fused like fma(). The
// higher half holds column l of 32, the lower one column l + 16, so the sums have the bits of packed::dots. The instruction
// takes numbers below 2^-126 for zeros: activations between 2^-100 and 2^100 (or zero) never come to that, others are
// left to packed::dots.
#pragma once
#include "packed.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define PAIRS

namespace pairs {

using namespace lanes;

constexpr long PAIRED = 32, LEAST = 27, MOST = 227;  // columns of a vector; exponents that are multiplied in pairs
constexpr long FUSED_ROWS = 4;                       // activations that are multiplied while the weights are decoded

// Both bytes of each code's bfloat16, by its lower seven bits.
struct Tables {
  alignas(64) uint8_t low[128], high[128];
  explicit Tables(float factor) {
    for (int code = 0; code < 128; code++) {
      const uint32_t bits = rounding::bits_of(rows::tables().e4m3[code] * factor) >> 16;
      low[code] = (uint8_t)bits, high[code] = (uint8_t)(bits >> 8);
    }
  }
};

// Of the values, or of those of packed::Fp8Row.
template <bool IS_SMALL> static inline const Tables& tables() {
  static const Tables made(IS_SMALL ? rounding::float_of((127 - 120) << 23) : 1.0f);
  return made;
}

INLINE __m512i vector(const void* p) { return _mm512_loadu_si512(p); }

// Decodes lines of 64 codes into two vectors of pairs, of 32 columns each.
class Decoder {
 public:
  explicit Decoder(const Tables& tables) {
    for (int i = 0; i < 2; i++) low_[i] = vector(tables.low + 64 * i), high_[i] = vector(tables.high + 64 * i);
  }

  __attribute__((always_inline)) void pairs(const uint8_t* line, __m512i& first, __m512i& second) const {
    const __m512i codes = vector(line), sign = _mm512_set1_epi8((char)128);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    const __m512i high = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
    const __m512i whole = _mm512_ternarylogic_epi32(high, codes, sign, 0xF8);  // high | (codes & sign)
    first = _mm512_unpacklo_epi8(low, whole), second = _mm512_unpackhi_epi8(low, whole);
  }

 private:
  __m512i low_[2], high_[2];
};

// Biased exponents of a block's numbers that are not zero: none lies outside.
struct Range {
  int32_t least, most;
};

// A row as pairs [K / 32, 16], filled to whole lines, and the range of each block; false if a number is no bfloat16.
static inline bool pair_row(const float* x, long K, float* out, Range* ranges) {
  const __m512i rest = _mm512_set1_epi32(0xFFFF);
  __mmask16 refused = 0;
  for (long block = 0; block < K; block += packed::FP8_BLOCK) {
    __m512i least = _mm512_set1_epi32(INT32_MAX), most = _mm512_setzero_si512();
    for (long k = block; k < std::min(packed::padded(K, packed::LINE), block + packed::FP8_BLOCK); k += PAIRED) {
      __m512i half[2];
      for (int h = 0; h < 2; h++) {
        const long at = k + h * WIDTH;
        half[h] = (__m512i)(at + WIDTH <= K ? load(x + at) : load_some(x + at, std::max(0L, K - at)));
        const __m512i size = _mm512_and_si512(half[h], _mm512_set1_epi32(0x7FFFFFFF));
        refused |= _mm512_test_epi32_mask(half[h], rest);
        least = _mm512_mask_min_epi32(least, _mm512_test_epi32_mask(size, size), least, size);
        most = _mm512_max_epi32(most, size);
      }
      const __m512i pairs = _mm512_or_si512(_mm512_andnot_si512(rest, half[0]), _mm512_srli_epi32(half[1], 16));
      _mm512_storeu_si512(out + k / 2, pairs);
    }
    *ranges++ = {_mm512_reduce_min_epi32(least) >> 23, _mm512_reduce_max_epi32(most) >> 23};
  }
  return !refused;
}

// Pairs times the scales of the columns, which is exact; false if a product is too small or too large.
static inline bool scale_row(const float* pairs, const Range* ranges, const uint8_t* scales, long K, float* out) {
  const long length = packed::padded(K, packed::LINE);
  const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
  for (long block = 0; block < length; block += packed::FP8_BLOCK, ranges++, scales++) {
    const int32_t exponent = (int32_t)*scales - 127;
    if (*scales == 255 || (ranges->most && (ranges->least + exponent < LEAST || ranges->most + exponent >= MOST)))
      return false;
    const __m512i times = _mm512_set1_epi16((short)(exponent * 128));
    for (long k = block; k < std::min(length, block + packed::FP8_BLOCK); k += PAIRED) {
      const __m512i v = vector(pairs + k / 2);
      _mm512_storeu_si512(out + k / 2, _mm512_mask_add_epi16(v, _mm512_test_epi16_mask(v, magnitude), v, times));
    }
  }
  return true;
}

INLINE f16 add(f16 sum, __m512i a, __m512i b) {
  return (f16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// M x N dot products with rows of one tile. WEIGHTS(line, n, first, second) gives pairs of row n; `ahead` is a later
// tile.
template <int M, int N, class Weights>
INLINE void dots(const float* x, long count, long lines, const Weights& weights, const uint8_t* ahead, float* out) {
  f16 sums[M][N] = {};
  for (long line = 0; line < lines; line++, x += PAIRED) {
    __m512i first[N], second[N];
    for (int n = 0; n < N; n++) {
      weights(line, n, first[n], second[n]);
      packed::fetch(ahead + (line * packed::QUAD + n) * packed::LINE);
    }
    for (int m = 0; m < M; m++) {
      const __m512i a = vector(x + m * count);
      for (int n = 0; n < N; n++) sums[m][n] = add(sums[m][n], a, first[n]);
    }
    for (int m = 0; m < M; m++) {
      const __m512i a = vector(x + m * count + WIDTH);
      for (int n = 0; n < N; n++) sums[m][n] = add(sums[m][n], a, second[n]);
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) out[m * N + n] = sum(sums[m][n]);
}

// As dots() for a number of rows that is one of M.
template <int N, int... M, class Weights>
__attribute__((noinline)) static void some(long rows, const float* x, long count, long lines, const Weights& weights,
                                           const uint8_t* ahead, float* out) {
  ((rows == M ? dots<M, N>(x, count, lines, weights, ahead, out) : void()), ...);
}

// N rows of the weight, of one tile, with all M rows of pairs; `kept` has room for their pairs.
template <int N, class Put>
static inline void tile(const packed::Fp8Row* rows, long M, long length, const float* x, float* kept, Put put) {
  const Decoder decoder(tables<false>());
  const long lines = length / packed::LINE, count = length / 2;
  const uint8_t* ahead = packed::later(rows[0].codes, lines * packed::QUAD * packed::LINE);
  float out[FUSED_ROWS * N];
  const auto decoded = [&](long line, int n, __m512i& first, __m512i& second) {
    decoder.pairs(rows[n].codes + line * packed::QUAD * packed::LINE, first, second);
  };
  const auto ready = [&](long line, int n, __m512i& first, __m512i& second) {
    const float* at = kept + (line * N + n) * PAIRED;
    first = vector(at), second = vector(at + WIDTH);
  };
  if (N == packed::QUAD && M > FUSED_ROWS && M <= 2 * FUSED_ROWS) {
    for (int half = 0; half < N; half += 2) {
      const auto of_half = [&](long line, int n, __m512i& first, __m512i& second) {
        decoded(line, half + n, first, second);
      };
      some<2, 5, 6, 7, 8>(M, x, count, lines, of_half, ahead + half * packed::LINE, out);
      for (long m = 0; m < M; m++)
        for (int n = 0; n < 2; n++) put(m, half + n, out[m * 2 + n]);
    }
    return;
  }
  if (M > FUSED_ROWS)
    for (long line = 0; line < lines; line++)
      for (int n = 0; n < N; n++) {
        __m512i first, second;
        decoded(line, n, first, second);
        float* at = kept + (line * N + n) * PAIRED;
        _mm512_storeu_si512(at, first), _mm512_storeu_si512(at + WIDTH, second);
      }
  for (long m = 0; m < M; m += FUSED_ROWS) {
    const long some_rows = std::min(FUSED_ROWS, M - m);
    if (M > FUSED_ROWS) some<N, 1, 2, 3, 4>(some_rows, x + m * count, count, lines, ready, ahead, out);
    else some<N, 1, 2, 3, 4>(some_rows, x, count, lines, decoded, ahead, out);
    for (long r = 0; r < some_rows; r++)
      for (int n = 0; n < N; n++) put(m + r, n, out[r * N + n]);
  }
}

// All products of M rows, whose scaled pairs lie in `room`, with N rows of an FP8 weight, through put(row, column, value).
template <class Put>
static inline void products(const packed::Fp8Row* rows, long M, long N, long length, Floats& room, Put put) {
  const float* x = room.data();
  float* kept = room.data() + M * length / 2;
  long n = 0;
  for (; n + packed::QUAD <= N; n += packed::QUAD)
    tile<packed::QUAD>(rows + n, M, length, x, kept, [&](long m, long c, float v) { put(m, n + c, v); });
  for (; n < N; n++) tile<1>(rows + n, M, length, x, kept, [&](long m, long, float v) { put(m, n, v); });
}

// Rows of activations as pairs; `is_exact` says of each row whether it is one.
class Rows {
 public:
  Rows(long count, long K)
      : width_(K), length_(packed::padded(K, packed::LINE)), blocks_((K + packed::FP8_BLOCK - 1) / packed::FP8_BLOCK),
        pairs_(count * (length_ / 2)), ranges_(count * blocks_), is_exact_(count) {}

  void put(long i, const float* x) {
    is_exact_[i] = pair_row(x, width_, pairs_.data() + i * (length_ / 2), ranges_.data() + i * blocks_);
  }

  // As packed::products with the rows numbers[i], if that gives the same bits; false if it would not.
  template <class Put>
  bool multiply(const long* numbers, long M, const Weight& w, long e, long first, long N, Floats& room,
                Put put) const {
    if (first / packed::FP8_BLOCK != (first + N - 1) / packed::FP8_BLOCK) return false;
    const long needed = (M + 2 * packed::QUAD) * length_ / 2;
    if ((long)room.size() < needed) room.resize(needed);
    packed::Fp8Row rows[packed::MOST_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = packed::fp8_row(w, e, first + n);
    for (long m = 0; m < M; m++) {
      const long i = numbers[m];
      if (!is_exact_[i] || !scale_row(pairs_.data() + i * (length_ / 2), ranges_.data() + i * blocks_, rows[0].scales,
                                      width_, room.data() + m * (length_ / 2)))
        return false;
    }
    products(rows, M, N, length_, room, put);
    return true;
  }

 private:
  long width_, length_, blocks_;
  Floats pairs_;
  std::vector<Range> ranges_;
  std::vector<uint8_t> is_exact_;
};

}  // namespace pairs
#else
namespace pairs {
struct Rows {  // this CPU does not multiply bfloat16
  Rows(long, long) {}
  void put(long, const float*) {}
  template <class... Any> bool multiply(Any&&...) const { return false; }
};
}  // namespace pairs
#endif
