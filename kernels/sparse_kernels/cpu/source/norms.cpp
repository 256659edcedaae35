// Batch norm with its residual and ReLU: one pass for the statistics, one forward, two backward.
//
// Images are pixels of adjacent channels, in any order of pixels. Pixels are joined to rows that are
// whole vectors: of 20 channels four, of one channel as many as a vector has lanes. What is summed
// over rows is summed by tile in fp32, and over tiles in double. Tiles do not depend on the number of
// threads.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>
#include "threads.h"
#include "vectors.h"

// What Python says: images of `pixels` x `channels` of one Number; null where there is no such image.
struct NormCall {
  const char *x, *residual, *grad, *other;
  char *y, *dx, *dresidual;
  double* moments;   // mean and biased variance [2][channels]
  float* gradients;  // of bias and weight [2][channels]
  const float *weight, *bias;  // null: 1 and 0
  int64_t pixels, channels, number, relu, batch, threads;
  double eps;
};

// A vector, or the first few lanes of one.
struct Whole {};
struct Some {
  int64_t count;
};
template <class T>
static inline Vector load(const T* from, Whole) { return load(from); }
template <class T>
static inline Vector load(const T* from, Some some) { return load_first(from, some.count); }
template <class T>
static inline void store(T* to, Vector v, Whole) { store(to, v); }
template <class T>
static inline void store(T* to, Vector v, Some some) { store_first(to, v, some.count); }

namespace {
// Rows of a tile; those at its beginning that tell about where its mean is; those that are read at once.
constexpr int64_t TILE = 64, FIRST = 16;
constexpr int GROUP = 4;
constexpr int64_t PART_NUMBERS = 32768;  // that a thread takes at once

// v where z, the number before a ReLU, is positive or NaN; else 0.
inline Vector rectified(Vector v, Vector z) { return as_numbers(as_bits(v) & ~(Bits)(z <= Vector{})); }

// Rows of joined pixels, the last of which may have fewer.
struct Rows {
  int64_t width, numbers, rows, tiles;
  explicit Rows(const NormCall& call)
      : width(std::lcm(call.channels, int64_t{LANES})),
        numbers(call.pixels * call.channels),
        rows((numbers + width - 1) / width),
        tiles((rows + TILE - 1) / TILE) {}
  int64_t end(int64_t tile) const { return std::min((tile + 1) * TILE, rows); }
  // Rows of a tile that have a column.
  int64_t count(int64_t tile, int64_t column) const {
    int64_t having = (numbers - column + width - 1) / width;
    return std::max<int64_t>(0, std::min((tile + 1) * TILE, having) - tile * TILE);
  }
  // Calls f(tile) for all tiles, some of them in each thread.
  template <class F>
  void by_tile(int64_t threads, F&& f) const {
    shared(tiles, std::max<int64_t>(1, PART_NUMBERS / (TILE * width)), static_cast<int>(threads),
           [&](int64_t begin, int64_t end) {
             for (int64_t tile = begin; tile < end; tile++) f(tile);
           });
  }
  // Calls f(count, lanes, place, column) for the vectors of a tile: as many in a row of memory each,
  // `width` apart, of which the first one is at a place in the image.
  template <class F>
  void by_vector(int64_t tile, F&& f) const {
    int64_t row = tile * TILE, last = std::min(end(tile), numbers / width);
    auto across = [&](auto count) {
      for (int64_t c = 0; c < width; c += LANES) f(count, Whole{}, row * width + c, c);
      row += count;
    };
    while (row + GROUP <= last) across(std::integral_constant<int, GROUP>{});
    while (row < last) across(std::integral_constant<int, 1>{});
    if (row == end(tile)) return;
    for (int64_t c = 0, left; (left = numbers - row * width - c) > 0; c += LANES)
      f(std::integral_constant<int, 1>{}, Some{std::min<int64_t>(left, LANES)}, row * width + c, c);
  }
};

// By column, what the passes subtract, multiply by and add. What a mean loses when it becomes fp32
// goes to what is added.
struct Factors {
  std::vector<float> mean, scale, shift;
  std::vector<double> lost, rstd;  // by channel
  Factors(const NormCall& call, const Rows& rows)
      : mean(rows.width), scale(rows.width), shift(rows.width), lost(call.channels), rstd(call.channels) {
    for (int64_t k = 0; k < rows.width; k++) {
      int64_t c = k % call.channels;
      mean[k] = static_cast<float>(call.moments[c]);
      lost[c] = call.moments[c] - mean[k];
      rstd[c] = 1 / std::sqrt(call.moments[call.channels + c] + call.eps);
      double factor = call.weight ? call.weight[c] * rstd[c] : rstd[c];
      scale[k] = static_cast<float>(factor);
      shift[k] = static_cast<float>((call.bias ? call.bias[c] : 0) - lost[c] * factor);
    }
  }
};

// Those of a vector of columns.
struct Column {
  Vector mean, scale, shift;
  Column(const Factors& factors, int64_t c)
      : mean(load(&factors.mean[c])), scale(load(&factors.scale[c])), shift(load(&factors.shift[c])) {}
  Vector normalised(Vector centred) const { return centred * scale + shift; }
};

// Two sums by tile and column, and for the statistics what was subtracted before.
struct Sums {
  int64_t width;
  std::vector<float> numbers;
  explicit Sums(const Rows& rows) : width(rows.width), numbers(3 * width * rows.tiles) {}
  float* of(int64_t tile, int which) { return numbers.data() + (3 * tile + which) * width; }
  // Adds to both of a tile.
  void add(int64_t tile, int64_t column, Vector a, Vector b) {
    store(of(tile, 0) + column, load(of(tile, 0) + column) + a);
    store(of(tile, 1) + column, load(of(tile, 1) + column) + b);
  }
};

// The mean of a tile's first rows. About it, squares lose nothing to cancellation: they are at most
// five times those about the tile's mean, from which it differs by what these rows themselves deviate.
template <class T>
void about(const Rows& rows, int64_t tile, const T* x, float* mean) {
  int64_t whole = rows.numbers / rows.width - tile * TILE, some = std::min(FIRST, whole);
  x += tile * TILE * rows.width;
  if (some < 1) {
    for (int64_t c = 0, left; (left = rows.numbers - tile * TILE * rows.width - c) > 0; c += LANES)
      store(mean + c, load(x + c, Some{std::min<int64_t>(left, LANES)}));
    return;
  }
  for (int64_t c = 0; c < rows.width; c += LANES) {
    Vector sum{};
    for (int64_t r = 0; r < some; r++) sum += load(x + r * rows.width + c);
    store(mean + c, sum * (1.f / some));
  }
}

template <class T>
void take_moments(const NormCall& call, T number) {
  const T* x = at(call.x, number);
  Rows rows(call);
  Sums sums(rows);
  rows.by_tile(call.threads, [&](int64_t tile) {
    float* mean = sums.of(tile, 2);
    about(rows, tile, x, mean);
    rows.by_vector(tile, [&](auto count, auto lanes, int64_t place, int64_t c) {
      Vector shift = load(mean + c, lanes), a{}, b{};
      for (int r = 0; r < count; r++) {
        Vector v = load(x + place + r * rows.width, lanes) - shift;
        a += v;
        b += v * v;
      }
      sums.add(tile, c, a, b);
    });
  });
  shared(call.channels, 64, static_cast<int>(call.threads), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      double mean = 0, variance = 0;
      for (int64_t t = 0; t < rows.tiles; t++)
        for (int64_t k = c; k < rows.width; k += call.channels)
          mean += sums.of(t, 0)[k] + double(sums.of(t, 2)[k]) * rows.count(t, k);
      mean /= call.pixels;
      for (int64_t t = 0; t < rows.tiles; t++)
        for (int64_t k = c; k < rows.width; k += call.channels) {
          int64_t count = rows.count(t, k);
          double off = sums.of(t, 2)[k] - mean;
          if (count) variance += sums.of(t, 1)[k] + off * (2 * double(sums.of(t, 0)[k]) + count * off);
        }
      variance /= call.pixels;
      call.moments[c] = mean;
      call.moments[call.channels + c] = variance < 0 ? 0 : variance;  // a NaN stays one
    }
  });
}

template <class T>
void normalise(const NormCall& call, T number) {
  Rows rows(call);
  Factors factors(call, rows);
  const T *x = at(call.x, number), *residual = at(call.residual, number);
  T* y = at(call.y, number);
  rows.by_tile(call.threads, [&](int64_t tile) {
    rows.by_vector(tile, [&](auto count, auto lanes, int64_t place, int64_t c) {
      Column column(factors, c);
      for (int r = 0; r < count; r++) {
        int64_t i = place + r * rows.width;
        Vector z = column.normalised(load(x + i, lanes) - column.mean);
        if (residual) z += load(residual + i, lanes);
        store(y + i, call.relu ? rectified(z, z) : z, lanes);
      }
    });
  });
}

// What both passes backward read: the gradient before ReLU and sum, and the input about its mean.
template <class T>
struct Gradient {
  const T *x, *grad, *y;
  bool relu;
  Gradient(const NormCall& call, T number)
      : x(at(call.x, number)), grad(at(call.grad, number)), y(at<T>(call.y, number)), relu(call.relu) {}
  template <class Lanes>
  void read(const Column& column, int64_t i, Lanes lanes, Vector& g, Vector& centred) const {
    g = load(grad + i, lanes);
    centred = load(x + i, lanes) - column.mean;
    // Only with a residual does x not say which part was negative.
    if (relu) g = rectified(g, y ? load(y + i, lanes) : column.normalised(centred));
  }
};

template <class T>
void sum_gradients(const NormCall& call, const Rows& rows, const Factors& factors, const Gradient<T>& gradient) {
  Sums sums(rows);
  rows.by_tile(call.threads, [&](int64_t tile) {
    rows.by_vector(tile, [&](auto count, auto lanes, int64_t place, int64_t c) {
      Column column(factors, c);
      Vector a{}, b{};
      for (int r = 0; r < count; r++) {
        Vector g, centred;
        gradient.read(column, place + r * rows.width, lanes, g, centred);
        a += g;
        b += g * centred;
      }
      sums.add(tile, c, a, b);
    });
  });
  shared(call.channels, 64, static_cast<int>(call.threads), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      double sum = 0, product = 0;
      for (int64_t t = 0; t < rows.tiles; t++)
        for (int64_t k = c; k < rows.width; k += call.channels) {
          sum += sums.of(t, 0)[k];
          product += sums.of(t, 1)[k];
        }
      call.gradients[c] = static_cast<float>(sum);
      call.gradients[call.channels + c] = static_cast<float>((product - factors.lost[c] * sum) * factors.rstd[c]);
    }
  });
}

template <class T>
void differentiate(const NormCall& call, T number) {
  Rows rows(call);
  Factors factors(call, rows);
  Gradient<T> gradient(call, number);
  sum_gradients(call, rows, factors, gradient);
  // What goes through the statistics: slope * (x - mean) + level.
  std::vector<float> slope(rows.width), level(rows.width);
  for (int64_t k = 0; k < rows.width && call.batch; k++) {
    int64_t c = k % call.channels;
    double share = -double(factors.scale[k]) / call.pixels;
    double tilt = share * call.gradients[call.channels + c] * factors.rstd[c];
    slope[k] = static_cast<float>(tilt);
    level[k] = static_cast<float>(share * call.gradients[c] - tilt * factors.lost[c]);
  }
  const T* other = at(call.other, number);
  T *dx = at(call.dx, number), *dresidual = at(call.dresidual, number);
  rows.by_tile(call.threads, [&](int64_t tile) {
    rows.by_vector(tile, [&](auto count, auto lanes, int64_t place, int64_t c) {
      Column column(factors, c);
      Vector tilt = load(&slope[c]), rise = load(&level[c]);
      for (int r = 0; r < count; r++) {
        int64_t i = place + r * rows.width;
        Vector g, centred;
        gradient.read(column, i, lanes, g, centred);
        if (dresidual) store(dresidual + i, g, lanes);
        g = g * column.scale + (centred * tilt + rise);
        if (other) g += load(other + i, lanes);
        store(dx + i, g, lanes);
      }
    });
  });
}
}  // namespace

// Of a batch, the moments are those of x, and written.
extern "C" void norm_forward(const NormCall* call) {
  with_type(call->number, [&](auto number) {
    if (call->batch) take_moments(*call, number);
    normalise(*call, number);
  });
}
extern "C" void norm_backward(const NormCall* call) {
  with_type(call->number, [&](auto number) { differentiate(*call, number); });
}
