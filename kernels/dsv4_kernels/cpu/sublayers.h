// What lies between the products of a sublayer; sublayers.cpp and layer.cpp are made of it.
#pragma once
#include "products.h"

constexpr long ENTRY_GROUP = 64, INDEX_GROUP = 32;

struct Angles {
  const float *cos, *sin;  // [T, R / 2]
  long R;
};

// The last R of D channels of every head, in place; backwards where the sign is -1.
void rotate(float* x, const Angles& at, long T, long H, long D, float sign = 1.0f);

// query [T, H, D], as it comes from its product: normed and rotated.
void finish_query(float* query, const Angles& at, long T, long H, long D, float eps, int threads);

// keys [T, D], as they come from their product: normed, rotated, and rounded if entries are.
void finish_keys(float* keys, const float* norm, const Angles& at, long T, long D, float eps, bool is_rounded,
                 int threads);

// gates [T, D] += the row of `ape` of each token's phase. Returns 0, or 1 if there is no such row.
int add_phases(float* gates, const float* ape, const int64_t* phases, long T, long D, long ratio);
