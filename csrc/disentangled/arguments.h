// What relative positions add to the scores of disentangled attention, pair by pair, and its gradient
// added up by what was read. He et al., DeBERTa, arXiv 2006.03654.
//
// Shapes: B heads (those of several sequences of one length side by side), i queries of a slab, n keys,
// R rows of relative positions; everything contiguous.
#pragma once

#include <cstdint>

namespace pyenc {

// Vectors of so many floats may be read from each row of the numbers on: there is room beyond the last.
constexpr int kSpare = 16;

struct Disentangled {
  const std::int32_t* rows;  // (i, n), each in [0, R)
  const std::int32_t* turned;  // (n, i), the same turned round; the gradient does without
  std::int64_t n_heads, n_queries, n_keys, n_rows;
  float scale;
  int threads;
};

// bias (B, i, n): scale * (of_queries[b, i, rows[i, j]] + of_keys[b, j, rows[i, j]]), with of_queries
// (B, i, R) and of_keys (B, n, R), one of which may be null.
void disentangled_bias(const Disentangled& call, const float* of_queries, const float* of_keys,
                       float* bias);

// The other way: scale * pairs (B, i, n) is added to of_queries and of_keys, as above, where each pair
// read.
void disentangled_by_rows(const Disentangled& call, const float* pairs, float* of_queries,
                          float* of_keys);

// The queries [first, last) of one head, compiled once per instruction set: of_queries, of_keys and bias
// are that head's.
struct DisentangledKernels {
  void (*bias)(const Disentangled& call, std::int64_t first, std::int64_t last,
               const float* of_queries, const float* of_keys, float* bias);
};

}  // namespace pyenc
