// A pass's weights in the order in which they are read. A column is an input of the pass and a tap
// (one distance in the packed source) with its weights to `width` neighbouring results.
#pragma once
#include <atomic>

#include "blocks.h"
#include "pixel_packing.h"
#include "threads.h"

namespace pixels {

// How a pass sees blocks and values: `written` is the side of its results, `read` of its source.
struct Side {
  int64_t written, read;              // channels
  int64_t block_written, block_read;  // of a block
  int64_t written_step, read_step;    // in values, floats
  bool by_input;                      // whether inputs are written
  int64_t blocks_written() const { return ceil_div(written, block_written); }
  int64_t blocks_read() const { return ceil_div(read, block_read); }
};
inline Side forward_side(const Layer& l) { return {l.outputs, l.inputs, l.block_out, l.block_in, 1, l.block_out, false}; }
inline Side backward_side(const Layer& l) { return {l.inputs, l.outputs, l.block_in, l.block_out, l.block_out, 1, true}; }

// Columns by chunk of the source's channels, and within a chunk by `width` results: a cell is one
// chunk and one such stripe.
struct Columns {
  int64_t chunks, stripes;
  int32_t* start;     // [chunks * stripes + 1]
  int32_t* distance;  // in vectors
  float* weights;     // [columns, width]
  int64_t cells() const { return chunks * stripes; }
};

// What columns are made from.
struct Reading {
  const Layer& layer;
  Side side;
  const Blocks& blocks;
  int width;           // results of a column
  int64_t chunk;       // blocks of the source's channels in a chunk
  int64_t pitch, row;  // vectors from channel to channel and from row to row of the packed source
  int threads() const { return static_cast<int>(layer.threads); }
  int64_t stripes() const { return side.block_written / width; }  // of a block
  // Parts of the slots, for threads.
  int64_t parts() const {
    int64_t most = layer.threads > 1 ? 2 * layer.threads : 1;
    return std::max<int64_t>(1, std::min(most, blocks.slots / 4096));
  }
};
inline int64_t stripes_of(const Side& side, int width) { return side.blocks_written() * (side.block_written / width); }
// Columns that so many blocks make at most.
inline int64_t most_columns_of(int64_t active, const Side& side, int width) {
  return active * side.block_read * (side.block_written / width);
}
inline Blocks blocks_of(const Layer& l, const int32_t* ids) {
  return {ids, l.slots, ceil_div(l.outputs, l.block_out), ceil_div(l.inputs, l.block_in), l.taps_h * l.taps_w};
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

// Where each part's columns of each cell begin, [parts * cells]: a cell's columns are in the order of
// slots, whatever the number of parts.
typedef std::vector<int32_t> Begins;

// Calls f(column, distance, place of its first weight in values, results inside the weight) for the
// columns of a part; `next` is where they begin, and then where they end.
template <class F>
void each_column_of(const Reading& r, const int32_t* taps, int64_t stripes, int64_t part, int32_t* next, F f) {
  const Blocks blocks = r.blocks;
  const Side side = r.side;
  const Divisor chunk(r.chunk);
  const bool is_single = side.block_read == 1 && side.block_written == 1;
  const int64_t per_block = r.stripes(), width = r.width, pitch = r.pitch, size = side.block_written * side.block_read;
  for (int64_t slot = blocks.slots * part / r.parts(), end = blocks.slots * (part + 1) / r.parts(); slot < end; slot++) {
    if (!blocks.is_used(slot)) continue;
    const Place at = blocks.place(slot);
    if (taps[at.tap] < 0) continue;
    const int64_t group = side.by_input ? at.in : at.out, reduce = side.by_input ? at.out : at.in;
    const int64_t channel = reduce * side.block_read, n = std::min(side.block_read, side.read - channel);
    int32_t* cell = next + chunk.quotient(static_cast<uint32_t>(reduce)) * stripes + group * per_block;
    if (is_single) {
      f((*cell)++, taps[at.tap] + channel * pitch, slot, 1);
      continue;
    }
    for (int64_t s = 0; s < per_block; s++, cell++) {
      int64_t distance = taps[at.tap] + channel * pitch, place = slot * size + s * width * side.written_step;
      const int64_t inside = side.written - group * side.block_written - s * width;
      for (int64_t k = 0; k < n; k++, distance += pitch, place += side.read_step) f((*cell)++, distance, place, inside);
    }
  }
}
template <class F>
void each_column(const Reading& r, const int32_t* taps, const Columns& columns, Begins& next, F f) {
  shared(r.parts(), 1, r.threads(), [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; part++)
      each_column_of(r, taps, columns.stripes, part, next.data() + part * columns.cells(), f);
  });
}

// Sets where the columns of each cell begin, and returns where those of each part do.
inline Begins count(const Reading& r, const int32_t* taps, Columns& columns) {
  int64_t cells = columns.cells();
  Begins begins(r.parts() * cells);
  each_column(r, taps, columns, begins, [](int32_t, int64_t, int64_t, int64_t) {});
  int32_t columns_before = 0;
  for (int64_t cell = 0; cell < cells; cell++) {
    columns.start[cell] = columns_before;
    for (int64_t part = 0; part < r.parts(); part++) {
      int32_t n = begins[part * cells + cell];
      begins[part * cells + cell] = columns_before, columns_before += n;
    }
  }
  columns.start[cells] = columns_before;
  return begins;
}

// Writes distances and weights, which are zero beyond the weight's edge.
template <int B> void fill(const Reading& r, const int32_t* taps, const float* values, const Columns& columns, Begins& begins) {
  int32_t* distances = columns.distance;
  float* weights = columns.weights;
  const int64_t step = r.side.written_step;
  each_column(r, taps, columns, begins, [=](int64_t column, int64_t distance, int64_t place, int64_t inside) {
    distances[column] = static_cast<int32_t>(distance);
    for (int b = 0; b < B; b++) weights[column * B + b] = b < inside ? values[place + b * step] : 0.0f;
  });
}
inline void fill(const Reading& r, const int32_t* taps, const float* values, const Columns& columns, Begins& begins) {
  auto fill_width = r.width == 8 ? fill<8> : r.width == 4 ? fill<4> : r.width == 2 ? fill<2> : fill<1>;
  fill_width(r, taps, values, columns, begins);
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
