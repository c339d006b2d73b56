// What a weight is multiplied with: rows of floats, or the integers of the round trip that they made.
#pragma once
#include "bytes.h"
#include "digits.h"
#include "wide.h"

class Inputs {
 public:
  // `count` rows for weights stored as w, which made the round trip `trip` or make it in put().
  Inputs(const Weight& w, int trip, long count)
      : width_(w.columns), size_(tiles::group_size(w)), trip_(is_fp4(w) ? trip : rounding::NO_TRIP),
        is_paired_(w.format == packed::FP8 && trip == rounding::FP8_TRIP), paired_(is_paired_ ? count : 0, w.columns) {
    if (trip_ == rounding::FP8_TRIP) digits_.resize(count * (width_ / size_));
    if (trip_ == rounding::INT8_TRIP) bytes_.resize(count * (width_ / size_));
  }

  // Prepares row i, where rows are prepared. A row that is not split has made its trip already.
  void put(long i, const float* x) {
    if (is_paired_) paired_.put(i, x);
    if (trip_ == rounding::FP8_TRIP) digits::split_row(x, width_, size_, digits_.data() + i * (width_ / size_));
    if (trip_ == rounding::INT8_TRIP) bytes::split_row(x, width_, size_, bytes_.data() + i * (width_ / size_));
  }

  bool is_split() const { return trip_ != rounding::NO_TRIP; }
  bool is_prepared() const { return is_split() || is_paired_; }

  // Products of the rows numbers[i] (at x + numbers[i] * columns as floats), up to MOST_ROWS, with columns
  // [first, first + N) of matrix e through put(row, column - first, value); a split row wants a multiple of 8 as first.
  template <class Put>
  void multiply(const float* x, const long* numbers, long count, const Weight& w, long e, long first, long N,
                Floats& room, Put put) const {
    if (trip_ == rounding::FP8_TRIP) {
      const digits::Group* rows[packed::MOST_ROWS];
      point(digits_, numbers, count, rows);
      tiles::products(rows, count, w, e, first, N, put);
    } else if (trip_ == rounding::INT8_TRIP) {
      const bytes::Group* rows[packed::MOST_ROWS];
      point(bytes_, numbers, count, rows);
      tiles::products(rows, count, w, e, first, N, put);
    } else if (!is_paired_ || !paired_.multiply(numbers, count, w, e, first, N, room, put)) {
      const float* rows[packed::MOST_ROWS];
      for (long r = 0; r < count; r++) rows[r] = x + numbers[r] * width_;
#if defined(WIDE)
      if (wide::multiply(rows, count, w, e, first, N, room, put)) return;
#endif
      packed::products(rows, count, w, e, first, N, room, put);
    }
  }

 private:
  static bool is_fp4(const Weight& w) { return w.format == packed::MXFP4 || w.format == packed::NVFP4; }

  template <class Group>
  void point(const Room<Group>& split, const long* numbers, long count, const Group** rows) const {
    for (long r = 0; r < count; r++) rows[r] = split.data() + numbers[r] * (width_ / size_);
  }

  long width_, size_;
  int trip_;
  bool is_paired_;
  pairs::Rows paired_;
  Room<digits::Group> digits_;
  Room<bytes::Group> bytes_;
};
