// Whole stretches of a sublayer in one call: the operators of the other files one after the other, on scratch memory.
// Each is what its twin in dsv4_kernels/sublayers.py composes, bit for bit.
#include "sublayers.h"
#include "moe.h"

extern "C" {
void dsv4_rms_norm(const float*, const float*, float*, long, long, float, int);
void dsv4_hyper_maps(const float*, const float*, const float*, const float*, float*, float*, float*, long, long, long,
                     float, float, long, int);
void dsv4_hyper_collapse(const float*, const float*, float*, long, long, long, int);
int dsv4_route(const float*, const float*, const int64_t*, int64_t*, float*, long, long, long, float, int);
}

void rotate(float* x, const Angles& at, long T, long H, long D, float sign) {
  for (long t = 0; t < T; t++)
    for (long h = 0; h < H; h++) {
      float* part = x + (t * H + h) * D + D - at.R;
      const float *c = at.cos + t * (at.R / 2), *s = at.sin + t * (at.R / 2);
      for (long i = 0; i < at.R / 2; i++) {
        const float even = part[2 * i], odd = part[2 * i + 1], turn = s[i] * sign;
        part[2 * i] = even * c[i] - odd * turn;
        part[2 * i + 1] = even * turn + odd * c[i];
      }
    }
}

void finish_query(float* query, const Angles& at, long T, long H, long D, float eps, int threads) {
  dsv4_rms_norm(query, nullptr, query, T * H, D, eps, threads);
  rotate(query, at, T, H, D);
}

void finish_keys(float* keys, const float* norm, const Angles& at, long T, long D, float eps, bool is_rounded,
                 int threads) {
  dsv4_rms_norm(keys, norm, keys, T, D, eps, threads);
  rotate(keys, at, T, 1, D);
  for (long t = 0; t < T && is_rounded; t++) rounding::fp8_row(keys + t * D, keys + t * D, D - at.R, ENTRY_GROUP);
}

int add_phases(float* gates, const float* ape, const int64_t* phases, long T, long D, long ratio) {
  for (long t = 0; t < T; t++)
    if (phases[t] < 0 || phases[t] >= ratio) return 1;
  for (long t = 0; t < T; t++)
    for (long d = 0; d < D; d++) gates[t * D + d] += ape[phases[t] * D + d];
  return 0;
}

API void dsv4_enter(const float* streams, const float* fn, const float* base, const float* scale, const float* norm,
                    float* x, float* post, float* comb, long T, long N, long D, float norm_eps, float hc_eps,
                    long iterations, int threads) {
  Floats pre(T * N);
  dsv4_hyper_maps(streams, fn, base, scale, pre.data(), post, comb, T, N, D, norm_eps, hc_eps, iterations, threads);
  dsv4_hyper_collapse(streams, pre.data(), x, T, N, D, threads);
  dsv4_rms_norm(x, norm, x, T, D, norm_eps, threads);
}

API void dsv4_query(const float* x, const Weight* wq_a, const float* norm, const Weight* wq_b, const float* cos,
                    const float* sin, float* latent, float* query, long T, long H, long R, float eps, int rounds_a,
                    int rounds_b, int threads) {
  Rounded entering(x, T, wq_a->columns, threads), between(latent, T, wq_a->rows, threads);
  multiply({entering.product(wq_a, latent, rounds_a)}, T, threads);
  dsv4_rms_norm(latent, norm, latent, T, wq_a->rows, eps, threads);
  multiply({between.product(wq_b, query, rounds_b)}, T, threads);
  finish_query(query, {cos, sin, R}, T, H, wq_b->rows / H, eps, threads);
}

API void dsv4_keys(const float* x, const Weight* wkv, const float* norm, const float* cos, const float* sin, float* keys,
                   long T, long R, float eps, int rounds, int rounds_entry, int threads) {
  Rounded entering(x, T, wkv->columns, threads);
  multiply({entering.product(wkv, keys, rounds)}, T, threads);
  finish_keys(keys, norm, {cos, sin, R}, T, wkv->rows, eps, rounds_entry, threads);
}

API void dsv4_attention_output(const float* mixed, const Weight* wo_a, const Weight* wo_b, const float* cos,
                               const float* sin, float* y, long T, long H, long G, long R, int rounds, int threads) {
  const long width = wo_a->columns * G;
  Floats turned(mixed, mixed + T * width), latent(T * wo_a->rows);
  rotate(turned.data(), {cos, sin, R}, T, H, width / H, -1.0f);
  multiply({{turned.data(), wo_a, latent.data(), rounding::NO_TRIP, G}}, T, threads);
  Rounded between(latent.data(), T, wo_a->rows, threads);
  multiply({between.product(wo_b, y, rounds)}, T, threads);
}

// Values and gates of a compressor; a token's gate gets the row of `ape` of its phase. Returns 0, or 1 if there is none.
API int dsv4_compress_inputs(const float* x, const Weight* wkv, const Weight* wgate, const float* ape,
                             const int64_t* phases, float* values, float* gates, long T, long ratio, int rounds,
                             int threads) {
  Rounded entering(x, T, wkv->columns, threads);
  multiply({entering.product(wkv, values, rounds), entering.product(wgate, gates, rounds)}, T, threads);
  return add_phases(gates, ape, phases, T, wkv->rows, ratio);
}

// Returns 0, or 1 if a fixed id is no expert.
API int dsv4_feed_forward(const float* x, const Weight* gate, const float* bias, const int64_t* fixed, const Weight* w1,
                          const Weight* w3, const Weight* w2, const Weight* shared1, const Weight* shared3,
                          const Weight* shared2, float* y, long T, long K, float scale, float limit, int rounds,
                          int rounds_shared, int rounds_shared_inner, int threads) {
  const long E = gate->rows;
  Floats logits(T * E), weights(T * K), ones(T, 1.0f);
  Room<int64_t> ids(T * K), first(T, 0);
  multiply({{x, gate, logits.data(), rounding::NO_TRIP}}, T, threads);
  if (dsv4_route(logits.data(), bias, fixed, ids.data(), weights.data(), T, E, K, scale, threads)) return 1;
  Rounded entering(x, T, gate->columns, threads);
  const Feed routed{entering.as(rounds), w1, w3, w2, ids.data(), weights.data(), K, E, rounds, rounds};
  const Feed shared{entering.as(rounds_shared), shared1, shared3, shared2, first.data(), ones.data(), 1, 1,
                    rounds_shared, rounds_shared_inner};
  return feed_forward({routed, shared}, y, T, limit, threads);
}
