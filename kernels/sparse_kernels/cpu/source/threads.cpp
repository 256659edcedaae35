// Threads of the OpenMP runtime that torch has loaded, whose function `use_runtime` is given.
#include "threads.h"
#include <atomic>

namespace {
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
Parallel parallel = nullptr;
struct Work {
  Share share;
  void* context;
  int64_t count, part;
  std::atomic<int64_t> next{0};
};
void take_parts(void* pointer) {
  Work& work = *static_cast<Work*>(pointer);
  for (;;) {
    int64_t first = work.next.fetch_add(work.part);
    if (first >= work.count) return;
    int64_t last = first + work.part < work.count ? first + work.part : work.count;
    work.share(work.context, first, last);
  }
}
}  // namespace

extern "C" void use_runtime(void* gomp_parallel) { parallel = reinterpret_cast<Parallel>(gomp_parallel); }

void in_threads(Share share, void* context, int64_t count, int64_t part, int threads) {
  Work work{share, context, count, part};
  int64_t parts = (count + part - 1) / part;
  if (parallel && threads > 1 && parts > 1)
    parallel(take_parts, &work, static_cast<unsigned>(parts < threads ? parts : threads), 0);
  else
    take_parts(&work);
}
