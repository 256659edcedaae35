// Vectors of one pixel each of several images (or parts of images): a lane holds an image's pixel.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "vectors.h"

namespace pixels {

typedef float Vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Order __attribute__((vector_size(4 * LANES)));
typedef std::make_integer_sequence<int, LANES> Sequence;

// Vectors of sums that a tile may hold with `width` sums a pixel: the rest of the registers holds
// what is read. Also the most columns of a weight gradient that are summed together.
#if defined(__AVX512F__)
constexpr int most_positions(int width) { return width == 8 ? 3 : width == 4 ? 6 : 8; }
constexpr int most_columns(int width) { return width == 8 ? 2 : width == 4 ? 4 : 8; }
#elif defined(__aarch64__)
constexpr int most_positions(int width) { return width == 8 ? 3 : width == 4 ? 5 : 8; }
constexpr int most_columns(int width) { return width == 8 ? 2 : width == 4 ? 4 : 8; }
#else
constexpr int most_positions(int width) { return width == 8 ? 1 : width == 4 ? 2 : width == 2 ? 4 : 8; }
constexpr int most_columns(int width) { return width == 8 ? 1 : width == 4 ? 2 : width == 2 ? 4 : 8; }
#endif

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
// f - 0 is f for every f, so that nothing is computed (f + 0 is another number for -0).
inline Vec broadcast(float f) { return f - Vec{}; }

// Keeps v in a register where the compiler would read it again from memory for each use.
inline void keep(Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// {a[h], b[h], a[h + 1], b[h + 1], ...}, where h is 0 or, of the upper half, LANES / 2.
template <int H, int... I> inline Vec interleaved(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (H + I / 2 + (I % 2) * LANES)...);
#else
  return __builtin_shuffle(a, b, Order{(H + I / 2 + (I % 2) * LANES)...});
#endif
}
inline Vec lower(Vec a, Vec b) { return interleaved<0>(a, b, Sequence{}); }
inline Vec upper(Vec a, Vec b) { return interleaved<LANES / 2>(a, b, Sequence{}); }

// Rows of LANES vectors become columns.
inline void transpose(Vec (&rows)[LANES]) {
  for (int stage = 1; stage < LANES; stage *= 2) {
    Vec next[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++) {
      next[2 * i] = lower(rows[i], rows[i + LANES / 2]);
      next[2 * i + 1] = upper(rows[i], rows[i + LANES / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = next[i];
  }
}

// The sums over the lanes of each of LANES vectors, added in the same order for each of them.
template <int N = LANES> inline Vec totals(const Vec* rows) {
  Vec halves[N / 2];
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; i++)
    halves[i] = lower(rows[i], rows[i + N / 2]) + upper(rows[i], rows[i + N / 2]);
  if constexpr (N == 2)
    return halves[0];
  else
    return totals<N / 2>(halves);
}

}  // namespace pixels
