// route and moe.
#include "inputs.h"

using namespace lanes;

namespace {
float score(float logit) {
  return std::sqrt(logit > 20.0f ? logit : std::log1p(std::exp(logit)));
}

constexpr long TILE_ROWS = packed::MOST_ROWS, TILE_COLUMNS = 32;
constexpr long FEW_TOKENS = 8, RUNS = 4;

struct Task {
  long expert, first_slot, num_slots, first_column;
};

// Slots (token * K + k) ordered by expert; start[e] is the first one of expert e.
struct Order {
  std::vector<long> slots, start;
};

Order by_expert(const int64_t* ids, long num_slots, long E) {
  Order order{std::vector<long>(), std::vector<long>(E + 1, 0)};
  for (long s = 0; s < num_slots; s++)
    if (ids[s] >= 0) order.start[ids[s] + 1]++;
  for (long e = 0; e < E; e++) order.start[e + 1] += order.start[e];
  order.slots.resize(order.start[E]);
  std::vector<long> next(order.start.begin(), order.start.end() - 1);
  for (long s = 0; s < num_slots; s++)
    if (ids[s] >= 0) order.slots[next[ids[s]]++] = s;
  return order;
}

std::vector<Task> tasks_of(const Order& order, long E, long columns) {
  std::vector<Task> tasks;
  for (long e = 0; e < E; e++)
    for (long c = 0; c < columns; c += TILE_COLUMNS)
      for (long s = order.start[e]; s < order.start[e + 1]; s += TILE_ROWS)
        tasks.push_back({e, s, std::min(TILE_ROWS, order.start[e + 1] - s), c});
  return tasks;
}

// Tasks that a thread takes at once. With few tokens they are alike and wait for memory, which is read fastest in long
// runs; with more of them those of a popular expert take longer.
long chunk_of(long num_tasks, long T, int threads) {
  return T > FEW_TOKENS ? 4 : std::max(4L, num_tasks / (RUNS * threads));
}

// f = silu(min(a, limit)) * clip(b, +-limit) * weight
f16 gate(f16 a, f16 b, float limit, float weight) {
  const f16 high = splat(limit);
  a = min(a, high);
  b = max(min(b, high), -high);
  return a / (splat(1.0f) + exp(-a)) * b * splat(weight);
}
}  // namespace

// Returns 0, or 1 if a fixed id is no expert.
API int dsv4_route(const float* logits, const float* bias, const int64_t* fixed, int64_t* ids, float* weights, long T,
                   long E, long K, float scale, int threads) {
  for (long i = 0; fixed && i < T * K; i++)
    if (fixed[i] < 0 || fixed[i] >= E) return 1;
  in_team(threads, 16 * T * E, [&] {
    std::vector<float> scores(E);
    std::vector<int64_t> order(E);
    auto rank = [&](int64_t e) { return bias ? scores[e] + bias[e] : scores[e]; };
    auto better = [&](int64_t a, int64_t b) { return rank(a) > rank(b) || (rank(a) == rank(b) && a < b); };
#pragma omp for schedule(static)
    for (long t = 0; t < T; t++) {
      for (long e = 0; e < E; e++) scores[e] = score(logits[t * E + e]), order[e] = e;
      if (!fixed) std::partial_sort(order.begin(), order.begin() + K, order.end(), better);
      std::copy_n(fixed ? fixed + t * K : order.data(), K, ids + t * K);
      float total = 0.0f;
      for (long k = 0; k < K; k++) total += weights[t * K + k] = scores[ids[t * K + k]];
      for (long k = 0; k < K; k++) weights[t * K + k] = weights[t * K + k] / (total + 1e-20f) * scale;
    }
  });
  return 0;
}

// The rows of x made the round trip `outer`, those that enter w2 make `inner`.
// hidden and up: scratch [T * K, I]; slots: scratch [T * K, D]. Returns 0, or 1 if an id is no expert.
API int dsv4_moe(const float* x, const Weight* w1, const Weight* w3, const Weight* w2, const int64_t* ids,
                 const float* weights, float* y, float* hidden, float* up, float* slots, long T, long K, long E,
                 float limit, int outer, int inner, int threads) {
  const long D = w1->columns, I = w1->rows;
  for (long s = 0; s < T * K; s++)
    if (ids[s] >= E) return 1;
  const Order order = by_expert(ids, T * K, E);
  const std::vector<Task> wide = tasks_of(order, E, I), narrow = tasks_of(order, E, D);
  const long num_slots = (long)order.slots.size(), num_wide = (long)wide.size(), num_narrow = (long)narrow.size();
  Inputs inputs(*w1, outer, T), entering(*w2, inner, T * K);
  in_team(threads, 3 * num_slots * D * I, [&] {
    long tokens[TILE_ROWS];
    std::vector<float> room;
#pragma omp for schedule(static)
    for (long t = 0; t < T; t++) inputs.put(t, x + t * D);
#pragma omp for schedule(dynamic, chunk_of(num_wide, T, threads))
    for (long i = 0; i < num_wide; i++) {
      const Task& task = wide[i];
      const long* slot = order.slots.data() + task.first_slot;
      const long first = task.first_column, columns = std::min(TILE_COLUMNS, I - first);
      for (long r = 0; r < task.num_slots; r++) tokens[r] = slot[r] / K;
      inputs.multiply(x, tokens, task.num_slots, *w1, task.expert, first, columns, room,
                      [&](long r, long c, float v) { hidden[slot[r] * I + first + c] = v; });
      inputs.multiply(x, tokens, task.num_slots, *w3, task.expert, first, columns, room,
                      [&](long r, long c, float v) { up[slot[r] * I + first + c] = v; });
      for (long r = 0; r < task.num_slots; r++) {
        float *a = hidden + slot[r] * I + first, *b = up + slot[r] * I + first;
        for_runs(columns, [&](long c, long n) {
          store_run(a + c, gate(load_run(a + c, n), load_run(b + c, n), limit, weights[slot[r]]), n);
        });
      }
    }
    if (inner) {
#pragma omp for schedule(static)
      for (long i = 0; i < num_slots; i++) {
        float* row = hidden + order.slots[i] * I;
        if (!entering.is_split()) rounding::input_row(inner, row, row, I);
        entering.put(order.slots[i], row);
      }
    }
#pragma omp for schedule(dynamic, chunk_of(num_narrow, T, threads))
    for (long i = 0; i < num_narrow; i++) {
      const Task& task = narrow[i];
      const long* slot = order.slots.data() + task.first_slot;
      const long first = task.first_column, columns = std::min(TILE_COLUMNS, D - first);
      entering.multiply(hidden, slot, task.num_slots, *w2, task.expert, first, columns, room,
                     [&](long r, long c, float v) { slots[slot[r] * D + first + c] = v; });
    }
#pragma omp for schedule(static)
    for (long t = 0; t < T; t++) {
      for (long d = 0; d < D; d++) y[t * D + d] = 0.0f;
      for (long k = 0; k < K; k++)
        if (ids[t * K + k] >= 0)
          for (long d = 0; d < D; d++) y[t * D + d] += slots[(t * K + k) * D + d];
    }
  });
  return 0;
}
