// Vectors of floats as wide as the instruction set that a kernel file is compiled for.
//
// Written with the vector types that GCC and Clang share; intrinsics only where those have no word
// for an instruction. In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include <cstdint>

#include "shared/numeric.h"

// PYENC_EMULATE_BF16_DOT: the width and the code of AVX-512 with bfloat16 on any processor, for the
// tests (shared/pairs.h).
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pyenc {
namespace PYENC_ISA {
namespace {

#if defined(PYENC_EMULATE_BF16_DOT) || (defined(__AVX512F__) && defined(__AVX512DQ__))
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float LooseFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

#define PYENC_INLINE inline __attribute__((always_inline))

PYENC_INLINE Floats load(const float* from) { return *reinterpret_cast<const LooseFloats*>(from); }

PYENC_INLINE void store(float* to, Floats values) { *reinterpret_cast<LooseFloats*>(to) = values; }

// Words of 32 bits, which may be kept in arrays of floats and are never computed with there.
typedef std::int32_t LooseInts __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::uint32_t LooseWord __attribute__((may_alias));

PYENC_INLINE Ints load_words(const float* from) { return *reinterpret_cast<const LooseInts*>(from); }

PYENC_INLINE void put_words(Ints words, float* to) { *reinterpret_cast<LooseInts*>(to) = words; }

PYENC_INLINE LooseWord word_at(const float* from) {
  return *reinterpret_cast<const LooseWord*>(from);
}

PYENC_INLINE Ints load_ints(const std::int32_t* from) {
  return *reinterpret_cast<const LooseInts*>(from);
}

// from[at[lane]] for each lane.
PYENC_INLINE Floats gather(const float* from, Ints at) {
#if defined(PYENC_EMULATE_BF16_DOT)
  Floats found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = from[at[lane]];
  return found;
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_i32gather_ps(reinterpret_cast<__m512i>(at), from, 4);
#elif defined(__AVX2__)
  return _mm256_i32gather_ps(from, reinterpret_cast<__m256i>(at), 4);
#else
  Floats found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = from[at[lane]];
  return found;
#endif
}

// x[at[lane]] for each lane, each in [0, kLanes).
PYENC_INLINE Floats permuted(Floats x, Ints at) {
#if defined(PYENC_EMULATE_BF16_DOT)
  Floats found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = x[at[lane]];
  return found;
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(at), x);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(x, reinterpret_cast<__m256i>(at));
#else
  Floats found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = x[at[lane]];
  return found;
#endif
}

// x - 0 is x for every x, signed zeros and NaN included, so that only the broadcast remains.
PYENC_INLINE Floats splat(float x) { return x - Floats{}; }

PYENC_INLINE Floats as_floats(Ints x) { return reinterpret_cast<Floats>(x); }
PYENC_INLINE Ints as_ints(Floats x) { return reinterpret_cast<Ints>(x); }

// a > b ? a : b lane by lane, so b where either is NaN.
PYENC_INLINE Floats larger(Floats a, Floats b) {
#if defined(PYENC_EMULATE_BF16_DOT)
  return a > b ? a : b;
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Whether any lane of a comparison holds.
PYENC_INLINE bool any(Ints mask) {
#if defined(PYENC_EMULATE_BF16_DOT)
  std::int32_t seen = 0;
  for (int lane = 0; lane < kLanes; ++lane) seen |= mask[lane];
  return seen != 0;
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
  std::int32_t seen = 0;
  for (int lane = 0; lane < kLanes; ++lane) seen |= mask[lane];
  return seen != 0;
#endif
}

// x, a product, as it is rounded: a sum that it goes into is not fused with it.
PYENC_INLINE Floats unfused(Floats x) {
#if defined(PYENC_EMULATE_BF16_DOT)
  volatile Floats kept = x;
  x = kept;
#elif defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

PYENC_INLINE Floats magnitude(Floats x) { return as_floats(as_ints(x) & 0x7fffffff); }

PYENC_INLINE Floats counting() {
  Floats lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<float>(lane);
  return lanes;
}

PYENC_INLINE float sum_of(Floats x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(PYENC_EMULATE_BF16_DOT)
  return _mm512_reduce_add_ps(x);
#endif
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

// `rest` 2^f for |f| <= 1/2: the minimax polynomial of relative error among those of its degree that are
// 1 at 0 (9.2e-8, or 2.8e-6 with Degree 4).
template <int Degree>
PYENC_INLINE Floats exp2_fraction(Floats f, float rest) {
  static_assert(Degree == 4 || Degree == 5, "these are known");
  Floats p;
  if constexpr (Degree == 5) {
    p = f * (rest * 0x1.5bba14p-10f) + rest * 0x1.3cea88p-7f;
    p = p * f + rest * 0x1.c6b752p-5f;
    p = p * f + rest * 0x1.ebf9bcp-3f;
    p = p * f + rest * 0x1.62e42ap-1f;
  } else {
    p = f * (rest * 0x1.3a02cep-7f) + rest * 0x1.c9fc46p-5f;
    p = p * f + rest * 0x1.ec0378p-3f;
    p = p * f + rest * 0x1.62e12cp-1f;
  }
  return p * f + rest;
}

// 2^x for x <= 127, within 2.2 units in the last place, or 2.9e-6 of itself with Degree 4; 0 from where
// x rounds to Least downward, NaN for NaN, 1 for 0.
//
// 2^x = 2^r 2^f with r = round(x): adding 1.5 * 2^23 - Least leaves r - Least in the low bits, which
// are the exponent of 2^(r - Least - 127), or of zero; the polynomial has the rest of the factor in
// its coefficients.
template <int Least, int Degree = 5>
PYENC_INLINE Floats exp2_down_to(Floats x) {
  static_assert(-127 <= Least && Least <= -64, "the rest of the factor must be a power of two that fits");
  constexpr float kMagic = 12582912.0f - Least;
  constexpr float kRest = static_cast<float>(std::uint64_t{1} << (127 + Least));
  x = larger(splat(static_cast<float>(Least)), x);
  const Floats shifted = x + kMagic;
  const Floats f = x - (shifted - kMagic);
  return exp2_fraction<Degree>(f, kRest) * as_floats(as_ints(shifted) << 23);
}

PYENC_INLINE Floats exp2_of(Floats x) { return exp2_down_to<-127>(x); }

// to[c][r] = from[r][c] for 8 x 8 floats.
PYENC_INLINE void transpose8(const float* from, std::int64_t from_row, float* to,
                             std::int64_t to_row) {
#if defined(__AVX2__)
  __m256 row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) row[r] = _mm256_loadu_ps(from + r * from_row);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    pair[2 * r] = _mm256_unpacklo_ps(row[2 * r], row[2 * r + 1]);
    pair[2 * r + 1] = _mm256_unpackhi_ps(row[2 * r], row[2 * r + 1]);
  }
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
    quad[4 * r] = _mm256_shuffle_ps(pair[4 * r], pair[4 * r + 2], 0x44);
    quad[4 * r + 1] = _mm256_shuffle_ps(pair[4 * r], pair[4 * r + 2], 0xee);
    quad[4 * r + 2] = _mm256_shuffle_ps(pair[4 * r + 1], pair[4 * r + 3], 0x44);
    quad[4 * r + 3] = _mm256_shuffle_ps(pair[4 * r + 1], pair[4 * r + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    _mm256_storeu_ps(to + r * to_row, _mm256_permute2f128_ps(quad[r], quad[r + 4], 0x20));
    _mm256_storeu_ps(to + (r + 4) * to_row, _mm256_permute2f128_ps(quad[r], quad[r + 4], 0x31));
  }
#else
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) to[c * to_row + r] = from[r * from_row + c];
#endif
}

// to (columns, to_row) = from (rows, columns) turned round.
inline void transpose(const float* from, std::int64_t rows, std::int64_t columns,
                      std::int64_t from_row, float* to, std::int64_t to_row) {
  const std::int64_t whole = rows - rows % 8, across = columns - columns % 8;
  for (std::int64_t r = 0; r < whole; r += 8) {
    for (std::int64_t c = 0; c < across; c += 8)
      transpose8(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
    for (std::int64_t c = across; c < columns; ++c)
      for (std::int64_t i = r; i < r + 8; ++i) to[c * to_row + i] = from[i * from_row + c];
  }
  for (std::int64_t r = whole; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) to[c * to_row + r] = from[r * from_row + c];
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
