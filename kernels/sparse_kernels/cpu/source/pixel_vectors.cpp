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

Images images(const float* data, const int64_t* strides, int64_t height, int64_t width, int64_t channels) {
  return {const_cast<float*>(data), strides[0], strides[1], strides[2], height, width, channels};
}

}  // namespace
}  // namespace pixels

using namespace pixels;

// Writes every pixel of the result. strides: of images, rows and columns, in floats.
extern "C" int pixels_gather(const Layer* layer, int backward, const float* source, const int64_t* source_strides,
                             const float* values, const float* bias, float* result, const int64_t* result_strides,
                             const int32_t* ids) {
  return attempt(*layer, ids, [&](const Blocks& blocks) {
    const Layer& l = *layer;
    Images inputs = images(backward ? result : source, backward ? result_strides : source_strides, l.height, l.width, l.inputs);
    Images outputs = images(backward ? source : result, backward ? source_strides : result_strides, l.out_height, l.out_width, l.outputs);
    gather(l, backward, backward ? outputs : inputs, values, bias, backward ? inputs : outputs, blocks);
  });
}

// Writes the gradients of the blocks; dvalues is zero before.
extern "C" int pixels_weight_grad(const Layer* layer, const float* x, const int64_t* x_strides, const float* y,
                                  const int64_t* y_strides, float* dvalues, const int32_t* ids) {
  return attempt(*layer, ids, [&](const Blocks& blocks) {
    const Layer& l = *layer;
    weight_grad(l, images(x, x_strides, l.height, l.width, l.inputs),
                images(y, y_strides, l.out_height, l.out_width, l.outputs), dvalues, blocks);
  });
}
