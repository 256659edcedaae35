// Blocks narrower than a vector, single weights included: vectors over pixels.
//
// The images that a strip of results reads are copied to [row][channel][column][lane]
// (pixel_packing.h), so that a weight is a number for whole vectors and a tap a distance. The sums
// of a few pixels stay in registers over all weights of a chunk of channels that fits in a cache.
// Here is what the calls of both passes share.
#pragma once
#include "pixel_columns.h"

namespace pixels {

enum Outcome { DONE, UNSOUND, NO_MEMORY };

template <class F> int attempt(const Layer& layer, const int32_t* ids, F&& f) {
  try {
    Blocks blocks = blocks_of(layer, ids);
    if (blocks.active() < 0) return UNSOUND;
    f(blocks);
    return DONE;
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
}

inline Images images(const void* data, const int64_t* memory, int64_t height, int64_t width, int64_t channels) {
  return {static_cast<char*>(const_cast<void*>(data)), memory[0], memory[1], memory[2], memory[3], height, width, channels};
}

}  // namespace pixels
