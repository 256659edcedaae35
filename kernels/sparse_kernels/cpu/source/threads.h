// Work shared by threads: parts of a range of tiles, each of which one thread computes alone.
#pragma once
#include <cstdint>

typedef void (*Share)(void* context, int64_t first, int64_t last);

// Calls share(context, first, last) for parts of [0, count), in up to `threads` threads at once,
// the caller's among them, and returns when all are done. Parts are taken as threads get free.
void in_threads(Share share, void* context, int64_t count, int64_t part, int threads);

// The same for a callable f(first, last).
template <class F> void shared(int64_t count, int64_t part, int threads, F&& f) {
  in_threads([](void* context, int64_t first, int64_t last) { (*static_cast<F*>(context))(first, last); },
             &f, count, part, threads);
}
