// Attention backward by pairs of bfloat16 in vector registers (attention/pairs.h; the formulas:
// attention/backward_kernel.cpp), at twice the rate of floats.
//
// s = K Q^T, dp = V G^T and dq += K^T ds as the forward has its two products; dV and dK (keys, D) sum
// over queries, and so want p and ds with pairs of queries, against the queries' rows of G and Q, two in
// a word. p, and ds with the scale, are rounded to bfloat16 for it. Where ALiBi's slopes have a
// gradient, the kernel of floats serves.
#pragma once

#include "attention/backward_walk.h"
#include "attention/forward_math.h"

#ifdef PYENC_BF16_DOT

namespace pyenc {
namespace PYENC_ISA {
namespace {

struct PairScratch {
  float *rows, *others, *q, *g, *q_pairs, *g_pairs, *dq, *s, *ds, *bias, *column, *p_rows, *ds_rows,
      *ds_pairs;

  static constexpr std::int64_t kBlock = kMostKeys * kWidest;

  static std::int64_t size(std::int64_t depth) {
    return kQueryTile * (3 * depth + 2 * pairs_of(depth) + padded(depth)) + 3 * kBlock + kMostKeys +
           3 * kBlock / 2;
  }

  PairScratch(float* at, std::int64_t depth) {
    rows = at;
    others = rows + kQueryTile * depth;
    q = others + kQueryTile * depth;
    g = q + kQueryTile * pairs_of(depth);
    q_pairs = g + kQueryTile * pairs_of(depth);
    g_pairs = q_pairs + kQueryTile / 2 * padded(depth);
    dq = g_pairs + kQueryTile / 2 * padded(depth);
    s = dq + kQueryTile * depth;
    ds = s + kBlock;
    bias = ds + kBlock;
    column = bias + kBlock;
    p_rows = column + kMostKeys;
    ds_rows = p_rows + kBlock / 2;
    ds_pairs = ds_rows + kBlock / 2;
  }
};

// A head's copy: keys and values by pairs of D, and keys two in a word.
inline std::int64_t pair_words(std::int64_t n, std::int64_t depth) {
  return 2 * PairMath::keys_size(n, depth) + PairMath::values_size(n, depth);
}

inline void prepare_pairs(const AttentionHead& head) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim, words = PairMath::keys_size(head.n, depth);
  const auto as_keys = PairMath::read_keys, as_values = PairMath::read_values;
  as_keys(call.k, call.dtype, head.first, head.head, head.n, depth, head.keys);
  as_keys(call.v, call.dtype, head.first, head.head, head.n, depth, head.keys + words);
  as_values(call.k, call.dtype, head.first, head.head, head.n, depth, head.keys + 2 * words);
}

// to (rows, D) += a (rows, pairs) b (pairs, D), all of D.
template <int C>
inline void add_pairs(const float* a, std::int64_t a_row, std::int64_t rows, const float* b,
                      std::int64_t pairs, std::int64_t width, std::int64_t& d, float* to) {
  for (; d + C * kLanes <= width; d += C * kLanes)
    for_rows(rows, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_pairs<R, C>({a + row * a_row, a_row, 1}, b + d, width, pairs, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          float* place = to + (row + r) * width + d + c * kLanes;
          store(place, load(place) + acc[r][c]);
        }
    });
}

template <int C>
struct PairWalk : BackwardStrip<C> {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth, kPairs = kWidth / 2;
  using BackwardStrip<C>::strip;

  float *q, *g;              // (pairs of D, strip)
  float *q_pairs, *g_pairs;  // (pairs of queries, padded D)
  float* dq;                 // (D, strip)

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const AttentionBackward& result, const PairScratch& scratch, std::int64_t done) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, width = padded(depth);
    strip.start(head, first_query, last_query);
    q = scratch.q + done * pairs_of(depth), g = scratch.g + done * pairs_of(depth);
    q_pairs = scratch.q_pairs + done / 2 * width, g_pairs = scratch.g_pairs + done / 2 * width;
    dq = scratch.dq + done * depth;
    const auto read = [&](const Rows3& from, float* to) {
      read_rows(from, call.dtype, head.first + strip.first, head.head, strip.count, depth, to);
    };
    const auto pair = [&](const Rows3& from, float* turned, float* rows) {
      read(from, scratch.rows);
      PairMath::turn_queries(scratch.rows, strip.count, depth, kWidth, nullptr, turned);
      pair_rows(scratch.rows, strip.count, depth, kPairs, width, rows);
    };
    pair(call.q, q, q_pairs);
    pair(result.grad_out, g, g_pairs);
    read(result.out, scratch.others);
    this->take_rows(head, result, scratch.rows, scratch.others, 2);  // those that share a word
    for (std::int64_t i = 0; i < depth * kWidth; ++i) dq[i] = 0;
  }

  // Into scratch.s: p of keys [first, last), or false where they are left out.
  bool weigh(const AttentionHead& head, std::int64_t first, std::int64_t last,
             const PairScratch& scratch) {
    Placement place;
    if (!this->meets(head, first, last, place)) return false;
    const std::int64_t depth = head.call->head_dim, count = last - first;
    const float* k = head.keys + PairMath::keys_size(first, depth);
    const float scale = query_factor(*head.call);
    Floats row[C] = {}, top[C];
    if (place.uniform) {
      uniform_bias(head, strip, place.side, first, last, scratch.column, row);
      PairMath::scores<C, false>(k, q, depth, count, scale, scratch.column, scratch.s, top);
    } else {
      pair_bias(head, strip, first, last, scratch.bias);
      PairMath::scores<C, true>(k, q, depth, count, scale, scratch.bias, scratch.s, top);
    }
    return this->take_weights(head, place, row, top, count, scratch.s);
  }

  // body(place in scratch.s and scratch.ds, vector, dp = V g there) of keys [first, first + count).
  template <class Body>
  PYENC_INLINE void each_dp(const AttentionHead& head, std::int64_t first, std::int64_t count,
                            const PairScratch&, const Body& body) {
    const std::int64_t depth = head.call->head_dim, pairs = pairs_of(depth);
    const float* v = head.keys + PairMath::keys_size(head.n + first, depth);
    for_rows(count, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_pairs<R, C>({v + row * pairs, pairs, 1}, g, kWidth, pairs, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) body((row + r) * kWidth + c * kLanes, c, acc[r][c]);
    });
  }

  void measure(const AttentionHead& head, std::int64_t first, std::int64_t last,
               const PairScratch& scratch) {
    this->measure_block(*this, head, first, last, scratch);
  }

  void meet(const AttentionHead& head, std::int64_t first, std::int64_t last,
            const PairScratch& scratch, const Sums& sums) {
    if (!weigh(head, first, last, scratch)) return;
    const std::int64_t depth = head.call->head_dim, width = padded(depth), count = last - first;
    this->turn_back(*this, head, first, count, scratch);
    round_block(count, head.call->scale, scratch);
    PairMath::add_values<C>(head.keys + 2 * PairMath::keys_size(head.n, depth) + first / 2 * depth,
                            depth, count, scratch.ds_pairs, dq);
    add_rows(scratch.p_rows, count, g_pairs, width, sums.values + first * width);
    add_rows(scratch.ds_rows, count, q_pairs, width, sums.keys + first * width);
    if (sums.bias.line) this->add_line(head, first, count, scratch.ds, sums.bias);
  }

  // p, and ds times the scale, as the products want them.
  void round_block(std::int64_t count, float scale, const PairScratch& scratch) const {
    for (std::int64_t j = 0; j < count; j += 2) {
      Floats scaled[2][C] = {};
      for (std::int64_t r = 0; r < 2 && j + r < count; ++r) {
        const std::int64_t at = (j + r) * kWidth;
        for (int c = 0; c < C; ++c) scaled[r][c] = load(scratch.ds + at + c * kLanes) * scale;
        // Of a strip of one vector the second half of what is put is the next row's place.
        for (int c = 0; c < C; c += 2) {
          const int next = C == 1 ? c : c + 1;
          const std::int64_t to = (j + r) * kPairs + c / 2 * kLanes;
          put_halves(load(scratch.s + at + c * kLanes), load(scratch.s + at + next * kLanes),
                     scratch.p_rows + to);
          put_halves(scaled[r][c], scaled[r][next], scratch.ds_rows + to);
        }
      }
      for (int c = 0; c < C; ++c)
        put_words(pair_of(scaled[0][c], scaled[1][c]),
                  scratch.ds_pairs + j / 2 * kWidth + c * kLanes);
    }
  }

  // to (keys, padded D) += a (keys, pairs of queries) b (pairs of queries, padded D).
  void add_rows(const float* a, std::int64_t count, const float* b, std::int64_t width,
                float* to) const {
    const std::int64_t pairs = pairs_of(strip.count);
    std::int64_t d = 0;
    add_pairs<kColumns>(a, kPairs, count, b, pairs, width, d, to);
    add_pairs<2>(a, kPairs, count, b, pairs, width, d, to);
    add_pairs<1>(a, kPairs, count, b, pairs, width, d, to);
  }

  void finish(const AttentionHead& head, const AttentionBackward& result,
              const PairScratch& scratch) {
    this->write_queries(head, result, dq, scratch.rows);
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_BF16_DOT
