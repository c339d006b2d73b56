// route and moe.
#include "moe.h"
#include "inputs.h"
#include "team.h"

using namespace lanes;
using namespace team;

namespace {
float score(float logit) {
  return std::sqrt(logit > 20.0f ? logit : std::log1p(std::exp(logit)));
}

constexpr long TILE_ROWS = packed::MOST_ROWS, TILE_COLUMNS = 32;
constexpr long FEW_TOKENS = 8, RUNS = 4;
constexpr long SCRATCH = 1 << 24;  // floats of a kind's scratch memory: more tokens are computed in pieces

struct Task {
  long kind, expert, first_slot, num_slots, first_column;
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

// One kind of experts while some tokens, from `first` on, are fed to it.
class Feeding {
 public:
  Feeding(const Feed& feed, long first, long T)
      : f_(feed), D_(feed.w1->columns), I_(feed.w1->rows), x_(feed.x + first * D_), weights_(feed.weights + first * feed.K),
        ids_(feed.ids + first * feed.K), order_(by_expert(ids_, T * feed.K, feed.E)), entering_(*feed.w1, feed.outer, T),
        between_(*feed.w2, feed.inner, T * feed.K), hidden_(T * feed.K * I_), up_(T * feed.K * I_), out_(T * feed.K * D_) {}

  static long pieces(const Feed& feed, long T) {
    const long floats = feed.K * (2 * feed.w1->rows + feed.w1->columns);
    return std::max(1L, std::min(T, SCRATCH / std::max(1L, floats)));
  }

  long num_slots() const { return (long)order_.slots.size(); }
  long work() const { return 3 * num_slots() * D_ * I_; }

  void add_tasks(long kind, std::vector<Task>& wide, std::vector<Task>& narrow) const {
    for (long e = 0; e < f_.E; e++)
      for (long c = 0; c < std::max(I_, D_); c += TILE_COLUMNS)
        for (long s = order_.start[e]; s < order_.start[e + 1]; s += TILE_ROWS) {
          const Task task{kind, e, s, std::min(TILE_ROWS, order_.start[e + 1] - s), c};
          if (c < I_) wide.push_back(task);
          if (c < D_) narrow.push_back(task);
        }
  }

  void prepare(long t) { entering_.put(t, x_ + t * D_); }

  void widen(const Task& task, float limit, Floats& room) {
    const long* slot = order_.slots.data() + task.first_slot;
    const long first = task.first_column, columns = std::min(TILE_COLUMNS, I_ - first);
    long tokens[TILE_ROWS];
    for (long r = 0; r < task.num_slots; r++) tokens[r] = slot[r] / f_.K;
    entering_.multiply(x_, tokens, task.num_slots, *f_.w1, task.expert, first, columns, room,
                       [&](long r, long c, float v) { hidden_[slot[r] * I_ + first + c] = v; });
    entering_.multiply(x_, tokens, task.num_slots, *f_.w3, task.expert, first, columns, room,
                       [&](long r, long c, float v) { up_[slot[r] * I_ + first + c] = v; });
    for (long r = 0; r < task.num_slots; r++) {
      float *a = hidden_.data() + slot[r] * I_ + first, *b = up_.data() + slot[r] * I_ + first;
      for_runs(columns, [&](long c, long n) {
        store_run(a + c, gate(load_run(a + c, n), load_run(b + c, n), limit, weights_[slot[r]]), n);
      });
    }
  }

  void round(long i) {
    if (!f_.inner) return;
    float* row = hidden_.data() + order_.slots[i] * I_;
    if (!between_.is_split()) rounding::input_row(f_.inner, row, row, I_);
    between_.put(order_.slots[i], row);
  }

  void narrow(const Task& task, Floats& room) {
    const long* slot = order_.slots.data() + task.first_slot;
    const long first = task.first_column, columns = std::min(TILE_COLUMNS, D_ - first);
    between_.multiply(hidden_.data(), slot, task.num_slots, *f_.w2, task.expert, first, columns, room,
                      [&](long r, long c, float v) { out_[slot[r] * D_ + first + c] = v; });
  }

  // What token t gets of its experts in channels [d, d + n), in the order of its ids.
  f16 sum(long t, long d, long n) const {
    f16 total = splat(0.0f);
    for (long k = 0; k < f_.K; k++)
      if (ids_[t * f_.K + k] >= 0) total += load_run(out_.data() + (t * f_.K + k) * D_ + d, n);
    return total;
  }

 private:
  const Feed& f_;
  const long D_, I_;
  const float *x_, *weights_;
  const int64_t* ids_;
  const Order order_;
  Inputs entering_, between_;
  Floats hidden_, up_, out_;
};

void feed_some(const std::vector<Feed>& feeds, float* y, long first, long T, float limit, int threads) {
  const long D = feeds[0].w1->columns, kinds = (long)feeds.size();
  std::vector<Feeding> feeding;
  std::vector<Task> wide, narrow;
  long work = 0, most = 0;
  feeding.reserve(kinds);
  for (const Feed& feed : feeds) {
    feeding.emplace_back(feed, first, T);
    work += feeding.back().work(), most = std::max(most, feeding.back().num_slots());
  }
  for (long kind = kinds - 1; kind >= 0; kind--) feeding[kind].add_tasks(kind, wide, narrow);
  const long num_wide = (long)wide.size(), num_narrow = (long)narrow.size();
  in_team(threads, work, [&] {
    Floats room;
    share(T * kinds, [&](long i) { feeding[i / T].prepare(i % T); });
    share_by(chunk_of(num_wide, T, threads), num_wide, [&](long i) { feeding[wide[i].kind].widen(wide[i], limit, room); });
    share(most * kinds, [&](long i) {
      if (i % most < feeding[i / most].num_slots()) feeding[i / most].round(i % most);
    });
    share_by(chunk_of(num_narrow, T, threads), num_narrow,
             [&](long i) { feeding[narrow[i].kind].narrow(narrow[i], room); });
    share(T, [&](long t) {
      for_runs(D, [&](long d, long n) {
        f16 total = feeding[0].sum(t, d, n);
        for (long kind = 1; kind < kinds; kind++) total += feeding[kind].sum(t, d, n);
        store_run(y + t * D + d, total, n);
      });
    });
  });
}
}  // namespace

int feed_forward(const std::vector<Feed>& feeds, float* y, long T, float limit, int threads) {
  long step = T;
  for (const Feed& feed : feeds) {
    for (long s = 0; s < T * feed.K; s++)
      if (feed.ids[s] >= feed.E) return 1;
    step = std::min(step, Feeding::pieces(feed, T));
  }
  const long D = feeds[0].w1->columns;
  for (long t = 0; t < T; t += step) feed_some(feeds, y + t * D, t, std::min(step, T - t), limit, threads);
  return 0;
}

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
    share(T, [&](long t) {
      for (long e = 0; e < E; e++) scores[e] = score(logits[t * E + e]), order[e] = e;
      if (!fixed) std::partial_sort(order.begin(), order.begin() + K, order.end(), better);
      std::copy_n(fixed ? fixed + t * K : order.data(), K, ids + t * K);
      float total = 0.0f;
      for (long k = 0; k < K; k++) total += weights[t * K + k] = scores[ids[t * K + k]];
      for (long k = 0; k < K; k++) weights[t * K + k] = weights[t * K + k] / (total + 1e-20f) * scale;
    });
  });
  return 0;
}

// The rows of x made the round trip `outer`, those that enter w2 make `inner`. Returns 0, or 1 if an id is no expert.
API int dsv4_moe(const float* x, const Weight* w1, const Weight* w3, const Weight* w2, const int64_t* ids,
                 const float* weights, float* y, long T, long K, long E, float limit, int outer, int inner, int threads) {
  return feed_forward({{x, w1, w3, w2, ids, weights, K, E, outer, inner}}, y, T, limit, threads);
}
