// linear and grouped_linear: y[t, g, n] = x[t, g] . w[g * N + n].
#include "lanes.h"

namespace {
constexpr long TILE_ROWS = 64, TILE_COLUMNS = 16;

void tile(const float* x, const float* w, float* y, long rows, long columns, long K, long stride_x, long stride_y) {
  const float *a[TILE_ROWS], *b[TILE_COLUMNS];
  for (long m = 0; m < rows; m++) a[m] = x + m * stride_x;
  for (long n = 0; n < columns; n++) b[n] = w + n * K;
  lanes::panel(a, rows, b, columns, K, [&](long m, long n, float v) { y[m * stride_y + n] = v; });
}
}  // namespace

API void dsv4_linear(const float* x, const float* w, float* y, long T, long G, long N, long K, int threads) {
  const long rows = (T + TILE_ROWS - 1) / TILE_ROWS, columns = (N + TILE_COLUMNS - 1) / TILE_COLUMNS;
#pragma omp parallel for collapse(3) schedule(static) num_threads(threads) if (T * G * N * K > lanes::PARALLEL_WORK)
  for (long g = 0; g < G; g++)
    for (long c = 0; c < columns; c++)
      for (long r = 0; r < rows; r++) {
        const long t = r * TILE_ROWS, n = c * TILE_COLUMNS;
        tile(x + (t * G + g) * K, w + (g * N + n) * K, y + (t * G + g) * N + n, T - t < TILE_ROWS ? T - t : TILE_ROWS,
             N - n < TILE_COLUMNS ? N - n : TILE_COLUMNS, K, G * K, G * N);
      }
}
