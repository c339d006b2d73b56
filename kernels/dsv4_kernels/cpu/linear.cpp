// linear and grouped_linear: y[t, g, n] = x[t, g] . w[g * N + n]; the rows of x made the round trip `trip`.
#include "inputs.h"

namespace {
constexpr long TILE_ROWS = 64, TILE_COLUMNS = packed::MOST_COLUMNS;
}  // namespace

API void dsv4_linear(const float* x, const Weight* w, float* y, long T, long G, int trip, int threads) {
  const long N = w->rows / G, K = w->columns;
  Inputs inputs(*w, N % packed::TILE == 0 || G == 1 ? trip : rounding::NO_TRIP, T * G);
  const long rows = (T + TILE_ROWS - 1) / TILE_ROWS, columns = (N + TILE_COLUMNS - 1) / TILE_COLUMNS;
  lanes::in_team(threads, T * G * N * K, [&] {
    std::vector<float> room;
    long numbers[TILE_ROWS];
    if (inputs.is_prepared()) {
#pragma omp for schedule(static)
      for (long i = 0; i < T * G; i++) inputs.put(i, x + i * K);
    }
#pragma omp for collapse(3) schedule(static)
    for (long g = 0; g < G; g++)
      for (long c = 0; c < columns; c++)
        for (long r = 0; r < rows; r++) {
          const long t = r * TILE_ROWS, n = c * TILE_COLUMNS, count = std::min(TILE_ROWS, T - t);
          for (long m = 0; m < count; m++) numbers[m] = (t + m) * G + g;
          float* out = y + (t * G + g) * N + n;
          inputs.multiply(x, numbers, count, *w, 0, g * N + n, std::min(TILE_COLUMNS, N - n), room,
                          [&](long m, long i, float v) { out[m * G * N + i] = v; });
        }
  });
}
