// Forward and input gradient of blocks 16 wide and wider, with vectors over channels.
//
// A tile of results, some pixels by one or two vectors of channels, stays in registers while all
// active blocks of its output block are summed: a weight is loaded once for all pixels, a source
// channel broadcast once for all vectors. The source pixels that a chunk of tiles reads are copied
// to panels first, so that the pixels of a block are near each other, whatever lies between them.
#include <algorithm>
#include <cstring>
#include "channel_vectors.h"
#include "products.h"
#include "threads.h"

namespace {
// Vectors of a tile; its pixels, and channels at a time, so that sums and weights fill the registers.
#if defined(__AVX512F__)
constexpr int WIDE = 2, WIDE_PIXELS = 13, WIDE_CHANNELS = 2, PIXELS = 26, CHANNELS = 4;
#elif defined(__aarch64__)
constexpr int WIDE = 4, WIDE_PIXELS = 6, WIDE_CHANNELS = 1, PIXELS = 24, CHANNELS = 4;
#else
constexpr int WIDE = 2, WIDE_PIXELS = 5, WIDE_CHANNELS = 1, PIXELS = 10, CHANNELS = 2;
#endif
constexpr int64_t MOST_PIXELS = PIXELS > WIDE_PIXELS ? PIXELS : WIDE_PIXELS;
// Terms of a sum that are added one by one.
constexpr int64_t MOST_TERMS = 128;
// Floats of panels that stay in the second cache beside the weights, and most pixels of a chunk.
constexpr int64_t PANEL_FLOATS = 96 * 1024, CHUNK_PIXELS = 416;
// Floats of the weights that are read for a tile's pixels before the next tile's: results are then
// written in long runs, and weights are read from the second cache at most.
constexpr int64_t GROUP_FLOATS = 16 * 1024;

// What a chunk of result pixels reads.
struct Chunk {
  const Call& call;
  const Panels& panels;
  int64_t pixels, pitch;
  std::vector<int64_t> offsets;  // [taps][pitch], of source pixels in the panels
  std::vector<char*> results;    // [pitch]
  float* totals;                 // of the tile that is summed
};

// Adds the bias to totals [pixels][vectors] and writes those that are inside.
template <class T>
void finish_as(const Chunk& chunk, int pixels, int vectors, int64_t first, int64_t channel) {
  const float* bias = chunk.call.bias;
  int64_t left = chunk.call.results.channels - channel;
  pixels = static_cast<int>(std::min<int64_t>(pixels, chunk.pixels - first));
  for (int j = 0; j < vectors && left > 0; j++, channel += LANES, left -= LANES) {
    int64_t lanes = std::min<int64_t>(left, LANES);
    Vector added = bias ? load_first(bias + channel, lanes) : Vector{};
    for (int i = 0; i < pixels; i++) {
      Vector v = load(chunk.totals + (i * vectors + j) * LANES) + added;
      T* to = at(chunk.results[first + i], T{}) + channel;
      if (lanes == LANES)
        store(to, v);
      else
        store_first(to, v, lanes);
    }
  }
}
void finish(const Chunk& chunk, int pixels, int vectors, int64_t first, int64_t channel) {
  with_type(chunk.call.results.number,
            [&](auto number) { finish_as<decltype(number)>(chunk, pixels, vectors, first, channel); });
}

// Fetches what a tile will write while it is summed: its pixels lie far apart.
template <int MT, int NV>
inline __attribute__((always_inline)) void fetch_results(const Chunk& chunk, int64_t first, int64_t channel) {
  int64_t pixels = std::min<int64_t>(MT, chunk.pixels - first), bytes = bytes_of(chunk.call.results.number);
  for (int64_t i = 0; i < pixels; i++)
    for (int j = 0; j < NV; j++) __builtin_prefetch(chunk.results[first + i] + (channel + j * LANES) * bytes, 1);
}

template <class Product, int MT, int NV, int KU>
inline __attribute__((always_inline)) void multiply(Vector (&sums)[MT][NV], const float* panel, const int64_t* offsets,
                                                    const float* values, int64_t width, int64_t ahead) {
  // Addresses are to be panel + offset, made anew each time: kept ones would take the registers.
  asm("" : "+r"(offsets), "+r"(panel));
  typename Product::Cells weights[KU][NV];
  UNROLL
  for (int u = 0; u < KU; u++) {
    UNROLL
    for (int j = 0; j < NV; j++) {
      __builtin_prefetch(values + ahead + u * width + j * LANES);
      weights[u][j] = Product::load_cells(values + u * width + j * LANES);
    }
  }
  UNROLL
  for (int i = 0; i < MT; i++) {
    const float* pixel = panel + offsets[i];
    UNROLL
    for (int u = 0; u < KU; u++) {
      typename Product::Cells source = Product::broadcast_cell(pixel + u);
      UNROLL
      for (int j = 0; j < NV; j++) sums[i][j] = Product::add(sums[i][j], weights[u][j], source);
    }
  }
}

template <int MT, int NV>
inline __attribute__((always_inline)) void clear(Vector (&sums)[MT][NV]) {
  UNROLL
  for (int i = 0; i < MT; i++) {
    UNROLL
    for (int j = 0; j < NV; j++) sums[i][j] = Vector{};
  }
}

// Moves sums to totals in memory, whose first content they are or to which they are added: the error
// of a long sum grows with the terms that are added to one register.
template <int MT, int NV>
inline __attribute__((always_inline)) void settle(Vector (&sums)[MT][NV], float* totals, bool add) {
  UNROLL
  for (int i = 0; i < MT; i++) {
    UNROLL
    for (int j = 0; j < NV; j++) {
      float* total = totals + (i * NV + j) * LANES;
      store(total, add ? load(total) + sums[i][j] : sums[i][j]);
    }
  }
  clear(sums);
}

// Results of MT pixels from `first` on, NV vectors from `column` of an output block on.
template <class Product, int MT, int NV, int KU>
__attribute__((noinline)) void tile(const Chunk& chunk, const uint8_t* reads, int64_t first, int64_t block, int64_t column) {
  const Call& call = chunk.call;
  const Lists& lists = call.lists;
  int64_t width = call.result_block, depth = call.source_block, terms = 0;
  float* totals = chunk.totals;
  bool settled = false;
  Vector sums[MT][NV];
  clear(sums);
  fetch_results<MT, NV>(chunk, first, block * width + column);
  const int64_t last = lists.start[block + 1] - 1;
  for (int64_t e = lists.start[block]; e <= last; e++) {
    int64_t tap = lists.tap_h[e] * call.taps_w + lists.tap_w[e];
    if (!reads[tap]) continue;
    const int64_t* offsets = chunk.offsets.data() + tap * chunk.pitch + first;
    const float* panel = chunk.panels.block(lists.reduce[e]);
    const float* values = call.values + lists.slot[e] * depth * width + column;
    int64_t ahead = (lists.slot[std::min(e + 1, last)] - lists.slot[e]) * depth * width;
    // Values past the last source channel may be anything.
    int64_t channels = std::min(depth, call.sources.channels - lists.reduce[e] * depth);
    for (int64_t k = 0; k < channels;) {
      int64_t end = std::min(channels, k + MOST_TERMS);
      terms += end - k;
      for (; k + KU <= end; k += KU) multiply<Product, MT, NV, KU>(sums, panel + k, offsets, values + k * width, width, ahead);
      if (KU > 1)
        for (; k < end; k++) multiply<Product, MT, NV, 1>(sums, panel + k, offsets, values + k * width, width, ahead);
      if (terms < MOST_TERMS) continue;
      settle(sums, totals, settled);
      settled = true;
      terms = 0;
    }
  }
  settle(sums, totals, settled);
  finish(chunk, MT, NV, first, block * width + column);
}

typedef void (*TileFunction)(const Chunk&, const uint8_t*, int64_t, int64_t, int64_t);
struct TileSize {
  int64_t pixels;
  TileFunction run;
};
// From small to large: what is left of a chunk takes the least that holds it.
constexpr int half(int pixels) { return (pixels + 1) / 2; }
template <class Product, int pixels, int vectors, int channels>
constexpr TileSize SIZES[] = {{half(half(pixels)), tile<Product, half(half(pixels)), vectors, channels>},
                              {half(pixels), tile<Product, half(pixels), vectors, channels>},
                              {pixels, tile<Product, pixels, vectors, channels>}};

// How a chunk is cut into tiles, and which taps each tile reads under.
struct Cut {
  std::vector<int64_t> first;
  std::vector<TileFunction> run;
  std::vector<uint8_t> reads;  // [tiles][taps]
  Cut(const Chunk& chunk, const TileSize (&sizes)[3], int64_t zero) {
    int64_t taps = chunk.call.taps();
    for (int64_t m = 0; m < chunk.pixels;) {
      const TileSize* size = sizes;
      while (size < sizes + 2 && size->pixels < chunk.pixels - m) size++;
      first.push_back(m);
      run.push_back(size->run);
      for (int64_t tap = 0; tap < taps; tap++) {
        const int64_t* offsets = chunk.offsets.data() + tap * chunk.pitch + m;
        reads.push_back(std::any_of(offsets, offsets + size->pixels, [&](int64_t at) { return at != zero; }));
      }
      m += size->pixels;
    }
  }
  // Columns from, from + step, ... before `to` of blocks [block, last).
  void sum(const Chunk& chunk, int64_t block, int64_t last, int64_t from, int64_t to, int64_t step) const {
    const Call& call = chunk.call;
    for (size_t t = 0; t < first.size(); t++)
      for (int64_t b = block; b < last; b++) {
        int64_t left = call.results.channels - b * call.result_block;
        for (int64_t column = from; column < std::min(to, left); column += step)
          run[t](chunk, reads.data() + t * call.taps(), first[t], b, column);
      }
  }
};

// Where a run of pixels in a row reads under each tap, from pixel `first` of the chunk on.
void find_sources(Chunk& chunk, const Grid& grid, int64_t n, int64_t row, int64_t column, int64_t count, int64_t first) {
  int64_t* offsets = chunk.offsets.data() + first;
  const int64_t zero = chunk.panels.zero();
  for (int64_t r = 0; r < chunk.call.taps_h; r++) {
    int64_t h = grid.h.read(r, row), line = h < 0 ? 0 : chunk.panels.row_offset(n, h);
    for (int64_t s = 0; s < chunk.call.taps_w; s++, offsets += chunk.pitch) {
      if (h < 0) continue;
      const int32_t* columns = chunk.panels.column_offsets(s, column);
      for (int64_t i = 0; i < count; i++) offsets[i] = columns[i] < 0 ? zero : line + columns[i];
    }
  }
}

void find_pixels(Chunk& chunk, const Grid& grid, int64_t begin) {
  const Images& to = chunk.call.results;
  int64_t first = 0;
  grid.by_row(begin, begin + chunk.pixels, [&](int64_t n, int64_t row, int64_t column, int64_t count) {
    char* pixel = to.pixel(n, grid.h.first + row * grid.h.step, grid.w.first + column * grid.w.step);
    for (int64_t i = 0; i < count; i++) chunk.results[first + i] = pixel + i * grid.w.step * to.step_pixel;
    find_sources(chunk, grid, n, row, column, count, first);
    first += count;
  });
}

// Output blocks [block, last_block) of some result pixels of a grid.
struct Task {
  const Grid* grid;
  Range pixels;
  int64_t block, last_block;
};

template <class Product>
void sum_chunk(const Call& call, const Task& task) {
  const Grid& grid = *task.grid;
  int64_t begin = task.pixels.begin, end = task.pixels.end, block = task.block, last_block = task.last_block;
  Panels panels(call.sources, call.source_block, 0);
  for (int64_t e = call.lists.start[block]; e < call.lists.start[last_block]; e++) panels.use(call.lists.reduce[e]);
  panels.read_sources(grid, begin, end);
  int64_t pitch = end - begin + MOST_PIXELS;
  Chunk chunk{call, panels, end - begin, pitch, std::vector<int64_t>(call.taps() * pitch, panels.zero()),
              std::vector<char*>(pitch), scratch(3, 2 * MOST_PIXELS * WIDE * LANES)};
  find_pixels(chunk, grid, begin);
  int64_t wide = call.result_block / (WIDE * LANES) * (WIDE * LANES);
  Cut wide_cut(chunk, SIZES<Product, WIDE_PIXELS, WIDE, WIDE_CHANNELS>, panels.zero());
  Cut cut(chunk, SIZES<Product, PIXELS, 1, CHANNELS>, panels.zero());
  for (int64_t next; block < last_block; block = next) {
    int64_t most = call.lists.start[block] + GROUP_FLOATS / (call.result_block * call.source_block);
    for (next = block + 1; next < last_block && call.lists.start[next + 1] <= most;) next++;
    wide_cut.sum(chunk, block, next, 0, wide, WIDE * LANES);
    cut.sum(chunk, block, next, wide, call.result_block, LANES);
  }
}

// Pixels of a chunk: whole tiles, as many as the caches hold.
int64_t chunk_pixels(const Call& call) {
  int64_t tile = call.result_block % (WIDE * LANES) ? PIXELS : WIDE_PIXELS;
  int64_t fit = std::min(CHUNK_PIXELS, PANEL_FLOATS / call.sources.channels) / tile;
  return tile * std::max<int64_t>(fit, 1);
}

// Chunks of every grid, and where they are few, parts of the output blocks, too.
std::vector<Task> tasks_of(const Call& call, const std::vector<Grid>& grids) {
  int64_t blocks = call.result_blocks(), wanted = call.threads > 1 ? 4 * call.threads : 1;
  std::vector<Task> chunks, tasks;
  for (const Grid& grid : grids)
    for (Range pixels : chunks_of(grid, chunk_pixels(call))) chunks.push_back({&grid, pixels, 0, 0});
  int64_t count = std::max<int64_t>(1, static_cast<int64_t>(chunks.size()));
  int64_t parts = std::min(blocks, std::max<int64_t>(1, wanted / count));
  for (const Task& chunk : chunks)
    for (int64_t part = 0; part < parts; part++)
      tasks.push_back({chunk.grid, chunk.pixels, blocks * part / parts, blocks * (part + 1) / parts});
  return tasks;
}
}  // namespace

// Writes every element of call.results; false, and nothing written, if an id is none.
extern "C" int channel_gather(const Request* request) {
  Call call(in_one_row(*request));
  if (!call.sort_blocks()) return 0;
  std::vector<Grid> grids = grids_of(call);
  std::vector<Task> tasks = tasks_of(call, grids);
  shared(static_cast<int64_t>(tasks.size()), 1, static_cast<int>(call.threads), [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++) (call.pairs ? sum_chunk<Pairs> : sum_chunk<Singles>)(call, tasks[t]);
  });
  return 1;
}
