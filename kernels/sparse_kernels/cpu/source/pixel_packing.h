// Images from channels-last to vectors over pixels, [row][channel][column][lane], and back.
#pragma once
#include <cstdlib>
#include <new>

#include "pixel_plan.h"

namespace pixels {

// Memory that a thread keeps from call to call: fresh pages would cost as much as the copies.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  template <class T> T* take(int64_t count) {
    int64_t bytes = ceil_div(std::max<int64_t>(count, 1) * sizeof(T), 64) * 64;
    if (bytes > size_ || (size_ > KEPT && bytes < size_ / 2)) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes), size_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr int64_t KEPT = 64 << 20;
  void* data_ = nullptr;
  int64_t size_ = 0;
};

// A copy of what a strip reads: [row][channel][column] vectors.
struct Packed {
  float* data;
  int64_t channels, pitch;
  // Rows of a channel lie in different sets of a cache, whatever the number of channels.
  int64_t row_vectors() const { return channels * pitch + (97 - channels * pitch % 64) % 64; }
  int64_t row() const { return row_vectors() * LANES; }
};

// Copies a row of a strip; `channels` of the copy beyond those of the images are zero.
void pack_row(const Images& from, const Axis& h, const Axis& w, const Lanes& lanes, const Strip& strip,
              const std::vector<char>& columns_read, int64_t row, const Packed& to);

// Writes result (i, j) of every band, [channel] vectors `pitch` apart, to the images.
void unpack_result(const float* from, int64_t pitch, const Axis& h, const Axis& w, const Lanes& lanes,
                   int64_t i, int64_t j, const Images& to);

}  // namespace pixels
