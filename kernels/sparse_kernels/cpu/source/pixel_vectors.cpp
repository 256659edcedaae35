// Blocks narrower than a vector, single weights included: vectors over pixels.
//
// The images that a strip of results reads are copied to [row][channel][column][lane]
// (pixel_packing.h), so that a weight is a number for whole vectors and a tap a distance. The sums
// of a few pixels stay in registers over all weights of a chunk of channels that fits in a cache.
#include "pixel_gather.h"
#include "pixel_weight_grad.h"

namespace pixels {
namespace {

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

Images images(const void* data, const int64_t* memory, int64_t height, int64_t width, int64_t channels) {
  return {static_cast<char*>(const_cast<void*>(data)), memory[0], memory[1], memory[2], memory[3], height, width, channels};
}

}  // namespace
}  // namespace pixels

using namespace pixels;

// Writes every pixel of the result. memory: distances of images, rows and columns in bytes, and of
// what Number.
extern "C" int pixels_gather(const Layer* layer, int backward, const void* source, const int64_t* source_memory,
                             const float* values, const float* bias, void* result, const int64_t* result_memory,
                             const int32_t* ids) {
  return attempt(*layer, ids, [&](const Blocks& blocks) {
    const Layer& l = *layer;
    Images inputs = images(backward ? result : source, backward ? result_memory : source_memory, l.height, l.width, l.inputs);
    Images outputs = images(backward ? source : result, backward ? source_memory : result_memory, l.out_height, l.out_width, l.outputs);
    gather(l, backward, backward ? outputs : inputs, values, bias, backward ? inputs : outputs, blocks);
  });
}

// Writes the gradients of the blocks; dvalues is zero before.
extern "C" int pixels_weight_grad(const Layer* layer, const void* x, const int64_t* x_memory, const void* y,
                                  const int64_t* y_memory, float* dvalues, const int32_t* ids) {
  return attempt(*layer, ids, [&](const Blocks& blocks) {
    const Layer& l = *layer;
    weight_grad(l, images(x, x_memory, l.height, l.width, l.inputs),
                images(y, y_memory, l.out_height, l.out_width, l.outputs), dvalues, blocks);
  });
}
