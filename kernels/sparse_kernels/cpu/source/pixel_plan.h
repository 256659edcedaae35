// How a layer's images are cut into lanes, and what a tap reads: all of a pass's geometry.
//
// A pass writes "results" (outputs, or the gradient of the inputs) and reads a "source". Along each
// axis the results are cut into bands of equal length; a lane is a band of an image. What a band
// reads is copied beside it, the border included, so that a tap is the same distance everywhere.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "pixel_lanes.h"

namespace pixels {

// A layer's numbers, as Python hands them over.
struct Layer {
  int64_t images, height, width, out_height, out_width, outputs, inputs, taps_h, taps_w;
  int64_t block_out, block_in, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t slots, threads;
};

// Images as they lie in memory, channels innermost: distances in bytes.
struct Images {
  char* data;
  int64_t image, row, column, number, height, width, channels;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One axis of a pass. Result i of a band, in phase i % phases, reads through a tap the place
// (i / phases) * step + offset of what is copied for that band.
struct Axis {
  int64_t results, source, taps, phases, step;
  int64_t first;              // the source's coordinate of the first band's place 0
  int64_t scale;              // the source's coordinates for `phases` results
  int64_t bands = 1, length;  // of each band, a multiple of phases
  std::vector<int64_t> offsets;  // [phase, tap]; -1: the tap meets no result of the phase

  void cut(int64_t into) {
    length = ceil_div(ceil_div(results, into), phases) * phases;
    bands = ceil_div(results, length);
  }
  int64_t offset(int64_t phase, int64_t tap) const { return offsets[phase * taps + tap]; }
  int64_t first_of(int64_t band) const { return first + band * (length / phases) * scale; }
  // Places that the first n results of a band read.
  int64_t extent(int64_t n) const {
    int64_t most = 0;
    for (int64_t a = 0; a < std::min(phases, n); a++)
      for (int64_t tap = 0; tap < taps; tap++)
        if (offset(a, tap) >= 0) most = std::max(most, (n - 1 - a) / phases * step + offset(a, tap) + 1);
    return most;
  }
  std::vector<char> is_read(int64_t n) const {
    std::vector<char> read(extent(n));
    for (int64_t i = 0; i < n; i++)
      for (int64_t tap = 0; tap < taps; tap++)
        if (offset(i % phases, tap) >= 0) read[i / phases * step + offset(i % phases, tap)] = 1;
    return read;
  }
};

inline Axis forward_axis(int64_t results, int64_t source, int64_t taps, int64_t stride, int64_t padding,
                         int64_t dilation) {
  Axis axis{results, source, taps, 1, stride, -padding, stride, 1, results, {}};
  for (int64_t tap = 0; tap < taps; tap++) axis.offsets.push_back(tap * dilation);
  return axis;
}

// The inputs' gradient: input h meets output p where p * stride = h + padding - tap * dilation.
inline Axis backward_axis(int64_t results, int64_t source, int64_t taps, int64_t stride, int64_t padding,
                          int64_t dilation) {
  int64_t first = floor_div(padding - (taps - 1) * dilation, stride);
  Axis axis{results, source, taps, stride, 1, first, 1, 1, results, {}};
  axis.cut(1);
  for (int64_t phase = 0; phase < stride; phase++)
    for (int64_t tap = 0; tap < taps; tap++) {
      int64_t distance = phase + padding - tap * dilation;
      bool meets = distance - floor_div(distance, stride) * stride == 0;
      axis.offsets.push_back(meets ? floor_div(distance, stride) - first : -1);
    }
  return axis;
}

inline int64_t groups_of(int64_t images, const Axis& h, const Axis& w) {
  return ceil_div(images * h.bands * w.bands, LANES);
}

// Cuts both axes so that few lanes are idle and little is copied twice.
inline void cut_into_lanes(int64_t images, Axis& h, Axis& w) {
  int64_t least = -1, best_h = 1, best_w = 1;
  for (int64_t i = 1; i <= LANES; i++)
    for (int64_t j = 1; i * j <= LANES; j++) {
      h.cut(i), w.cut(j);
      int64_t cost = groups_of(images, h, w) * (8 * h.length * w.length + h.extent(h.length) * w.extent(w.length));
      if (least < 0 || cost < least) least = cost, best_h = i, best_w = j;
    }
  h.cut(best_h), w.cut(best_w);
}

// Where the lanes of a group lie.
struct Lanes {
  bool used[LANES];
  int64_t image[LANES], band_h[LANES], band_w[LANES];
  Lanes(int64_t group, int64_t images, const Axis& h, const Axis& w) {
    for (int lane = 0; lane < LANES; lane++) {
      int64_t i = group * LANES + lane;
      band_w[lane] = i % w.bands, i /= w.bands;
      band_h[lane] = i % h.bands, i /= h.bands;
      image[lane] = i, used[lane] = i < images;
    }
  }
};

// A rectangle of a group's results, computed in one go.
struct Strips {
  int64_t groups, height, width, down, across;  // sizes of a strip; strips along each axis
  int64_t count() const { return groups * down * across; }
};

// Memory that a strip's copies may take, unless one row of results needs more.
constexpr int64_t STRIP_BYTES = 4 << 20;

inline int64_t pitch_of(int64_t columns) { return columns | 1; }  // odd: rows start in different cache sets

// `lines`: channels that are copied. At least `wanted` strips, if they do not get too small.
inline Strips cut_into_strips(int64_t images, const Axis& h, const Axis& w, int64_t lines, int64_t wanted) {
  Strips s{groups_of(images, h, w), h.length, w.length, 1, 1};
  auto bytes = [&] { return h.extent(s.height) * pitch_of(w.extent(s.width)) * lines * 4 * LANES; };
  while (bytes() > STRIP_BYTES || s.count() < wanted) {
    if (s.height > h.phases)
      s.height = ceil_div(ceil_div(s.height, 2), h.phases) * h.phases;
    else if (s.width > 8 * w.phases)
      s.width = ceil_div(ceil_div(s.width, 2), w.phases) * w.phases;
    else
      break;
    s.down = ceil_div(h.length, s.height), s.across = ceil_div(w.length, s.width);
  }
  return s;
}

struct Strip {
  int64_t group, top, left, height, width;
  Strip(const Strips& s, int64_t index, const Axis& h, const Axis& w) {
    left = index % s.across * s.width, index /= s.across;
    top = index % s.down * s.height, group = index / s.down;
    height = std::min(s.height, h.length - top), width = std::min(s.width, w.length - left);
  }
};

}  // namespace pixels
