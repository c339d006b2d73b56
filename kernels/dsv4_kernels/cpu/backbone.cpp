// All layers of a planned step in one call, and what makes logits of the last one's streams in another: what
// model/transformer.py composes of whole layers, bit for bit.
#include <cmath>
#include <memory>
#include <vector>
#include "lanes.h"
#include "layer.h"
#include "plan.h"
#include "products.h"
#include "team.h"

extern "C" {
void dsv4_rms_norm(const float*, const float*, float*, long, long, float, int);
void dsv4_hyper_head(const float*, const float*, const float*, const float*, float*, long, long, long, float, float, int);
int dsv4_layer(const Layer*, const Memory*, const Step*, const float*, float*, int);
}

// The structures of backbone.py. Of each layer: its kind, and its line of `frequencies` [ropes, rotated / 2].
struct Backbone {
  const Layer* const* layers;
  const int64_t *kinds, *ropes;
  const float *frequencies, *embed;  // embed [vocabulary, width]
  int64_t num_layers, num_ropes, rotated, vocabulary, width, streams, csa_ratio;
};

struct Planned {  // the sections of plan.h one after the other
  const int64_t *token_ids, *given, *sections, *sizes;
  int64_t num_rows, num_tokens;
};

struct Head {
  Hyper hyper;  // its norm is the last one
  const Weight* weight;
  int64_t streams, width, rounds;
  double norm_eps, hc_eps;
};

namespace {
enum Kind { WINDOW, CSA, HCA, KINDS };
constexpr int TOKEN_OUTSIDE = 1;  // as dsv4_layer says it

struct Angles {
  Floats cos, sin;

  // Of n positions: the product is rounded as in training, cosine and sine once, from double.
  void compute(const int64_t* positions, long n, const float* frequencies, long half, int threads) {
    cos.resize(n * half), sin.resize(n * half);
    team::divide(threads, 64 * n * half, n, [&](long i) {
      for (long j = 0; j < half; j++) {
        const float angle = (float)positions[i] * frequencies[j];
        cos[i * half + j] = (float)std::cos((double)angle), sin[i * half + j] = (float)std::sin((double)angle);
      }
    });
  }
};

// What layers are told of the step: the same for all of one kind and one rotation, made when the first asks for it.
class Steps {
 public:
  Steps(const Backbone& backbone, const Planned& planned, int threads)
      : b_(backbone), p_(planned), given_(planned.given, planned.num_rows), threads_(threads), tokens_(b_.num_ropes),
        blocks_(b_.num_ropes * KINDS), made_(b_.num_ropes * KINDS), is_made_(b_.num_ropes * KINDS) {
    const int64_t* at = p_.sections;
    for (int i = 0; i < plan::COUNT; i++) sections_[i] = at, at += p_.sizes[i];
    int64_t first_token = 0, first_entry = 0;
    for (int64_t row = 0; row < p_.num_rows && b_.csa_ratio; row++) {
      const int64_t tokens = given_.ends[row] - given_.starts[row], entries = given_.ends[row] / b_.csa_ratio;
      tables_.push_back({sections_[plan::CSA_ROWS] + first_entry, first_token, first_token + tokens, entries});
      first_token += tokens, first_entry += entries;
      most_entries_ = std::max(most_entries_, entries);
    }
  }

  const Step& of(int64_t kind, int64_t rope) {
    const int64_t at = rope * KINDS + kind;
    if (!is_made_[at]) made_[at] = make(kind, rope), is_made_[at] = true;
    return made_[at];
  }

 private:
  int64_t size(plan::Section section) const { return p_.sizes[section]; }

  Step make(int64_t kind, int64_t rope) {
    using namespace plan;
    Step s{};
    Angles& at = tokens_[rope];
    const float* frequencies = b_.frequencies + rope * b_.rotated / 2;
    if (at.cos.empty()) at.compute(sections_[POSITIONS], p_.num_tokens, frequencies, b_.rotated / 2, threads_);
    s.cos = at.cos.data(), s.sin = at.sin.data(), s.rotated = b_.rotated;
    s.token_ids = p_.token_ids, s.num_tokens = p_.num_tokens;
    s.window_rows = sections_[WINDOW_ROWS], s.window = size(WINDOW_ROWS) / p_.num_tokens;
    s.ring_tokens = sections_[RING_TOKENS], s.ring_rows = sections_[RING_ROWS], s.num_ring = size(RING_ROWS);
    if (kind == WINDOW) return s;
    const bool is_csa = kind == CSA;
    s.phases = sections_[is_csa ? CSA_PHASES : HCA_PHASES];
    s.entry_rows = sections_[is_csa ? CSA_ENTRY_ROWS : HCA_ENTRY_ROWS];
    s.kept_tokens = sections_[is_csa ? CSA_RING_TOKENS : HCA_RING_TOKENS];
    s.kept_rows = sections_[is_csa ? CSA_RING_ROWS : HCA_RING_ROWS];
    s.num_blocks = size(is_csa ? CSA_ENTRY_ROWS : HCA_ENTRY_ROWS);
    s.num_kept = size(is_csa ? CSA_RING_ROWS : HCA_RING_ROWS);
    Angles& closing = blocks_[rope * KINDS + kind];
    closing.compute(sections_[is_csa ? CSA_POSITIONS : HCA_POSITIONS], s.num_blocks, frequencies, b_.rotated / 2, threads_);
    s.block_cos = closing.cos.data(), s.block_sin = closing.sin.data();
    is_csa ? pool(s) : fold(s);
    return s;
  }

  void pool(Step& s) const {
    using namespace plan;
    s.slots = 2 * b_.csa_ratio;
    s.source_tokens = sections_[CSA_SOURCE_TOKENS], s.source_rows = sections_[CSA_SOURCE_ROWS];
    s.csa_rows = sections_[CSA_ROWS], s.num_csa = size(CSA_ROWS);
    s.first_entries = sections_[FIRST_ENTRIES], s.num_visible = sections_[NUM_VISIBLE];
    s.tables = tables_.data(), s.num_tables = (int64_t)tables_.size(), s.most_entries = most_entries_;
  }

  void fold(Step& s) const {
    using namespace plan;
    s.begins = sections_[BEGINS], s.offsets = sections_[OFFSETS], s.sources = sections_[SOURCES];
    s.ends = sections_[ENDS], s.raw_rows = sections_[RAW_ROWS];
    s.num_runs = size(BEGINS), s.num_sources = size(SOURCES), s.num_raw = size(RAW_ROWS);
    s.hca_rows = sections_[HCA_ROWS], s.num_hca = size(HCA_ROWS) / p_.num_tokens;
  }

  const Backbone& b_;
  const Planned& p_;
  const plan::Given given_;
  const int threads_;
  const int64_t* sections_[plan::COUNT];
  std::vector<Table> tables_;
  int64_t most_entries_ = 0;
  std::vector<Angles> tokens_, blocks_;
  std::vector<Step> made_;
  std::vector<char> is_made_;
};
}  // namespace

// out [T, N, D]: the streams after the last layer. memories: of each layer. Returns a Status of dsv4_layer.
API int dsv4_backbone(const Backbone* backbone, const Memory* const* memories, const Planned* planned, float* out,
                      int threads) {
  const Backbone& b = *backbone;
  const long T = planned->num_tokens, N = b.streams, D = b.width;
  const std::unique_ptr<float[]> other(new float[T * N * D]);
  float* streams[2] = {b.num_layers % 2 ? other.get() : out, b.num_layers % 2 ? out : other.get()};
  for (long t = 0; t < T; t++) {
    const int64_t token = planned->token_ids[t];
    if (token < 0 || token >= b.vocabulary) return TOKEN_OUTSIDE;
    for (long n = 0; n < N; n++) memcpy(streams[0] + (t * N + n) * D, b.embed + token * D, D * sizeof(float));
  }
  Steps steps(b, *planned, threads);
  for (long i = 0; i < b.num_layers; i++) {
    const Step& step = steps.of(b.kinds[i], b.ropes[i]);
    if (const int failed = dsv4_layer(b.layers[i], memories[i], &step, streams[i % 2], streams[(i + 1) % 2], threads))
      return failed;
  }
  return 0;
}

// streams [T, N, D]; logits [T, vocabulary].
API void dsv4_head(const Head* head, const float* streams, float* logits, long T, int threads) {
  const long N = head->streams, D = head->width;
  Floats joined(T * D), normed(T * D);
  const Hyper& hyper = head->hyper;
  dsv4_hyper_head(streams, hyper.fn, hyper.base, hyper.scale, joined.data(), T, N, D, (float)head->norm_eps,
                  (float)head->hc_eps, threads);
  dsv4_rms_norm(joined.data(), hyper.norm, normed.data(), T, D, (float)head->norm_eps, threads);
  Rounded entering(normed.data(), T, D, threads);
  multiply({entering.product(head->weight, logits, (int)head->rounds)}, T, threads);
}
