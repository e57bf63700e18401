// What positions add to the scores of one head, and its gradient by rows, compiled once per instruction
// set.
//
// Neighbours read neighbouring rows: of one query, the numbers for a vector of keys lie within a vector's
// width of each other, and so do those of one key for a vector of queries. So a square of pairs is a load
// and a permutation a line for the queries' numbers, and the same, turned round in registers, for the
// keys'. Read one by one, each of the latter is another line of memory, at strides that share a few sets
// of the cache (bench/NOTES.md, "Disentangled attention").

#include "disentangled/arguments.h"

#include "shared/product.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

static_assert(kLanes <= kSpare, "a vector is read where its first number is one of the row");
static_assert(kStrip % (kColumns * kLanes) == 0, "whole strips");
constexpr std::int64_t kSquare = 16;
static_assert(kSquare % kLanes == 0, "whole vectors");

void numbers(const float* x, std::int64_t token, std::int64_t count, const float* table,
             std::int64_t table_step, std::int64_t head_dim, std::int64_t columns, float* to,
             std::int64_t to_step) {
  for (std::int64_t column = 0; column < columns; column += kColumns * kLanes)
    for_rows(count, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][kColumns] = {};
      float* place = to + row * to_step + column;
      multiply_in_runs<R, kColumns>({x + row * token, token, 1}, table + column, table_step, head_dim,
                                    place, to_step, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) store(place + r * to_step + c * kLanes, acc[r][c]);
    });
}

// Whether a vector's places lie within a vector's width of the first of them, in memory's order.
PYENC_INLINE bool beside(Ints ahead) { return !any((ahead < 0) | (ahead >= kLanes)); }

// from[at[lane]]; `first`: the least of `at` where rows follow each other as distances do.
PYENC_INLINE Floats picked(const float* from, Ints at, std::int32_t first) {
  const Ints ahead = at - first;
  return beside(ahead) ? permuted(load(from + first), ahead) : gather(from, at);
}

// to[at[lane]] += x[lane], one after the other where they share a place.
PYENC_INLINE void add_to(float* to, Ints at, std::int32_t first, Floats x) {
  Ints rising;
  for (int lane = 0; lane < kLanes; ++lane) rising[lane] = lane;
  const Ints ahead = at - first;
  // A turn round is its own inverse.
  if (!any(ahead != rising) || !any(ahead != kLanes - 1 - rising))
    return store(to + first, load(to + first) + permuted(x, ahead));
  for (int lane = 0; lane < kLanes; ++lane) to[at[lane]] += x[lane];
}

// A square of pairs: body(line, lane of the first, places) for the lines of `at`, whose rows fall along a
// line of keys and rise along one of queries.
template <class Body>
PYENC_INLINE void for_lines(const std::int32_t* at, std::int64_t at_step, bool falling,
                            const Body& body) {
  for (std::int64_t line = 0; line < kSquare; ++line)
    for (std::int64_t i = 0; i < kSquare; i += kLanes) {
      const std::int32_t* here = at + line * at_step + i;
      body(line, i, load_ints(here), here[falling ? kLanes - 1 : 0]);
    }
}

void bias(const Disentangled& call, std::int64_t first, std::int64_t count, const float* of_queries,
          const float* of_keys, float* bias) {
  const std::int64_t n = call.n_keys, n_rows = call.n_rows;
  const auto singly = [&](std::int64_t i, std::int64_t j) {
    const std::int64_t row = call.rows[i * call.rows_step + j];
    float sum = of_queries ? of_queries[(i - first) * n_rows + row] : 0;
    if (of_keys) sum += of_keys[j * n_rows + row];
    bias[i * n + j] = sum * call.scale;
  };
  const auto square = [&](std::int64_t i, std::int64_t j) {
    alignas(64) float lines[kSquare * kSquare], turned[kSquare * kSquare] = {};
    if (of_keys) {
      for_lines(call.turned + j * call.turned_step + i, call.turned_step, false,
                [&](std::int64_t line, std::int64_t lane, Ints at, std::int32_t least) {
        store(lines + line * kSquare + lane, picked(of_keys + (j + line) * n_rows, at, least));
      });
      transpose(lines, kSquare, kSquare, kSquare, turned, kSquare);
    }
    for_lines(call.rows + i * call.rows_step + j, call.rows_step, true,
              [&](std::int64_t line, std::int64_t lane, Ints at, std::int32_t least) {
      Floats sum = load(turned + line * kSquare + lane);
      if (of_queries) sum += picked(of_queries + (i - first + line) * n_rows, at, least);
      store(bias + (i + line) * n + j + lane, sum * call.scale);
    });
  };
  const std::int64_t last = first + count;
  std::int64_t i = first;
  for (; i + kSquare <= last; i += kSquare) {
    std::int64_t j = 0;
    for (; j + kSquare <= n; j += kSquare) square(i, j);
    for (; j < n; ++j)
      for (std::int64_t line = i; line < i + kSquare; ++line) singly(line, j);
  }
  for (; i < last; ++i)
    for (std::int64_t j = 0; j < n; ++j) singly(i, j);
}

void by_rows(const Disentangled& call, const float* pairs, float* of_queries, float* of_keys) {
  const std::int64_t n = call.n_keys, n_rows = call.n_rows;
  const auto singly = [&](std::int64_t i, std::int64_t j) {
    const std::int64_t row = call.rows[i * call.rows_step + j];
    const float share = call.scale * pairs[i * n + j];
    if (of_queries) of_queries[i * n_rows + row] += share;
    if (of_keys) of_keys[j * n_rows + row] += share;
  };
  const auto square = [&](std::int64_t i, std::int64_t j) {
    const float* from = pairs + i * n + j;
    if (of_queries)
      for_lines(call.rows + i * call.rows_step + j, call.rows_step, true,
                [&](std::int64_t line, std::int64_t lane, Ints at, std::int32_t least) {
        add_to(of_queries + (i + line) * n_rows, at, least,
               load(from + line * n + lane) * call.scale);
      });
    if (!of_keys) return;
    alignas(64) float turned[kSquare * kSquare];
    transpose(from, kSquare, kSquare, n, turned, kSquare);
    for_lines(call.turned + j * call.turned_step + i, call.turned_step, false,
              [&](std::int64_t line, std::int64_t lane, Ints at, std::int32_t least) {
      add_to(of_keys + (j + line) * n_rows, at, least,
             load(turned + line * kSquare + lane) * call.scale);
    });
  };
  std::int64_t i = 0;
  for (; i + kSquare <= call.n_queries; i += kSquare) {
    std::int64_t j = 0;
    for (; j + kSquare <= n; j += kSquare) square(i, j);
    for (; j < n; ++j)
      for (std::int64_t line = i; line < i + kSquare; ++line) singly(line, j);
  }
  for (; i < call.n_queries; ++i)
    for (std::int64_t j = 0; j < n; ++j) singly(i, j);
}

}  // namespace

extern const DisentangledKernels disentangled_kernels;
const DisentangledKernels disentangled_kernels{numbers, bias, by_rows};

}  // namespace PYENC_ISA
}  // namespace pyenc
