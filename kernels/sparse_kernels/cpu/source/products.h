// What is multiplied and added at a time: fp32 numbers, or pairs of bf16 ones where the processor
// has an instruction for them.
//
// A cell is four bytes of a panel or of values: an fp32 number, or two bf16 numbers that are summed
// over (pairs_of): of two channels, or in the weight gradient of two pixels.
#pragma once
#include "vectors.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

struct Singles {
  typedef Vector Cells;
  static Cells load_cells(const float* from) { return load(from); }
  static Cells broadcast_cell(const float* from) { return broadcast(*from); }
  static Vector add(Vector sum, Cells a, Cells b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
// Products are exact, sums in fp32; subnormal numbers count as zero.
struct Pairs {
  typedef Bits Cells;
  static Cells load_cells(const float* from) { return as_bits(load(from)); }
  static Cells broadcast_cell(const float* from) {
    uint32_t cell;
    std::memcpy(&cell, from, sizeof cell);
    return Bits{} + cell;
  }
  static Vector add(Vector sum, Cells a, Cells b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#else
constexpr bool HAS_PAIRS = false;
typedef Singles Pairs;
#endif
