// The small matrix product at the heart of attention: a few rows times a strip of lanes.
//
// c[row][lane] = init[row][lane] + sum_k a(row, k) b[k][lane], with every c in a register for the
// whole of the sum. `a` is read one number at a time and broadcast, so it may have any strides;
// `b` is read a strip at a time. That way round needs no sums across lanes and no copy of `a`.
#pragma once

#include "shared/simd.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Rows at a time, so that rows x columns accumulators, the columns of b and one of a fill the
// registers: 6 x 2 of 16, 6 x 4 of 32.
constexpr int kRows = 6;
constexpr int kColumns = kRegisters == 32 ? 4 : 2;

struct Matrix {
  const float* at;
  std::int64_t row, k;  // strides of a(row, k)
};

// acc += a b over k in [0, depth); b has `ldb` floats from one k to the next.
template <int R, int C>
PYENC_INLINE void multiply(Matrix a, const float* b, std::int64_t ldb, std::int64_t depth,
                           Floats (&acc)[R][C]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats column[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) column[c] = load(b + c * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Floats row = splat(a.at[r * a.row]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] += row * column[c];
    }
    a.at += a.k;
    b += ldb;
  }
}

// The same where depth may be long: products are summed in runs, which are then added up, for a
// single sum of hundreds would round each time at its own size. Runs of 64: most head dims are one.
// spare: room for acc, `spare_row` floats a row.
template <int R, int C>
PYENC_INLINE void multiply_in_runs(Matrix a, const float* b, std::int64_t ldb, std::int64_t depth,
                                   float* spare, std::int64_t spare_row, Floats (&acc)[R][C]) {
  constexpr std::int64_t kRun = 64;
  multiply<R, C>(a, b, ldb, depth < kRun ? depth : kRun, acc);
  for (std::int64_t done = kRun; done < depth; done += kRun) {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        store(spare + r * spare_row + c * kLanes, acc[r][c]);
        acc[r][c] = Floats{};
      }
    const std::int64_t left = depth - done;
    multiply<R, C>({a.at + done * a.k, a.row, a.k}, b + done * ldb, ldb, left < kRun ? left : kRun,
                   acc);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] += load(spare + r * spare_row + c * kLanes);
  }
}

// body(first row, number of rows as a constant) over `count` rows, kRows at a time.
template <int R>
struct Rows {
  static constexpr int count = R;
};

template <class Body>
PYENC_INLINE void for_rows(std::int64_t count, const Body& body) {
  std::int64_t row = 0;
  for (; row + kRows <= count; row += kRows) body(row, Rows<kRows>());
  switch (count - row) {
    case 5: return body(row, Rows<5>());
    case 4: return body(row, Rows<4>());
    case 3: return body(row, Rows<3>());
    case 2: return body(row, Rows<2>());
    case 1: return body(row, Rows<1>());
    default: return;
  }
}

// to[row][lane] += a b over `rows` rows and C vectors; `b` and `to` have that many floats a row.
template <int C>
inline void multiply_add(Matrix a, std::int64_t rows, const float* b, std::int64_t b_row,
                         std::int64_t depth, float* to, std::int64_t to_row) {
  for_rows(rows, [&](std::int64_t row, auto n) {
    constexpr int R = decltype(n)::count;
    Floats acc[R][C] = {};
    multiply<R, C>({a.at + row * a.row, a.row, a.k}, b, b_row, depth, acc);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        float* place = to + (row + r) * to_row + c * kLanes;
        // Summed apart and then added: a running sum of the whole sequence would round at its size.
        store(place, load(place) + acc[r][c]);
      }
    }
  });
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
