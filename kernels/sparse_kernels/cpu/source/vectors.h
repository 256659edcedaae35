// Vectors of fp32, and the numbers of activations: fp32, or bf16 and fp16, which are converted where
// they are read and written. Written for any processor: conversions are integer arithmetic.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / 4;
typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
// The same anywhere in memory.
typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

static inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
static inline void store(float* to, Vector v) { *reinterpret_cast<Unaligned*>(to) = v; }
// x - 0 is x, so that this is one broadcast; 0 + x would have to make 0 of -0, and cost an addition.
static inline Vector broadcast(float x) { return x - Vector{}; }

// What activations are made of, as Python counts them.
enum Number : int64_t { SINGLE, BRAIN, HALF };
struct Brain {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
static inline int64_t bytes_of(int64_t number) { return number == SINGLE ? 4 : 2; }

// Calls f with a number of the type: code for each of them.
template <class F>
inline auto with_type(int64_t number, F&& f) {
  return number == BRAIN ? f(Brain{}) : number == HALF ? f(Half{}) : f(float{});
}

// Numbers of the type of the last argument.
template <class T>
inline const T* at(const char* place, T) {
  return reinterpret_cast<const T*>(place);
}
template <class T>
inline T* at(char* place, T) {
  return reinterpret_cast<T*>(place);
}

static inline Vector as_numbers(Bits bits) { return reinterpret_cast<Vector>(bits); }
static inline Bits as_bits(Vector v) { return reinterpret_cast<Bits>(v); }
static inline Bits choose(Bits mask, Bits yes, Bits no) { return (mask & yes) | (~mask & no); }
static inline Bits is_nan(Bits bits) { return (Bits)((bits & 0x7fffffff) > 0x7f800000); }

static inline Bits wide_bits(const void* from) {
  Halves halves = *static_cast<const UnalignedHalves*>(from);
  return __builtin_convertvector(halves, Bits);
}
static inline void store_low_bits(void* to, Bits bits) {
  *static_cast<UnalignedHalves*>(to) = __builtin_convertvector(bits, Halves);
}

// bf16 is the upper half of an fp32 number; rounded to the nearest, of two to the even one.
static inline Vector load(const Brain* from) { return as_numbers(wide_bits(from) << 16); }
// Two of them in a place of four bytes, the first one in its lower half; both come in fp32.
static inline Vector pairs_of(Vector first, Vector second) { return as_numbers(as_bits(first) >> 16 | as_bits(second)); }
static inline void store(Brain* to, Vector v) {
  Bits bits = as_bits(v), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_low_bits(to, choose(is_nan(bits), (bits >> 16) | 0x40, rounded));
}

// fp16 has exponents of another bias, 15; 127 in fp32. What is too small for its normal numbers
// becomes right by the subtraction, or addition, of a power of two.
static inline Vector load(const Half* from) {
  constexpr uint32_t REBIAS = (127 - 15) << 23, LEAST = REBIAS + (1 << 23);
  Bits half = wide_bits(from), sign = (half & 0x8000) << 16, exponent = half & 0x7c00;
  Bits normal = ((half & 0x7fff) << 13) + REBIAS;
  Bits infinite = normal + REBIAS;
  Bits small = as_bits(as_numbers(normal + (1 << 23)) - as_numbers(Bits{} + LEAST));
  Bits found = choose((Bits)(exponent == 0), small, choose((Bits)(exponent == 0x7c00), infinite, normal));
  return as_numbers(found | sign);
}
static inline void store(Half* to, Vector v) {
  constexpr uint32_t REBIAS = (127 - 15) << 23, LEAST = REBIAS + (1 << 23), MOST = (127 + 16) << 23;
  // Its last place is that of the smallest fp16 number.
  constexpr uint32_t MAGIC = (127 - 15 + 23 - 10 + 1) << 23;
  Bits sign = as_bits(v) & 0x80000000, bits = as_bits(v) ^ sign;
  Bits small = as_bits(as_numbers(bits) + as_numbers(Bits{} + MAGIC)) - MAGIC;
  Bits normal = (bits - REBIAS + 0xfff + ((bits >> 13) & 1)) >> 13;
  Bits infinite = choose(is_nan(bits), Bits{} + 0x7e00, Bits{} + 0x7c00);
  Bits found = choose((Bits)(bits < LEAST), small, choose((Bits)(bits >= MOST), infinite, normal));
  store_low_bits(to, found | (sign >> 16));
}

// The first n lanes, and zeros; or writes those alone.
template <class T>
inline Vector load_first(const T* from, int64_t n) {
  T some[LANES] = {};
  std::memcpy(some, from, n * sizeof(T));
  return load(some);
}
template <class T>
inline void store_first(T* to, Vector v, int64_t n) {
  T some[LANES];
  store(some, v);
  std::memcpy(to, some, n * sizeof(T));
}
