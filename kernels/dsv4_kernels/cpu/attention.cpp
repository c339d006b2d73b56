// index_select and sparse_attention.
#include <algorithm>
#include <vector>
#include "rows.h"

using namespace lanes;

namespace {
constexpr long HEAD_BLOCK = 4, ENTRY_TILE = 128, CHANNEL_BLOCK = 4;
constexpr long SCORE_ROOM = 1 << 22;  // scores held at a time, in floats

// scores[i] = sum over h, in order, of weights[h] * relu(query[h] . keys[i])
void score_entries(const float* query, const float* weights, const float* const* keys, long n, float* scores, long H,
                   long D) {
  const float* heads[HEAD_BLOCK];
  for (long i = 0; i < n; i++) scores[i] = 0.0f;
  float block[HEAD_BLOCK * ENTRY_TILE];
  for (long h = 0; h < H; h += HEAD_BLOCK) {
    const long num = std::min(HEAD_BLOCK, H - h);
    for (long j = 0; j < num; j++) heads[j] = query + (h + j) * D;
    panel(heads, num, keys, n, D, [&](long j, long i, float v) { block[j * ENTRY_TILE + i] = v > 0.0f ? v : 0.0f; });
    for (long j = 0; j < num; j++)
      for (long i = 0; i < n; i++) scores[i] += weights[h + j] * block[j * ENTRY_TILE + i];
  }
}

// The k best of n, ties to the smaller index, in ascending order. A score that is not a number counts as the worst.
void keep_best(float* scores, long n, long k, int64_t* out) {
  std::vector<int64_t> index(n);
  for (long i = 0; i < n; i++) {
    index[i] = i;
    if (std::isnan(scores[i])) scores[i] = -INFINITY;
  }
  auto better = [&](int64_t a, int64_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); };
  std::nth_element(index.begin(), index.begin() + k, index.end(), better);
  std::sort(index.begin(), index.begin() + k);
  std::copy(index.begin(), index.begin() + k, out);
}

// The rows that one token attends to. Plain rows are read where they stand, the others are unpacked here.
class Gathered {
 public:
  std::vector<const float*> kv;

  void begin(long most, long width) {
    kv.clear();
    if ((long)unpacked_.size() < most * width) unpacked_.resize(most * width);
    next_ = unpacked_.data();
  }

  // Appends a row; false if it lies outside the cache.
  bool add(const CacheRows& cache, int64_t row) {
    if (row >= cache.count) return false;
    const float* values = rows::read(cache, row, next_);
    if (values == next_) next_ += cache.width;
    kv.push_back(values);
    return true;
  }

 private:
  std::vector<float> unpacked_;
  float* next_ = nullptr;
};

// Scores of a block of heads to e^(s - m), and the sum of each head's row including the sink.
void softmax_rows(float* scores, long stride, long J, const float* sink, long heads, float scale, float* total) {
  for (long h = 0; h < heads; h++) {
    float* row = scores + h * stride;
    for (long j = 0; j < J; j++) row[j] *= scale;
    float top = sink[h];
    for (long j = 0; j < J; j++) top = row[j] > top ? row[j] : top;
    f16 sums = splat(0.0f);
    for_runs(J, [&](long j, long n) {
      const f16 p = exp((n == WIDTH ? load(row + j) : load_some(row + j, n, -INFINITY)) - splat(top));
      store_run(row + j, p, n);
      sums += p;
    });
    total[h] = sum(sums) + std::exp(sink[h] - top);
  }
}

// out[h, d .. d + 16 B) = (sum over j, in order, of p[h, j] * kv[j, d]) / total[h]; n < 16 only with B = 1.
template <int B>
void mix_channels(const float* p, long stride, const std::vector<const float*>& kv, const float* total, float* out,
                  long heads, long d, long n, long D) {
  f16 acc[HEAD_BLOCK][B];
  for (long h = 0; h < HEAD_BLOCK; h++)
    for (int b = 0; b < B; b++) acc[h][b] = splat(0.0f);
  for (size_t j = 0; j < kv.size(); j++) {
    f16 v[B];
    for (int b = 0; b < B; b++) v[b] = B > 1 ? load(kv[j] + d + b * WIDTH) : load_run(kv[j] + d, n);
    for (long h = 0; h < HEAD_BLOCK; h++)
      for (int b = 0; b < B; b++) acc[h][b] = fma(splat(p[h * stride + j]), v[b], acc[h][b]);
  }
  for (long h = 0; h < heads; h++)
    for (int b = 0; b < B; b++) store_run(out + h * D + d + b * WIDTH, acc[h][b] / splat(total[h]), B > 1 ? WIDTH : n);
}

struct Scratch {
  Gathered rows;
  std::vector<float> scores;
};

// A token's window and entries in their order; false if a row lies outside its cache.
bool gather(const CacheRows& ring, const CacheRows& fresh, const int64_t* window, long W, const CacheRows* entries,
            const int64_t* chosen, long K, Gathered& out) {
  out.begin(W + K, ring.width);
  bool is_inside = true;
  for (long i = 0; i < W; i++)
    if (window[i] != -1) is_inside &= window[i] >= 0 ? out.add(ring, window[i]) : out.add(fresh, -2 - window[i]);
  for (long i = 0; i < K; i++)
    if (chosen[i] >= 0) is_inside &= out.add(*entries, chosen[i]);
  return is_inside;
}

// One token, one block of up to four heads.
void attend(const float* query, const float* sink, float* out, long heads, long D, float scale, Scratch& scratch) {
  const std::vector<const float*>& kv = scratch.rows.kv;
  const long J = (long)kv.size();
  scratch.scores.assign(HEAD_BLOCK * J, 0.0f);
  float *scores = scratch.scores.data(), total[HEAD_BLOCK];
  const float* rows[HEAD_BLOCK];
  for (long h = 0; h < heads; h++) rows[h] = query + h * D;
  panel(rows, heads, kv.data(), J, D, [&](long h, long j, float v) { scores[h * J + j] = v; });
  softmax_rows(scores, J, J, sink, heads, scale, total);
  long d = 0;
  for (; d + CHANNEL_BLOCK * WIDTH <= D; d += CHANNEL_BLOCK * WIDTH)
    mix_channels<CHANNEL_BLOCK>(scores, J, kv, total, out, heads, d, WIDTH, D);
  for (; d < D; d += WIDTH) mix_channels<1>(scores, J, kv, total, out, heads, d, std::min(WIDTH, D - d), D);
}
}  // namespace

// Returns 0, or 1 if a row lies outside the cache or more entries are visible than rows are given.
API int dsv4_index_select(const float* query, const float* weights, const CacheRows* cache, const int64_t* rows,
                          const int64_t* num_visible, int64_t* out, long T, long H, long D, long C, long K, int threads) {
  for (long i = 0; i < C; i++)
    if (rows[i] < 0 || rows[i] >= cache->count) return 1;
  for (long t = 0; t < T; t++)
    if (num_visible[t] > C) return 1;
  const long step = std::max(1L, SCORE_ROOM / std::max(1L, C)), tiles = (C + ENTRY_TILE - 1) / ENTRY_TILE;
  std::vector<float> scores(std::min(step, T) * C);
  for (long first = 0; first < T; first += step) {
    const long last = std::min(T, first + step);
#pragma omp parallel num_threads(threads) if ((last - first) * C * H * D > PARALLEL_WORK)
    {
      std::vector<float> unpacked(ENTRY_TILE * D);
      const float* keys[ENTRY_TILE];
#pragma omp for schedule(dynamic, 1)
      for (long i = 0; i < tiles; i++) {  // a tile is unpacked once for all tokens of this round
        const long e = i * ENTRY_TILE, held = std::min(ENTRY_TILE, C - e);
        for (long j = 0; j < held; j++) keys[j] = rows::read(*cache, rows[e + j], unpacked.data() + j * D);
        for (long t = first; t < last; t++) {
          const long n = std::min(held, num_visible[t] - e);
          if (num_visible[t] > K && n > 0)
            score_entries(query + t * H * D, weights + t * H, keys, n, scores.data() + (t - first) * C + e, H, D);
        }
      }
#pragma omp for schedule(dynamic, 1)
      for (long t = first; t < last; t++) {
        const long visible = num_visible[t];
        if (visible > K) {
          keep_best(scores.data() + (t - first) * C, visible, K, out + t * K);
        } else {
          for (long k = 0; k < K; k++) out[t * K + k] = k < visible ? k : -1;
        }
      }
    }
  }
  return 0;
}

// Returns 0, or 1 if a row lies outside its cache. A window row w <= -2 is row -2 - w of `fresh`.
API int dsv4_sparse_attention(const float* query, const CacheRows* ring, const CacheRows* fresh, const int64_t* window,
                              const CacheRows* entries, const int64_t* chosen, const float* sink, float* out, long T,
                              long H, long D, long W, long K, float scale, int threads) {
  const long blocks = (H + HEAD_BLOCK - 1) / HEAD_BLOCK;
  int failed = 0;
#pragma omp parallel num_threads(threads) if (T * H * D * (W + K) > PARALLEL_WORK)
  {
    Scratch scratch;
    long gathered = -1;  // the token whose rows stand in scratch
#pragma omp for collapse(2) schedule(static) reduction(| : failed)
    for (long t = 0; t < T; t++)
      for (long b = 0; b < blocks; b++) {
        if (gathered != t) {
          gathered = t;
          failed |= !gather(*ring, *fresh, window + t * W, W, entries, chosen + t * K, K, scratch.rows);
        }
        const long h = b * HEAD_BLOCK;
        attend(query + (t * H + h) * D, sink + h, out + (t * H + h) * D, std::min(HEAD_BLOCK, H - h), D, scale, scratch);
      }
  }
  return failed;
}
