// Threads of two kinds: those of the OpenMP runtime that torch has loaded, and our own.
//
// The runtime's threads wait awake after each of torch's operators, so they begin at once, and a
// thread of ours would have to share a core with them. But the runtime returns when all of its
// threads have come, even to find nothing left: on a machine with other work to do, a slice of the
// scheduler's time later. Our own are not waited for unless they have taken a part. So the
// runtime's are taken until they come late, and then for a while our own.
#include "threads.h"
#include <pthread.h>
#include <time.h>
#include <algorithm>
#include <atomic>

namespace {
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel

std::atomic<Parallel> runtime{nullptr};

struct Work {
  Share share;
  void* context;
  int64_t count, part;
  std::atomic<int64_t> next{0};
};

void take_parts(Work& work) {
  for (;;) {
    int64_t first = work.next.fetch_add(work.part, std::memory_order_relaxed);
    if (first >= work.count) return;
    work.share(work.context, first, std::min(first + work.part, work.count));
  }
}

int64_t nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

// The runtime's threads. How late the last of them came decides how many passes do without them.
// In nanoseconds: a thread that slept needs a third of it, one that queues ten times as much.
const int64_t LATE = 300000;
const int LONGEST_REST = 256;
std::atomic<int> rest{0}, next_rest{1};

bool resting() {
  if (rest <= 0) return false;
  --rest;
  return true;
}

struct Timed {
  Work& work;
  int64_t begin;
  std::atomic<int64_t> latest{0};
};

void arrive(void* pointer) {
  Timed& timed = *static_cast<Timed*>(pointer);
  int64_t delay = nanoseconds() - timed.begin, latest = timed.latest;
  while (delay > latest && !timed.latest.compare_exchange_weak(latest, delay)) {
  }
  take_parts(timed.work);
}

void in_threads_of_the_runtime(Parallel parallel, Work& work, int threads) {
  Timed timed{work, nanoseconds()};
  parallel(arrive, &timed, static_cast<unsigned>(threads), 0);
  int length = next_rest;
  if (timed.latest > LATE) {
    rest = length;
    next_rest = std::min(2 * length, LONGEST_REST);
  } else {
    next_rest = std::max(length / 2, 1);
  }
}

// Our own threads. They are begun as they are needed, sleep between passes, and serve any caller.
struct Call {
  Work& work;
  int seats;   // of helpers that may still join
  int inside;  // helpers that have joined and not left
  Call* next;
};

struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t called = PTHREAD_COND_INITIALIZER, left = PTHREAD_COND_INITIALIZER;
  Call* calls = nullptr;
  int helpers = 0;
};
// Never freed: helpers outlive what the end of the process destroys. A forked child has a new one,
// for no thread but the forking one is there.
std::atomic<Pool*> pool{nullptr};

Call* open_call(Pool& pool) {
  Call* call = pool.calls;
  while (call && !call->seats) call = call->next;
  return call;
}

void* help(void* pointer) {
  Pool& pool = *static_cast<Pool*>(pointer);
  pthread_mutex_lock(&pool.mutex);
  for (;;) {
    Call* call = open_call(pool);
    if (!call) {
      pthread_cond_wait(&pool.called, &pool.mutex);
      continue;
    }
    --call->seats;
    ++call->inside;
    pthread_mutex_unlock(&pool.mutex);
    take_parts(call->work);
    pthread_mutex_lock(&pool.mutex);
    call->seats = 0;  // nothing is left to take
    if (!--call->inside) pthread_cond_broadcast(&pool.left);
  }
}

void begin_helpers(Pool& pool, int wanted) {
  while (pool.helpers < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, help, &pool)) return;  // fewer threads do it, too
    pthread_detach(thread);
    ++pool.helpers;
  }
}

void in_threads_of_our_own(Pool& pool, Work& work, int threads) {
  Call call{work, threads - 1, 0, nullptr};
  pthread_mutex_lock(&pool.mutex);
  begin_helpers(pool, threads - 1);
  call.next = pool.calls;
  pool.calls = &call;
  for (int i = 1; i < threads; ++i) pthread_cond_signal(&pool.called);
  pthread_mutex_unlock(&pool.mutex);
  take_parts(work);
  pthread_mutex_lock(&pool.mutex);
  Call** place = &pool.calls;
  while (*place != &call) place = &(*place)->next;
  *place = call.next;
  while (call.inside) pthread_cond_wait(&pool.left, &pool.mutex);
  pthread_mutex_unlock(&pool.mutex);
}

void forked() {
  runtime = nullptr;  // it waits for threads that the child does not have
  pool = new Pool;
}

__attribute__((constructor)) void begin() {
  pool = new Pool;
  pthread_atfork(nullptr, nullptr, forked);
}
}  // namespace

// The function GOMP_parallel of the runtime that torch has loaded; none: our own threads alone.
extern "C" void use_runtime(void* gomp_parallel) { runtime = reinterpret_cast<Parallel>(gomp_parallel); }

void in_threads(Share share, void* context, int64_t count, int64_t part, int threads) {
  Work work{share, context, count, part};
  int64_t parts = (count + part - 1) / part;
  Parallel parallel = runtime;
  if (threads <= 1 || parts <= 1)
    take_parts(work);
  else if (parallel && !resting())
    // Of fewer it would end some threads, and torch's next operator would begin them again.
    in_threads_of_the_runtime(parallel, work, threads);
  else
    in_threads_of_our_own(*pool, work, static_cast<int>(std::min<int64_t>(threads, parts)));
}
