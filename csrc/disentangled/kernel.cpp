// What positions add to the scores of some queries of one head, compiled once per instruction set.
//
// Neighbours read neighbouring rows: of one query, the numbers for a vector of keys lie within a vector's
// width of each other but far from the table's middle, and so do those of one key for a vector of queries.
// So a square of pairs is a load and a permutation a line for the queries' numbers, and the same, turned
// round in registers, for the keys'. Reading each of the latter by itself meets a line of memory a number,
// at strides that share a few sets of the cache (bench/NOTES.md, "Disentangled attention").

#include "disentangled/arguments.h"

#include "shared/simd.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

static_assert(kLanes <= kSpare, "a vector is read where its first number is one of the row");
constexpr std::int64_t kSquare = 16;
static_assert(kSquare % kLanes == 0, "whole vectors");

// from[at[lane]] where all of them are at or after from[first].
PYENC_INLINE Floats near(const float* from, Ints at, std::int32_t first) {
#if !defined(PYENC_EMULATE_BF16_DOT) && defined(__AVX2__)
  const Ints ahead = at - first;
  if (!any((ahead < 0) | (ahead >= kLanes))) return permuted(load(from + first), ahead);
#else
  (void)first;
#endif
  return gather(from, at);
}

// to (lines, kSquare) = line after line of `from` (lines, R), at places `at` (lines, at_row).
PYENC_INLINE void lines(const float* from, std::int64_t n_rows, const std::int32_t* at,
                        std::int64_t at_row, bool falling, float* to, std::int64_t to_row) {
  for (std::int64_t line = 0; line < kSquare; ++line)
    for (std::int64_t i = 0; i < kSquare; i += kLanes) {
      const std::int32_t* here = at + line * at_row + i;
      store(to + line * to_row + i,
            near(from + line * n_rows, load_ints(here), here[falling ? kLanes - 1 : 0]));
    }
}

PYENC_INLINE void square(const Disentangled& call, std::int64_t i, std::int64_t j,
                         const float* of_queries, const float* of_keys, float* bias) {
  alignas(64) float sums[kSquare * kSquare] = {}, keys[kSquare * kSquare], turned[kSquare * kSquare];
  if (of_queries)
    lines(of_queries + i * call.n_rows, call.n_rows, call.rows + i * call.n_keys + j, call.n_keys,
          true, sums, kSquare);
  if (of_keys) {
    lines(of_keys + j * call.n_rows, call.n_rows, call.turned + j * call.n_queries + i,
          call.n_queries, false, keys, kSquare);
    transpose(keys, kSquare, kSquare, kSquare, turned, kSquare);
    for (std::int64_t at = 0; at < kSquare * kSquare; at += kLanes)
      store(sums + at, load(sums + at) + load(turned + at));
  }
  for (std::int64_t line = 0; line < kSquare; ++line)
    for (std::int64_t at = 0; at < kSquare; at += kLanes)
      store(bias + (i + line) * call.n_keys + j + at, load(sums + line * kSquare + at) * call.scale);
}

void bias(const Disentangled& call, std::int64_t first, std::int64_t last, const float* of_queries,
          const float* of_keys, float* bias) {
  const auto singly = [&](std::int64_t i, std::int64_t j) {
    const std::int64_t row = call.rows[i * call.n_keys + j];
    float sum = of_queries ? of_queries[i * call.n_rows + row] : 0;
    if (of_keys) sum += of_keys[j * call.n_rows + row];
    bias[i * call.n_keys + j] = sum * call.scale;
  };
  std::int64_t i = first;
  for (; i + kSquare <= last; i += kSquare) {
    std::int64_t j = 0;
    for (; j + kSquare <= call.n_keys; j += kSquare)
      square(call, i, j, of_queries, of_keys, bias);
    for (; j < call.n_keys; ++j)
      for (std::int64_t line = i; line < i + kSquare; ++line) singly(line, j);
  }
  for (; i < last; ++i)
    for (std::int64_t j = 0; j < call.n_keys; ++j) singly(i, j);
}

}  // namespace

extern const DisentangledKernels disentangled_kernels;
const DisentangledKernels disentangled_kernels{bias};

}  // namespace PYENC_ISA
}  // namespace pyenc
