// sample_tokens: one token per row of scores, by temperature, top_k, top_p, min_p and one number in [0, 1).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "team.h"

namespace {
constexpr long FIRST_SORTED = 512;

struct Settings {
  double temperature;
  long top_k;
  double top_p, min_p, number;
};

long first_best(const float* scores, long V) {
  long best = 0;
  for (long i = 1; i < V; i++)
    if (scores[i] > scores[best]) best = i;
  return best;
}

// Set to 0 what top_k and top_p take away; best first, ties by the smaller id.
void cut(std::vector<double>& weights, long top_k, double top_p) {
  const long V = (long)weights.size(), most = top_k > 0 && top_k < V ? top_k : V;
  if (most == V && top_p >= 1.0) return;
  std::vector<long> ids(V);
  long count = 0;
  for (long i = 0; i < V; i++)
    if (weights[i] > 0) ids[count++] = i;
  const auto before = [&](long a, long b) { return weights[a] != weights[b] ? weights[a] > weights[b] : a < b; };
  long kept = std::min(most, count);
  if (kept < count) std::nth_element(ids.begin(), ids.begin() + kept, ids.begin() + count, before);
  if (top_p < 1.0) {
    double total = 0, sum = 0;
    for (long i = 0; i < kept; i++) total += weights[ids[i]];
    long sorted = 0, end = 0;
    while (end < kept && sum < top_p * total) {
      if (end == sorted) {  // a few hundred tokens nearly always reach top_p: the rest is sorted only if they do not
        sorted = sorted ? kept : std::min(kept, FIRST_SORTED);
        if (sorted < kept) std::nth_element(ids.begin(), ids.begin() + sorted, ids.begin() + kept, before);
        std::sort(ids.begin() + end, ids.begin() + sorted, before);
      }
      sum += weights[ids[end++]];
    }
    kept = std::max(end, 1L);
    if (end == 0) std::nth_element(ids.begin(), ids.begin(), ids.begin() + count, before);
  }
  for (long i = kept; i < count; i++) weights[ids[i]] = 0;
}

bool all_allowed(const uint32_t* words, long V) {
  for (long w = 0; w < V / 32; w++)
    if (words[w] != ~0u) return false;
  const uint32_t rest = V % 32 ? (1u << V % 32) - 1 : 0;
  return !rest || (words[V / 32] & rest) == rest;
}

// The scores of the tokens whose bit is set, minus infinity elsewhere.
const float* restrict_to(const float* scores, const uint32_t* words, long V, std::vector<float>& kept) {
  kept.assign(V, -INFINITY);
  for (long w = 0; w * 32 < V; w++)
    for (uint32_t bits = words[w]; bits; bits &= bits - 1) {
      const long i = w * 32 + __builtin_ctz(bits);
      if (i < V) kept[i] = scores[i];
    }
  return kept.data();
}

long choose(const float* scores, long V, const Settings& s, double negligible) {
  const long best = first_best(scores, V);
  const float highest = scores[best];
  if (highest == -INFINITY) return -1;
  if (s.temperature == 0.0 || highest == INFINITY) return best;
  std::vector<double> weights(V);
  for (long i = 0; i < V; i++) {
    const double wide = ((double)scores[i] - (double)highest) / s.temperature;
    weights[i] = wide < negligible ? 0.0 : std::exp(wide);
  }
  cut(weights, s.top_k, s.top_p);
  double total = 0;
  for (long i = 0; i < V; i++) total += weights[i] = weights[i] < s.min_p ? 0.0 : weights[i];
  const double target = s.number * total;
  double sum = 0;
  long last = best;
  for (long i = 0; i < V; i++) {
    sum += weights[i];
    if (sum > target) return i;
    if (weights[i] > 0) last = i;
  }
  return last;
}
}  // namespace

// allowed [S, ceil(V / 32)] may be null.
API void dsv4_sample_tokens(const float* scores, const double* temperature, const long* top_k, const double* top_p,
                            const double* min_p, const double* number, const uint32_t* allowed, long* out, long S,
                            long V, double negligible, int threads) {
  team::divide(threads, 4 * S * V, S, [&](long s) {
    std::vector<float> kept;
    const float* row = scores + s * V;
    const uint32_t* words = allowed ? allowed + s * ((V + 31) / 32) : nullptr;
    if (words && !all_allowed(words, V)) row = restrict_to(row, words, V, kept);
    out[s] = choose(row, V, {temperature[s], top_k[s], top_p[s], min_p[s], number[s]}, negligible);
  });
}
