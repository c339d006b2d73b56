// Feed-forward layers of several kinds of experts, all computed by one team.
#pragma once
#include <vector>
#include "packed.h"

// One kind of experts. The rows of x [T, D] made the round trip `outer`, those that enter w2 make `inner`. ids and weights
// [T, K]: the experts of each token, -1 for none.
struct Feed {
  const float* x;
  const Weight *w1, *w3, *w2;
  const int64_t* ids;
  const float* weights;
  long K, E;
  int outer, inner;
};

// y [T, D]: the sums of all kinds. Returns 0, or 1 if an id is no expert.
int feed_forward(const std::vector<Feed>& feeds, float* y, long T, float limit, int threads);
