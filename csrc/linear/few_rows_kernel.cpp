// The product of few rows, columns at a time, compiled once per instruction set.

#include "linear/few_rows.h"

#include <type_traits>

#include "linear/few_rows_tile.h"
#include "linear/few_rows_units.h"
#include "shared/activation.h"
#include "shared/pairs.h"
#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// How numbers of a dtype are read along the depth and multiplied.
template <class Number>
struct Widened {
  using Scalar = Number;
  using Vector = Floats;
  using Sum = float;
  using Sums = Floats;
  static constexpr std::int64_t kStep = kLanes;
  static PYENC_INLINE Vector get(const Scalar* from) { return read(from); }
  // Not left to the compiler, which might fuse one tile's products and not another's.
  static PYENC_INLINE Floats multiply_add(Floats sum, Vector a, Vector b) {
#if defined(PYENC_EMULATE_BF16_DOT)
    return sum + unfused(a * b);
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
    return _mm512_fmadd_ps(a, b, sum);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, sum);
#else
    return sum + unfused(a * b);
#endif
  }
};

#ifdef PYENC_BF16_DOT
struct Paired : InWords<BFloat16> {
  using Sum = float;
  using Sums = Floats;
  static PYENC_INLINE Floats multiply_add(Floats sum, Vector a, Vector b) {
    return dot_pairs(sum, a, b);
  }
};
#endif

// out = activation(sums + bias), of columns [first, last).
template <class Scalar>
void finish_as(const FewRows& call, std::int64_t first, std::int64_t last, const float* sums) {
  const std::int64_t width = last - first, sums_row = few_sums(width);
  const Scalar* bias = static_cast<const Scalar*>(call.bias);
  const auto finish = [&](const auto& activated) __attribute__((always_inline)) {
    for (std::int64_t r = 0; r < call.rows; ++r) {
      Scalar* to = static_cast<Scalar*>(call.out) + r * call.columns + first;
      // Of a rest too all lanes are computed, so that a number's bits do not hang on where a run ends.
      for (std::int64_t i = 0; i < width; i += kLanes) {
        const bool whole = i + kLanes <= width;
        Floats sum = load(sums + r * sums_row + i);
        if (bias) sum += whole ? read(bias + first + i) : read_some(bias + first + i, width - i);
        sum = activated(sum);
        if (whole) write(sum, to + i);
        else write_some(sum, to + i, width - i);
      }
    }
  };
  if (call.plain) return finish([](Floats x) __attribute__((always_inline)) { return x; });
  with_activation(call.activation, [&](auto chosen) {
    constexpr bool kHalf = !std::is_same<Scalar, float>::value;
    finish([](Floats x) __attribute__((always_inline)) {
      return activate<decltype(chosen)::value, kHalf>(x);
    });
  });
}

template <class Kind>
void multiply_as(const FewRows& call, std::int64_t first, std::int64_t last, float* sums) {
  sums_of<Kind>(call, first, last, sums);
  finish_as<typename Kind::Scalar>(call, first, last, sums);
}

void multiply(const FewRows& call, std::int64_t first, std::int64_t last, float* sums) {
#ifdef PYENC_AMX
  if (call.tiles) {
    sums_on_units(call, first, last, sums);
    return finish_as<BFloat16>(call, first, last, sums);
  }
#endif
  switch (call.dtype) {
    case Dtype::f32: return multiply_as<Widened<float>>(call, first, last, sums);
    case Dtype::f16: return multiply_as<Widened<Float16>>(call, first, last, sums);
    case Dtype::bf16:
#ifdef PYENC_BF16_DOT
      return multiply_as<Paired>(call, first, last, sums);
#else
      return multiply_as<Widened<BFloat16>>(call, first, last, sums);
#endif
  }
}

}  // namespace

extern const FewRowsKernels few_rows_kernels;
#ifdef PYENC_AMX
const FewRowsKernels few_rows_kernels{multiply, [] { configure_tiles(); }, [] { release_tiles(); }};
#else
const FewRowsKernels few_rows_kernels{multiply, nullptr, nullptr};
#endif

}  // namespace PYENC_ISA
}  // namespace pyenc
