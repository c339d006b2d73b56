// mHC: maps, collapse, mix, head.
#include <vector>
#include "lanes.h"
#include "team.h"

using namespace lanes;
using namespace team;

namespace {
float sigmoid(float v) { return 1.0f / (1.0f + std::exp(-v)); }

// z[t, m] = (fn[m] . x[t]) * rsqrt(mean(x[t]^2) + eps), tiles of tokens and outputs in parallel.
void project(const float* x, const float* fn, float* z, long T, long M, long K, float eps, int threads) {
  constexpr long TOKENS = 16, OUTPUTS = 4;
  const long tiles_t = (T + TOKENS - 1) / TOKENS, tiles_m = (M + OUTPUTS - 1) / OUTPUTS;
  std::vector<float> factor(T);
  in_team(threads, 4 * T * M * K, [&] {
    share(T, [&](long t) { factor[t] = 1.0f / std::sqrt(dot(x + t * K, x + t * K, K) / (float)K + eps); });
    share(tiles_t * tiles_m, [&](long i) {
      const float *a[TOKENS], *b[OUTPUTS];
      const long t0 = i / tiles_m * TOKENS, m0 = i % tiles_m * OUTPUTS;
      const long rows = T - t0 < TOKENS ? T - t0 : TOKENS, columns = M - m0 < OUTPUTS ? M - m0 : OUTPUTS;
      for (long t = 0; t < rows; t++) a[t] = x + (t0 + t) * K;
      for (long m = 0; m < columns; m++) b[m] = fn + (m0 + m) * K;
      panel(a, rows, b, columns, K, [&](long t, long m, float v) { z[(t0 + t) * M + m0 + m] = factor[t0 + t] * v; });
    });
  });
}

void normalise_rows(float* c, long N, float eps) {
  for (long j = 0; j < N; j++) {
    float total = 0.0f;
    for (long k = 0; k < N; k++) total += c[j * N + k];
    for (long k = 0; k < N; k++) c[j * N + k] /= total + eps;
  }
}

void normalise_columns(float* c, long N, float eps) {
  for (long k = 0; k < N; k++) {
    float total = 0.0f;
    for (long j = 0; j < N; j++) total += c[j * N + k];
    for (long j = 0; j < N; j++) c[j * N + k] /= total + eps;
  }
}

void sinkhorn(float* c, long N, float eps, long iterations) {
  for (long j = 0; j < N; j++) {
    float* row = c + j * N;
    float top = row[0], total = 0.0f;
    for (long k = 1; k < N; k++) top = row[k] > top ? row[k] : top;
    for (long k = 0; k < N; k++) total += row[k] = std::exp(row[k] - top);
    for (long k = 0; k < N; k++) row[k] = row[k] / total + eps;
  }
  normalise_columns(c, N, eps);
  for (long i = 1; i < iterations; i++) {
    normalise_rows(c, N, eps);
    normalise_columns(c, N, eps);
  }
}

// out[d] = sum over n of weights[n * stride] * streams[n, d], in the order of n, added to start * y[d] where y is given.
void weighted(const float* streams, const float* weights, long stride, const float* y, float start, float* out, long N,
              long D) {
  long d = 0;
  for (; d + 8 <= D; d += 8) {
    f8 total = y ? splat8(start) * load8(y + d) : f8{};
    for (long j = 0; j < N; j++) total = fma(splat8(weights[j * stride]), load8(streams + j * D + d), total);
    memcpy(out + d, &total, sizeof total);
  }
  if (d == D) return;
  f16 total = y ? splat(start) * load_some(y + d, D - d) : splat(0.0f);
  for (long j = 0; j < N; j++) total = fma(splat(weights[j * stride]), load_some(streams + j * D + d, D - d), total);
  store_some(out + d, total, D - d);
}
}  // namespace

API void dsv4_hyper_maps(const float* streams, const float* fn, const float* base, const float* scale, float* pre,
                         float* post, float* comb, long T, long N, long D, float norm_eps, float hc_eps,
                         long iterations, int threads) {
  const long M = (2 + N) * N;
  std::vector<float> z(T * M);
  project(streams, fn, z.data(), T, M, N * D, norm_eps, threads);
  divide(threads, 16 * T * iterations * N * N, T, [&](long t) {
    const float* row = z.data() + t * M;
    for (long n = 0; n < N; n++) {
      pre[t * N + n] = sigmoid(row[n] * scale[0] + base[n]) + hc_eps;
      post[t * N + n] = 2.0f * sigmoid(row[N + n] * scale[1] + base[N + n]);
    }
    float* c = comb + t * N * N;
    for (long i = 0; i < N * N; i++) c[i] = row[2 * N + i] * scale[2] + base[2 * N + i];
    sinkhorn(c, N, hc_eps, iterations);
  });
}

API void dsv4_hyper_collapse(const float* streams, const float* pre, float* y, long T, long N, long D, int threads) {
  divide(threads, T * N * D, T, [&](long t) {
    weighted(streams + t * N * D, pre + t * N, 1, nullptr, 0.0f, y + t * D, N, D);
  });
}

API void dsv4_hyper_mix(const float* streams, const float* y, const float* post, const float* comb, float* out, long T,
                        long N, long D, int threads) {
  divide(threads, T * N * N * D, T * N, [&](long i) {
    const long t = i / N, k = i % N;
    weighted(streams + t * N * D, comb + t * N * N + k, N, y + t * D, post[t * N + k], out + (t * N + k) * D, N, D);
  });
}

API void dsv4_hyper_head(const float* streams, const float* fn, const float* base, const float* scale, float* y, long T,
                         long N, long D, float norm_eps, float hc_eps, int threads) {
  std::vector<float> z(T * N);
  project(streams, fn, z.data(), T, N, N * D, norm_eps, threads);
  for (long t = 0; t < T; t++)
    for (long n = 0; n < N; n++) z[t * N + n] = sigmoid(z[t * N + n] * scale[0] + base[n]) + hc_eps;
  dsv4_hyper_collapse(streams, z.data(), y, T, N, D, threads);
}
