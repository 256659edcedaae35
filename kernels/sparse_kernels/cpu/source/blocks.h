// Which block each slot holds: ids as in layout.py, places in the row-major grid [out, in, taps].
#pragma once
#include <cstdint>

// Quotients by a number that is not known when this is compiled, without a division: exact for
// 32 bits (Lemire, Kaser, Kurz: Faster remainder by direct computation, 2019, theorem 1).
class Divisor {
 public:
  explicit Divisor(int64_t by) : by_(static_cast<uint32_t>(by)), inverse_(~uint64_t{0} / by_ + 1) {}
  uint32_t quotient(uint32_t n) const { return by_ == 1 ? n : static_cast<uint32_t>((Wide{inverse_} * n) >> 64); }
  uint32_t rest(uint32_t n) const { return n - quotient(n) * by_; }

 private:
  __extension__ typedef unsigned __int128 Wide;
  uint32_t by_;
  uint64_t inverse_;
};

struct Place {
  int32_t out, in, tap;
};

class Blocks {
 public:
  const int64_t slots, total;
  Blocks(const int32_t* ids, int64_t slots, int64_t out_blocks, int64_t in_blocks, int64_t taps)
      : slots(slots), total(out_blocks * in_blocks * taps), ids_(ids), in_blocks_(in_blocks), taps_(taps) {}
  // Slots that hold a block; -1 if a number is no block's and does not say "unused".
  int64_t active() const {
    int64_t count = 0;
    bool wrong = false;
    for (int64_t slot = 0; slot < slots; slot++) {
      count += ids_[slot] != total;
      wrong |= static_cast<uint32_t>(ids_[slot]) > static_cast<uint64_t>(total);
    }
    return wrong ? -1 : count;
  }
  bool is_used(int64_t slot) const { return ids_[slot] < total; }
  Place place(int64_t slot) const {
    uint32_t id = static_cast<uint32_t>(ids_[slot]), pair = taps_.quotient(id), out = in_blocks_.quotient(pair);
    return {static_cast<int32_t>(out), static_cast<int32_t>(in_blocks_.rest(pair)), static_cast<int32_t>(taps_.rest(id))};
  }

 private:
  const int32_t* ids_;
  Divisor in_blocks_, taps_;
};
