// The weight gradient of blocks one side of which is 16 wide or wider, with vectors over channels.
//
// A tile of a block's gradient, some source channels by one or two vectors of result channels, stays
// in registers while the pixels of a chunk that meet under its tap are summed. Both images'
// pixels of the chunk are copied to panels, in which the few that a block reads are side by side.
// Slots are divided among threads, sums are not.
#include <algorithm>
#include <utility>
#include "channel_vectors.h"
#include "products.h"
#include "threads.h"

namespace {
#if defined(__AVX512F__)
constexpr int WIDE = 2, WIDE_ROWS = 8, ROWS = 16;
#elif defined(__aarch64__)
constexpr int WIDE = 4, WIDE_ROWS = 4, ROWS = 16;
#else
constexpr int WIDE = 2, WIDE_ROWS = 4, ROWS = 8;
#endif
// Terms of a sum that are added to one register: the error of a long sum grows with them.
constexpr int64_t MOST_TERMS = 128;
// Pixels of a chunk: their part of two blocks stays in the first cache.
constexpr int64_t CHUNK_PIXELS = 256, PANEL_FLOATS = 192 * 1024;

// Offsets of two pixels that meet, or of two pairs of them: one is broadcast by channel, the other
// makes vectors.
struct Meeting {
  int32_t row, vector;
};

template <class Product, int KT, int NV>
void tile(const Meeting* meeting, const Meeting* end, const float* rows, const float* vectors, float* gradient, int64_t width) {
  for (int k = 0; k < KT; k++) __builtin_prefetch(gradient + k * width, 1);
  Vector sums[KT][NV];
  UNROLL
  for (int k = 0; k < KT; k++) {
    UNROLL
    for (int j = 0; j < NV; j++) sums[k][j] = Vector{};
  }
  for (; meeting < end; meeting++) {
    const float *row = rows + meeting->row, *vector = vectors + meeting->vector;
    typename Product::Cells v[NV];
    UNROLL
    for (int j = 0; j < NV; j++) v[j] = Product::load_cells(vector + j * LANES);
    UNROLL
    for (int k = 0; k < KT; k++) {
      typename Product::Cells factor = Product::broadcast_cell(row + k);
      UNROLL
      for (int j = 0; j < NV; j++) sums[k][j] = Product::add(sums[k][j], v[j], factor);
    }
  }
  UNROLL
  for (int k = 0; k < KT; k++) {
    UNROLL
    for (int j = 0; j < NV; j++) store(gradient + k * width + j * LANES, load(gradient + k * width + j * LANES) + sums[k][j]);
  }
}

// What a tile adds up, and to which gradient: pixels that meet, by their offsets from two blocks.
template <class Product>
struct Sum {
  const Meeting *meeting, *end;
  const float *rows, *vectors;
  float* gradient;
  int64_t width;
  template <int KT, int NV>
  void add(int64_t k, int64_t j) const {
    tile<Product, KT, NV>(meeting, end, rows + k, vectors + j, gradient + k * width + j, width);
  }
  // NV vectors of so many rows.
  template <int KT, int NV>
  void add_rows(int64_t count, int64_t j) const {
    int64_t k = 0;
    for (; k + KT <= count; k += KT) add<KT, NV>(k, j);
    if (KT > 8)
      for (; k + 8 <= count; k += 8) add<8, NV>(k, j);
    for (; k + 4 <= count; k += 4) add<4, NV>(k, j);
    for (; k < count; k++) add<1, NV>(k, j);
  }
};

// The rows and columns are those inside of the weight; the last vector may reach past them.
template <class Product>
void add_block(Sum<Product> sum, const Meeting* last, int64_t rows, int64_t columns) {
  for (; sum.meeting < last; sum.meeting = sum.end) {
    sum.end = std::min(sum.meeting + MOST_TERMS, last);
    int64_t j = 0;
    for (; j + (WIDE - 1) * LANES < columns; j += WIDE * LANES) sum.template add_rows<WIDE_ROWS, WIDE>(rows, j);
    for (; j < columns; j += LANES) sum.template add_rows<ROWS, 1>(rows, j);
  }
}

// For each tap, the pixels of a chunk that meet, or pairs of them.
struct Meetings {
  std::vector<Meeting> all;
  std::vector<int64_t> start;
  void find(const Call& call, const Grid& grid, const Panels& sources, const Panels& results, int64_t begin, int64_t end) {
    all.resize(call.taps() * (end - begin));
    start.assign(1, 0);
    Meeting* next = all.data();
    for (int64_t r = 0; r < call.taps_h; r++)
      for (int64_t s = 0; s < call.taps_w; s++) {
        int64_t number = 0;
        grid.by_row(begin, end, [&](int64_t n, int64_t row, int64_t column, int64_t count) {
          int64_t h = grid.h.read(r, row), result = results.result_offset(number);
          const int32_t* columns = sources.column_offsets(s, column);
          auto add = call.pairs ? add_pairs : add_singles;
          if (h >= 0) next = add(sources.row_offset(n, h), columns, result, results.pitch(), count, next);
          number += count;
        });
        start.push_back(next - all.data());
      }
    if (call.swapped)
      for (Meeting& meeting : all) std::swap(meeting.row, meeting.vector);
  }
  // Those of a row, whose results lie one after the other; returns where the next ones go.
  static Meeting* add_singles(int64_t line, const int32_t* columns, int64_t result, int64_t pitch, int64_t count, Meeting* next) {
    for (int64_t i = 0; i < count; i++, result += pitch) {
      *next = {static_cast<int32_t>(line + columns[i]), static_cast<int32_t>(result)};
      next += columns[i] >= 0;
    }
    return next;
  }
  // Each pixel takes the next one along, which the other's partner is. Where the last has none, one
  // of the two pairs holds a zero in its place (past the image's edge or the row's end): what it is
  // multiplied with counts for nothing, if it is finite.
  static Meeting* add_pairs(int64_t line, const int32_t* columns, int64_t result, int64_t pitch, int64_t count, Meeting* next) {
    for (int64_t i = 0; i < count; i++) {
      if (columns[i] < 0) continue;
      *next++ = {static_cast<int32_t>(line + columns[i]), static_cast<int32_t>(result + i * pitch)};
      i++;
    }
    return next;
  }
};

struct Entry {
  int64_t slot, result, source, tap;
};

std::vector<Entry> entries_of(const Call& call) {
  std::vector<Entry> entries;
  const Lists& lists = call.lists;
  for (int64_t g = 0; g < call.result_blocks(); g++)
    for (int64_t e = lists.start[g]; e < lists.start[g + 1]; e++)
      entries.push_back({lists.slot[e], g, lists.reduce[e], lists.tap_h[e] * call.taps_w + lists.tap_w[e]});
  return entries;
}

// Rows and columns of a block's gradient that are inside of the weight, and all of them.
struct Inside {
  int64_t rows, columns, height, width;
  Inside(const Call& call, const Entry& entry) {
    int64_t results = std::min(call.result_block, call.results.channels - entry.result * call.result_block);
    int64_t sources = std::min(call.source_block, call.sources.channels - entry.source * call.source_block);
    rows = call.swapped ? results : sources;
    columns = call.swapped ? sources : results;
    height = call.swapped ? call.result_block : call.source_block;
    width = call.swapped ? call.source_block : call.result_block;
  }
};

// What lies past the last channel has no gradient, whatever it was summed with.
void clear_outside(const Call& call, const Entry& entry) {
  Inside inside(call, entry);
  float* row = call.gradient + entry.slot * inside.height * inside.width;
  for (int64_t k = 0; k < inside.height; k++, row += inside.width)
    std::fill(row + (k < inside.rows ? inside.columns : 0), row + inside.width, 0.f);
}

int64_t chunk_pixels(const Call& call) {
  int64_t fit = PANEL_FLOATS / (call.sources.channels + call.results.channels);
  return std::max<int64_t>(64, std::min(CHUNK_PIXELS, fit));
}

template <class Product>
void sum_entries(const Call& call, const Grid& grid, const Entry* first, const Entry* last) {
  Panels sources(call.sources, call.source_block, 1, call.pairs * call.stride[1]);
  Panels results(call.results, call.result_block, 2, call.pairs);
  for (const Entry* entry = first; entry < last; entry++) {
    sources.use(entry->source);
    results.use(entry->result);
  }
  Meetings meetings;
  for (Range chunk : chunks_of(grid, chunk_pixels(call))) {
    sources.read_sources(grid, chunk.begin, chunk.end);
    results.read_results(grid, chunk.begin, chunk.end);
    meetings.find(call, grid, sources, results, chunk.begin, chunk.end);
    for (const Entry* entry = first; entry < last; entry++) {
      const Meeting* begin = meetings.all.data() + meetings.start[entry->tap];
      const Meeting* stop = meetings.all.data() + meetings.start[entry->tap + 1];
      float* gradient = call.gradient + entry->slot * call.source_block * call.result_block;
      const float *source = sources.block(entry->source), *result = results.block(entry->result);
      Inside inside(call, *entry);
      if (call.swapped) std::swap(source, result);
      Sum<Product> sum{begin, nullptr, source, result, gradient, inside.width};
      add_block(sum, stop, inside.rows, inside.columns);
    }
  }
  for (const Entry* entry = first; entry < last; entry++) clear_outside(call, *entry);
}
}  // namespace

// Whether products of pairs are to be had (products.h).
extern "C" int channel_pairs() { return HAS_PAIRS; }

// Adds to call.gradient [slots, source_block, result_block], zero before; where call.swapped, to
// [slots, result_block, source_block].
extern "C" int channel_sums(const Request* request) {
  Call call(in_one_row(*request));
  if (!call.sort_blocks()) return 0;
  std::vector<Entry> entries = entries_of(call);
  std::vector<Grid> grids = grids_of(call);
  if (grids.empty() || entries.empty()) return 1;
  int64_t count = static_cast<int64_t>(entries.size());
  // Every part copies what it reads of all chunks, so there are no more than can run at once. Entries
  // are in the order of their output blocks, so that parts have few of these in common.
  int64_t parts = std::min(count, std::max<int64_t>(call.threads, 1));
  shared(parts, 1, static_cast<int>(call.threads), [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; p++)
      (call.pairs ? sum_entries<Pairs> : sum_entries<Singles>)(call, grids[0], entries.data() + count * p / parts,
                                                               entries.data() + count * (p + 1) / parts);
  });
  return 1;
}
