// Whole stretches of a sublayer in one call: the operators of the other files one after the other, on scratch memory.
// Each is what its twin in dsv4_kernels/sublayers.py composes, bit for bit.
#include "packed.h"

extern "C" {
void dsv4_linear(const float*, const Weight*, float*, long, long, int, int);
void dsv4_rms_norm(const float*, const float*, float*, long, long, float, int);
void dsv4_input_round_trip(const float*, float*, long, long, int, int);
void dsv4_hyper_maps(const float*, const float*, const float*, const float*, float*, float*, float*, long, long, long,
                     float, float, long, int);
void dsv4_hyper_collapse(const float*, const float*, float*, long, long, long, int);
int dsv4_route(const float*, const float*, const int64_t*, int64_t*, float*, long, long, long, float, int);
int dsv4_moe(const float*, const Weight*, const Weight*, const Weight*, const int64_t*, const float*, float*, float*,
             float*, float*, long, long, long, float, int, int, int);
}

namespace {
constexpr long ENTRY_GROUP = 64;
constexpr long ROOM = 1 << 24;  // floats of the experts' scratch memory: more tokens are computed in pieces

struct Angles {
  const float *cos, *sin;  // [T, R / 2]
  long R;
};

// The last R of D channels of every head, in place.
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

// x W^T, the rows of x rounded before where the weight was trained so.
void project(const float* x, const Weight* w, float* y, long T, int rounds, std::vector<float>& room, int threads) {
  if (rounds) {
    room.resize(T * w->columns);
    dsv4_input_round_trip(x, room.data(), T, w->columns, rounds, threads);
    x = room.data();
  }
  dsv4_linear(x, w, y, T, 1, rounds, threads);
}

struct Experts {
  const Weight *w1, *w3, *w2;
  long count;
};

// One kind of experts for all tokens, in pieces that fit the scratch memory.
int feed(const float* x, const Experts& experts, const int64_t* ids, const float* weights, float* y, long T, long K,
         float limit, int outer, int inner, int threads) {
  const long D = experts.w1->columns, I = experts.w1->rows;
  const long step = std::max(1L, std::min(T, ROOM / std::max(1L, K * (2 * I + D))));
  std::vector<float> room(step * K * (2 * I + D));
  float *hidden = room.data(), *up = hidden + step * K * I, *slots = up + step * K * I;
  for (long t = 0; t < T; t += step)
    if (dsv4_moe(x + t * D, experts.w1, experts.w3, experts.w2, ids + t * K, weights + t * K, y + t * D, hidden, up,
                 slots, std::min(step, T - t), K, experts.count, limit, outer, inner, threads))
      return 1;
  return 0;
}
}  // namespace

API void dsv4_enter(const float* streams, const float* fn, const float* base, const float* scale, const float* norm,
                    float* x, float* post, float* comb, long T, long N, long D, float norm_eps, float hc_eps,
                    long iterations, int threads) {
  std::vector<float> pre(T * N);
  dsv4_hyper_maps(streams, fn, base, scale, pre.data(), post, comb, T, N, D, norm_eps, hc_eps, iterations, threads);
  dsv4_hyper_collapse(streams, pre.data(), x, T, N, D, threads);
  dsv4_rms_norm(x, norm, x, T, D, norm_eps, threads);
}

API void dsv4_query(const float* x, const Weight* wq_a, const float* norm, const Weight* wq_b, const float* cos,
                    const float* sin, float* latent, float* query, long T, long H, long R, float eps, int rounds_a,
                    int rounds_b, int threads) {
  const long D = wq_b->rows / H;
  std::vector<float> room;
  project(x, wq_a, latent, T, rounds_a, room, threads);
  dsv4_rms_norm(latent, norm, latent, T, wq_a->rows, eps, threads);
  project(latent, wq_b, query, T, rounds_b, room, threads);
  dsv4_rms_norm(query, nullptr, query, T * H, D, eps, threads);
  rotate(query, {cos, sin, R}, T, H, D, 1.0f);
}

API void dsv4_keys(const float* x, const Weight* wkv, const float* norm, const float* cos, const float* sin, float* keys,
                   long T, long R, float eps, int rounds, int rounds_entry, int threads) {
  const long D = wkv->rows;
  std::vector<float> room;
  project(x, wkv, keys, T, rounds, room, threads);
  dsv4_rms_norm(keys, norm, keys, T, D, eps, threads);
  rotate(keys, {cos, sin, R}, T, 1, D, 1.0f);
  if (rounds_entry)
    for (long t = 0; t < T; t++) rounding::fp8_row(keys + t * D, keys + t * D, D - R, ENTRY_GROUP);
}

API void dsv4_attention_output(const float* mixed, const Weight* wo_a, const Weight* wo_b, const float* cos,
                               const float* sin, float* y, long T, long H, long G, long R, int rounds, int threads) {
  const long width = wo_a->columns * G;
  std::vector<float> turned(mixed, mixed + T * width), latent(T * wo_a->rows), room;
  rotate(turned.data(), {cos, sin, R}, T, H, width / H, -1.0f);
  dsv4_linear(turned.data(), wo_a, latent.data(), T, G, rounding::NO_TRIP, threads);
  project(latent.data(), wo_b, y, T, rounds, room, threads);
}

// Values and gates of a compressor; a token's gate gets the row of `ape` of its phase. Returns 0, or 1 if there is none.
API int dsv4_compress_inputs(const float* x, const Weight* wkv, const Weight* wgate, const float* ape,
                             const int64_t* phases, float* values, float* gates, long T, long ratio, int rounds,
                             int threads) {
  const long D = wkv->rows;
  for (long t = 0; t < T; t++)
    if (phases[t] < 0 || phases[t] >= ratio) return 1;
  std::vector<float> room;
  project(x, wkv, values, T, rounds, room, threads);
  dsv4_linear(rounds ? room.data() : x, wgate, gates, T, 1, rounds, threads);
  for (long t = 0; t < T; t++)
    for (long d = 0; d < D; d++) gates[t * D + d] += ape[phases[t] * D + d];
  return 0;
}

// Returns 0, or 1 if a fixed id is no expert.
API int dsv4_feed_forward(const float* x, const Weight* gate, const float* bias, const int64_t* fixed, const Weight* w1,
                          const Weight* w3, const Weight* w2, const Weight* shared1, const Weight* shared3,
                          const Weight* shared2, float* y, long T, long K, float scale, float limit, int rounds,
                          int rounds_shared, int rounds_shared_inner, int threads) {
  const long D = gate->columns, E = gate->rows;
  std::vector<float> logits(T * E), weights(T * K), rounded, also, ones(T, 1.0f), added(T * D);
  std::vector<int64_t> ids(T * K), first(T, 0);
  dsv4_linear(x, gate, logits.data(), T, 1, rounding::NO_TRIP, threads);
  if (dsv4_route(logits.data(), bias, fixed, ids.data(), weights.data(), T, E, K, scale, threads)) return 1;
  auto entering = [&](int trip, std::vector<float>& room) {
    if (!trip) return x;
    room.resize(T * D);
    dsv4_input_round_trip(x, room.data(), T, D, trip, threads);
    return (const float*)room.data();
  };
  const float* routed_x = entering(rounds, rounded);
  const float* shared_x = rounds_shared == rounds ? routed_x : entering(rounds_shared, also);
  if (feed(routed_x, {w1, w3, w2, E}, ids.data(), weights.data(), y, T, K, limit, rounds, rounds, threads)) return 1;
  feed(shared_x, {shared1, shared3, shared2, 1}, first.data(), ones.data(), added.data(), T, 1, limit,
       rounds_shared, rounds_shared_inner, threads);
  for (long i = 0; i < T * D; i++) y[i] += added[i];
  return 0;
}
