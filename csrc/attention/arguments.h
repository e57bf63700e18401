// Attention over packed sequences, forward and backward, in memory linear in the tokens.
//
// Shapes: T packed tokens, H heads, D head dim. The last axis of q, k, v and their gradients is
// contiguous. Scores are kept in base 2 inside: log2(e) (scale q.k + bias).
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

struct MapProgram;

// The codes that the Python side sends (BIAS_CODES in pyenc/ops/attention/cpu.py).
enum class BiasKind : int { none = 0, alibi = 1, distance = 2, dense = 3 };

struct Rows3 {          // a (T, H, D) tensor
  const void* at;
  std::int64_t row, head;  // strides in elements
};

struct Attention {
  Rows3 q, k, v;
  Dtype dtype;
  const std::int64_t* cu_seqlens;  // (n_sequences + 1,), checked by the caller
  std::int64_t n_sequences, n_heads, head_dim;
  // Where each token stands in its sequence, from 0 at its first token; strictly increasing.
  const float* positions;  // (T,)
  bool contiguous;         // positions are 0, 1, 2, ...
  BiasKind kind;
  // alibi: slopes (H,). distance: (H, 2 reach + 1), the bias of a query `x` after its key at
  // reach + x, the same for all |x| >= saturation. dense: (H, rows, reach) of `bias_dtype`, a row for
  // each query from the head's `begin` on.
  const void* bias;
  Dtype bias_dtype;
  std::int64_t reach, saturation, rows;
  // distance, where far keys may be left out, otherwise null. At the place of each x of `bias`, in base
  // 2 and rounded up: what all keys from there outward on its side weigh by the bias alone (log2 of the
  // sum), and what the heaviest of them does. nearby (H,): about how many keys a query meets, 0 where
  // the head's bias does not fall.
  const float *tails, *peaks, *nearby;
  std::int64_t window_left, window_right;  // -1: unbounded
  float scale;
  double skip_eps;  // 0 computes everything
  int threads;
  double dropout = 0;      // of the weights, in [0, 1)
  std::uint64_t seed = 0;  // what is dropped is told from it (attention/dropout.h)
  // Of the forward: whether a backward follows, whose weights are to be the same.
  bool with_backward = false;
  // What makes new scores of old ones, of a slab in float32 (attention/slabs.h); kind is none, and `rows` and
  // `reach` are the slab's queries and its keys. Null: nothing does.
  const MapProgram* map = nullptr;

  bool drops() const { return dropout > 0; }
  float kept_scale() const { return static_cast<float>(1 / (1 - dropout)); }
};

// The keys [first, last) that a query's strip met.
struct KeyRange {
  std::int32_t first, last;
};

struct AttentionForward {
  void* out;         // (T, H, D) of `dtype`, contiguous
  float* lse;        // (T, H), or null
  KeyRange* ranges;  // (T, H), or null
  // A score near each query's largest, in base 2, and the sum of the weights beside it, (T, H), or null:
  // what the log-sum-exp in float32 loses where all scores are far up or down.
  float *shift = nullptr, *total = nullptr;
};

// How many (query, key) pairs met in the two products, and how many there are.
struct PairCount {
  std::int64_t scored, summed, all;
};

PairCount attention_forward(const Attention& call, const AttentionForward& result);

struct AttentionBackward {
  Rows3 grad_out, out;
  const float* lse;       // (T, H)
  const float* grad_lse;  // (T, H), or null
  const KeyRange* ranges;
  void *grad_q, *grad_k, *grad_v;  // (T, H, D) of `dtype`, contiguous
  // Added to. alibi: (H,), by each slope. distance: (H, 2 grad_reach + 1), by each distance, those
  // beyond counted there; grad_reach is the longest span of positions or the saturation, whichever
  // is less. Null when not wanted.
  double* grad_bias;
  std::int64_t grad_reach;
  // dense, of a slab in float32 (attention/slabs.h): (n_sequences, H, rows, reach), of which the pairs
  // that a window hides are not written. Null when not wanted.
  float* grad_pairs = nullptr;
  const float *shift = nullptr, *total = nullptr;  // as the forward gave them, or null
};

void attention_backward(const Attention& call, const AttentionBackward& result);

void attention_exp2(const float* from, std::int64_t count, float* to);

// ---- what is compiled once per instruction set ------------------------------------------------

constexpr std::int64_t kQueryTile = 128;
// Keys that are met together, but on matrix units (key_block in attention/tile.h).
constexpr std::int64_t kKeyBlock = 48;
constexpr std::int64_t kMostDepth = 256;  // the largest head dim

// One head of one sequence.
struct AttentionHead {
  const Attention* call;
  std::int64_t sequence, first, n, head;  // tokens [first, first + n)
  bool skips;     // whether far keys may be left out
  float* keys;    // a copy of its keys and then values; null: one tile, which makes it
  float* bounds;  // of the keys, where `skips`; forward alone
  std::int64_t begin, end;  // the queries that are served: all, or a slab's (attention/slabs.h)
  // From a tile's queries to those that its thread has next, as far as one can tell; forward alone.
  std::int64_t next_tile;
  // float32 as three parts of bfloat16 (attention/amx_split.h): so its keys are kept; forward alone.
  bool split = false;
};

// Around the tasks of a call on each thread: what the processor keeps for the thread is set up, and
// released again.
struct ThreadKernels {
  void (*enter)(const Attention& call);
  void (*leave)(const Attention& call);
};

struct AttentionForwardKernels {
  ThreadKernels thread;
  // to = 2^from, as the kernels compute it: for the tests.
  void (*exp2)(const float* from, std::int64_t count, float* to);
  // Floats of scratch that one thread needs.
  std::int64_t (*scratch)(std::int64_t head_dim);
  // Floats of head.keys, and of head.bounds.
  std::int64_t (*keys_size)(const AttentionHead& head);
  std::int64_t (*bounds_size)(std::int64_t n, std::int64_t head_dim);
  // Fills head.keys, as tile() wants them, and head.bounds, where they are not null.
  void (*prepare)(AttentionHead& head);
  // Queries [first_query, last_query) of the head, at most kQueryTile.
  void (*tile)(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
               const AttentionForward& result, float* scratch, PairCount& count);
};

// Where a tile adds its share of the gradient of the bias; null: not wanted.
struct GradBias {
  double* slope;
  double* line;  // at distance 0, a query after its key to the right; `reach` to each side
  std::int64_t reach;
  float* pairs = nullptr;  // of this head, from query `begin` and key 0 on
};

struct AttentionBackwardKernels {
  ThreadKernels thread;
  std::int64_t (*scratch)(std::int64_t head_dim);
  // Floats of one row of grad_keys below: head_dim, rounded up to whole vectors.
  std::int64_t (*padded)(std::int64_t head_dim);
  // Floats of head.keys, for a sequence of n.
  std::int64_t (*keys_size)(const Attention& call, const AttentionBackward& result, std::int64_t n);
  // Fills head.keys, as tile() wants them.
  void (*prepare)(const AttentionHead& head, const AttentionBackward& result);
  // grad_keys (n, padded) and then grad_values, to which the tile's share is added.
  void (*tile)(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
               const AttentionBackward& result, float* grad_keys, const GradBias& bias,
               float* scratch);
  // Rows [first, last) of a head's (n, padded) floats to its place in a (T, H, D) tensor.
  void (*write_rows)(const AttentionHead& head, std::int64_t first, std::int64_t last,
                     const float* from, void* to);
};

}  // namespace pyenc
