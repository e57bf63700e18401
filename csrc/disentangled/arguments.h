// What relative positions add to the scores of disentangled attention, pair by pair, and its gradient
// added up by what was read. He et al., DeBERTa, arXiv 2006.03654.
//
// Shapes: H heads, b sequences of one length taken together, B = H b, the heads outermost; i queries of a
// slab, n keys, D head dim, R rows of relative positions, rounded up to whole strips (kStrip).
#pragma once

#include <cstdint>

#include "attention/arguments.h"

namespace pyenc {

constexpr std::int64_t kStrip = 64;  // floats: R is a multiple
// Vectors of so many floats may be read from each number on: there is room beyond the last.
constexpr int kSpare = 16;
// Tokens at a time: their numbers stay in the cache, and are whole blocks of the products' rows.
constexpr std::int64_t kTokens = 48;

// Relative positions of a whole call, forward.
struct PositionTables {
  Rows3 queries_of, keys_of;  // q and k (T, H, D) in float32
  // What they are as keys and as queries, turned round: (H, D, R), zeros beyond the rows that there are;
  // one of them may be null.
  const float *keys, *queries;
  std::int64_t n_rows;  // R
  // The row of each distance i - j from -reach to reach, at 0 of it; those beyond have the rows at its ends,
  // and no distance has a lower row than a lesser one.
  const std::int32_t* of_distance;
  std::int64_t reach;
};

// Attention, in any dtype, whose scores are scale * (q_i . k_j + q_i . keys[r(i - j)] + k_j . queries[r(i - j)]).
void disentangled_forward(const Attention& call, const PositionTables& tables,
                          const AttentionForward& result);

// One of q and k: float32, a head's numbers side by side.
struct Tokens {
  const float* at;
  std::int64_t token, head;  // strides
};

struct Disentangled {
  Tokens queries, keys;  // (i, B, D), (n, B, D)
  // What positions are as keys and as queries, turned round: R rows of (H, D, table_step), from the first that
  // the sequences read on; zeros beyond those that there are. One of them may be null.
  const float *position_keys, *position_queries;
  std::int64_t table_step;
  std::int64_t n_heads, n_sequences, head_dim, n_queries, n_keys, n_rows;  // B, b, D, i, n, R
  // Of the query i and the key j, in [0, R): rows[i * rows_step + j], and the same turned round,
  // turned[j * turned_step + i].
  const std::int32_t *rows, *turned;
  std::int64_t rows_step, turned_step;
  float scale;
  int threads;
};

// to (B, n, R): each key with every row of position_queries.
void disentangled_of_keys(const Disentangled& call, float* to);

// bias (B, i, n): scale * (q_i . position_keys[rows[i, j]] + of_keys[b, j, rows[i, j]]).
void disentangled_bias(const Disentangled& call, const float* of_keys, float* bias);

// The gradient of both numbers of a pair, added up where they were read: scale * pairs (B, i, n) to
// of_queries (B, i, R) and of_keys (B, n, R), either of which may be null.
void disentangled_by_rows(const Disentangled& call, const float* pairs, float* of_queries,
                          float* of_keys);

// What is compiled once per instruction set; arrays are those of one head of one sequence.
struct DisentangledKernels {
  // to (count, columns) = x, `count` tokens, with so many columns of a table (D, R), whole strips; step: from
  // a row of the table to the next, and from one of `to`.
  void (*numbers)(const float* x, std::int64_t token, std::int64_t count, const float* table,
                  std::int64_t table_step, std::int64_t head_dim, std::int64_t columns, float* to,
                  std::int64_t to_step);
  // The queries [first, first + count), whose of_queries (count, R) begin with the first's.
  void (*bias)(const Disentangled& call, std::int64_t first, std::int64_t count,
               const float* of_queries, const float* of_keys, float* bias);
  // All queries.
  void (*by_rows)(const Disentangled& call, const float* pairs, float* of_queries, float* of_keys);
};

}  // namespace pyenc
