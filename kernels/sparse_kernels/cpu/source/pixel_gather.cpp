// The passes that write images, the output and the gradient of the input: the sums of a few pixels
// stay in registers over all weights of a chunk of channels that fits in a cache.
#include "pixel_calls.h"

namespace pixels {
namespace {

// Results whose sums are summed over all chunks before the next ones: they stay in the cache.
constexpr int64_t SUMS_BYTES = 256 << 10;

// The sums of some positions for all results: [stripe * width][position][lane].
typedef void (*Tile)(const float* source, const int64_t* at, const Columns& columns, const float* bias, float* sums);

// Adds a cell's products to the sums, which are `begin` where that is given, of RUNS times V
// positions: V side by side in the source, at[i] floats into it.
template <int B, int RUNS, int V>
__attribute__((always_inline)) inline void add_cell(const float* source, const int64_t (&at)[RUNS], const Columns& columns, int64_t cell, const Vec* begin, Vec* result) {
  Vec acc[B][RUNS][V];
#pragma GCC unroll 8
  for (int b = 0; b < B; b++)
#pragma GCC unroll 8
    for (int i = 0; i < RUNS; i++)
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) acc[b][i][j] = Vec{};
  const int32_t* distance = columns.distance + columns.start[cell];
  const int32_t* last = columns.distance + columns.start[cell + 1];
  const float* weight = columns.weights + static_cast<int64_t>(columns.start[cell]) * B;
  for (; distance != last; distance++, weight += B) {
    const float* x = source + static_cast<int64_t>(*distance) * LANES;
    Vec read[RUNS][V];
#pragma GCC unroll 8
    for (int i = 0; i < RUNS; i++) {
      const float* run = x + at[i];
      // One address a run: the compiler would keep one for each vector, more than it has registers.
      if (V > 1) asm("" : "+r"(run));
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) read[i][j] = *reinterpret_cast<const Vec*>(run + j * LANES);
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) {
      Vec factor = broadcast(weight[b]);
#pragma GCC unroll 8
      for (int i = 0; i < RUNS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) acc[b][i][j] += factor * read[i][j];
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < B; b++)
#pragma GCC unroll 8
    for (int i = 0; i < RUNS; i++)
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) {
        Vec& sum = result[(b * RUNS + i) * V + j];
        sum = (begin ? begin[b] : sum) + acc[b][i][j];
      }
}

template <int B, int RUNS, int V>
void tile(const float* source, const int64_t* places, const Columns& columns, const float* bias, float* sums) {
  int64_t at[RUNS];
  for (int i = 0; i < RUNS; i++) at[i] = places[i];
  constexpr int64_t STRIPE = B * RUNS * V;
  int64_t some = std::max<int64_t>(1, SUMS_BYTES / (STRIPE * 4 * LANES));
  for (int64_t first = 0; first < columns.stripes; first += some)
    for (int64_t chunk = 0; chunk < columns.chunks; chunk++)
      for (int64_t stripe = first; stripe < std::min(first + some, columns.stripes); stripe++) {
        int64_t cell = chunk * columns.stripes + stripe;
        if (chunk && columns.start[cell] == columns.start[cell + 1]) continue;
        Vec begin[B];
        if (!chunk)
          for (int b = 0; b < B; b++) begin[b] = broadcast(bias[stripe * B + b]);
        add_cell<B, RUNS, V>(source, at, columns, cell, chunk ? nullptr : begin, reinterpret_cast<Vec*>(sums) + stripe * STRIPE);
      }
}

// Shorter runs are taken as single positions.
constexpr int least_run(int width) { return most_positions(width) / 2 + 1; }

template <int B, int RUNS, int... V> Tile side_by_side(int length, std::integer_sequence<int, V...>) {
  static constexpr Tile tiles[] = {tile<B, RUNS, V + least_run(B)>...};
  return tiles[length - least_run(B)];
}
template <int B, int... RUNS> Tile apart(int runs, std::integer_sequence<int, RUNS...>) {
  static constexpr Tile tiles[] = {tile<B, RUNS + 1, 1>...};
  return tiles[runs - 1];
}
template <int B> Tile tile_of(int runs, int length) {
  constexpr int MOST = most_positions(B);
  if (length == 1) return apart<B>(runs, std::make_integer_sequence<int, MOST>{});
  auto lengths = std::make_integer_sequence<int, MOST - least_run(B) + 1>{};
  return B == 1 && runs == 2 ? side_by_side<B, B == 1 ? 2 : 1>(length, lengths) : side_by_side<B, 1>(length, lengths);
}
Tile tile_of(int width, int runs, int length) {
  return width == 8   ? tile_of<8>(runs, length)
         : width == 4 ? tile_of<4>(runs, length)
         : width == 2 ? tile_of<2>(runs, length)
                      : tile_of<1>(runs, length);
}

// Positions of a tile at most: with one result each there is room for two runs.
int64_t most_sums(int width) { return width == 1 ? 2 * most_positions(1) : most_positions(width); }

// One pass that writes images: the output, or the gradient of the input.
struct Gather {
  Axis h, w;
  Images source, result;
  int64_t images;
  int width;
  Strips strips;
  Packed shape;  // of a strip's copy, without its data
  std::vector<Columns> lists;  // by phase
  const float* bias;

  void run(int64_t first, int64_t last) const {
    thread_local Scratch copy, sums;
    Packed packed = shape;
    packed.data = copy.take<float>(h.extent(strips.height) * packed.row());
    float* results = sums.take<float>(lists[0].stripes * width * most_sums(width) * LANES);
    for (int64_t i = first; i < last; i++) run_strip(Strip(strips, i, h, w), packed, results);
  }

  void run_strip(const Strip& strip, const Packed& packed, float* sums) const {
    Lanes lanes(strip.group, images, h, w);
    std::vector<char> rows = h.is_read(strip.height), columns = w.is_read(strip.width);
    for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); row++)
      if (rows[row]) pack_row(source, h, w, lanes, strip, columns, row, packed);
    for (int64_t a = 0; a < std::min(h.phases, strip.height); a++)
      for (int64_t b = 0; b < std::min(w.phases, strip.width); b++)
        run_phase(strip, lanes, a, b, packed, sums);
  }

  void run_phase(const Strip& strip, const Lanes& lanes, int64_t a, int64_t b, const Packed& packed,
                 float* sums) const {
    int64_t down = ceil_div(strip.height - a, h.phases), across = ceil_div(strip.width - b, w.phases);
    int64_t most = most_positions(width), length = ceil_div(across, ceil_div(across, most)), runs = width == 1 ? 2 : 1;
    // Runs of `length` positions side by side, the last of a row maybe shorter, in tiles of equal ones.
    auto tiles = [&](int64_t per_row, int64_t left, int64_t n) {
      if (n > 1 && (w.step != 1 || n < least_run(width))) per_row *= n, n = 1;
      int64_t count = down * per_row, parts = ceil_div(count, n == 1 ? most : runs);
      for (int64_t part = 0; part < parts; part++)
        tile_of_runs(strip, lanes, a, b, packed, sums, count * part / parts, count * (part + 1) / parts, per_row, left, n);
    };
    if (across / length) tiles(across / length, 0, length);
    if (across % length) tiles(1, across / length * length, across % length);
  }

  // Runs first to last of n positions, per_row of them in a row, from column `left` on.
  void tile_of_runs(const Strip& strip, const Lanes& lanes, int64_t a, int64_t b, const Packed& packed, float* sums,
                    int64_t first, int64_t last, int64_t per_row, int64_t left, int64_t n) const {
    int64_t at[8], runs = last - first;
    for (int64_t k = 0; k < runs; k++) {
      int64_t i = (first + k) / per_row, j = left + (first + k) % per_row * n;
      at[k] = i * h.step * packed.row() + j * w.step * LANES;
    }
    tile_of(width, static_cast<int>(runs), static_cast<int>(n))(packed.data, at, lists[a * w.phases + b], bias, sums);
    for (int64_t k = 0; k < runs * n; k++) {
      int64_t run = first + k / n, j = left + run % per_row * n + k % n;
      unpack_result(sums + k * LANES, runs * n, h, w, lanes, strip.top + run / per_row * h.phases + a,
                    strip.left + j * w.phases + b, result);
    }
  }

};

// Products that are summed one by one; sums of more are sums of such, for their rounding's sake.
constexpr int64_t PRODUCTS = 64;

void gather(const Layer& layer, bool backward, const Images& source, const float* values, const float* bias,
            const Images& result, const Blocks& blocks) {
  auto axis = backward ? backward_axis : forward_axis;
  Side side = backward ? backward_side(layer) : forward_side(layer);
  Gather g{};
  g.h = axis(result.height, source.height, layer.taps_h, layer.stride_h, layer.padding_h, layer.dilation_h);
  g.w = axis(result.width, source.width, layer.taps_w, layer.stride_w, layer.padding_w, layer.dilation_w);
  cut_into_lanes(layer.images, g.h, g.w);
  g.source = source, g.result = result, g.width = width_of(side.block_written), g.images = layer.images;
  g.strips = cut_into_strips(layer.images, g.h, g.w, source.channels, layer.threads > 1 ? 4 * layer.threads : 1);
  g.shape = {nullptr, source.channels, pitch_of(g.w.extent(g.strips.width))};
  int64_t most = most_positions(g.width);
  int64_t chunk = chunk_of(side, g.h, g.w, g.width == 1 ? 2 : 1, most, cached_bytes(g.width));
  Reading reading{layer, side, blocks, g.width, chunk, g.shape.pitch, g.shape.row_vectors()};
  int64_t stripes = stripes_of(side, g.width), phases = g.h.phases * g.w.phases;
  int64_t room = most_columns_of(blocks.active(), side, g.width);
  int64_t few = PRODUCTS * side.blocks_read() * stripes * phases / std::max<int64_t>(1, room);
  reading.chunk = std::max<int64_t>(1, std::min(chunk, few));
  int64_t chunks = ceil_div(side.blocks_read(), reading.chunk);
  thread_local Scratch starts, distances, weights, biases;
  int32_t* start = starts.take<int32_t>(phases * (chunks * stripes + 1));
  int32_t* distance = distances.take<int32_t>(room);
  float* weight = weights.take<float>(room * g.width);
  float* padded = biases.take<float>(stripes * g.width);
  for (int64_t i = 0; i < stripes * g.width; i++) padded[i] = bias && i < side.written ? bias[i] : 0.0f;
  g.bias = padded;
  for (int64_t phase = 0; phase < phases; phase++) {
    Columns columns{chunks, stripes, start, distance, weight};
    std::vector<int32_t> taps = tap_distances(reading, g.h, g.w, phase / g.w.phases, phase % g.w.phases);
    Begins begins = count(reading, taps.data(), columns);
    fill(reading, taps.data(), values, columns, begins);
    int64_t n = columns.start[columns.cells()];
    start += columns.cells() + 1, distance += n, weight += n * g.width;
    g.lists.push_back(columns);
  }
  std::atomic<bool> no_memory{false};
  shared(g.strips.count(), 1, static_cast<int>(layer.threads), [&](int64_t first, int64_t last) {
    try {
      g.run(first, last);
    } catch (const std::bad_alloc&) {
      no_memory = true;  // an exception must not leave a thread
    }
  });
  if (no_memory) throw std::bad_alloc();
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
