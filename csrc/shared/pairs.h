// bfloat16 as pairs: two neighbours of a sum side by side in 32 bits, which the processor multiplies
// and adds to a float in one instruction (vdpbf16ps), at twice the rate of floats.
//
// PYENC_BF16_DOT: there is such an instruction, or the tests want the same code without it.
// In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include "shared/simd.h"

#if defined(__AVX512BF16__) || defined(PYENC_EMULATE_BF16_DOT)
#define PYENC_BF16_DOT 1

namespace pyenc {
namespace PYENC_ISA {
namespace {

// sum + a.low b.low + a.high b.high, lane by lane.
PYENC_INLINE Floats dot_pairs(Floats sum, Ints a, Ints b) {
#if defined(__AVX512BF16__) && !defined(PYENC_EMULATE_BF16_DOT)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  const Ints high = Ints{} - 65536;
  sum += as_floats(a << 16) * as_floats(b << 16);
  return sum + as_floats(a & high) * as_floats(b & high);
#endif
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif
