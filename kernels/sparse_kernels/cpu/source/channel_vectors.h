// What the kernels with vectors over channels share: the call, pixels and their packing.
//
// A pass writes "results" and sums over "sources": forward writes y of x, the input gradient dx of
// dy. Activations have adjacent channels; any step lies between pixels, rows and images.
#pragma once
#include <cstdint>
#include <vector>
#include "blocks.h"
#include "vectors.h"

// Images in memory: sizes, bytes from an image, a row and a pixel to the next one, and of what Number.
struct Images {
  char* data;
  int64_t images, height, width, channels;
  int64_t step_image, step_row, step_pixel, number;
  char* pixel(int64_t n, int64_t h, int64_t w) const { return data + n * step_image + h * step_row + w * step_pixel; }
};

// Blocks by the dimension that is written: its block g has entries start[g] to start[g + 1], in the
// order of `reduce`, the block of the dimension that is summed over, and then of taps.
struct Lists {
  std::vector<int32_t> start, slot, reduce, tap_h, tap_w;
};

// What Python says. sources and results are x and y of the forward pass, dy and dx of the input
// gradient (transposed = 1), x and dy of the weight gradient. Where pairs = 1, pairs of bf16 numbers
// are multiplied (products.h): of channels, whose pairs sources and values hold as if they were fp32;
// in the weight gradient of pixels, which are paired here.
struct Request {
  Images sources, results;
  const float *values, *bias;
  float* gradient;
  const int32_t* ids;
  int64_t slots, taps_h, taps_w, result_block, source_block;
  int64_t stride[2], padding[2], dilation[2];
  int64_t transposed, swapped, pairs, threads;
  int64_t taps() const { return taps_h * taps_w; }
  int64_t result_blocks() const { return (results.channels + result_block - 1) / result_block; }
  int64_t source_blocks() const { return (sources.channels + source_block - 1) / source_block; }
};

struct Call : Request {
  Lists lists;
  explicit Call(const Request& request) : Request(request) {}
  // Makes the lists; false if an id is none.
  bool sort_blocks();
};

// Along one dimension, the source position that each result position reads under each tap, -1 where
// it reads none. Result positions are first, first + step, ...
struct Axis {
  int64_t first, step, count, sources;
  std::vector<int32_t> source;  // [taps][count]
  int64_t read(int64_t tap, int64_t position) const { return source[tap * count + position]; }
};

// Result pixels that read under the same taps, numbered by image, row and column. A transposed pass
// with a stride has one such grid for each of the stride's phases, any other pass has one.
struct Grid {
  int64_t images;
  Axis h, w;
  int64_t rows() const { return images * h.count; }
  int64_t pixels() const { return rows() * w.count; }
  // Calls f(image, row, column, pixels) for what each row has of pixels [begin, end).
  template <class F>
  void by_row(int64_t begin, int64_t end, F&& f) const {
    for (int64_t m = begin, next; m < end; m = next) {
      int64_t row = m / w.count, column = m % w.count;
      next = (row + 1) * w.count < end ? (row + 1) * w.count : end;
      f(row / h.count, row % h.count, column, next - m);
    }
  }
};
std::vector<Grid> grids_of(const Call& call);
// What makes images of one pixel, as pooling leaves them, the pixels of one row.
Request in_one_row(Request call);

// Pixels [begin, end) of a grid.
struct Range {
  int64_t begin, end;
};
// Chunks of at most `size` pixels: several rows, or where rows are longer, parts of one.
std::vector<Range> chunks_of(const Grid& grid, int64_t size);

// Memory that a thread keeps between calls, aligned to a cache line.
float* scratch(int which, int64_t floats);

// Copies of pixels, in panels of a few channels each: panel p holds channels [p * width, ...) of
// every copied pixel side by side. Pixel 0 is zero in every panel.
class Panels {
 public:
  // block: channels that are read together; a panel holds one block, or several narrow ones.
  // partner: 0, or after how many columns the other pixel of a pair lies; then copies hold pairs,
  // with zeros where there is no other pixel.
  Panels(const Images& images, int64_t block, int which, int64_t partner = 0);
  // Says that a block will be read; panels of which none is are left empty.
  void use(int64_t b) { used_[b / blocks_] = 1; }
  // Prepares for the source pixels that results [first, last) of the grid read.
  void read_sources(const Grid& grid, int64_t first, int64_t last);
  // Prepares for the result pixels [first, last) of the grid themselves.
  void read_results(const Grid& grid, int64_t first, int64_t last);
  // In each panel, the offset of a source pixel is that of its row and its column. Of columns it is
  // given by what result positions from `column` on read under a tap, -1 where one reads none.
  int64_t row_offset(int64_t n, int64_t h) const { return row_[(n - first_image_) * images_.height + h] * pitch_; }
  const int32_t* column_offsets(int64_t tap, int64_t column) const {
    return column_offsets_.data() + tap * results_ + column - first_result_;
  }
  int64_t zero() const { return 0; }
  int64_t pitch() const { return pitch_; }
  int64_t result_offset(int64_t number) const { return (1 + number) * pitch_; }
  // Where a block's channels begin.
  const float* block(int64_t b) const {
    return data_ + b / blocks_ * panel_ + b % blocks_ * block_;
  }

 private:
  void make_room(int64_t pixels);
  void number_columns(const Axis& axis, int64_t first, int64_t last);
  template <class T>
  void copy(const T* pixel, const T* other, int64_t place);
  const Images& images_;
  int64_t block_, blocks_, width_, pitch_, panels_, partner_;
  int which_;
  float* data_ = nullptr;
  int64_t panel_ = 0, first_image_ = 0;
  // Source columns from the first to behind the last one that is read, and how many are.
  int64_t first_column_ = 0, last_column_ = 0, columns_ = 0;
  int64_t first_result_ = 0, results_ = 0;  // columns of results that read them
  std::vector<uint8_t> used_;
  std::vector<int32_t> row_, column_, column_offsets_;
  std::vector<int64_t> rows_;
};
