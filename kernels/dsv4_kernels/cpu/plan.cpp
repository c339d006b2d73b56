// plan_step: the integers that a step's tensors hold, from its rows and their page table, in one call.
// The readable form is dsv4_backend/runner/inputs.py, which computes the same numbers with numpy.
#include "plan.h"
#include <algorithm>
#include <vector>

namespace {
using namespace plan;
using Ids = std::vector<int64_t>;

// `PlanShape` of plan.py. pages [lines, line_pages]; window is the tokens that are seen, …_ring the rows of a ring.
struct Shape {
  const int64_t* pages;
  int64_t line_pages, rows, tokens, page_tokens;
  int64_t window, window_ring, csa_ratio, csa_ring, hca_ratio, drafts;
};

thread_local Ids sections[COUNT];  // kept between calls: a step allocates nothing once they have grown

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

struct Plan {
  const Shape& s;
  const Given& g;
  Ids firsts;  // the first token of each row, and the number of tokens

  Plan(const Shape& shape, const Given& given) : s(shape), g(given) {
    firsts.push_back(0);
    for (int64_t row = 0; row < s.rows; row++) firsts.push_back(firsts.back() + g.ends[row] - g.starts[row]);
  }

  const int64_t* pages_of(int64_t row) const { return s.pages + g.lines[row] * s.line_pages; }

  int64_t shift(int64_t row) const { return g.starts[row] - firsts[row]; }

  int64_t entry_row(int64_t row, int64_t entry, int64_t ratio) const {
    const int64_t per_page = s.page_tokens / ratio;
    return pages_of(row)[entry / per_page] * per_page + entry % per_page;
  }

  // Calls f(row, token, position) for every token of the step.
  template <class F>
  void each_token(F f) const {
    for (int64_t row = 0; row < s.rows; row++)
      for (int64_t at = g.starts[row]; at < g.ends[row]; at++) f(row, at - shift(row), at);
  }

  void window() const {
    Ids& out = sections[WINDOW_ROWS];
    out.resize(s.tokens * s.window);
    int64_t* to = out.data();
    each_token([&](int64_t row, int64_t, int64_t position) {
      sections[POSITIONS].push_back(position);
      const int64_t base = g.states[row] * s.window_ring, start = g.starts[row], fresh = shift(row) - 2;
      int64_t seen = position + 1 - s.window;
      for (; seen < 0 && seen <= position; seen++) *to++ = -1;
      for (int64_t at = seen % s.window_ring; seen < start && seen <= position; seen++) {
        *to++ = base + at;
        if (++at == s.window_ring) at = 0;
      }
      for (; seen <= position; seen++) *to++ = fresh - seen;
    });
  }

  // What a ring of `size` rows per state keeps of the step.
  void kept(int64_t size, Section tokens, Section rows) const {
    if (!size) return;
    each_token([&](int64_t row, int64_t token, int64_t position) {
      if (position < g.ends[row] - size) return;
      sections[tokens].push_back(token);
      sections[rows].push_back(g.states[row] * size + position % size);
    });
  }

  void phases(int64_t ratio, Section section) const {
    each_token([&](int64_t, int64_t, int64_t position) { sections[section].push_back(position % ratio); });
  }

  // Calls f(row, block) for every block that closes.
  template <class F>
  void each_closing(int64_t ratio, F f) const {
    for (int64_t row = 0; row < s.rows; row++)
      for (int64_t block = g.starts[row] / ratio; block < g.ends[row] / ratio; block++) f(row, block);
  }

  void pools() const {
    const int64_t ratio = s.csa_ratio, size = s.csa_ring;
    phases(ratio, CSA_PHASES);
    each_closing(ratio, [&](int64_t row, int64_t block) {
      sections[CSA_POSITIONS].push_back(block * ratio);
      sections[CSA_ENTRY_ROWS].push_back(entry_row(row, block, ratio));
      for (int64_t at = (block - 1) * ratio; at < (block + 1) * ratio; at++) {
        const bool in_step = at >= g.starts[row];
        sections[CSA_SOURCE_TOKENS].push_back(in_step ? at - shift(row) : -1);
        sections[CSA_SOURCE_ROWS].push_back(at >= 0 && !in_step ? g.states[row] * size + at % size : -1);
      }
    });
    kept(size, CSA_RING_TOKENS, CSA_RING_ROWS);
    Ids bounds{0};
    for (int64_t row = 0; row < s.rows; row++) {
      const int64_t count = g.ends[row] / ratio, per_page = s.page_tokens / ratio;
      const int64_t* pages = pages_of(row);
      Ids& out = sections[CSA_ROWS];
      for (int64_t entry = 0; entry < count; entry += per_page)
        for (int64_t i = 0; i < std::min(per_page, count - entry); i++)
          out.push_back(pages[entry / per_page] * per_page + i);
      bounds.push_back(bounds.back() + count);
    }
    each_token([&](int64_t row, int64_t, int64_t position) {
      sections[FIRST_ENTRIES].push_back(bounds[row]);
      sections[NUM_VISIBLE].push_back((position + 1) / ratio);
    });
  }

  // The position up to which a row's state is folded: runner/folding.py.
  int64_t folded(int64_t row) const {
    return std::max(g.written[row] - s.drafts, g.starts[row] / s.hca_ratio * s.hca_ratio);
  }

  void run(int64_t row, int64_t first, int64_t end, bool goes_on, bool closes) const {
    const int64_t state = g.states[row], cut = std::min(std::max(first, g.starts[row]), end);
    for (int64_t at = first; at < cut; at++) {
      sections[SOURCES].push_back(s.tokens + (int64_t)sections[RAW_ROWS].size());
      sections[RAW_ROWS].push_back(state * s.drafts + at % s.drafts);
    }
    for (int64_t at = cut; at < end; at++) sections[SOURCES].push_back(at - shift(row));
    sections[BEGINS].push_back(goes_on ? state : -1);
    sections[ENDS].push_back(closes ? -1 : state);
    sections[OFFSETS].push_back((int64_t)sections[SOURCES].size());
  }

  void folds() const {
    const int64_t ratio = s.hca_ratio;
    phases(ratio, HCA_PHASES);
    sections[OFFSETS].push_back(0);
    each_closing(ratio, [&](int64_t row, int64_t block) {
      sections[HCA_POSITIONS].push_back(block * ratio);
      sections[HCA_ENTRY_ROWS].push_back(entry_row(row, block, ratio));
      const int64_t begin = block * ratio, done = folded(row);
      const bool goes_on = done / ratio == block && done > begin;
      run(row, goes_on ? done : begin, begin + ratio, goes_on, true);
    });
    for (int64_t row = 0; row < s.rows; row++) {
      const int64_t certain = std::max(g.written[row], g.ends[row]) - s.drafts, done = folded(row);
      const int64_t begin = floor_div(certain, ratio) * ratio, first = std::max(begin, done);
      if (first < certain) run(row, first, certain, begin < done, false);
    }
    kept(s.drafts, HCA_RING_TOKENS, HCA_RING_ROWS);
    int64_t count = 0;
    for (int64_t row = 0; row < s.rows; row++) count = std::max(count, g.ends[row] / ratio);
    if (!count) return;
    each_token([&](int64_t row, int64_t, int64_t position) {
      const int64_t visible = (position + 1) / ratio;
      for (int64_t entry = 0; entry < count; entry++)
        sections[HCA_ROWS].push_back(entry < visible ? entry_row(row, entry, ratio) : -1);
    });
  }
};
}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// given: lines, states, starts, written and ends, each [rows]; sizes [COUNT].
EXPORT void dsv4_plan_step(const void* shape, const int64_t* given, int64_t* sizes) {
  const Shape& s = *static_cast<const Shape*>(shape);
  const Given g(given, s.rows);
  for (Ids& section : sections) section.clear();
  const Plan plan(s, g);
  plan.window();
  plan.kept(s.window_ring, RING_TOKENS, RING_ROWS);
  if (s.csa_ratio) plan.pools();
  if (s.hca_ratio) plan.folds();
  for (int i = 0; i < COUNT; i++) sizes[i] = (int64_t)sections[i].size();
}

// Copies all sections of this thread's last plan, one after the other.
EXPORT void dsv4_take_step(int64_t* out) {
  for (const Ids& section : sections) out = std::copy(section.begin(), section.end(), out);
}
