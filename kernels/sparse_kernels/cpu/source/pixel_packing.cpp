// The copies between images and vectors over pixels (pixel_packing.h).
#include "pixel_packing.h"

namespace pixels {
namespace {

// One place of all lanes; rows[lane] is null where the lane has no pixel. A channel goes to every
// `pitch`-th vector from `to` on.
template <class T> void pack_place(const char* const (&rows)[LANES], int64_t channels, float* to, int64_t pitch) {
  for (int64_t c = 0; c < channels; c += LANES) {
    int64_t n = std::min<int64_t>(LANES, channels - c);
    Vec block[LANES];
    for (int lane = 0; lane < LANES; lane++) {
      block[lane] = Vec{};
      if (!rows[lane]) continue;
      const T* from = at(rows[lane], T{}) + c;
      block[lane] = n == LANES ? ::load(from) : load_first(from, n);
    }
    transpose(block);
    for (int64_t k = 0; k < n; k++) *reinterpret_cast<Vec*>(to + (c + k) * pitch * LANES) = block[k];
  }
}

template <class T> void unpack_place(const float* from, int64_t pitch, int64_t channels, char* const (&rows)[LANES]) {
  for (int64_t c = 0; c < channels; c += LANES) {
    int64_t n = std::min<int64_t>(LANES, channels - c);
    Vec block[LANES];
    for (int64_t k = 0; k < LANES; k++)
      block[k] = k < n ? *reinterpret_cast<const Vec*>(from + (c + k) * pitch * LANES) : Vec{};
    transpose(block);
    for (int lane = 0; lane < LANES; lane++) {
      if (!rows[lane]) continue;
      T* to = at(rows[lane], T{}) + c;
      if (n == LANES)
        ::store(to, block[lane]);
      else
        store_first(to, block[lane], n);
    }
  }
}

}  // namespace

void pack_row(const Images& from, const Axis& h, const Axis& w, const Lanes& lanes, const Strip& strip,
              const std::vector<char>& columns_read, int64_t row, const Packed& to) {
  const char* starts[LANES];
  int64_t columns[LANES];
  for (int lane = 0; lane < LANES; lane++) {
    int64_t y = h.first_of(lanes.band_h[lane]) + strip.top / h.phases * h.scale + row;
    bool inside = lanes.used[lane] && y >= 0 && y < from.height;
    starts[lane] = inside ? from.data + lanes.image[lane] * from.image + y * from.row : nullptr;
    columns[lane] = w.first_of(lanes.band_w[lane]) + strip.left / w.phases * w.scale;
  }
  float* target = to.data + row * to.row();
  for (int64_t column = 0; column < static_cast<int64_t>(columns_read.size()); column++) {
    if (!columns_read[column]) continue;
    const char* rows[LANES];
    for (int lane = 0; lane < LANES; lane++) {
      int64_t x = columns[lane] + column;
      rows[lane] = starts[lane] && x >= 0 && x < from.width ? starts[lane] + x * from.column : nullptr;
    }
    with_type(from.number, [&](auto number) {
      pack_place<decltype(number)>(rows, from.channels, target + column * LANES, to.pitch);
    });
    for (int64_t c = from.channels; c < to.channels; c++)
      std::memset(target + (c * to.pitch + column) * LANES, 0, sizeof(Vec));
  }
}

void unpack_result(const float* from, int64_t pitch, const Axis& h, const Axis& w, const Lanes& lanes,
                   int64_t i, int64_t j, const Images& to) {
  char* rows[LANES];
  for (int lane = 0; lane < LANES; lane++) {
    int64_t y = lanes.band_h[lane] * h.length + i, x = lanes.band_w[lane] * w.length + j;
    bool inside = lanes.used[lane] && y < to.height && x < to.width;
    rows[lane] = inside ? to.data + lanes.image[lane] * to.image + y * to.row + x * to.column : nullptr;
  }
  with_type(to.number, [&](auto number) { unpack_place<decltype(number)>(from, pitch, to.channels, rows); });
}

}  // namespace pixels
