// Of attention, bfloat16 as pairs (shared/pairs.h).
//
// Keys and queries pair neighbours in D, values and weights pair neighbouring keys. An odd one out
// stands beside a zero. Words are kept in arrays of floats and read as 32-bit integers.
#pragma once

#include "attention/tile.h"
#include "shared/pairs.h"
#include "shared/rows.h"

#ifdef PYENC_BF16_DOT

namespace pyenc {
namespace PYENC_ISA {
namespace {

PYENC_INLINE void put_word(float* to, std::uint32_t low, std::uint32_t high) {
  *reinterpret_cast<LooseWord*>(to) = low | high << 16;
}

// Two floats, rounded to nearest even, to a pair. Weights are never NaN where it matters: a NaN
// keeps its upper half, and stays one.
PYENC_INLINE Ints pair_of(Floats low, Floats high) {
#if defined(__AVX512BF16__) && !defined(PYENC_EMULATE_BF16_DOT)
  // `high` first: the instruction puts its second argument into the lower half of the register.
  const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
      3, 18, 2, 17, 1, 16, 0);
  return (Ints)_mm512_permutexvar_epi16(order, apart);
#else
  const auto rounded = [](Floats x) {
    const Ints bits = as_ints(x);
    return x != x ? bits : bits + 0x7fff + ((bits >> 16) & 1);
  };
  return ((rounded(low) >> 16) & 0xffff) | (rounded(high) & (Ints{} - 65536));
#endif
}

// 32 floats to bfloat16, one behind the other.
PYENC_INLINE void put_halves(Floats first, Floats second, float* to) {
#if defined(__AVX512BF16__) && !defined(PYENC_EMULATE_BF16_DOT)
  *reinterpret_cast<LooseInts*>(to) = (Ints)_mm512_cvtne2ps_pbh(second, first);
#else
  write(first, reinterpret_cast<BFloat16*>(to));
  write(second, reinterpret_cast<BFloat16*>(to) + kLanes);
#endif
}

// to (pairs of rows, width) = rows (count, D) of floats that are bfloat16 numbers, two in a word.
inline void pair_rows(const float* rows, std::int64_t count, std::int64_t depth, std::int64_t pairs,
                      std::int64_t width, float* to) {
  for (std::int64_t p = 0; p < pairs; ++p, to += width) {
    const float *row = rows + 2 * p * depth, *next = row + depth;
    std::int64_t d = 0;
    if (2 * p + 1 < count)
      for (; d < depth; ++d) put_word(to + d, bits_of(row[d]) >> 16, bits_of(next[d]) >> 16);
    else if (2 * p < count)
      for (; d < depth; ++d) put_word(to + d, bits_of(row[d]) >> 16, 0);
    for (; d < width; ++d) to[d] = 0;
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_BF16_DOT
