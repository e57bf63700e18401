// float32 on matrix units: a number as the sum of three of bfloat16, or of two, and products of such sums.
//
// Of the 24 bits of a float the first part h has the upper eight, m the next and l the last: cut off, not
// rounded, so that h + m + l is the number itself and no part overflows. Of the nine products of two
// numbers' parts three are left out, m l, l m and l l: less than 2^-22 of the whole, about what a sum of
// floats rounds away. The other six are exact and add up in float32.
//
// Of two parts both are rounded, to sixteen bits together, and m m is left out: three products, each within
// 2^-14 of the whole, where TF32 is within 2^-10.
//
// A tile of parts is as many tiles, h, m and l, one behind the other.
#pragma once

#include "shared/rows.h"
#include "shared/tiles.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

constexpr std::int64_t kParts = 3;
constexpr std::int64_t kPartsWords = kParts * kTileWords;

// A pair of two words whose lower halves are zero.
PYENC_INLINE Ints pair_of_upper(Ints below, Ints above) {
  return reinterpret_cast<Ints>(reinterpret_cast<Bits>(below) >> 16) | above;
}

// Pairs of two floats' parts.
PYENC_INLINE void split_pair(Floats low, Floats high, Ints (&parts)[kParts]) {
  const auto upper = [](Floats x) { return as_ints(x) & (Ints{} - 65536); };
  const Ints h_low = upper(low), h_high = upper(high);
  low -= as_floats(h_low), high -= as_floats(h_high);
  const Ints m_low = upper(low), m_high = upper(high);
  low -= as_floats(m_low), high -= as_floats(m_high);
  parts[0] = pair_of_upper(h_low, h_high), parts[1] = pair_of_upper(m_low, m_high);
  parts[2] = pair_of_upper(as_ints(low), as_ints(high));  // eight bits are left
}

// Of numbers less than 2^127, for what is rounded must not become infinite.
PYENC_INLINE void split_pair(Floats low, Floats high, Ints (&parts)[2]) {
  const auto nearest = [](Floats x) { return (as_ints(x) + 0x8000) & (Ints{} - 65536); };
  for (Ints& part : parts) {
    const Ints below = nearest(low), above = nearest(high);
    low -= as_floats(below), high -= as_floats(above);
    part = pair_of_upper(below, above);
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
