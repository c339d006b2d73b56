// Products with weights, all computed by one team, and what rows are before they enter them.
#pragma once
#include <vector>
#include "packed.h"

extern "C" void dsv4_input_round_trip(const float*, float*, long, long, int, int);

// y[t, g, n] = x[t, g] . w[g * N + n]; the rows of x made the round trip `trip`.
struct Product {
  const float* x;
  const Weight* w;
  float* y;
  int trip;
  long groups = 1;
};

// All of T rows each.
void multiply(const std::vector<Product>& products, long T, int threads);

// Rows [T, D] as they enter products: rounded once for each trip that is asked for.
class Rounded {
 public:
  Rounded(const float* x, long T, long D, int threads) : x_(x), rows_(T), width_(D), threads_(threads) {}

  const float* as(int trip) {
    if (!trip) return x_;
    Floats& room = rooms_[trip];
    if (room.empty()) {
      room.resize(rows_ * width_);
      dsv4_input_round_trip(x_, room.data(), rows_, width_, trip, threads_);
    }
    return room.data();
  }

  Product product(const Weight* w, float* y, int trip) { return {as(trip), w, y, trip}; }

 private:
  const float* x_;
  long rows_, width_;
  int threads_;
  Floats rooms_[rounding::TRIPS];
};
