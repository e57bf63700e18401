// The loops of a product of few rows, for numbers of any kind.
//
// A tile is R rows of x by S of W. Along the depth a lane sums every kLanes-th product, and the lanes are
// summed at the end: next to nothing beside the products, and W need not be turned. A load of x serves S
// products and one of W serves R, so the units that multiply are what a tile waits for. While one is
// computed, the rows of W of the next are fetched: of a short text most of the time would go there. To the
// second level alone: the first is full of x, and of few lines that a core can wait for it takes a part.
//
// A Kind has: Scalar, what rows are of; Vector, as many of them as are read at once (kStep), and get;
// Sum, a sum of products, and Sums, a vector of them; multiply_add.
//
// In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include <type_traits>

#include "linear/few_rows.h"
#include "shared/simd.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

constexpr int kTileColumns = kRegisters == 32 ? kFewColumns : 3;
constexpr int kTileRows = kRegisters == 32 ? 4 : 3;
static_assert(kFewColumns % kTileColumns == 0, "runs of columns are whole tiles");

// Of a row of W or x, what is summed before it is added up: x's part of all rows stays near.
constexpr std::int64_t kBlockBytes = 2048;

// Of a Kind whose numbers are read as they are, several in a word of 32 bits, wherever a row begins.
typedef std::int32_t Unaligned __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));

template <class Number>
struct InWords {
  using Scalar = Number;
  using Vector = Ints;
  static constexpr std::int64_t kStep = 4 * kLanes / sizeof(Number);
  static PYENC_INLINE Vector get(const Scalar* from) {
    return *reinterpret_cast<const Unaligned*>(from);
  }
};

#if defined(__AVX2__) && !defined(PYENC_EMULATE_BF16_DOT)
#define PYENC_SIDE_BY_SIDE 1

// The lower and the upper halves of each 128 bits of a and b in turn.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
PYENC_INLINE Floats low(Floats a, Floats b) { return _mm512_unpacklo_ps(a, b); }
PYENC_INLINE Floats high(Floats a, Floats b) { return _mm512_unpackhi_ps(a, b); }
#else
PYENC_INLINE Floats low(Floats a, Floats b) { return _mm256_unpacklo_ps(a, b); }
PYENC_INLINE Floats high(Floats a, Floats b) { return _mm256_unpackhi_ps(a, b); }
#endif
PYENC_INLINE Ints low(Ints a, Ints b) { return as_ints(low(as_floats(a), as_floats(b))); }
PYENC_INLINE Ints high(Ints a, Ints b) { return as_ints(high(as_floats(a), as_floats(b))); }

// Of each four lanes the sum over all fours.
PYENC_INLINE void fold(Floats x, float* to) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const __m256 half = _mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1);
#else
  const __m256 half = x;
#endif
  _mm_storeu_ps(to, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}

PYENC_INLINE void fold(Ints x, std::int32_t* to) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const __m512i whole = (__m512i)x;
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(whole), _mm512_extracti64x4_epi64(whole, 1));
#else
  const __m256i half = (__m256i)x;
#endif
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_add_epi32(_mm256_castsi256_si128(half),
                                                                 _mm256_extracti128_si256(half, 1)));
}
#endif

// to[i] (+)= the sum of x[i]'s lanes, S vectors; the same order of sums for each, whatever S.
template <int S, class Sums, class Sum>
PYENC_INLINE void sum_lanes(const Sums (&x)[S], bool add, Sum* to) {
  Sum sums[S + 3];
#ifdef PYENC_SIDE_BY_SIDE
#pragma GCC unroll 6
  for (int i = 0; i < S; i += 4) {
    // Four of them side by side; what is beyond S is summed twice and left.
    const Sums &a = x[i], &b = x[i + 1 < S ? i + 1 : i], &c = x[i + 2 < S ? i + 2 : i];
    const Sums& d = x[i + 3 < S ? i + 3 : i];
    const Sums ac = low(a, c) + high(a, c), bd = low(b, d) + high(b, d);
    fold(low(ac, bd) + high(ac, bd), sums + i);
  }
#else
  for (int i = 0; i < S; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < kLanes; ++lane) sums[i] += x[i][lane];
  }
#endif
#pragma GCC unroll 6
  for (int i = 0; i < S; ++i) to[i] = add ? to[i] + sums[i] : sums[i];
}

// What is left of some rows, side by side. Out of line: it is read where a depth is no whole number of
// vectors, and in line it would be most of what a compiler makes of each tile.
template <class Scalar>
__attribute__((noinline)) void put_rest(const Scalar* from, std::int64_t from_row, int rows,
                                        std::int64_t count, Scalar* to, std::int64_t to_row) {
  for (int r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < count; ++i) to[r * to_row + i] = from[r * from_row + i];
}

// sums (R, S) (+)= x W^T of `depth` numbers; `next`: the first of Fetched rows that will be wanted.
template <class Kind, int R, int S, int Fetched>
PYENC_INLINE void tile(const typename Kind::Scalar* x, std::int64_t x_row,
                       const typename Kind::Scalar* w, std::int64_t w_row, std::int64_t depth,
                       const typename Kind::Scalar* next, bool add, typename Kind::Sum* sums,
                       std::int64_t sums_row) {
  typename Kind::Sums acc[R][S] = {};
  using Scalar = typename Kind::Scalar;
  const auto step = [&](const Scalar* x, std::int64_t x_row, const Scalar* w, std::int64_t w_row)
                        __attribute__((always_inline)) {
    typename Kind::Vector columns[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) columns[s] = Kind::get(w + s * w_row);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename Kind::Vector row = Kind::get(x + r * x_row);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[r][s] = Kind::multiply_add(acc[r][s], row, columns[s]);
    }
  };
  std::int64_t k = 0;
  for (; k + Kind::kStep <= depth; k += Kind::kStep) {
    step(x + k, x_row, w + k, w_row);
#pragma GCC unroll 6
    for (int i = 0; i < Fetched; ++i) __builtin_prefetch(next + i * w_row + k, 0, 2);
  }
  if (k < depth) {
    alignas(64) Scalar rest[(R + S) * Kind::kStep] = {};
    put_rest(x + k, x_row, R, depth - k, rest, Kind::kStep);
    put_rest(w + k, w_row, S, depth - k, rest + R * Kind::kStep, Kind::kStep);
    step(rest, Kind::kStep, rest + R * Kind::kStep, Kind::kStep);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum_lanes(acc[r], add, sums + r * sums_row);
}

// All rows by S columns. The rows of W after these are fetched meanwhile, a share in each group of x's.
template <class Kind, int S>
void columns_of(const FewRows& call, std::int64_t column, std::int64_t k, std::int64_t depth,
                typename Kind::Sum* sums, std::int64_t sums_row) {
  using Scalar = typename Kind::Scalar;
  const Scalar* x = static_cast<const Scalar*>(call.x) + k;
  const Scalar* w = static_cast<const Scalar*>(call.weight) + column * call.weight_row + k;
  const std::int64_t groups = (call.rows + kTileRows - 1) / kTileRows;
  std::int64_t fetched = column + 2 * S <= call.columns ? S : 0, row = 0;
  const Scalar* next = w + S * call.weight_row;
  const auto group = [&](auto rows, auto share) __attribute__((always_inline)) {
    constexpr int R = decltype(rows)::value, kShare = decltype(share)::value;
    tile<Kind, R, S, kShare>(x + row * call.x_row, call.x_row, w, call.weight_row, depth, next, k > 0,
                             sums + row * sums_row, sums_row);
    row += R, next += kShare * call.weight_row, fetched -= kShare;
  };
  const auto whole = [&](auto share) __attribute__((always_inline)) {
    const std::int64_t left = call.rows - row;
    if (left >= kTileRows) return group(std::integral_constant<int, kTileRows>(), share);
    if (left == 3) return group(std::integral_constant<int, 3>(), share);
    if (left == 2) return group(std::integral_constant<int, 2>(), share);
    return group(std::integral_constant<int, 1>(), share);
  };
  constexpr std::integral_constant<int, 0> kNone;
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, (S + 2) / 3> kThird;
  constexpr std::integral_constant<int, (S + 1) / 2> kHalf;
  constexpr std::integral_constant<int, S> kAll;
  while (row < call.rows) {
    if (fetched <= 0) whole(kNone);
    else if (groups == 1) whole(kAll);
    else if (groups == 2) whole(kHalf);
    else if (groups < S) whole(kThird);
    else whole(kOne);
  }
}

// sums (T, few_sums(last - first)) = x W^T of columns [first, last).
template <class Kind>
void sums_of(const FewRows& call, std::int64_t first, std::int64_t last, typename Kind::Sum* sums) {
  using Scalar = typename Kind::Scalar;
  const std::int64_t width = last - first, sums_row = few_sums(width);
  constexpr std::int64_t kBlock = kBlockBytes / sizeof(Scalar);
  std::int64_t k = 0;
  do {
    const std::int64_t depth = call.depth - k < kBlock ? call.depth - k : kBlock;
    std::int64_t column = first;
    for (; column + kTileColumns <= last; column += kTileColumns)
      columns_of<Kind, kTileColumns>(call, column, k, depth, sums + column - first, sums_row);
    for (; column < last; ++column)
      columns_of<Kind, 1>(call, column, k, depth, sums + column - first, sums_row);
    k += depth;
  } while (k < call.depth);
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
