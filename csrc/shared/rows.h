// Rows of numbers, a vector of floats at a time, whatever they are kept as.
//
// In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include <type_traits>

#include "shared/simd.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

typedef std::uint16_t Words __attribute__((vector_size(2 * kLanes)));
typedef std::uint16_t LooseWords __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(4 * kLanes)));

PYENC_INLINE Floats read(const float* from) { return load(from); }

PYENC_INLINE Floats read(const BFloat16* from) {
  const Words words = *reinterpret_cast<const LooseWords*>(from);
  return reinterpret_cast<Floats>(__builtin_convertvector(words, Bits) << 16);
}

PYENC_INLINE Floats read(const Float16* from) {
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(PYENC_EMULATE_BF16_DOT)
  return _mm512_cvtph_ps((__m256i)*reinterpret_cast<const LooseWords*>(from));
#elif defined(__AVX2__) && defined(__F16C__) && !defined(PYENC_EMULATE_BF16_DOT)
  return _mm256_cvtph_ps((__m128i)*reinterpret_cast<const LooseWords*>(from));
#endif
  float wide[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) wide[lane] = widen(from[lane]);
  return load(wide);
}

PYENC_INLINE void write(Floats values, float* to) { store(to, values); }

// Round to nearest, ties to even, as narrow() in shared/numeric.h.
PYENC_INLINE void write(Floats values, BFloat16* to) {
#if defined(__AVX512BF16__) && !defined(PYENC_EMULATE_BF16_DOT)
  // One instruction, but that it takes subnormal numbers for zero.
  constexpr int kSubnormal = 0x20;
  if (_mm512_fpclass_ps_mask(values, kSubnormal) == 0) {
    const __m256i words = (__m256i)_mm512_cvtneps_pbh(values);
    *reinterpret_cast<LooseWords*>(to) = reinterpret_cast<Words>(words);
    return;
  }
#endif
  const Bits bits = reinterpret_cast<Bits>(values);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits kept = values == values ? rounded : Bits{} + 0x7fc0u;
  *reinterpret_cast<LooseWords*>(to) = __builtin_convertvector(kept, Words);
}

PYENC_INLINE void write(Floats values, Float16* to) {
  float wide[kLanes];
  store(wide, values);
  for (int lane = 0; lane < kLanes; ++lane) narrow(wide[lane], to[lane]);
}

template <class Scalar>
PYENC_INLINE Floats read_some(const Scalar* from, std::int64_t count) {
  float wide[kLanes] = {};
  for (std::int64_t lane = 0; lane < count; ++lane) wide[lane] = widen(from[lane]);
  return load(wide);
}

template <class Scalar>
PYENC_INLINE void write_some(Floats values, Scalar* to, std::int64_t count) {
  float wide[kLanes];
  store(wide, values);
  for (std::int64_t lane = 0; lane < count; ++lane) narrow(wide[lane], to[lane]);
}

// Whole vectors, and the same for the rest of a row: zeros are read beyond it, nothing is written.
struct Whole {
  template <class Scalar>
  static PYENC_INLINE Floats get(const Scalar* from) { return read(from); }
  template <class Scalar>
  static PYENC_INLINE void put(Floats values, Scalar* to) { write(values, to); }
};

struct Rest {
  std::int64_t count;
  template <class Scalar>
  PYENC_INLINE Floats get(const Scalar* from) const { return read_some(from, count); }
  template <class Scalar>
  PYENC_INLINE void put(Floats values, Scalar* to) const { write_some(values, to, count); }
};

// body(first column, how to read and write there) over `count` columns.
template <class Body>
PYENC_INLINE void for_columns(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Whole());
  if (i < count) body(i, Rest{count - i});
}

// body(pointer to the dtype, null) so that templates can be chosen by it.
template <class Body>
PYENC_INLINE void as_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::f32: return body(static_cast<float*>(nullptr));
    case Dtype::bf16: return body(static_cast<BFloat16*>(nullptr));
    case Dtype::f16: return body(static_cast<Float16*>(nullptr));
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
