// Blocks narrower than a vector, single weights included: vectors over pixels.
//
// The images that a strip of results reads are copied to [row][channel][column][lane]
// (pixel_packing.h), so that a weight is a number for whole vectors and a tap a distance. The sums
// of a few pixels stay in registers over all weights of a chunk of channels that fits in a cache.
#include "pixel_columns.h"

namespace pixels {
namespace {

// Bytes of the packed source that the sums of one tile, or of a chunk of weights, come back to.
// Several results share what is read, so that the second-level cache is fast enough for them.
int64_t cached_bytes(int width) { return width <= 2 ? 48 << 10 : 128 << 10; }

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
constexpr int64_t PRODUCTS = 128;

// Blocks of channels of a chunk whose packed pixels for so many positions fit in a cache.
int64_t chunk_of(const Side& side, const Axis& h, const Axis& w, int64_t down, int64_t across, int64_t bytes) {
  int64_t taps_h = ceil_div(h.taps, h.phases), taps_w = ceil_div(w.taps, w.phases);
  int64_t vectors = ((down - 1) * h.step + taps_h) * ((across - 1) * w.step + taps_w);
  int64_t chunk = std::max<int64_t>(1, bytes / (vectors * 4 * LANES));
  int64_t blocks = std::max<int64_t>(1, chunk / side.block_read);
  return ceil_div(side.blocks_read(), ceil_div(side.blocks_read(), blocks));
}

void gather(const Layer& layer, bool backward, const Images& source, const float* values, const float* bias,
            const Images& result, const PassList& list) {
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
  Reading reading{layer, side, list, g.width, chunk, g.shape.pitch, g.shape.row_vectors()};
  int64_t stripes = side.blocks_written() * (side.block_written / g.width);
  int64_t phases = g.h.phases * g.w.phases, room = reading.columns();
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
    count(reading, taps.data(), columns);
    fill(reading, taps.data(), values, columns);
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

// Weight gradient: positions of a tile, as floats into the packed input and the packed gradient.
struct Position {
  int64_t x, y;
};
struct Positions {
  const Position *first, *last;
};
typedef void (*Dots)(const float* x, const int32_t* distance, const float* y, int64_t y_step, const Positions& at, Vec* sums);

// sums[k][b]: over all positions, the input of column k times the gradient of output b.
template <int B, int K>
void dots(const float* x, const int32_t* distance, const float* y, int64_t y_step, const Positions& at, Vec* sums) {
  const float* column[K];
  Vec acc[K][B];
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) {
    column[k] = x + static_cast<int64_t>(distance[k]) * LANES;
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) acc[k][b] = Vec{};
  }
  for (const Position* i = at.first; i != at.last; i++) {
    int64_t x_at = i->x;
    const float* grad = y + i->y;
    Vec factor[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) factor[b] = *reinterpret_cast<const Vec*>(grad + b * y_step);
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) {
      Vec read = *reinterpret_cast<const Vec*>(column[k] + x_at);
      if (B > 1) keep(read);
#pragma GCC unroll 8
      for (int b = 0; b < B; b++) acc[k][b] += factor[b] * read;
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < K; k++)
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) sums[k * B + b] = acc[k][b];
}

template <int B, int... K> Dots dots_of(int columns, std::integer_sequence<int, K...>) {
  static constexpr Dots all[] = {dots<B, K + 1>...};
  return all[columns - 1];
}
template <int B> Dots dots_of(int columns) {
  return dots_of<B>(columns, std::make_integer_sequence<int, most_columns(B)>{});
}

// Vectors of sums that wait to be added up over their lanes, LANES at a time.
class Pending {
 public:
  explicit Pending(float* totals) : totals_(totals) {}
  Vec* next() { return vectors_ + count_; }
  void added(int n) {
    count_ += n;
    if (count_ > ROOM - 2 * LANES) flush();
  }
  void finish() {
    flush();
    if (!count_) return;
    for (int i = count_; i < LANES; i++) vectors_[i] = Vec{};
    Vec sums = pixels::totals(vectors_);
    for (int i = 0; i < count_; i++) totals_[i] += sums[i];
  }

 private:
  static constexpr int ROOM = 64 + 2 * LANES;
  void flush() {
    int i = 0;
    for (; i + LANES <= count_; i += LANES, totals_ += LANES)
      store(totals_, load(totals_) + pixels::totals(vectors_ + i));
    for (int k = 0; i + k < count_; k++) vectors_[k] = vectors_[i + k];
    count_ -= i;
  }
  float* totals_;
  int count_ = 0;
  Vec vectors_[ROOM];
};

// Adds a tile's part of the gradients of the weights in some cells of one chunk to `totals`.
template <int B>
void add_cells(const Columns& columns, int64_t first, int64_t last, const Packed& x, const Packed& y,
               const Positions& at, float* totals) {
  Pending pending(totals + columns.start[first] * B);
  for (int64_t cell = first; cell < last; cell++) {
    const float* grad = y.data + cell % columns.stripes * B * y.pitch * LANES;
    for (int64_t e = columns.start[cell], end = columns.start[cell + 1]; e < end;) {
      int64_t left = end - e, n = ceil_div(left, ceil_div(left, most_columns(B)));
      dots_of<B>(static_cast<int>(n))(x.data, columns.distance + e, grad, y.pitch * LANES, at, pending.next());
      pending.added(static_cast<int>(n) * B), e += n;
    }
  }
  pending.finish();
}

// Positions of a weight gradient's tile, about as many as make adding up the lanes cheap.
constexpr int64_t TILE = 32;
// Parts that the outputs of a chunk are divided into, for threads.
constexpr int64_t SEGMENTS = 4;

struct WeightGrad {
  const Layer& layer;
  Images x, y;
  Axis h, w, y_h, y_w;
  int width;
  Strips strips;
  Packed packed_x, packed_y;
  Columns columns;
  int64_t tile_down, tile_across;
  float* totals;

  int threads() const { return static_cast<int>(layer.threads); }

  void run() const {
    for (int64_t i = 0; i < strips.count(); i++) run_strip(Strip(strips, i, h, w));
  }

  void run_strip(const Strip& strip) const {
    Lanes lanes(strip.group, layer.images, h, w);
    std::vector<char> rows = h.is_read(strip.height), x_columns = w.is_read(strip.width), y_columns(strip.width, 1);
    int64_t x_rows = static_cast<int64_t>(rows.size());
    shared(x_rows + strip.height, 1, threads(), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; row++)
        if (row >= x_rows)
          pack_row(y, y_h, y_w, lanes, strip, y_columns, row - x_rows, packed_y);
        else if (rows[row])
          pack_row(x, h, w, lanes, strip, x_columns, row, packed_x);
    });
    std::vector<Position> at;
    std::vector<size_t> starts;
    for (int64_t top = 0; top < strip.height; top += tile_down)
      for (int64_t left = 0; left < strip.width; left += tile_across) {
        starts.push_back(at.size());
        for (int64_t i = top; i < std::min(top + tile_down, strip.height); i++)
          for (int64_t j = left; j < std::min(left + tile_across, strip.width); j++)
            at.push_back({i * h.step * packed_x.row() + j * w.step * LANES, i * packed_y.row() + j * LANES});
      }
    starts.push_back(at.size());
    int64_t segments = std::min(SEGMENTS, columns.stripes);
    shared(columns.chunks * segments, 1, threads(), [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; task++)
        for (size_t tile = 0; tile + 1 < starts.size(); tile++) {
          Positions positions{&at[starts[tile]], at.data() + starts[tile + 1]};
          int64_t cell = task / segments * columns.stripes, part = task % segments;
          add(cell + columns.stripes * part / segments, cell + columns.stripes * (part + 1) / segments, positions);
        }
    });
  }

  void add(int64_t first, int64_t last, const Positions& at) const {
    auto add_width = width == 8 ? add_cells<8> : width == 4 ? add_cells<4> : width == 2 ? add_cells<2> : add_cells<1>;
    add_width(columns, first, last, packed_x, packed_y, at, totals);
  }
};

void weight_grad(const Layer& layer, const Images& x, const Images& y, float* dvalues, const PassList& list) {
  Side side = forward_side(layer);
  WeightGrad g{layer, x, y, {}, {}, {}, {}, width_of(side.block_written), {}, {}, {}, {}, 0, 0, nullptr};
  g.h = forward_axis(y.height, x.height, layer.taps_h, layer.stride_h, layer.padding_h, layer.dilation_h);
  g.w = forward_axis(y.width, x.width, layer.taps_w, layer.stride_w, layer.padding_w, layer.dilation_w);
  cut_into_lanes(layer.images, g.h, g.w);
  g.y_h = forward_axis(y.height, y.height, 1, 1, 0, 1), g.y_w = forward_axis(y.width, y.width, 1, 1, 0, 1);
  g.y_h.cut(g.h.bands), g.y_w.cut(g.w.bands);
  g.strips = cut_into_strips(layer.images, g.h, g.w, x.channels + y.channels, 1);
  int64_t stripes = side.blocks_written() * (side.block_written / g.width);
  thread_local Scratch copies_x, copies_y, starts, distances, totals;
  g.packed_x = {nullptr, x.channels, pitch_of(g.w.extent(g.strips.width))};
  g.packed_y = {nullptr, stripes * g.width, pitch_of(g.strips.width)};
  g.packed_x.data = copies_x.take<float>(g.h.extent(g.strips.height) * g.packed_x.row());
  g.packed_y.data = copies_y.take<float>(g.strips.height * g.packed_y.row());
  g.tile_across = ceil_div(g.strips.width, ceil_div(g.strips.width, TILE));
  g.tile_down = std::min(g.strips.height, std::max<int64_t>(1, TILE / g.tile_across));
  int64_t chunk = chunk_of(side, g.h, g.w, g.tile_down, g.tile_across, cached_bytes(g.width));
  Reading reading{layer, side, list, g.width, chunk, g.packed_x.pitch, g.packed_x.row_vectors()};
  int64_t chunks = ceil_div(side.blocks_read(), chunk), room = reading.columns();
  g.columns = {chunks, stripes, starts.take<int32_t>(chunks * stripes + 1), distances.take<int32_t>(room), nullptr};
  std::vector<int32_t> taps = tap_distances(reading, g.h, g.w, 0, 0);
  count(reading, taps.data(), g.columns);
  int32_t* distance = g.columns.distance;
  each_column(reading, taps.data(), stripes, begins(g.columns),
              [=](int64_t column, int64_t far, int64_t, int64_t) { distance[column] = static_cast<int32_t>(far); });
  int64_t n = g.columns.start[g.columns.cells()];
  g.totals = totals.take<float>(room * g.width);
  std::fill_n(g.totals, n * g.width, 0.0f);
  g.run();
  const float* sums = g.totals;
  const int64_t width = g.width;
  each_column(reading, taps.data(), stripes, begins(g.columns), [=](int64_t column, int64_t, int64_t place, int64_t) {
    for (int64_t b = 0; b < width; b++) dvalues[place + b] = sums[column * width + b];
  });
}

enum Outcome { DONE, UNSOUND, NO_MEMORY };

template <class F> int attempt(const Layer& layer, bool backward, const PassList& list, F&& f) {
  try {
    if (!is_sound(layer, backward ? backward_side(layer) : forward_side(layer), list)) return UNSOUND;
    f();
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
                             const PassList* list) {
  return attempt(*layer, backward, *list, [&] {
    const Layer& l = *layer;
    Images inputs = images(backward ? result : source, backward ? result_strides : source_strides, l.height, l.width, l.inputs);
    Images outputs = images(backward ? source : result, backward ? source_strides : result_strides, l.out_height, l.out_width, l.outputs);
    gather(l, backward, backward ? outputs : inputs, values, bias, backward ? inputs : outputs, *list);
  });
}

// Writes the gradients of the blocks on the (forward) list; dvalues is zero before.
extern "C" int pixels_weight_grad(const Layer* layer, const float* x, const int64_t* x_strides, const float* y,
                                  const int64_t* y_strides, float* dvalues, const PassList* list) {
  return attempt(*layer, false, *list, [&] {
    const Layer& l = *layer;
    weight_grad(l, images(x, x_strides, l.height, l.width, l.inputs),
                images(y, y_strides, l.out_height, l.out_width, l.outputs), dvalues, *list);
  });
}
