// A decoder layer in one call: the stretches of sublayers.cpp, and what lies between them. It is what model/transformer.py
// composes of operators, bit for bit.
#include "layer.h"
#include <algorithm>
#include "sublayers.h"

extern "C" {
void dsv4_rms_norm(const float*, const float*, float*, long, long, float, int);
void dsv4_fp4_round_trip(const float*, float*, long, long, long, int);
void dsv4_hadamard(const float*, float*, long, long, float, int);
void dsv4_pack_rows(const float*, uint8_t*, long, long, long, long, long, int);
void dsv4_compress_pool(const float*, const float*, float*, long, long, long, int);
void dsv4_compress_fold(const float*, const float*, float*, const int64_t*, const int64_t*, const int64_t*,
                        const int64_t*, float*, long, long, int);
void dsv4_enter(const float*, const float*, const float*, const float*, const float*, float*, float*, float*, long, long,
                long, float, float, long, int);
void dsv4_hyper_mix(const float*, const float*, const float*, const float*, float*, long, long, long, int);
void dsv4_attention_output(const float*, const Weight*, const Weight*, const float*, const float*, float*, long, long,
                           long, long, int, int);
int dsv4_feed_forward(const float*, const Weight*, const float*, const int64_t*, const Weight*, const Weight*,
                      const Weight*, const Weight*, const Weight*, const Weight*, float*, long, long, float, float, int,
                      int, int, int);
int dsv4_index_select(const float*, const float*, const CacheRows*, const int64_t*, const int64_t*, int64_t*, long, long,
                      long, long, long, int);
int dsv4_sparse_attention(const float*, const CacheRows*, const CacheRows*, const int64_t*, const CacheRows*,
                          const int64_t*, const float*, float*, long, long, long, long, long, float, int);
}

namespace {
enum Status { DONE, ROW_OUTSIDE, PHASE_OUTSIDE, EXPERT_OUTSIDE };

bool inside(const int64_t* rows, long n, int64_t least, int64_t count) {
  for (long i = 0; i < n; i++)
    if (rows[i] < least || rows[i] >= count) return false;
  return true;
}

// Rows as a cache stores them, in `bytes` unless they are stored as floats.
CacheRows stored(const float* x, long n, const CacheRows& like, std::vector<uint8_t>& bytes, int threads) {
  CacheRows out = like;
  out.count = n, out.data = (const uint8_t*)x;
  if (like.format == rows::FP32) return out;
  bytes.resize(n * like.bytes);
  out.data = bytes.data();
  if (like.format != rows::BF16) {
    dsv4_pack_rows(x, bytes.data(), n, like.bytes, like.format, like.width, like.rope, threads);
    return out;
  }
  for (long i = 0; i < n * like.width; i++) {
    const uint16_t bits = rows::bf16_bits(x[i]);
    memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return out;
}

// cache[rows[i]] = source[from[i]], or source[i] where `from` is null.
void insert(const CacheRows& cache, const int64_t* rows, long n, const CacheRows& source, const int64_t* from) {
  uint8_t* data = const_cast<uint8_t*>(cache.data);
  for (long i = 0; i < n; i++)
    memcpy(data + rows[i] * cache.bytes, source.data + (from ? from[i] : i) * cache.bytes, cache.bytes);
}

// One sublayer's work on all tokens of a step.
class Run {
 public:
  Run(const Layer& layer, const Memory& memory, const Step& step, int threads)
      : l_(layer), m_(memory), s_(step), threads_(threads) {}

  int attend(const float* x, float* y) {
    const long T = s_.num_tokens, D = l_.wkv->rows;
    if (!fits()) return ROW_OUTSIDE;
    project(x);
    std::vector<uint8_t> bytes;
    const CacheRows fresh = stored(keys_.data(), T, m_.window, bytes, threads_);
    if (const int failed = add_entries()) return failed;
    std::vector<int64_t> chosen;
    long count = 0;
    const int64_t* entries = choose(chosen, count);
    if (!entries && count) return ROW_OUTSIDE;
    Floats mixed(query_.size());
    if (dsv4_sparse_attention(query_.data(), &m_.window, &fresh, s_.window_rows, &m_.entries, entries, l_.sink,
                              mixed.data(), T, l_.heads, D, s_.window, count, (float)l_.scale, threads_))
      return ROW_OUTSIDE;
    insert(m_.window, s_.ring_rows, s_.num_ring, fresh, s_.ring_tokens);
    dsv4_attention_output(mixed.data(), l_.wo_a, l_.wo_b, s_.cos, s_.sin, y, T, l_.heads, l_.groups, s_.rotated,
                          (int)l_.rounds_o, threads_);
    return DONE;
  }

  int feed(const float* x, float* y) const {
    const long T = s_.num_tokens, K = l_.num_chosen;
    std::vector<int64_t> fixed(l_.fixed ? T * K : 0);
    if (l_.fixed) {
      if (!inside(s_.token_ids, T, 0, l_.vocabulary)) return ROW_OUTSIDE;
      for (long t = 0; t < T; t++) std::copy_n(l_.fixed + s_.token_ids[t] * K, K, fixed.data() + t * K);
    }
    const int failed = dsv4_feed_forward(
        x, l_.gate, l_.bias, l_.fixed ? fixed.data() : nullptr, l_.experts[0], l_.experts[1], l_.experts[2], l_.shared[0],
        l_.shared[1], l_.shared[2], y, T, K, (float)l_.expert_scale, (float)l_.limit, (int)l_.rounds_experts,
        (int)l_.rounds_shared, (int)l_.rounds_shared_inner, threads_);
    return failed ? EXPERT_OUTSIDE : DONE;
  }

 private:
  // What a compressor is given of each token, and of tokens that it takes from its ring.
  struct Raw {
    Floats values, gates;
  };

  // Whether tokens choose among the entries, because some see more than they may attend to.
  bool has_choice() const { return l_.main.wkv && !m_.folded && l_.index_query && s_.most_entries > l_.top_k; }

  // All products with the tokens, then all with the query's latent: what has the same input is one team's work.
  void project(const float* x) {
    const long T = s_.num_tokens, D = l_.wkv->rows;
    const float eps = (float)l_.norm_eps;
    Rounded entering(x, T, l_.wq_a->columns, threads_);
    std::vector<Product> products;
    auto add = [&](Rounded& from, const Weight* w, int64_t rounds, Floats& to, long more = 0) {
      to.resize((T + more) * w->rows);
      products.push_back(from.product(w, to.data(), (int)rounds));
    };
    add(entering, l_.wq_a, l_.rounds_a, latent_);
    add(entering, l_.wkv, l_.rounds_kv, keys_);
    for (const auto& [c, raw] : {std::pair(&l_.main, &main_), std::pair(&l_.index, &index_)}) {
      if (!c->wkv) continue;
      add(entering, c->wkv, c->rounds, raw->values, s_.num_raw);
      add(entering, c->wgate, c->rounds, raw->gates, s_.num_raw);
    }
    if (has_choice()) add(entering, l_.index_weights, l_.rounds_index_weights, index_weights_);
    multiply(products, T, threads_);
    dsv4_rms_norm(latent_.data(), l_.q_norm, latent_.data(), T, l_.wq_a->rows, eps, threads_);
    Rounded between(latent_.data(), T, l_.wq_a->rows, threads_);
    products.clear();
    add(between, l_.wq_b, l_.rounds_b, query_);
    if (has_choice()) add(between, l_.index_query, l_.rounds_index_query, index_query_);
    multiply(products, T, threads_);
    finish_query(query_.data(), angles(), T, l_.heads, D, eps, threads_);
    finish_keys(keys_.data(), l_.kv_norm, angles(), T, D, eps, l_.rounds_entry, threads_);
  }

  Angles angles() const { return {s_.cos, s_.sin, s_.rotated}; }

  // Whether all rows that are read or written here without another look lie inside their tensors.
  bool fits() const {
    const long T = s_.num_tokens;
    bool is = inside(s_.ring_rows, s_.num_ring, 0, m_.window.count) && inside(s_.ring_tokens, s_.num_ring, 0, T);
    if (!l_.main.wkv) return is;
    is &= inside(s_.entry_rows, s_.num_blocks, 0, m_.entries.count) && inside(s_.kept_tokens, s_.num_kept, 0, T);
    is &= inside(s_.kept_rows, s_.num_kept, 0, m_.ring.count);
    if (m_.folded)
      return is && inside(s_.raw_rows, s_.num_raw, 0, m_.ring.count) &&
             inside(s_.begins, s_.num_runs, -1, m_.num_states) && inside(s_.ends, s_.num_runs, -1, m_.num_states) &&
             inside(s_.sources, s_.num_sources, 0, T + s_.num_raw);
    is &= inside(s_.source_tokens, s_.num_blocks * s_.slots, -1, T);
    is &= inside(s_.source_rows, s_.num_blocks * s_.slots, -1, m_.ring.count);
    if (l_.index.wkv) is &= inside(s_.entry_rows, s_.num_blocks, 0, m_.index_keys.count) &&
                            m_.index_ring.count == m_.ring.count;
    return is;
  }

  // Writes the entries, and the index keys, of the blocks that close in this step.
  int add_entries() {
    if (!l_.main.wkv) return DONE;
    Floats closed, keys;
    if (const int failed = compress(main_, l_.main, m_.ring, closed)) return failed;
    const long B = s_.num_blocks, D = l_.main.width;
    if (l_.rounds_entry)
      for (long b = 0; b < B; b++)
        rounding::fp8_row(closed.data() + b * D, closed.data() + b * D, D - s_.rotated, ENTRY_GROUP);
    add(m_.entries, closed);
    if (!l_.index.wkv) return DONE;
    if (const int failed = compress(index_, l_.index, m_.index_ring, keys)) return failed;
    round_index(keys, B, l_.index.width);
    add(m_.index_keys, keys);
    return DONE;
  }

  void add(const CacheRows& cache, const Floats& values) const {
    std::vector<uint8_t> bytes;
    if (s_.num_blocks)
      insert(cache, s_.entry_rows, s_.num_blocks, stored(values.data(), s_.num_blocks, cache, bytes, threads_), nullptr);
  }

  // The entries that close in this step, normed and rotated; what later steps need goes into the ring.
  int compress(Raw& raw, const Compressor& c, const Ring& ring, Floats& closed) const {
    const long T = s_.num_tokens, width = c.wkv->rows, B = s_.num_blocks;
    auto& [values, gates] = raw;
    if (add_phases(gates.data(), c.ape, s_.phases, T, width, c.ratio)) return PHASE_OUTSIDE;
    closed.resize(B * c.width);
    m_.folded ? fold(values, gates, width, ring, closed) : pool(values, gates, width, c.width, ring, closed);
    for (long i = 0; i < s_.num_kept; i++) {
      std::copy_n(values.data() + s_.kept_tokens[i] * width, width, ring.values + s_.kept_rows[i] * width);
      std::copy_n(gates.data() + s_.kept_tokens[i] * width, width, ring.gates + s_.kept_rows[i] * width);
    }
    if (!B) return DONE;
    dsv4_rms_norm(closed.data(), c.norm, closed.data(), B, c.width, (float)l_.norm_eps, threads_);
    rotate(closed.data(), {s_.block_cos, s_.block_sin, s_.rotated}, B, 1, c.width);
    return DONE;
  }

  void fold(Floats& values, Floats& gates, long width, const Ring& ring, Floats& closed) const {
    for (long i = 0; i < s_.num_raw; i++) {
      std::copy_n(ring.values + s_.raw_rows[i] * width, width, values.data() + (s_.num_tokens + i) * width);
      std::copy_n(ring.gates + s_.raw_rows[i] * width, width, gates.data() + (s_.num_tokens + i) * width);
    }
    dsv4_compress_fold(values.data(), gates.data(), m_.folded, s_.begins, s_.offsets, s_.sources, s_.ends, closed.data(),
                       s_.num_runs, width, threads_);
  }

  void pool(const Floats& values, const Floats& gates, long wide, long width, const Ring& ring, Floats& closed) const {
    const long B = s_.num_blocks, S = s_.slots;
    if (!B) return;
    Floats v(B * S * width), g(B * S * width);
    gather(values.data(), ring.values, wide, width, 0.0f, v.data());
    gather(gates.data(), ring.gates, wide, width, -INFINITY, g.data());
    dsv4_compress_pool(v.data(), g.data(), closed.data(), B, S, width, threads_);
  }

  // The source slots of each block; the first of them read the first `width` of a token's channels, and so on.
  void gather(const float* tokens, const float* ring, long wide, long width, float absent, float* out) const {
    const long S = s_.slots, each = S / (wide / width);
    for (long i = 0; i < s_.num_blocks * S; i++, out += width) {
      const long channel = i % S / each * width;
      if (s_.source_tokens[i] >= 0) std::copy_n(tokens + s_.source_tokens[i] * wide + channel, width, out);
      else if (s_.source_rows[i] >= 0) std::copy_n(ring + s_.source_rows[i] * wide + channel, width, out);
      else std::fill_n(out, width, absent);
    }
  }

  void round_index(Floats& x, long count, long D) const {
    if (!l_.rounds_index || !count) return;
    Floats turned(x.size());
    dsv4_hadamard(x.data(), turned.data(), count, D, (float)(1.0 / std::sqrt((double)D)), threads_);
    dsv4_fp4_round_trip(turned.data(), x.data(), count, D, INDEX_GROUP, threads_);
  }

  // The entry rows that each token attends to, [T, count]; null with a count if a row is outside.
  const int64_t* choose(std::vector<int64_t>& chosen, long& count) {
    const long T = s_.num_tokens;
    if (!l_.main.wkv) return nullptr;
    if (m_.folded) return count = s_.num_hca, s_.hca_rows;
    count = has_choice() ? l_.top_k : s_.most_entries;
    chosen.resize(std::max(1L, T * count));
    for (long t = 0; t < T; t++)
      for (long i = 0; i < count; i++) chosen[t * count + i] = i < s_.num_visible[t] ? i : -1;
    if (has_choice() && score(chosen.data())) return nullptr;
    for (long t = 0; t < T; t++)
      for (long i = 0; i < count; i++) {
        int64_t& entry = chosen[t * count + i];
        if (entry < 0) continue;
        const int64_t number = s_.first_entries[t] + entry;
        if (number < 0 || number >= s_.num_csa) return nullptr;
        entry = s_.csa_rows[number];
      }
    return chosen.data();
  }

  int score(int64_t* chosen) {
    const long T = s_.num_tokens, H = l_.index_heads, D = l_.index_query->rows / H;
    Floats &query = index_query_, &weights = index_weights_;
    rotate(query.data(), angles(), T, H, D);
    round_index(query, T * H, D);
    for (float& weight : weights) weight *= (float)l_.index_scale;
    for (long i = 0; i < s_.num_tables; i++) {
      const Table& table = s_.tables[i];
      const long t = table.begin;
      if (table.count > l_.top_k &&
          dsv4_index_select(query.data() + t * H * D, weights.data() + t * H, &m_.index_keys, table.rows,
                            s_.num_visible + t, chosen + t * l_.top_k, table.end - t, H, D, table.count, l_.top_k,
                            threads_))
        return ROW_OUTSIDE;
    }
    return DONE;
  }

  const Layer& l_;
  const Memory& m_;
  const Step& s_;
  const int threads_;
  Floats latent_, query_, keys_, index_query_, index_weights_;
  Raw main_, index_;
};
}  // namespace

// streams, out [T, N, D]. Returns a Status.
API int dsv4_layer(const Layer* layer, const Memory* memory, const Step* step, const float* streams, float* out,
                   int threads) {
  const long T = step->num_tokens, N = layer->streams, D = layer->wq_a->columns;
  Floats x(T * D), y(T * D), between(T * N * D), post(T * N), comb(T * N * N);
  Run run(*layer, *memory, *step, threads);
  auto around = [&](const Hyper& hyper, const float* from, float* to, auto&& sublayer) {
    dsv4_enter(from, hyper.fn, hyper.base, hyper.scale, hyper.norm, x.data(), post.data(), comb.data(), T, N, D,
               (float)layer->norm_eps, (float)layer->hc_eps, layer->iterations, threads);
    if (const int failed = sublayer()) return failed;
    dsv4_hyper_mix(from, y.data(), post.data(), comb.data(), to, T, N, D, threads);
    return (int)DONE;
  };
  const int failed = around(layer->attention, streams, between.data(), [&] { return run.attend(x.data(), y.data()); });
  return failed ? failed : around(layer->feed, between.data(), out, [&] { return run.feed(x.data(), y.data()); });
}
