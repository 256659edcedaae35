// A pass's weights in the order in which they are read. A column is an input of the pass and a tap
// (one distance in the packed source) with its weights to `width` neighbouring results.
#pragma once
#include <atomic>

#include "pixel_packing.h"
#include "threads.h"

namespace pixels {

// A pass's lists of blocks, as in index_tensors.py.
struct PassList {
  const int32_t *start, *slot, *reduce, *tap_h, *tap_w;
};

// How a pass sees blocks and values: `written` is the side of its results, `read` of its source.
struct Side {
  int64_t written, read;              // channels
  int64_t block_written, block_read;  // of a block
  int64_t written_step, read_step;    // in values, floats
  int64_t blocks_written() const { return ceil_div(written, block_written); }
  int64_t blocks_read() const { return ceil_div(read, block_read); }
};
inline Side forward_side(const Layer& l) { return {l.outputs, l.inputs, l.block_out, l.block_in, 1, l.block_out}; }
inline Side backward_side(const Layer& l) { return {l.inputs, l.outputs, l.block_in, l.block_out, l.block_out, 1}; }

// Columns by chunk of the source's channels, and within a chunk by `width` results: a cell is one
// chunk and one such stripe.
struct Columns {
  int64_t chunks, stripes;
  int32_t* start;     // [chunks * stripes + 1]
  int32_t* distance;  // in vectors
  float* weights;     // [columns, width]
  int64_t cells() const { return chunks * stripes; }
};

// What a list needs beside the blocks.
struct Reading {
  const Layer& layer;
  Side side;
  PassList list;
  int width;           // results of a column
  int64_t chunk;       // blocks of the source's channels in a chunk
  int64_t pitch, row;  // vectors from channel to channel and from row to row of the packed source
  int threads() const { return static_cast<int>(layer.threads); }
  int64_t stripes() const { return side.block_written / width; }  // of a block
  int64_t columns() const { return list.start[side.blocks_written()] * side.block_read * stripes(); }  // at most
};

// Whether every number of a list lies where it may: a wrong one would read outside of memory.
inline bool is_sound(const Layer& l, const Side& side, const PassList& list) {
  int64_t groups = side.blocks_written();
  if (list.start[0] != 0 || list.start[groups] > l.slots) return false;
  for (int64_t g = 0; g < groups; g++)
    if (list.start[g] > list.start[g + 1]) return false;
  const int32_t *slot = list.slot, *reduce = list.reduce, *tap_h = list.tap_h, *tap_w = list.tap_w;
  uint32_t slots = static_cast<uint32_t>(l.slots), blocks = static_cast<uint32_t>(side.blocks_read());
  uint32_t taps_h = static_cast<uint32_t>(l.taps_h), taps_w = static_cast<uint32_t>(l.taps_w);
  uint32_t wrong = 0;
  for (int64_t e = 0, last = list.start[groups]; e < last; e++)
    wrong |= (static_cast<uint32_t>(slot[e]) >= slots) | (static_cast<uint32_t>(reduce[e]) >= blocks) |
             (static_cast<uint32_t>(tap_h[e]) >= taps_h) | (static_cast<uint32_t>(tap_w[e]) >= taps_w);
  return !wrong;
}

// Distances of the taps [taps_h, taps_w] for results in a phase; -1 where a tap meets none.
inline std::vector<int32_t> tap_distances(const Reading& r, const Axis& h, const Axis& w, int64_t phase_h, int64_t phase_w) {
  std::vector<int32_t> distances;
  for (int64_t a = 0; a < h.taps; a++)
    for (int64_t b = 0; b < w.taps; b++) {
      int64_t down = h.offset(phase_h, a), right = w.offset(phase_w, b);
      distances.push_back(static_cast<int32_t>(down < 0 || right < 0 ? -1 : down * r.row + right));
    }
  return distances;
}

// Calls f(first, last, chunk) for runs of a written block's entries that read one chunk.
template <class F> void each_run(const Reading& r, int64_t g, F&& f) {
  const int32_t* reduce = r.list.reduce;
  for (int64_t e = r.list.start[g], end = r.list.start[g + 1]; e < end;) {
    int64_t chunk = reduce[e] / r.chunk, first = e;
    int32_t low = static_cast<int32_t>(chunk * r.chunk), high = static_cast<int32_t>(low + r.chunk);
    while (e < end && reduce[e] >= low && reduce[e] < high) e++;
    f(first, e, chunk);
  }
}

// Calls f(column, distance, place of its first weight in values) for the columns of a run and a
// stripe, which are numbered from `column` on. Returns the number behind the last.
template <class F>
int32_t each_column(const Reading& r, const int32_t* taps, int64_t first, int64_t last, int64_t stripe, int32_t column, F f) {
  const PassList list = r.list;
  const int64_t taps_w = r.layer.taps_w, block_read = r.side.block_read, read = r.side.read, pitch = r.pitch;
  const int64_t block = r.side.block_written * block_read, step = r.side.read_step;
  const int64_t offset = stripe * r.width * r.side.written_step;
  for (int64_t e = first; e < last; e++) {
    int64_t distance = taps[list.tap_h[e] * taps_w + list.tap_w[e]];
    if (distance < 0) continue;
    int64_t channel = list.reduce[e] * block_read, n = std::min(block_read, read - channel);
    int64_t place = list.slot[e] * block + offset;
    distance += channel * pitch;
    for (int64_t k = 0; k < n; k++, column++, distance += pitch, place += step) f(column, distance, place);
  }
  return column;
}

// Calls f(column, distance, place, results inside the weight) for all columns, in threads; `next` is
// where those of each cell begin.
template <class F>
void each_column(const Reading& r, const int32_t* taps, int64_t stripes, std::vector<int32_t> next, F f) {
  int64_t groups = r.side.blocks_written(), part = std::max<int64_t>(1, ceil_div(groups, 4 * r.layer.threads));
  shared(groups, part, r.threads(), [&](int64_t g0, int64_t g1) {
    for (int64_t g = g0; g < g1; g++)
      each_run(r, g, [&](int64_t first, int64_t last, int64_t chunk) {
        for (int64_t s = 0; s < r.stripes(); s++) {
          int32_t& column = next[chunk * stripes + g * r.stripes() + s];
          int64_t inside = r.side.written - g * r.side.block_written - s * r.width;
          column = each_column(r, taps, first, last, s, column,
                               [=](int32_t c, int64_t distance, int64_t place) { f(c, distance, place, inside); });
        }
      });
  });
}

// Sets where the columns of each cell begin.
inline void count(const Reading& r, const int32_t* taps, Columns& columns) {
  std::fill_n(columns.start, columns.cells() + 1, 0);
  int32_t* counts = columns.start + 1;
  bool all = r.side.read % r.side.block_read == 0 && *std::min_element(taps, taps + r.layer.taps_h * r.layer.taps_w) >= 0;
  int64_t groups = r.side.blocks_written(), part = std::max<int64_t>(1, ceil_div(groups, 4 * r.layer.threads));
  shared(groups, part, r.threads(), [&](int64_t g0, int64_t g1) {
    for (int64_t g = g0; g < g1; g++)
      each_run(r, g, [&](int64_t first, int64_t last, int64_t chunk) {
        auto nothing = [](int32_t, int64_t, int64_t) {};
        int32_t n = all ? static_cast<int32_t>((last - first) * r.side.block_read)
                        : each_column(r, taps, first, last, 0, 0, nothing);
        for (int64_t s = 0; s < r.stripes(); s++) counts[chunk * columns.stripes + g * r.stripes() + s] += n;
      });
  });
  for (int64_t cell = 0; cell < columns.cells(); cell++) columns.start[cell + 1] += columns.start[cell];
}

inline std::vector<int32_t> begins(const Columns& columns) { return {columns.start, columns.start + columns.cells()}; }

// Writes distances and weights, which are zero beyond the weight's edge.
template <int B> void fill(const Reading& r, const int32_t* taps, const float* values, const Columns& columns) {
  int32_t* distances = columns.distance;
  float* weights = columns.weights;
  const int64_t step = r.side.written_step;
  each_column(r, taps, columns.stripes, begins(columns), [=](int64_t column, int64_t distance, int64_t place, int64_t inside) {
    distances[column] = static_cast<int32_t>(distance);
    for (int b = 0; b < B; b++) weights[column * B + b] = b < inside ? values[place + b * step] : 0.0f;
  });
}
inline void fill(const Reading& r, const int32_t* taps, const float* values, const Columns& columns) {
  auto fill_width = r.width == 8 ? fill<8> : r.width == 4 ? fill<4> : r.width == 2 ? fill<2> : fill<1>;
  fill_width(r, taps, values, columns);
}

// Results that a column may have: they must divide the block.
inline int width_of(int64_t block_written) {
  int width = 8;
  while (block_written % width) width /= 2;
  return width;
}

// Bytes of the packed source that the sums of one tile, or of a chunk of weights, come back to.
// Several results share what is read, so that the second-level cache is fast enough for them.
inline int64_t cached_bytes(int width) { return width <= 2 ? 48 << 10 : 128 << 10; }

// Blocks of channels of a chunk whose packed pixels for so many positions fit in a cache.
inline int64_t chunk_of(const Side& side, const Axis& h, const Axis& w, int64_t down, int64_t across, int64_t bytes) {
  int64_t taps_h = ceil_div(h.taps, h.phases), taps_w = ceil_div(w.taps, w.phases);
  int64_t vectors = ((down - 1) * h.step + taps_h) * ((across - 1) * w.step + taps_w);
  int64_t chunk = std::max<int64_t>(1, bytes / (vectors * 4 * LANES));
  int64_t blocks = std::max<int64_t>(1, chunk / side.block_read);
  return ceil_div(side.blocks_read(), ceil_div(side.blocks_read(), blocks));
}

}  // namespace pixels
