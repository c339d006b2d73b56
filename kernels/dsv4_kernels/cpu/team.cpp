// See team.h.
#include "team.h"
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <system_error>
#include <thread>

namespace team {

thread_local Member member;

namespace {
constexpr auto AWAKE = std::chrono::microseconds(200);  // longer than what lies between two parts of a step
constexpr int LOOKS = 32;  // at the number, a microsecond or two, before others may have the core
constexpr int COUNT_BITS = 16;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A number that threads wait for to change: at first awake, but giving way to whoever wants the core, then asleep.
class Signal {
 public:
  long value() const { return value_.load(std::memory_order_acquire); }

  long wait(long seen) {
    const auto begin = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < LOOKS; i++, pause())
        if (const long now = value(); now != seen) return now;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() - begin < AWAKE);
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_++;
    changed_.wait(lock, [&] { return value_.load() != seen; });
    sleepers_--;
    return value();
  }

  void set(long value) {
    value_.store(value);  // before sleepers are counted: who is not counted yet looks at the value once more
    if (!sleepers_.load()) return;
    std::lock_guard<std::mutex>{mutex_};
    changed_.notify_all();
  }

 private:
  std::atomic<long> value_{0}, sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

class Team {
 public:
  void run(int threads, void (*work)(void*), void* what) {
    const Member before = member;
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    member = {0, before.count == 1 && lock.try_lock() ? std::min(threads, grow(threads)) : 1};
    if (member.count == 1) {
      if (lock) lock.unlock();
    } else {
      work_ = work, what_ = what;
      job_.set(((job_.value() >> COUNT_BITS) + 1) << COUNT_BITS | member.count);
    }
    work(what);
    meet();  // others still work
    member = before;
  }

  void meet() {
    if (member.count == 1) return;
    const long seen = met_.value();
    if (arrived_.fetch_add(1) + 1 < member.count) return void(met_.wait(seen));
    arrived_ = 0, next_ = 0;
    met_.set(seen + 1);
  }

  long take(long chunk) { return next_.fetch_add(chunk); }

 private:
  // How many threads there are, with the caller, of as many as there should be.
  int grow(int threads) {
    try {
      for (; workers_ < threads - 1; workers_++) std::thread(&Team::serve, this, workers_ + 1).detach();
    } catch (const std::system_error&) {  // the system has no more of them
    }
    return workers_ + 1;
  }

  void serve(int index) {
    for (long seen = 0;;) {
      seen = job_.wait(seen);
      const int count = (int)(seen & ((1 << COUNT_BITS) - 1));
      if (index >= count) continue;
      member = {index, count};
      work_(what_);
      meet();
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  void (*work_)(void*) = nullptr;
  void* what_ = nullptr;
  Signal job_, met_;  // the number of the work and the size of its team; how often members have met
  std::atomic<long> arrived_{0}, next_{0};
};

// Never destroyed: its threads wait until the process ends. They do not live on in a child process.
Team* all = new Team;
const int forked = pthread_atfork(nullptr, nullptr, [] { all = new Team; });
}  // namespace

void run(int threads, void (*work)(void*), void* what) { all->run(threads, work, what); }
void meet() { all->meet(); }
long take(long chunk) { return all->take(chunk); }

}  // namespace team
