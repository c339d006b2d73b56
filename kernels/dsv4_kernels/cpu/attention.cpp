// index_select and sparse_attention.
#include <algorithm>
#include <atomic>
#include <vector>
#include "rows.h"
#include "team.h"

using namespace lanes;
using namespace team;

namespace {
constexpr long HEAD_BLOCK = 6, ENTRY_TILE = 128, SCORE_BLOCK = 4, SCORE_WIDTH = 8 * SCORE_BLOCK;
constexpr long SCORE_ROOM = 1 << 22;  // scores held at a time, in floats

// Scores of up to ENTRY_TILE entries, whose channels stand in columns: columns[d * ENTRY_TILE + i] is channel d of entry
// i, zeros behind the last entry. scores[i] = sum over h, in order, of weights[h] * relu(query[h] . key i), the product
// summed over d in order.
// Works on SCORE_WIDTH entries from e on; every accumulator is named, so that it stays in a register.
template <int... I>
void score_heads(const float* query, const float* weights, const float* columns, long D, f8* total,
                 std::integer_sequence<int, I...>) {
  constexpr int HEADS = sizeof...(I) / SCORE_BLOCK;
  f8 acc[sizeof...(I)] = {(void(I), f8{})...};
  for (long d = 0; d < D; d++) {
    f8 key[SCORE_BLOCK], q[HEADS];
    ((I < SCORE_BLOCK ? void(key[I % SCORE_BLOCK] = load8(columns + d * ENTRY_TILE + 8 * I)) : void()), ...);
    ((I % SCORE_BLOCK == 0 ? void(q[I / SCORE_BLOCK] = splat8(query[I / SCORE_BLOCK * D + d])) : void()), ...);
    ((acc[I] = fma(q[I / SCORE_BLOCK], key[I % SCORE_BLOCK], acc[I])), ...);
  }
  const f8 none{};
  ((total[I % SCORE_BLOCK] = fma(splat8(weights[I / SCORE_BLOCK]), acc[I] > none ? acc[I] : none, total[I % SCORE_BLOCK])),
   ...);
}

void score_entries(const float* query, const float* weights, const float* columns, long n, float* scores, long H,
                   long D) {
  for (long e = 0; e < n; e += SCORE_WIDTH) {
    f8 total[SCORE_BLOCK] = {};
    long h = 0;
    for (; h + 2 <= H; h += 2)
      score_heads(query + h * D, weights + h, columns + e, D, total, std::make_integer_sequence<int, 2 * SCORE_BLOCK>());
    if (h < H)
      score_heads(query + h * D, weights + h, columns + e, D, total, std::make_integer_sequence<int, SCORE_BLOCK>());
    memcpy(scores + e, total, std::min(SCORE_WIDTH, n - e) * sizeof(float));
  }
}

// The k best of n, ties to the smaller index, in ascending order. A score that is not a number counts as the worst.
// One pass that keeps up to 2 k candidates: once k are known, only a score above the worst of them can enter.
void keep_best(const float* scores, long n, long k, int64_t* out) {
  struct Candidate {
    float score;
    int64_t index;
  };
  auto better = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.index < b.index);
  };
  std::vector<Candidate> held;
  held.reserve(2 * k);
  float worst = -INFINITY;
  bool is_full = false;
  auto reduce = [&] {
    std::nth_element(held.begin(), held.begin() + k - 1, held.end(), better);
    held.resize(k);
    worst = held[k - 1].score, is_full = true;
  };
  for (long i = 0; i < n; i++) {
    if (is_full && !(scores[i] > worst)) continue;
    held.push_back({std::isnan(scores[i]) ? -INFINITY : scores[i], i});
    if ((long)held.size() == 2 * k) reduce();
  }
  if ((long)held.size() > k) reduce();
  for (long i = 0; i < k; i++) out[i] = held[i].index;
  std::sort(out, out + k);
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

// out[h, d .. d + 16) = (sum over j, in order, of p[h, j] * kv[j, d]) / total[h] for one head per index. The sixteen lanes
// are two halves, every accumulator is named: so they stay in registers.
template <int... I>
void mix_block(const float* p, const std::vector<const float*>& kv, const float* total, float* out, long d, long D,
               std::integer_sequence<int, I...>) {
  const long J = (long)kv.size();
  f8 low[sizeof...(I)] = {(void(I), f8{})...}, high[sizeof...(I)] = {(void(I), f8{})...};
  for (long j = 0; j < J; j++) {
    const f8 first = load8(kv[j] + d), last = load8(kv[j] + d + 8);
    ((low[I] = fma(splat8(p[I * J + j]), first, low[I])), ...);
    ((high[I] = fma(splat8(p[I * J + j]), last, high[I])), ...);
  }
  auto put = [&](long h, f8 a, f8 b) {
    a = a / splat8(total[h]), b = b / splat8(total[h]);
    memcpy(out + h * D + d, &a, sizeof a), memcpy(out + h * D + d + 8, &b, sizeof b);
  };
  (put(I, low[I], high[I]), ...);
}

template <int H>
__attribute__((noinline)) void mix_heads(const float* p, const std::vector<const float*>& kv, const float* total,
                                         float* out, long D) {
  long d = 0;
  for (; d + WIDTH <= D; d += WIDTH) mix_block(p, kv, total, out, d, D, std::make_integer_sequence<int, H>());
  for (long h = 0; d < D && h < H; h++) {  // fewer than sixteen channels are left
    f16 sums = splat(0.0f);
    for (size_t j = 0; j < kv.size(); j++) sums = fma(splat(p[h * kv.size() + j]), load_some(kv[j] + d, D - d), sums);
    store_some(out + h * D + d, sums / splat(total[h]), D - d);
  }
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

// One token, one block of up to six heads.
void attend(const float* query, const float* sink, float* out, long heads, long D, float scale, Scratch& scratch) {
  const std::vector<const float*>& kv = scratch.rows.kv;
  const long J = (long)kv.size();
  scratch.scores.assign(HEAD_BLOCK * J, 0.0f);
  float *scores = scratch.scores.data(), total[HEAD_BLOCK];
  const float* rows[HEAD_BLOCK];
  for (long h = 0; h < heads; h++) rows[h] = query + h * D;
  panel(rows, heads, kv.data(), J, D, [&](long h, long j, float v) { scores[h * J + j] = v; });
  softmax_rows(scores, J, J, sink, heads, scale, total);
  for (long h = 0; h < heads;) {
    const long left = heads - h, count = left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const auto mix = count == 6 ? mix_heads<6> : count == 4 ? mix_heads<4> : count == 2 ? mix_heads<2> : mix_heads<1>;
    mix(scores + h * J, scratch.rows.kv, total + h, out + h * D, D);
    h += count;
  }
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
    in_team(threads, (last - first) * C * H * D, [&] {
      std::vector<float> unpacked(D), columns(ENTRY_TILE * D);
      share_by(1, tiles, [&](long i) {  // a tile is unpacked once for all tokens of this round
        const long e = i * ENTRY_TILE, held = std::min(ENTRY_TILE, C - e);
        if (held < ENTRY_TILE) std::fill(columns.begin(), columns.end(), 0.0f);
        for (long j = 0; j < held; j++) {
          const float* key = rows::read(*cache, rows[e + j], unpacked.data());
          for (long d = 0; d < D; d++) columns[d * ENTRY_TILE + j] = key[d];
        }
        for (long t = first; t < last; t++) {
          const long n = std::min(held, num_visible[t] - e);
          if (num_visible[t] > K && n > 0)
            score_entries(query + t * H * D, weights + t * H, columns.data(), n, scores.data() + (t - first) * C + e, H,
                          D);
        }
      });
      share_by(1, last - first, [&](long i) {
        const long t = first + i, visible = num_visible[t];
        if (visible > K) {
          keep_best(scores.data() + (t - first) * C, visible, K, out + t * K);
        } else {
          for (long k = 0; k < K; k++) out[t * K + k] = k < visible ? k : -1;
        }
      });
    });
  }
  return 0;
}

// Returns 0, or 1 if a row lies outside its cache. A window row w <= -2 is row -2 - w of `fresh`.
API int dsv4_sparse_attention(const float* query, const CacheRows* ring, const CacheRows* fresh, const int64_t* window,
                              const CacheRows* entries, const int64_t* chosen, const float* sink, float* out, long T,
                              long H, long D, long W, long K, float scale, int threads) {
  const long blocks = (H + HEAD_BLOCK - 1) / HEAD_BLOCK;
  std::atomic<int> failed{0};
  in_team(threads, T * H * D * (W + K), [&] {
    Scratch scratch;
    long gathered = -1;  // the token whose rows stand in scratch
    share(T * blocks, [&](long i) {
      const long t = i / blocks, h = i % blocks * HEAD_BLOCK;
      if (gathered != t) {
        gathered = t;
        if (!gather(*ring, *fresh, window + t * W, W, entries, chosen + t * K, K, scratch.rows)) failed = 1;
      }
      attend(query + (t * H + h) * D, sink + h, out + (t * H + h) * D, std::min(HEAD_BLOCK, H - h), D, scale, scratch);
    });
  });
  return failed;
}
