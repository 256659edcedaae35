// Which pixels meet under which tap, and copies of them in panels (channel_vectors.h).
#include "channel_vectors.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

namespace {
int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Forward, result position i reads i * stride - padding + tap * dilation.
Axis gathering_axis(int64_t results, int64_t sources, int64_t taps, int64_t stride, int64_t padding,
                    int64_t dilation) {
  Axis axis{0, 1, results, sources, std::vector<int32_t>(taps * results)};
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t i = 0; i < results; i++) {
      int64_t read = i * stride - padding + tap * dilation;
      axis.source[tap * results + i] = static_cast<int32_t>(read >= 0 && read < sources ? read : -1);
    }
  return axis;
}

// Transposed, result position i reads the s for which s * stride - padding + tap * dilation is i.
Axis scattering_axis(int64_t phase, int64_t results, int64_t sources, int64_t taps, int64_t stride,
                     int64_t padding, int64_t dilation) {
  int64_t count = results > phase ? divided_up(results - phase, stride) : 0;
  Axis axis{phase, stride, count, sources, std::vector<int32_t>(taps * count)};
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t i = 0; i < count; i++) {
      int64_t read = phase + i * stride + padding - tap * dilation;
      bool meets = read >= 0 && read % stride == 0 && read / stride < sources;
      axis.source[tap * count + i] = static_cast<int32_t>(meets ? read / stride : -1);
    }
  return axis;
}

// Numbers between what is copied and what is fetched: pixels mostly lie one after the other.
constexpr int64_t AHEAD = 2048;

struct Scratch {
  float* data = nullptr;
  int64_t floats = 0;
  ~Scratch() { std::free(data); }
};
}  // namespace

std::vector<Grid> grids_of(const Call& call) {
  const Images &from = call.sources, &to = call.results;
  auto axis = [&](int d, int64_t phase, int64_t results, int64_t sources, int64_t taps) {
    if (call.transposed)
      return scattering_axis(phase, results, sources, taps, call.stride[d], call.padding[d], call.dilation[d]);
    return gathering_axis(results, sources, taps, call.stride[d], call.padding[d], call.dilation[d]);
  };
  std::vector<Grid> grids;
  for (int64_t a = 0; a < (call.transposed ? call.stride[0] : 1); a++)
    for (int64_t b = 0; b < (call.transposed ? call.stride[1] : 1); b++) {
      Grid grid{to.images, axis(0, a, to.height, from.height, call.taps_h), axis(1, b, to.width, from.width, call.taps_w)};
      if (grid.pixels()) grids.push_back(std::move(grid));
    }
  return grids;
}

Request in_one_row(Request call) {
  auto is_pixel = [](const Images& x) { return x.height == 1 && x.width == 1; };
  bool is_plain = call.taps() == 1;
  for (int d = 0; d < 2; d++) is_plain = is_plain && call.stride[d] == 1 && call.padding[d] == 0;
  if (!is_plain || !is_pixel(call.sources) || !is_pixel(call.results)) return call;
  for (Images* x : {&call.sources, &call.results}) {
    x->width = x->images;
    x->step_pixel = x->step_image;
    x->images = 1;
  }
  return call;
}

std::vector<Range> chunks_of(const Grid& grid, int64_t size) {
  int64_t width = grid.w.count, pixels = grid.pixels();
  std::vector<Range> chunks;
  if (width <= size) {
    for (int64_t m = 0; m < pixels; m += size) chunks.push_back({m, std::min(m + size, pixels)});
    return chunks;
  }
  for (int64_t row = 0; row < pixels; row += width)
    for (int64_t m = 0; m < width; m += size) chunks.push_back({row + m, row + std::min(m + size, width)});
  return chunks;
}

bool Call::sort_blocks() {
  int64_t groups = result_blocks(), others = source_blocks();
  Blocks blocks(ids, slots, transposed ? others : groups, transposed ? groups : others, taps());
  if (blocks.active() < 0) return false;
  struct Entry {
    int32_t group, reduce, tap, slot;
    bool operator<(const Entry& o) const {
      return std::tie(group, reduce, tap, slot) < std::tie(o.group, o.reduce, o.tap, o.slot);
    }
  };
  std::vector<Entry> entries;
  for (int64_t slot = 0; slot < slots; slot++) {
    if (!blocks.is_used(slot)) continue;
    Place at = blocks.place(slot);
    if (transposed) std::swap(at.out, at.in);
    entries.push_back({at.out, at.in, at.tap, static_cast<int32_t>(slot)});
  }
  if (!std::is_sorted(entries.begin(), entries.end())) std::sort(entries.begin(), entries.end());
  lists.start.assign(groups + 1, 0);
  for (const Entry& e : entries) {
    lists.start[e.group + 1]++;
    lists.slot.push_back(e.slot), lists.reduce.push_back(e.reduce);
    lists.tap_h.push_back(e.tap / taps_w), lists.tap_w.push_back(e.tap % taps_w);
  }
  for (int64_t g = 0; g < groups; g++) lists.start[g + 1] += lists.start[g];
  return true;
}

float* scratch(int which, int64_t floats) {
  static thread_local Scratch kept[4];
  Scratch& memory = kept[which];
  if (memory.floats < floats) {
    std::free(memory.data);
    memory.floats = divided_up(floats, 1024) * 1024;
    memory.data = static_cast<float*>(std::aligned_alloc(64, memory.floats * sizeof(float)));
  }
  return memory.data;
}

Panels::Panels(const Images& images, int64_t block, int which, int64_t partner)
    : images_(images), block_(block), partner_(partner), which_(which) {
  // Narrow blocks share a panel, whose pixels are then some 64 floats wide.
  blocks_ = block >= 16 ? 1 : 64 / block;
  width_ = block_ * blocks_;
  pitch_ = divided_up(width_, 16) * 16;
  panels_ = divided_up(images.channels, width_);
  used_.assign(panels_, 0);
}

void Panels::make_room(int64_t pixels) {
  panel_ = (1 + pixels) * pitch_;
  data_ = scratch(which_, panels_ * panel_);
  for (int64_t p = 0; p < panels_; p++) std::memset(data_ + p * panel_, 0, pitch_ * sizeof(float));
}

template <class T>
void Panels::copy(const T* pixel, const T* other, int64_t place) {
  float* to = data_ + place * pitch_;
  auto cells = [&](int64_t channel, auto read) {
    Vector own = read(pixel + channel);
    if (!partner_) return own;
    return pairs_of(own, other ? read(other + channel) : Vector{});
  };
  for (int64_t p = 0, c = 0; p < panels_; p++, c += width_, to += panel_) {
    if (!used_[p]) continue;
    int64_t left = images_.channels - c < width_ ? images_.channels - c : width_, k = 0;
    for (; k + LANES <= left; k += LANES) {
      __builtin_prefetch(pixel + c + k + AHEAD);
      store(to + k, cells(c + k, [](const T* from) { return load(from); }));
    }
    // A pixel has room for whole vectors.
    for (; k < left; k += LANES) store(to + k, cells(c + k, [&](const T* from) { return load_first(from, left - k); }));
    // Sums over whole blocks meet what is beside the last channel.
    for (; k < width_; k++) to[k] = 0;
  }
}

// Numbers the columns that some tap reads for results [first, last) of a row.
void Panels::number_columns(const Axis& axis, int64_t first, int64_t last) {
  first_column_ = axis.sources, last_column_ = columns_ = 0;
  int64_t taps = static_cast<int64_t>(axis.source.size()) / axis.count;
  auto each_read = [&](auto&& f) {
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = first; i < last; i++)
        if (axis.read(tap, i) >= 0) f(axis.read(tap, i));
  };
  each_read([&](int64_t w) {
    first_column_ = std::min(first_column_, w);
    last_column_ = std::max(last_column_, w + 1);
  });
  column_.assign(std::max<int64_t>(0, last_column_ - first_column_), -1);
  each_read([&](int64_t w) { column_[w - first_column_] = 0; });
  for (int32_t& number : column_)
    if (number == 0) number = static_cast<int32_t>(columns_++);
  first_result_ = first, results_ = last - first;
  column_offsets_.clear();
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t i = first; i < last; i++) {
      int64_t w = axis.read(tap, i);
      column_offsets_.push_back(w < 0 ? -1 : static_cast<int32_t>(column_[w - first_column_] * pitch_));
    }
}

void Panels::read_sources(const Grid& grid, int64_t first, int64_t last) {
  int64_t first_row = first / grid.w.count, last_row = (last - 1) / grid.w.count, height = images_.height;
  if (first_row == last_row)
    number_columns(grid.w, first % grid.w.count, (last - 1) % grid.w.count + 1);
  else
    number_columns(grid.w, 0, grid.w.count);
  first_image_ = first_row / grid.h.count;
  row_.assign((last_row / grid.h.count - first_image_ + 1) * height, -1);
  rows_.clear();
  int64_t taps = static_cast<int64_t>(grid.h.source.size()) / grid.h.count;
  for (int64_t r = first_row; r <= last_row; r++)
    for (int64_t tap = 0; tap < taps; tap++) {
      int64_t read = grid.h.read(tap, r % grid.h.count), place = (r / grid.h.count - first_image_) * height + read;
      if (read < 0 || row_[place] >= 0) continue;
      row_[place] = static_cast<int32_t>(1 + rows_.size() * columns_);
      rows_.push_back(place);
    }
  make_room(static_cast<int64_t>(rows_.size()) * columns_);
  with_type(images_.number, [&](auto number) {
    for (int64_t place : rows_) {
      const char* row = images_.pixel(first_image_ + place / height, place % height, 0);
      auto pixel = [&](int64_t w) { return w < images_.width ? at(row + w * images_.step_pixel, number) : nullptr; };
      for (int64_t w = first_column_; w < last_column_; w++)
        if (int32_t column = column_[w - first_column_]; column >= 0)
          copy(pixel(w), pixel(w + partner_), row_[place] + column);
    }
  });
}

void Panels::read_results(const Grid& grid, int64_t first, int64_t last) {
  make_room(last - first);
  int64_t place = 1;
  with_type(images_.number, [&](auto number) {
    grid.by_row(first, last, [&](int64_t n, int64_t row, int64_t column, int64_t count) {
      const char* begin = images_.pixel(n, grid.h.first + row * grid.h.step, grid.w.first + column * grid.w.step);
      auto pixel = [&](int64_t i) { return i < count ? at(begin + i * grid.w.step * images_.step_pixel, number) : nullptr; };
      for (int64_t i = 0; i < count; i++) copy(pixel(i), pixel(i + partner_), place++);
    });
  });
}
