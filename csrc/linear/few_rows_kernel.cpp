// The product of few rows, columns at a time, compiled once per instruction set.
//
// A tile is R rows of x by S of W. Along the depth a lane sums every kLanes-th product, and the lanes are
// summed at the end: next to nothing beside the products, and W need not be turned. A load of x serves S
// products and one of W serves R, so the units that multiply are what a tile waits for. While one is
// computed, the rows of W of the next are fetched: of a short text most of the time would go there.

#include "linear/few_rows.h"

#include <type_traits>

#include "shared/activation.h"
#include "shared/pairs.h"
#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

constexpr int kTileColumns = kRegisters == 32 ? kFewColumns : 3;
constexpr int kTileRows = kRegisters == 32 ? 4 : 3;
static_assert(kFewColumns % kTileColumns == 0, "runs of columns are whole tiles");

// Of a row of W or x, what is summed before it is added up: x's part of all rows stays near.
constexpr std::int64_t kBlockBytes = 2048;

// How numbers of a dtype are read along the depth and multiplied.
template <class Number>
struct Widened {
  using Scalar = Number;
  using Vector = Floats;
  static constexpr std::int64_t kStep = kLanes;
  static PYENC_INLINE Vector get(const Scalar* from) { return read(from); }
  static PYENC_INLINE Vector get_some(const Scalar* from, std::int64_t count) {
    return read_some(from, count);
  }
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
struct Paired {
  using Scalar = BFloat16;
  using Vector = Ints;
  static constexpr std::int64_t kStep = 2 * kLanes;
  static PYENC_INLINE Vector get(const Scalar* from) {
    return load_words(reinterpret_cast<const float*>(from));
  }
  static PYENC_INLINE Vector get_some(const Scalar* from, std::int64_t count) {
    alignas(Ints) Scalar some[kStep] = {};
    for (std::int64_t i = 0; i < count; ++i) some[i] = from[i];
    return get(some);
  }
  static PYENC_INLINE Floats multiply_add(Floats sum, Vector a, Vector b) {
    return dot_pairs(sum, a, b);
  }
};
#endif

// to[i] (+)= the sum of x[i]'s lanes, S vectors; the same order of sums for each, whatever S.
template <int S>
PYENC_INLINE void sum_lanes(const Floats (&x)[S], bool add, float* to) {
  float sums[S];
#if defined(__AVX2__) && !defined(PYENC_EMULATE_BF16_DOT)
#pragma GCC unroll 6
  for (int i = 0; i < S; i += 4) {
    // Four of them side by side; what is beyond S is summed twice and left.
    const Floats &a = x[i], &b = x[i + 1 < S ? i + 1 : i], &c = x[i + 2 < S ? i + 2 : i];
    const Floats& d = x[i + 3 < S ? i + 3 : i];
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const Floats ac = _mm512_unpacklo_ps(a, c) + _mm512_unpackhi_ps(a, c);
    const Floats bd = _mm512_unpacklo_ps(b, d) + _mm512_unpackhi_ps(b, d);
    const __m512 four = _mm512_unpacklo_ps(ac, bd) + _mm512_unpackhi_ps(ac, bd);
    const __m256 half = _mm512_castps512_ps256(four) + _mm512_extractf32x8_ps(four, 1);
#else
    const Floats ac = _mm256_unpacklo_ps(a, c) + _mm256_unpackhi_ps(a, c);
    const Floats bd = _mm256_unpacklo_ps(b, d) + _mm256_unpackhi_ps(b, d);
    const __m256 half = _mm256_unpacklo_ps(ac, bd) + _mm256_unpackhi_ps(ac, bd);
#endif
    const __m128 quarter = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      if (i + j < S) sums[i + j] = quarter[j];
  }
#else
  for (int i = 0; i < S; ++i) sums[i] = sum_of(x[i]);
#endif
#pragma GCC unroll 6
  for (int i = 0; i < S; ++i) to[i] = add ? to[i] + sums[i] : sums[i];
}

// sums (R, S) (+)= x W^T of `depth` numbers; `next`: the first of Fetched rows that will be wanted.
template <class Kind, int R, int S, int Fetched>
PYENC_INLINE void tile(const typename Kind::Scalar* x, std::int64_t x_row,
                       const typename Kind::Scalar* w, std::int64_t w_row, std::int64_t depth,
                       const typename Kind::Scalar* next, bool add, float* sums,
                       std::int64_t sums_row) {
  Floats acc[R][S] = {};
  const auto step = [&](std::int64_t k, const auto& get) __attribute__((always_inline)) {
    typename Kind::Vector columns[S];
#pragma GCC unroll 6
    for (int s = 0; s < S; ++s) columns[s] = get(w + s * w_row + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename Kind::Vector row = get(x + r * x_row + k);
#pragma GCC unroll 6
      for (int s = 0; s < S; ++s) acc[r][s] = Kind::multiply_add(acc[r][s], row, columns[s]);
    }
  };
  std::int64_t k = 0;
  for (; k + Kind::kStep <= depth; k += Kind::kStep) {
    step(k, [](const auto* from) __attribute__((always_inline)) { return Kind::get(from); });
#pragma GCC unroll 6
    for (int i = 0; i < Fetched; ++i) __builtin_prefetch(next + i * w_row + k);
  }
  if (k < depth)
    step(k, [&](const auto* from) __attribute__((always_inline)) {
      return Kind::get_some(from, depth - k);
    });
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum_lanes<S>(acc[r], add, sums + r * sums_row);
}

// All rows by S columns. The rows of W after these are fetched meanwhile, a share in each group of x's.
template <class Kind, int S>
void columns_of(const FewRows& call, std::int64_t column, std::int64_t k, std::int64_t depth,
                float* sums, std::int64_t sums_row) {
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

template <class Kind>
void multiply_as(const FewRows& call, std::int64_t first, std::int64_t last, float* sums) {
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

void multiply(const FewRows& call, std::int64_t first, std::int64_t last, float* sums) {
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
const FewRowsKernels few_rows_kernels{multiply};

}  // namespace PYENC_ISA
}  // namespace pyenc
