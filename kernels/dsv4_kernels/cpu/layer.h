// What dsv4_layer is given, laid out as the structures of layers.py. Every number is 64 bits wide, reals are doubles.
#pragma once
#include "packed.h"
#include "rows.h"

struct Hyper {  // how a sublayer reads the streams
  const float *fn, *base, *scale, *norm;
};

struct Compressor {  // wkv null: there is none
  const Weight *wkv, *wgate;
  const float *ape, *norm;
  int64_t ratio, width, rounds;
};

struct Layer {
  Hyper attention, feed;
  const Weight *wq_a, *wq_b, *wkv, *wo_a, *wo_b;
  const float *q_norm, *kv_norm, *sink;
  Compressor main, index;
  const Weight *index_query, *index_weights;  // null: every visible entry is attended to
  const Weight *gate, *experts[3], *shared[3];
  const float* bias;
  const int64_t* fixed;  // the experts of each token id, [vocabulary, K], or null
  int64_t streams, heads, groups, index_heads, top_k, num_chosen, vocabulary, iterations;
  int64_t rounds_a, rounds_b, rounds_kv, rounds_entry, rounds_o, rounds_index, rounds_index_query, rounds_index_weights;
  int64_t rounds_experts, rounds_shared, rounds_shared_inner;
  double norm_eps, hc_eps, scale, index_scale, expert_scale, limit;
};

struct Ring {  // rows of a compressor's inputs, of tokens that may be needed again
  float *values, *gates;
  int64_t count;
};

struct Memory {
  CacheRows window, entries, index_keys;
  Ring ring, index_ring;
  float* folded;  // HCA: [states, 3, width]
  int64_t num_states;
};

struct Table {  // tokens [begin, end) choose among `count` entries, whose index keys are at `rows`
  const int64_t* rows;
  int64_t begin, end, count;
};

struct Step {
  const float *cos, *sin, *block_cos, *block_sin;  // [T, R / 2], [B, R / 2]
  const int64_t *token_ids, *window_rows, *ring_tokens, *ring_rows;
  const int64_t *phases, *entry_rows;
  const int64_t *source_tokens, *source_rows;          // CSA: [B, slots]
  const int64_t *begins, *offsets, *sources, *ends, *raw_rows;  // HCA: runs, and rows that may be taken back
  const int64_t *kept_tokens, *kept_rows;              // what the compressors' rings keep
  const int64_t *csa_rows, *first_entries, *num_visible, *hca_rows;
  const Table* tables;
  int64_t num_tokens, rotated, window, num_ring, num_blocks, slots, num_runs, num_sources, num_raw, num_kept;
  int64_t num_csa, num_hca, num_tables, most_entries;
};
