// Runs the team of cpu/team.h as operators do, by two callers at once; built with ThreadSanitizer by test_team.py.
#include <cstdio>
#include <thread>
#include <vector>
#include "team.h"

namespace {
constexpr long ROUNDS = 300, NUMBERS = 1000, WORTH = 1L << 40;

// Whether every number is met once by each loop, and by the second one after all of the first.
bool count(int threads, long chunk) {
  std::vector<long> first(NUMBERS), second(NUMBERS);
  team::in_team(threads, WORTH, [&] {
    team::share(NUMBERS, [&](long i) { first[i]++; });
    team::share_by(chunk, NUMBERS, [&](long i) { second[i] += first[NUMBERS - 1 - i]; });
    team::share_by(chunk + 1, NUMBERS, [&](long i) { second[i] += first[i]; });
  });
  for (long i = 0; i < NUMBERS; i++)
    if (first[i] != 1 || second[i] != 2) return false;
  return true;
}

bool nested(int threads) {
  std::vector<long> sums(threads);
  team::in_team(threads, WORTH, [&] {
    team::share(threads, [&](long i) {
      std::vector<long> met(NUMBERS);
      team::in_team(threads, WORTH, [&] { team::share(NUMBERS, [&](long n) { met[n]++; }); });
      for (long each : met) sums[i] += each;
    });
  });
  for (long sum : sums)
    if (sum != NUMBERS) return false;
  return true;
}
}  // namespace

int main() {
  bool is_right[2] = {true, true};
  auto call = [&](int caller) {
    for (long round = 0; round < ROUNDS; round++)
      is_right[caller] &= count(2 + (int)(round + caller) % 4, 1 + round % 7) && nested(3);
  };
  std::thread other(call, 1);
  call(0);
  other.join();
  std::puts(is_right[0] && is_right[1] ? "right" : "wrong");
  return 0;
}
