// Values as passes read them: blocks transposed for the input gradient, rows of bf16 in pairs.
#include <algorithm>
#include <utility>
#include "channel_vectors.h"
#include "threads.h"

namespace {
// Lanes of two vectors in turn, beginning with the lane `from` of each.
template <int from, int... lane>
inline Vector in_turn(Vector a, Vector b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (from + lane / 2 + lane % 2 * LANES)...);
#else  // GCC has the other from version 12 on
  return __builtin_shuffle(a, b, Bits{(from + lane / 2 + lane % 2 * LANES)...});
#endif
}

// A square of LANES x LANES: taking the rows of both halves in turn, log2(LANES) times, transposes.
void transpose_square(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Vector rows[LANES], mixed[LANES];
  UNROLL
  for (int i = 0; i < LANES; i++) rows[i] = load(from + i * from_step);
  UNROLL
  for (int times = 1; times < LANES; times *= 2) {
    UNROLL
    for (int i = 0; i < LANES / 2; i++) {
      std::make_integer_sequence<int, LANES> lanes;
      mixed[2 * i] = in_turn<0>(rows[i], rows[i + LANES / 2], lanes);
      mixed[2 * i + 1] = in_turn<LANES / 2>(rows[i], rows[i + LANES / 2], lanes);
    }
    UNROLL
    for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
  }
  UNROLL
  for (int i = 0; i < LANES; i++) store(to + i * to_step, rows[i]);
}

void transpose_block(const float* from, float* to, int64_t height, int64_t width) {
  for (int64_t i = 0; i < height; i += LANES)
    for (int64_t j = 0; j < width; j += LANES) {
      if (i + LANES <= height && j + LANES <= width) {
        transpose_square(from + i * width + j, width, to + j * height + i, height);
        continue;
      }
      for (int64_t column = j; column < std::min(j + LANES, width); column++)
        for (int64_t row = i; row < std::min(i + LANES, height); row++)
          to[column * height + row] = from[row * width + column];
    }
}
}  // namespace

// values [slots, height, width] -> result [slots, width, height].
extern "C" void channel_transpose(const float* values, float* result, int64_t slots, int64_t height, int64_t width,
                                  int64_t threads) {
  int64_t size = height * width, part = std::max<int64_t>(1, 16384 / size);
  shared(slots, part, static_cast<int>(threads), [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; slot++) {
      // A block is small enough that nothing follows it by itself.
      if (slot + 1 < last)
        for (int64_t k = 0; k < size; k += 16) __builtin_prefetch(values + (slot + 1) * size + k);
      transpose_block(values + slot * size, result + slot * size, height, width);
    }
  });
}

// bf16 values [rows, 2, width] -> pairs [rows, width]; width is a multiple of LANES.
extern "C" void channel_pair_rows(const char* values, float* result, int64_t rows, int64_t width, int64_t threads) {
  shared(rows, std::max<int64_t>(1, 16384 / width), static_cast<int>(threads), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const Brain* from = at(values, Brain{}) + row * 2 * width;
      for (int64_t j = 0; j < width; j += LANES) store(result + row * width + j, pairs_of(load(from + j), load(from + width + j)));
    }
  });
}
