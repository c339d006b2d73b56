// What the planner leaves of a step, and who reads it.
#pragma once
#include <cstdint>

namespace plan {

// The order of SECTIONS in plan.py.
enum Section {
  POSITIONS, WINDOW_ROWS, RING_TOKENS, RING_ROWS,
  CSA_PHASES, CSA_POSITIONS, CSA_ENTRY_ROWS, CSA_SOURCE_TOKENS, CSA_SOURCE_ROWS, CSA_RING_TOKENS, CSA_RING_ROWS,
  CSA_ROWS, FIRST_ENTRIES, NUM_VISIBLE,
  HCA_PHASES, HCA_POSITIONS, HCA_ENTRY_ROWS, BEGINS, OFFSETS, SOURCES, ENDS, RAW_ROWS, HCA_RING_TOKENS, HCA_RING_ROWS,
  HCA_ROWS, COUNT
};

// What the caller gives of each row; positions [starts, ends) are computed, [0, written) were written before.
struct Given {
  const int64_t *lines, *states, *starts, *written, *ends;

  Given(const int64_t* all, int64_t rows)
      : lines(all), states(all + rows), starts(all + 2 * rows), written(all + 3 * rows), ends(all + 4 * rows) {}
};

}  // namespace plan
