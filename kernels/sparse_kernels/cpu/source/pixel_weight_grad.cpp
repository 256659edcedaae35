// The weight gradient: products of packed inputs and packed gradients, summed over all pixels in one
// order; threads divide the weights.
#include "pixel_calls.h"

namespace pixels {
namespace {

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

void weight_grad(const Layer& layer, const Images& x, const Images& y, float* dvalues, const Blocks& blocks) {
  Side side = forward_side(layer);
  WeightGrad g{layer, x, y, {}, {}, {}, {}, width_of(side.block_written), {}, {}, {}, {}, 0, 0, nullptr};
  g.h = forward_axis(y.height, x.height, layer.taps_h, layer.stride_h, layer.padding_h, layer.dilation_h);
  g.w = forward_axis(y.width, x.width, layer.taps_w, layer.stride_w, layer.padding_w, layer.dilation_w);
  cut_into_lanes(layer.images, g.h, g.w);
  g.y_h = forward_axis(y.height, y.height, 1, 1, 0, 1), g.y_w = forward_axis(y.width, y.width, 1, 1, 0, 1);
  g.y_h.cut(g.h.bands), g.y_w.cut(g.w.bands);
  g.strips = cut_into_strips(layer.images, g.h, g.w, x.channels + y.channels, 1);
  int64_t stripes = stripes_of(side, g.width);
  thread_local Scratch copies_x, copies_y, starts, distances, places, totals;
  g.packed_x = {nullptr, x.channels, pitch_of(g.w.extent(g.strips.width))};
  g.packed_y = {nullptr, stripes * g.width, pitch_of(g.strips.width)};
  g.packed_x.data = copies_x.take<float>(g.h.extent(g.strips.height) * g.packed_x.row());
  g.packed_y.data = copies_y.take<float>(g.strips.height * g.packed_y.row());
  g.tile_across = ceil_div(g.strips.width, ceil_div(g.strips.width, TILE));
  g.tile_down = std::min(g.strips.height, std::max<int64_t>(1, TILE / g.tile_across));
  int64_t chunk = chunk_of(side, g.h, g.w, g.tile_down, g.tile_across, cached_bytes(g.width));
  Reading reading{layer, side, blocks, g.width, chunk, g.packed_x.pitch, g.packed_x.row_vectors()};
  int64_t chunks = ceil_div(side.blocks_read(), chunk), room = most_columns_of(blocks.active(), side, g.width);
  g.columns = {chunks, stripes, starts.take<int32_t>(chunks * stripes + 1), distances.take<int32_t>(room), nullptr};
  std::vector<int32_t> taps = tap_distances(reading, g.h, g.w, 0, 0);
  Begins begins = count(reading, taps.data(), g.columns);
  int32_t* distance = g.columns.distance;
  int64_t* place = places.take<int64_t>(room);
  each_column(reading, taps.data(), g.columns, begins, [=](int64_t column, int64_t far, int64_t first, int64_t) {
    distance[column] = static_cast<int32_t>(far), place[column] = first;
  });
  int64_t n = g.columns.start[g.columns.cells()], width = g.width;
  g.totals = totals.take<float>(room * width);
  std::fill_n(g.totals, n * width, 0.0f);
  g.run();
  const float* sums = g.totals;
  shared(n, 1 << 14, g.threads(), [&](int64_t first, int64_t last) {
    for (int64_t column = first; column < last; column++)
      for (int64_t b = 0; b < width; b++) dvalues[place[column] + b] = sums[column * width + b];
  });
}

}  // namespace
}  // namespace pixels

using namespace pixels;

// Writes the gradients of the blocks; dvalues is zero before.
extern "C" int pixels_weight_grad(const Layer* layer, const void* x, const int64_t* x_memory, const void* y,
                                  const int64_t* y_memory, float* dvalues, const int32_t* ids) {
  return attempt(*layer, ids, [&](const Blocks& blocks) {
    const Layer& l = *layer;
    weight_grad(l, images(x, x_memory, l.height, l.width, l.inputs),
                images(y, y_memory, l.out_height, l.out_width, l.outputs), dvalues, blocks);
  });
}
