// Sixteen float lanes, the same operations in the same order on every instruction set, and the one dot product that all
// projections are built from. The library is compiled with -ffp-contract=off: a fused multiply-add stands only where
// fma() is written, so a vector body and its tail never round differently.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define API extern "C" __attribute__((visibility("default")))

namespace lanes {

constexpr long WIDTH = 16;
typedef float f16 __attribute__((vector_size(64), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef float f8 __attribute__((vector_size(32), may_alias));

INLINE f16 splat(float v) { return f16{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
static inline i16 splat_int(int32_t v) { return i16{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }

INLINE f8 splat8(float v) { return f8{v, v, v, v, v, v, v, v}; }

INLINE f8 load8(const float* p) {
  f8 v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE f16 load(const float* p) {
  f16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, f16 v) { memcpy(p, &v, sizeof v); }

// The first n values, the other lanes `fill`.
static inline f16 load_some(const float* p, long n, float fill = 0.0f) {
  f16 v = splat(fill);
  memcpy(&v, p, n * sizeof(float));
  return v;
}

static inline void store_some(float* p, f16 v, long n) { memcpy(p, &v, n * sizeof(float)); }

// Calls f(first, count) for each run of up to sixteen of n values.
template <class F> static inline void for_runs(long n, F f) {
  long i = 0;
  for (; i + WIDTH <= n; i += WIDTH) f(i, WIDTH);
  if (i < n) f(i, n - i);
}

static inline f16 load_run(const float* p, long n) { return n == WIDTH ? load(p) : load_some(p, n); }
static inline void store_run(float* p, f16 v, long n) { n == WIDTH ? store(p, v) : store_some(p, v, n); }

INLINE f16 fma(f16 a, f16 b, f16 c) {
#if defined(__AVX512F__)
  return (f16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  f8 x[2], y[2], z[2];
  memcpy(x, &a, sizeof a), memcpy(y, &b, sizeof b), memcpy(z, &c, sizeof c);
  for (int h = 0; h < 2; h++) z[h] = (f8)_mm256_fmadd_ps((__m256)x[h], (__m256)y[h], (__m256)z[h]);
  memcpy(&c, z, sizeof c);
  return c;
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < WIDTH; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;  // a machine without the instruction: still one fixed order
#endif
}

// Eight lanes, for loops that must keep their accumulators in registers where sixteen lanes take two of them.
INLINE f8 fma(f8 a, f8 b, f8 c) {
#if defined(__FMA__)
  return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < 8; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

static inline f16 max(f16 a, f16 b) { return a < b ? b : a; }
static inline f16 min(f16 a, f16 b) { return b < a ? b : a; }

// A fixed tree: 16 -> 8 -> 4 -> 2 -> 1, lane i with lane i + half. Shuffles, because reading parts of a vector through
// memory would keep the accumulators of dots() there.
static inline float sum(f16 v) {
  v += __builtin_shuffle(v, i16{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  v += __builtin_shuffle(v, i16{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  v += __builtin_shuffle(v, i16{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  v += __builtin_shuffle(v, i16{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
  return v[0];
}

// The same tree over two halves of eight.
static inline float sum(f8 low, f8 high) {
  typedef int32_t i8 __attribute__((vector_size(32)));
  f8 v = low + high;
  v += __builtin_shuffle(v, i8{4, 5, 6, 7, 0, 1, 2, 3});
  v += __builtin_shuffle(v, i8{2, 3, 0, 1, 6, 7, 4, 5});
  v += __builtin_shuffle(v, i8{1, 0, 3, 2, 5, 4, 7, 6});
  return v[0];
}

// e^x to about one unit in the last place; 0 below -87.3, held at the largest power above 88.3.
static inline f16 exp(f16 x) {
  const f16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const f16 kept = min(x, splat(88.3f));
  const f16 t = fma(kept, splat(1.44269504088896341f), magic);
  const f16 n = t - magic;
  f16 r = fma(n, splat(-0.693359375f), kept);  // ln 2 in two parts, the first exact in ten bits
  r = fma(n, splat(2.12194440054690583e-4f), r);
  f16 p = splat(1.0f / 5040);  // Taylor: the next term is below 6e-9 on |r| <= ln2 / 2
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  const i16 power = ((i16)t - (i16)magic + splat_int(127)) << 23;
  const f16 y = p * (f16)power;
  return x < splat(-87.3f) ? splat(0.0f) : y;
}

// Memory that is asked for while dot products are computed: so many bytes for each element of the factors.
struct Ahead {
  const uint8_t* at = nullptr;
  long bytes = 0;

  void fetch(long k) const {
    if (at)
      for (long i = 0; i < WIDTH * bytes; i += 64) __builtin_prefetch(at + k * bytes + i);
  }
};

// M x N dot products of length K: out[m * N + n] = a[m] . b[n]. Lane l of each sums the elements l, l + 16, ... in
// order, then the tree of sum(). The blocking (M, N) does not enter the value of any of them.
//
// The folds over I name every accumulator by a constant, and the tail stands in a function of its own: a call inside
// would make the compiler keep the accumulators in memory during the loop as well.
__attribute__((noinline, cold)) static void add_tail(const float* const* a, const float* const* b, int N, int count,
                                                     long k, long K, f8 (*acc)[2]) {
  for (int i = 0; i < count; i++) {
    f16 total;
    memcpy(&total, acc[i], sizeof total);
    total = fma(load_some(a[i / N] + k, K - k), load_some(b[i % N] + k, K - k), total);
    memcpy(acc[i], &total, sizeof total);
  }
}

#if defined(__AVX512F__)
template <int M, int N, int... I>
static inline void dots(const float* const* a, const float* const* b, long K, float* out, Ahead ahead,
                        std::integer_sequence<int, I...>) {
  f16 acc[M * N] = {(void(I), splat(0.0f))...};
  long k = 0;
  for (; k + WIDTH <= K; k += WIDTH) {
    ahead.fetch(k);
    f16 x[M], y[N];
    ((I < M ? void(x[I % M] = load(a[I % M] + k)) : void()), ...);
    ((I < N ? void(y[I % N] = load(b[I % N] + k)) : void()), ...);
    ((acc[I] = fma(x[I / N], y[I % N], acc[I])), ...);
  }
  f16 kept[M * N] = {acc[I]...};
  if (k < K) add_tail(a, b, N, M * N, k, K, (f8(*)[2])kept);
  ((out[I] = sum(kept[I])), ...);
}
#else
// The same lanes as two halves: a vector of sixteen would live in memory where registers have eight.
template <int M, int N, int... I>
static inline void dots(const float* const* a, const float* const* b, long K, float* out, Ahead ahead,
                        std::integer_sequence<int, I...>) {
  f8 low[M * N] = {(void(I), f8{})...}, high[M * N] = {(void(I), f8{})...};
  const float *p[M], *q[N];
  ((I < M ? void(p[I % M] = a[I % M]) : void()), ...);
  ((I < N ? void(q[I % N] = b[I % N]) : void()), ...);
  long k = 0;
  for (; k + WIDTH <= K; k += WIDTH) {
    ahead.fetch(k);
    f8 y[N];
    ((I < N ? void(y[I % N] = load8(q[I % N] + k)) : void()), ...);
    ((low[I] = fma(load8(p[I / N] + k), y[I % N], low[I])), ...);
    ((I < N ? void(y[I % N] = load8(q[I % N] + k + 8)) : void()), ...);
    ((high[I] = fma(load8(p[I / N] + k + 8), y[I % N], high[I])), ...);
  }
  if (k < K) {
    f8 kept[M * N][2] = {{low[I], high[I]}...};
    add_tail(a, b, N, M * N, k, K, kept);
    ((out[I] = sum(kept[I][0], kept[I][1])), ...);
  } else {
    ((out[I] = sum(low[I], high[I])), ...);
  }
}
#endif

// A function of its own: inside a larger one the compiler runs out of registers for the accumulators.
template <int M, int N>
__attribute__((noinline)) static void dots(const float* const* a, const float* const* b, long K, float* out,
                                           Ahead ahead = {}) {
  dots<M, N>(a, b, K, out, ahead, std::make_integer_sequence<int, M * N>());
}

static inline float dot(const float* a, const float* b, long K) {
  float out;
  dots<1, 1>(&a, &b, K, &out);
  return out;
}

#if defined(__AVX512F__)
constexpr long BLOCK_ROWS = 4, BLOCK_COLUMNS = 4;  // 4 x 4 accumulators fill half of 32 registers
#else
constexpr long BLOCK_ROWS = 3, BLOCK_COLUMNS = 2;  // 3 x 2 x two halves leave four of 16 registers for the factors
#endif

// All M x N dot products through put(m, n, value), blocked for the registers; `ahead` is fetched by the first block.
template <class Put>
static inline void panel(const float* const* a, long M, const float* const* b, long N, long K, Put put,
                         Ahead ahead = {}) {
  float out[BLOCK_ROWS * BLOCK_COLUMNS];
  for (long n = 0; n < N; n += BLOCK_COLUMNS) {
    const long columns = N - n < BLOCK_COLUMNS ? N - n : BLOCK_COLUMNS;
    for (long m = 0; m < M;) {
      long rows = 1;
      if (columns < BLOCK_COLUMNS) {
        for (long c = 0; c < columns; c++) dots<1, 1>(a + m, b + n + c, K, out + c);
      } else if (M - m >= BLOCK_ROWS) {
        rows = BLOCK_ROWS;
        dots<BLOCK_ROWS, BLOCK_COLUMNS>(a + m, b + n, K, out, m || n ? Ahead{} : ahead);
      } else if (M - m >= 2) {
        rows = 2;
        dots<2, BLOCK_COLUMNS>(a + m, b + n, K, out);
      } else {
        dots<1, BLOCK_COLUMNS>(a + m, b + n, K, out);
      }
      for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) put(m + r, n + c, out[r * columns + c]);
      m += rows;
    }
  }
}

}  // namespace lanes
