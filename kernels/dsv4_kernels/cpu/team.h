// The threads that compute an operator together: a library's own, because between the parts of a step they wait for a
// short time where OpenMP would either sleep, which costs a call of the kernel for each part, or take the cores that
// others need.
#pragma once
#include <algorithm>

namespace team {

struct Member {  // of a team, while this thread does its work
  int index = 0, count = 1;
};

extern thread_local Member member;

// Calls work(what) on so many threads at once, this one among them. A thread that finds the others taken, by another
// caller, does it alone.
void run(int threads, void (*work)(void*), void* what);

// All members wait here for each other.
void meet();

// The next `chunk` of the numbers that members share out in this loop; the first of them.
long take(long chunk);

constexpr long GRAIN = 1 << 17;  // multiply-adds of a thread that are worth waking it: about 5 microseconds

// Calls f, whose share() loops a team of threads divides if `work`, in multiply-adds, is worth waking it.
template <class F> static inline void in_team(int threads, long work, F f) {
  if (threads < 2 || work / threads < GRAIN) return f();
  run(threads, [](void* what) { (*(F*)what)(); }, &f);
}

// Calls f(i) for all i below n, each member for one run of them, and ends when all are done.
template <class F> static inline void share(long n, F f) {
  const long end = n * (member.index + 1) / member.count;
  for (long i = n * member.index / member.count; i < end; i++) f(i);
  meet();
}

// As share(), for work of unequal length: members take `chunk` of the numbers at a time.
template <class F> static inline void share_by(long chunk, long n, F f) {
  if (member.count == 1) return share(n, f);
  for (long i; (i = take(chunk)) < n;)
    for (const long end = std::min(n, i + chunk); i < end; i++) f(i);
  meet();
}

// One loop of share() for a team, if `work` is worth it.
template <class F> static inline void divide(int threads, long work, long n, F f) {
  in_team(threads, work, [&] { share(n, f); });
}

}  // namespace team
