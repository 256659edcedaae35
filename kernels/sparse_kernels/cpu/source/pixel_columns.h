// A pass's weights in the order in which they are read. A column is an input of the pass and a tap
// (one distance in the packed source) with its weights to `width` neighbouring results.
#pragma once
#include <atomic>
#include <stdexcept>

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
  int32_t* start;    // [chunks * stripes + 1]
  int32_t* distance;  // in vectors
  float* weights;    // [columns, width], or null
  int64_t* places;   // of a column's first weight in values, or null
  int64_t cells() const { return chunks * stripes; }
};

// What a list needs beside the blocks.
struct Reading {
  const Layer& layer;
  Side side;
  PassList list;
  int width;              // results of a column
  int64_t chunk;          // channels of a chunk
  int64_t pitch, row;     // vectors from channel to channel and from row to row of the packed source
  int64_t columns() const {  // at most
    return list.start[side.blocks_written()] * side.block_read * (side.block_written / width);
  }
};

// Whether every number of a list lies where it may: a wrong one would read outside of memory.
inline bool is_sound(const Layer& l, const Side& side, const PassList& list) {
  int64_t groups = side.blocks_written();
  if (list.start[0] != 0 || list.start[groups] > l.slots) return false;
  for (int64_t g = 0; g < groups; g++)
    if (list.start[g] > list.start[g + 1]) return false;
  bool sound = true;
  auto within = [](int32_t i, int64_t end) { return static_cast<uint64_t>(static_cast<int64_t>(i)) < static_cast<uint64_t>(end); };
  for (int64_t e = 0; e < list.start[groups]; e++)
    sound &= within(list.slot[e], l.slots) & within(list.reduce[e], side.blocks_read()) &
             within(list.tap_h[e], l.taps_h) & within(list.tap_w[e], l.taps_w);
  return sound;
}

// Calls f(column's channel, its place in the block, distance of its tap, slot) for the columns of a
// written block that meet results of a phase.
template <class F>
void each_column(const Reading& r, const int64_t* distances, int64_t g, F&& f) {
  const PassList& list = r.list;
  for (int64_t e = list.start[g]; e < list.start[g + 1]; e++) {
    int64_t distance = distances[list.tap_h[e] * r.layer.taps_w + list.tap_w[e]];
    if (distance < 0) continue;
    int64_t first = list.reduce[e] * r.side.block_read;
    int64_t n = std::min(r.side.block_read, r.side.read - first);
    for (int64_t k = 0; k < n; k++) f(first + k, k, distance, list.slot[e]);
  }
}

// Fills `columns`, whose arrays have room for all, for results in the phases (phase_h, phase_w).
// With values: the weights, zero beyond the weight's edge. Else: places.
inline int64_t fill(const Reading& r, const Axis& h, const Axis& w, int64_t phase_h, int64_t phase_w,
                    const float* values, Columns& columns) {
  const Side& side = r.side;
  std::vector<int64_t> distances;
  for (int64_t a = 0; a < r.layer.taps_h; a++)
    for (int64_t b = 0; b < r.layer.taps_w; b++) {
      int64_t down = h.offset(phase_h, a), right = w.offset(phase_w, b);
      distances.push_back(down < 0 || right < 0 ? -1 : down * r.row + right);
    }
  std::vector<int32_t> chunk_of(side.read);
  for (int64_t c = 0; c < side.read; c++) chunk_of[c] = static_cast<int32_t>(c / r.chunk);
  int64_t groups = side.blocks_written(), stripes = side.block_written / r.width;
  int64_t part = std::max<int64_t>(1, ceil_div(groups, 4 * r.layer.threads));
  std::fill_n(columns.start, columns.cells() + 1, 0);
  int32_t* counts = columns.start + 1;
  shared(groups, part, static_cast<int>(r.layer.threads), [&](int64_t g0, int64_t g1) {
    for (int64_t g = g0; g < g1; g++)
      each_column(r, distances.data(), g, [&](int64_t c, int64_t, int64_t, int64_t) {
        for (int64_t s = 0; s < stripes; s++) counts[chunk_of[c] * columns.stripes + g * stripes + s]++;
      });
  });
  for (int64_t cell = 0; cell < columns.cells(); cell++) columns.start[cell + 1] += columns.start[cell];
  std::vector<int32_t> next(columns.start, columns.start + columns.cells());
  int64_t block = side.block_written * side.block_read;
  shared(groups, part, static_cast<int>(r.layer.threads), [&](int64_t g0, int64_t g1) {
    for (int64_t g = g0; g < g1; g++)
      each_column(r, distances.data(), g, [&](int64_t c, int64_t k, int64_t distance, int64_t slot) {
        for (int64_t s = 0; s < stripes; s++) {
          int64_t column = next[chunk_of[c] * columns.stripes + g * stripes + s]++;
          int64_t first = slot * block + k * side.read_step + s * r.width * side.written_step;
          columns.distance[column] = static_cast<int32_t>(distance + c * r.pitch);
          if (columns.places) columns.places[column] = first;
          if (!values) continue;
          int64_t inside = side.written - g * side.block_written - s * r.width;
          for (int64_t b = 0; b < r.width; b++)
            columns.weights[column * r.width + b] = b < inside ? values[first + b * side.written_step] : 0.0f;
        }
      });
  });
  return columns.start[columns.cells()];
}

// Results that a column may have: they must divide the block.
inline int width_of(int64_t block_written) {
  int width = 8;
  while (block_written % width) width /= 2;
  return width;
}

}  // namespace pixels
