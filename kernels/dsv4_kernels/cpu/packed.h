// Weights as they lie in memory (dsv4_kernels/packing.py), and their values as floats.
//
// BF16  of 16 columns, place 2d holds column d, 2d + 1 column 8 + d: one shift and one mask give both halves
// FP8   of 64 columns, place 16 j + 8 h + 2 i + b holds column 32 h + 4 j + i + 16 (1 - b): unpacked, every pair of
//       bfloat16 lies in the lane that sums its columns; one UE8M0 scale per 128 x 128
//       both in tiles of 4 rows x 64 bytes, so that rows that are multiplied together are read as one stream
// FP4   tiles of 8 rows x 8 columns, a row's 8 nibbles side by side in 4 bytes; scales [tile, group, 8 rows]
//
// Every value is the float that tensors.dequantise gives, so the products have the bits of the same weight in float32
// (FP4 up to SLAB columns).
#pragma once
#include <algorithm>
#include <vector>
#include "room.h"
#include "rows.h"

namespace packed {

using namespace lanes;

enum Format { FP32, BF16, FP8, MXFP4, NVFP4 };
constexpr long LINE = 64, FP8_BLOCK = 128, TILE = 8, QUAD = 4;
constexpr long MOST_COLUMNS = 64, MOST_ROWS = 64;  // of one call of products()
constexpr long AHEAD = 12288;  // bytes from what is multiplied to what memory is asked for
constexpr int16_t FP8_MASK = (int16_t)0x87F0;  // of a code as bfloat16 times 2^-120: sign, exponent, mantissa

}  // namespace packed

struct Weight {  // laid out as _Weight in table.py; several matrices of one shape, one after the other
  const uint8_t* codes;
  const uint8_t* scales;
  const float* globals;  // of each matrix, NVFP4 only
  int64_t format, rows, columns, code_bytes, scale_bytes;  // bytes of one matrix
};

namespace packed {

// Into the second cache: more lines can be on their way there than to the first, which is better for weights that take
// some work to decode.
INLINE void fetch(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// Where memory is asked for while a tile of `size` bytes is multiplied: a later one, by whole tiles.
static inline const uint8_t* later(const uint8_t* tile, long size) { return tile + std::max(1L, AHEAD / size) * size; }

static inline long padded(long columns, long to) { return (columns + to - 1) / to * to; }

// Floats between two rows that decode() writes.
static inline long stride(const Weight& w) { return padded(w.columns, LINE); }

INLINE f8 halves(const uint8_t* p, bool is_high) {  // eight pairs of bfloat16: the lower or the higher of each
  typedef uint32_t u8x __attribute__((vector_size(32)));
  u8x v;
  memcpy(&v, p, sizeof v);
  return (f8)(is_high ? v & 0xFFFF0000u : v << 16);
}

// A row of BF16, 32 columns per line, in order.
struct Bf16Row {
  static constexpr long COLUMNS = 32;
  const uint8_t* codes;
  static void fetch(const uint8_t* p) { __builtin_prefetch(p); }
  __attribute__((always_inline)) void load(long line, f8* out) const {
    for (int i = 0; i < 4; i++) out[i] = halves(codes + line * QUAD * LINE + i / 2 * 32, i & 1);
  }
};

// A row of FP8 times 2^-120, without its scales, 64 columns per line: shifted into bfloat16 pairs.
struct Fp8Row {
  static constexpr long COLUMNS = 64;
  const uint8_t* codes;
  const uint8_t* scales;
  static void fetch(const uint8_t* p) { packed::fetch(p); }
  __attribute__((always_inline)) void load(long line, f8* out) const {
    typedef int16_t i16x __attribute__((vector_size(32)));
    constexpr i16x LOW = {0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27};
    constexpr i16x HIGH = {4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31};
    for (int q = 0; q < 2; q++) {
      i16x v;
      memcpy(&v, codes + line * QUAD * LINE + q * 32, sizeof v);
      const i16x first = (v >> 4) & FP8_MASK, second = ((v << 8) >> 4) & FP8_MASK;
      out[q] = (f8)__builtin_shuffle(i16x{}, first, LOW);
      out[2 + q] = (f8)__builtin_shuffle(i16x{}, second, LOW);
      out[4 + q] = (f8)__builtin_shuffle(i16x{}, first, HIGH);
      out[6 + q] = (f8)__builtin_shuffle(i16x{}, second, HIGH);
    }
  }
};

// What column k must be multiplied with besides: its scale times 2^120.
static inline f8 fp8_scale(const uint8_t* scales, long k) {
  return splat8(rounding::float_of((uint32_t)(scales[k / FP8_BLOCK] + 120) << 23));
}

// Where the first columns of a row begin.
template <class Row> static inline const uint8_t* start(const Weight& w, long e, long row) {
  const long lines = padded(w.columns, Row::COLUMNS) / Row::COLUMNS;
  return w.codes + e * w.code_bytes + (row / QUAD * lines * QUAD + row % QUAD) * LINE;
}

static inline Bf16Row bf16_row(const Weight& w, long e, long row) { return {start<Bf16Row>(w, e, row)}; }

static inline Fp8Row fp8_row(const Weight& w, long e, long row) {
  const long blocks = (w.columns + FP8_BLOCK - 1) / FP8_BLOCK;
  return {start<Fp8Row>(w, e, row), w.scales + e * w.scale_bytes + row / FP8_BLOCK * blocks};
}

static inline float fp4_scale(const Weight& w, long e, uint8_t code) {
  if (w.format == MXFP4) return rows::power(code);
  return rows::tables().e4m3[code] * w.globals[e];
}

static inline void decode_fp4(const Weight& w, long e, long row, float* out) {
  const rows::Tables& t = rows::tables();
  const long group = w.format == MXFP4 ? 32 : 16, tile = row / TILE, r = row % TILE;
  const uint8_t* codes = w.codes + e * w.code_bytes + tile * w.columns * TILE / 2 + r * 4;
  const uint8_t* scales = w.scales + e * w.scale_bytes + tile * (w.columns / group) * TILE + r;
  for (long g = 0; g < w.columns / group; g++) {
    const float scale = fp4_scale(w, e, scales[g * TILE]);
    for (long k = g * group; k < (g + 1) * group; k += 8) {
      const uint8_t* p = codes + k * TILE / 2;
      for (long i = 0; i < 8; i++) out[k + i] = t.e2m1[p[i / 2] >> (4 * (i & 1)) & 15] * scale;
    }
  }
}

// N rows, line by line: those of a tile lie side by side.
template <class Row, class Scale>
static inline void decode_lines(const Row* rows, long N, long columns, Scale scale, float* const* out) {
  f8 v[Row::COLUMNS / 8];
  for (long k = 0; k < columns; k += Row::COLUMNS)
    for (long n = 0; n < N; n++) {
      rows[n].load(k / Row::COLUMNS, v);
      const f8 factor = scale(n, k);
      for (long i = 0; i < Row::COLUMNS / 8; i++) {  // one by one: an array copied as a whole would go through memory twice
        const f8 part = v[i] * factor;
        memcpy(out[n] + k + 8 * i, &part, sizeof part);
      }
    }
}

// Up to BLOCK_COLUMNS rows as floats. Room for stride() of each; those behind the last column are zeros or undefined.
static inline void decode(const Weight& w, long e, long row, long N, float* const* out) {
  if (w.format == BF16) {
    Bf16Row rows[BLOCK_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = bf16_row(w, e, row + n);
    decode_lines(rows, N, w.columns, [](long, long) { return splat8(1.0f); }, out);
  } else if (w.format == FP8) {
    Fp8Row rows[BLOCK_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = fp8_row(w, e, row + n);
    decode_lines(rows, N, w.columns, [&](long n, long k) { return fp8_scale(rows[n].scales, k); }, out);
  } else {
    for (long n = 0; n < N; n++) decode_fp4(w, e, row + n, out[n]);
  }
}

// The tile behind that of a row, of BF16 or FP8.
static inline Ahead next_tile(const Weight& w, long e, long row) {
  if (w.format == BF16) return {bf16_row(w, e, row - row % QUAD + QUAD).codes, 2 * QUAD};
  return w.format == FP8 ? Ahead{fp8_row(w, e, row - row % QUAD + QUAD).codes, QUAD} : Ahead{};
}

// M x N dot products as lanes::dots, the second factors decoded in registers; K is a multiple of the columns of a line. low
// and high are the halves of the sixteen lanes.
template <int M, class Row, int... I>
INLINE void add_line(const float* const* a, const Row& b, long line, f8* low, f8* high, std::integer_sequence<int, I...>) {
  f8 y[Row::COLUMNS / 8];
  b.load(line, y);
  for (int i = 0; i < Row::COLUMNS / 8; i += 2) {
    const long k = line * Row::COLUMNS + 8 * i;
    ((low[I] = fma(load8(a[I] + k), y[i], low[I])), ...);
    ((high[I] = fma(load8(a[I] + k + 8), y[i + 1], high[I])), ...);
  }
}

template <int M, int N, class Row, int... I>
__attribute__((noinline)) static void dots(const float* const* a, const Row* b, long K, float* out,
                                           std::integer_sequence<int, I...>) {
  f8 low[N][M] = {}, high[N][M] = {};
  const Row row[N] = {b[I]...};
  const float* x[M];
  for (int m = 0; m < M; m++) x[m] = a[m];
  const uint8_t* ahead = later(row[0].codes, K / Row::COLUMNS * QUAD * LINE);
  for (long line = 0; line < K / Row::COLUMNS; line++) {
    for (long n = 0; n < N; n++) Row::fetch(ahead + (line * QUAD + n) * LINE);
    (add_line<M>(x, row[I], line, low[I], high[I], std::make_integer_sequence<int, M>()), ...);
  }
  for (int n = 0; n < N; n++)
    for (int m = 0; m < M; m++) out[m * N + n] = sum(low[n][m], high[n][m]);
}

template <int M, int N, class Row, class Put>
static inline void few_columns(const float* const* a, const Row* b, long n, long K, Put put) {
  float out[M * N];
  dots<M, N>(a, b + n, K, out, std::make_integer_sequence<int, N>());
  for (int m = 0; m < M; m++)
    for (int c = 0; c < N; c++) put(m, n + c, out[m * N + c]);
}

#if defined(__AVX512F__)
constexpr long FEW_ROWS = 4, ACCUMULATORS = 16;  // of eight lanes, in 32 registers
#else
constexpr long FEW_ROWS = 2, ACCUMULATORS = 8;  // in 16 registers
#endif

template <int M, class Row, class Put>
static inline void few_columns(const float* const* a, const Row* b, long N, long K, Put put) {
  constexpr int COLUMNS = std::min(QUAD, std::max(1L, ACCUMULATORS / (2 * M)));
  long n = 0;
  for (; n + COLUMNS <= N; n += COLUMNS) few_columns<M, COLUMNS>(a, b, n, K, put);
  for (; n < N; n++) few_columns<M, 1>(a, b, n, K, put);
}

// M is 1 to FEW_ROWS: the weights are decoded in registers for all of them.
template <class Row, class Put, int... I>
static inline void few_rows(const float* const* a, long M, const Row* b, long N, long K, Put put,
                            std::integer_sequence<int, I...>) {
  ((M == I + 1 ? few_columns<I + 1>(a, b, N, K, put) : void()), ...);
}

template <class Row, class Put>
static inline void few_rows(const float* const* a, long M, const Row* b, long N, long K, Put put) {
  few_rows(a, M, b, N, K, put, std::make_integer_sequence<int, FEW_ROWS>());
}

constexpr long SLAB = 512;  // columns of FP4 that are summed in one chain; longer chains lose a digit

// As panel(), the columns in slabs whose sums are added in order.
template <class Put>
static inline void slabs(const float* const* a, long M, const float* const* b, long N, long K, Put put) {
  float total[MOST_ROWS * BLOCK_COLUMNS] = {};
  const float *x[MOST_ROWS], *y[BLOCK_COLUMNS];
  for (long k = 0; k < K; k += SLAB) {
    for (long m = 0; m < M; m++) x[m] = a[m] + k;
    for (long n = 0; n < N; n++) y[n] = b[n] + k;
    panel(x, M, y, N, std::min(SLAB, K - k), [&](long m, long n, float v) { total[m * N + n] += v; });
  }
  for (long m = 0; m < M; m++)
    for (long n = 0; n < N; n++) put(m, n, total[m * N + n]);
}

// The rows times the scales of an FP8 weight's columns, which is exact, and zeros up to a whole line; false if a value is
// too large for that.
static inline bool scale_rows(const float* const* a, long M, const uint8_t* scales, long K, Floats& room,
                              const float** out) {
  const long length = padded(K, LINE);
  if ((long)room.size() < M * length) room.resize(M * length);
  f16 sum{};
  for (long m = 0; m < M; m++) {
    float* to = room.data() + m * length;
    out[m] = to;
    for (long k = 0; k < length; k += WIDTH) {
      const f16 v = (k + WIDTH <= K ? load(a[m] + k) : load_some(a[m] + k, std::max(0L, K - k))) *
                    splat(fp8_scale(scales, std::min(k, K - 1))[0]);
      store(to + k, v);
      sum += v - v;  // no number if v is none, or infinite
    }
  }
  for (int i = 0; i < WIDTH; i++)
    if (sum[i] != 0.0f) return false;
  return true;
}

// All products of the given rows, up to MOST_ROWS, with columns [first, first + N) of matrix e, N <= MOST_COLUMNS, through
// put(row, column - first, value). The bits do not depend on the number of rows nor on the way that is taken.
template <class Put>
static inline void products(const float* const* a, long M, const Weight& w, long e, long first, long N,
                            Floats& room, Put put) {
  const long K = w.columns;
  const float* b[MOST_COLUMNS];
  if (w.format == FP32) {
    for (long n = 0; n < N; n++) b[n] = (const float*)(w.codes + e * w.code_bytes) + (first + n) * K;
    return panel(a, M, b, N, K, put);
  }
  if (M <= FEW_ROWS && K % Bf16Row::COLUMNS == 0 && w.format == BF16) {
    Bf16Row rows[MOST_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = bf16_row(w, e, first + n);
    return few_rows(a, M, rows, N, K, put);
  }
  if (w.format == FP8 && first / FP8_BLOCK == (first + N - 1) / FP8_BLOCK) {
    Fp8Row rows[MOST_COLUMNS];
    for (long n = 0; n < N; n++) rows[n] = fp8_row(w, e, first + n);
    const float* scaled[FEW_ROWS];
    const long length = padded(K, LINE);
    if (M <= FEW_ROWS && scale_rows(a, M, rows[0].scales, K, room, scaled))
      return few_rows(scaled, M, rows, N, length, put);
  }
  const long step = stride(w);
  if ((long)room.size() < BLOCK_COLUMNS * step) room.resize(BLOCK_COLUMNS * step);
  for (long n = 0; n < N; n += BLOCK_COLUMNS) {  // few at a time: they stay in the cache while all rows pass
    const long columns = std::min(BLOCK_COLUMNS, N - n);
    float* decoded[BLOCK_COLUMNS];
    for (long c = 0; c < columns; c++) b[c] = decoded[c] = room.data() + c * step;
    decode(w, e, first + n, columns, decoded);
    if (K <= SLAB || w.format == FP8 || w.format == BF16)
      panel(a, M, b, columns, K, [&](long m, long c, float v) { put(m, n + c, v); }, next_tile(w, e, first + n));
    else
      slabs(a, M, b, columns, K, [&](long m, long c, float v) { put(m, n + c, v); });
  }
}

}  // namespace packed
