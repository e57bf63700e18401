// Attention backward of one tile of queries, compiled once per instruction set.
//
// Recomputed from q, k, v and the log-sum-exp; with g the gradient of out, all over the pairs that
// the forward met (Dao, arXiv 2307.08691, with queries in the lanes as in the forward):
//   p = 2^(s - lse), dp = V g, ds = p (dp - delta), delta = sum_d g out - grad_lse,
//   dV += p g, dK += scale ds q, dq = scale ds K; the bias gets ds.
// Where a bias by distance is learned, delta is the sum of p dp, which takes two products more.

#include "attention/amx.h"
#include "attention/amx_backward.h"
#include "attention/arguments.h"
#include "attention/backward_walk.h"
#include "attention/bound.h"
#include "attention/map_walk.h"
#include "attention/pair_backward.h"
#include "attention/slope.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

struct FloatScratch {
  // old: the scores before a map.
  float *rows, *others, *s, *ds, *bias, *old, *column, *q, *g, *dq, *q_rows, *g_rows, *q_plain;

  static std::int64_t size(std::int64_t depth) {
    return kQueryTile * (6 * depth + 2 * padded(depth)) + 4 * kMostKeys * kWidest + kMostKeys;
  }

  FloatScratch(float* at, std::int64_t depth) {
    rows = at;
    others = rows + kQueryTile * depth;
    q = others + kQueryTile * depth;
    g = q + kQueryTile * depth;
    dq = g + kQueryTile * depth;
    q_rows = dq + kQueryTile * depth;
    g_rows = q_rows + kQueryTile * padded(depth);
    q_plain = g_rows + kQueryTile * padded(depth);
    s = q_plain + kQueryTile * depth;
    ds = s + kMostKeys * kWidest;
    bias = ds + kMostKeys * kWidest;
    old = bias + kMostKeys * kWidest;
    column = old + kMostKeys * kWidest;
  }
};

// to (rows, D) += a (rows, count) b (count, D), all of D.
inline void add_product(Matrix a, std::int64_t rows, const float* b, std::int64_t count,
                        std::int64_t width, float* to) {
  std::int64_t d = 0;
  for (; d + kWidest <= width; d += kWidest)
    multiply_add<kColumns>(a, rows, b + d, width, count, to + d, width);
  for (; kColumns > 2 && d + 2 * kLanes <= width; d += 2 * kLanes)
    multiply_add<2>(a, rows, b + d, width, count, to + d, width);
  for (; d < width; d += kLanes) multiply_add<1>(a, rows, b + d, width, count, to + d, width);
}

template <int C>
struct FloatWalk : BackwardStrip<C> {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;
  using BackwardStrip<C>::strip, BackwardStrip<C>::shift, BackwardStrip<C>::delta;
  using BackwardStrip<C>::ledger;

  float *q, *g, *dq;       // (D, strip): a q, g, and the sum of dq
  float *q_plain;          // (D, strip): q, where the slope's gradient is wanted
  float *q_rows, *g_rows;  // (strip, padded): scale q, g
  SlopeSums<C> slope;
  MapSums<C> of_map;

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const AttentionBackward& result, const FloatScratch& scratch, std::int64_t done,
             bool want_slope) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, width = padded(depth);
    strip.start(head, first_query, last_query);
    q = scratch.q + done * depth, g = scratch.g + done * depth, dq = scratch.dq + done * depth;
    q_rows = scratch.q_rows + done * width, g_rows = scratch.g_rows + done * width;
    const std::int64_t token = head.first + strip.first;
    const auto read = [&](const Rows3& from, float* to) {
      read_rows(from, call.dtype, token, head.head, strip.count, depth, to);
    };
    const auto pad = [&](const float* rows, float factor, float* to) {
      for (std::int64_t i = 0; i < strip.count; ++i) {
        for (std::int64_t d = 0; d < depth; ++d) to[i * width + d] = factor * rows[i * depth + d];
        for (std::int64_t d = depth; d < width; ++d) to[i * width + d] = 0;
      }
    };
    read(call.q, scratch.rows);
    turn(scratch.rows, strip.count, depth, kWidth, query_factor(call), q);
    pad(scratch.rows, call.scale, q_rows);
    q_plain = scratch.q_plain + done * depth;
    if (want_slope) {
      turn(scratch.rows, strip.count, depth, kWidth, 1, q_plain);
      slope.start();
    }
    if (call.map) of_map.start(*call.map);
    read(result.grad_out, scratch.rows);
    turn(scratch.rows, strip.count, depth, kWidth, 1, g);
    pad(scratch.rows, 1, g_rows);
    read(result.out, scratch.others);
    this->take_rows(head, result, scratch.rows, scratch.others);
    for (std::int64_t i = 0; i < depth * kWidth; ++i) dq[i] = 0;
  }

  // Into scratch.s: p of keys [first, last), or false where they are left out.
  bool weigh(const AttentionHead& head, std::int64_t first, std::int64_t last,
             const FloatScratch& scratch) {
    Placement place;
    if (!this->meets(head, first, last, place)) return false;
    const std::int64_t depth = head.call->head_dim, count = last - first;
    const float* k = head.keys + first * depth;
    Floats row[C] = {}, top[C];
    if (head.call->map) {
      for (std::int64_t j = 0; j < count; ++j) scratch.column[j] = 0;
      scores_of<C, false>(k, q, depth, count, scratch.column, scratch.old, top);
      if (!place.uniform) pair_bias(head, strip, first, last, scratch.bias);
      map_scores(head, strip, first, count, place.uniform ? nullptr : scratch.bias, scratch.old,
                 scratch.s, top);
    } else if (place.uniform) {
      uniform_bias(head, strip, place.side, first, last, scratch.column, row);
      scores_of<C, false>(k, q, depth, count, scratch.column, scratch.s, top);
    } else {
      pair_bias(head, strip, first, last, scratch.bias);
      scores_of<C, true>(k, q, depth, count, scratch.bias, scratch.s, top);
    }
    return this->take_weights(head, place, row, top, count, scratch.s);
  }

  void measure(const AttentionHead& head, std::int64_t first, std::int64_t last,
               const FloatScratch& scratch) {
    this->measure_block(*this, head, first, last, scratch);
  }

  void meet(const AttentionHead& head, std::int64_t first, std::int64_t last,
            const FloatScratch& scratch, const Sums& sums) {
    if (!weigh(head, first, last, scratch)) return;
    const std::int64_t depth = head.call->head_dim, width = padded(depth), count = last - first;
    const float *k = head.keys + first * depth, *v = head.keys + (head.n + first) * depth;
    if (sums.bias.slope)
      slope.meet(head, strip, first, count, k, v, q_plain, g, shift, delta, scratch.s, scratch.ds);
    else
      this->turn_back(*this, head, first, count, scratch);
    if (head.call->map)
      turn_map_back(head, strip, first, count, scratch.old, scratch.s, scratch.ds, of_map);
    add_product({scratch.s, kWidth, 1}, count, g_rows, strip.count, width, sums.values + first * width);
    add_product({scratch.ds, kWidth, 1}, count, q_rows, strip.count, width, sums.keys + first * width);
    multiply_add<C>({k, 1, depth}, depth, scratch.ds, kWidth, count, dq, kWidth);
    if (sums.bias.line) this->add_line(head, first, count, scratch.ds, sums.bias);
    if (sums.bias.pairs) this->write_pairs(head, first, count, scratch.ds, sums.bias.pairs);
  }

  // body(place in scratch.s and scratch.ds, vector, dp = V g there) of keys [first, first + count).
  template <class Body>
  PYENC_INLINE void each_dp(const AttentionHead& head, std::int64_t first, std::int64_t count,
                            const FloatScratch& scratch, const Body& body) {
    const std::int64_t depth = head.call->head_dim;
    const float* v = head.keys + (head.n + first) * depth;
    for_rows(count, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_in_runs<R, C>({v + row * depth, depth, 1}, g, kWidth, depth,
                             scratch.ds + row * kWidth, kWidth, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) body((row + r) * kWidth + c * kLanes, c, acc[r][c]);
    });
  }

  void finish(const AttentionHead& head, const AttentionBackward& result, const FloatScratch& scratch) {
    const std::int64_t depth = head.call->head_dim;
    for (std::int64_t i = 0; i < depth * kWidth; ++i) dq[i] *= head.call->scale;
    this->write_queries(head, result, dq, scratch.rows);
  }
};

// Whether a call's products are of bfloat16: pairs, or tiles of matrix units, which drop no weights.
[[maybe_unused]] bool on_pairs(const Attention& call, const AttentionBackward& result) {
  return call.dtype == Dtype::bf16 && !(call.kind == BiasKind::alibi && result.grad_bias);
}
[[maybe_unused]] bool on_tiles(const Attention& call, const AttentionBackward& result) {
  return on_pairs(call, result) && !call.drops();
}

// The strips of a tile, block by block over all that any of them met.
template <class Strips, class Memory>
void walk_blocks(const AttentionHead& head, Strips& tile, const Memory& scratch, const Sums& sums) {
  std::int64_t first = head.n, last = 0;
  tile.each([&](auto& walk) {
    first = walk.met.first < first ? walk.met.first : first;
    last = walk.met.last > last ? walk.met.last : last;
  });
  const std::int64_t block = key_block(head);
  const auto each_block = [&](const auto& body) {
    for (std::int64_t at = first; at < last; at += block) {
      const std::int64_t end = at + block < head.n ? at + block : head.n;
      tile.each([&](auto& walk) {
        // Whatever blocks the forward had.
        const std::int64_t from = at < walk.met.first ? walk.met.first : at;
        const std::int64_t to = end > walk.met.last ? walk.met.last : end;
        if (from < to) body(walk, from, to);
      });
    }
  };
  // Whatever pairs are made of may be summed over all of a row, as a line of distances is.
  if (sums.bias.line || (head.call->map && head.call->map->has_pairs)) {
    each_block([&](auto& walk, std::int64_t at, std::int64_t end) {
      walk.measure(head, at, end, scratch);
    });
    tile.each([&](auto& walk) { walk.settle(head); });
  }
  each_block([&](auto& walk, std::int64_t at, std::int64_t end) {
    walk.meet(head, at, end, scratch, sums);
  });
}

#ifdef PYENC_BF16_DOT
template <template <int> class Walk, class Memory>
void serve_halves(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
                  const AttentionBackward& result, const Sums& sums, float* memory) {
  const Memory scratch(memory, head.call->head_dim);
  Tile<Walk> tile;
  tile.start(first_query, last_query, [&](auto& walk, std::int64_t at) {
    walk.start(head, at, last_query, result, scratch, at - first_query);
  });
  walk_blocks(head, tile, scratch, sums);
  tile.each([&](auto& walk) { walk.finish(head, result, scratch); });
}
#endif

void backward_tile(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
                   const AttentionBackward& result, float* grad_keys, const GradBias& bias,
                   float* memory) {
  const std::int64_t depth = head.call->head_dim;
  const Sums sums{grad_keys, grad_keys + head.n * padded(depth), bias};
#ifdef PYENC_AMX
  if (on_tiles(*head.call, result))
    return serve_halves<TileWalk, TileScratch>(head, first_query, last_query, result, sums, memory);
#endif
#ifdef PYENC_BF16_DOT
  if (on_pairs(*head.call, result))
    return serve_halves<PairWalk, PairScratch>(head, first_query, last_query, result, sums, memory);
#endif
  const FloatScratch scratch(memory, depth);
  Tile<FloatWalk> tile;
  tile.start(first_query, last_query, [&](auto& walk, std::int64_t at) {
    walk.start(head, at, last_query, result, scratch, at - first_query, bias.slope != nullptr);
  });
  walk_blocks(head, tile, scratch, sums);
  tile.each([&](auto& walk) {
    if (bias.slope) *bias.slope += walk.slope.total(walk.strip.count, walk.due);
    if (head.call->map) walk.of_map.finish(head, walk.strip, walk.due);
    walk.finish(head, result, scratch);
  });
}

void write_rows(const AttentionHead& head, std::int64_t first, std::int64_t last, const float* from,
                void* to) {
  put_rows(head, first, last - first, from, padded(head.call->head_dim), to);
}

std::int64_t keys_size(const Attention& call, const AttentionBackward& result, std::int64_t n) {
#ifdef PYENC_AMX
  if (on_tiles(call, result)) return backward_tile_words(n, call.head_dim);
#endif
#ifdef PYENC_BF16_DOT
  if (on_pairs(call, result)) return pair_words(n, call.head_dim);
#endif
  (void)result;
  return 2 * n * call.head_dim;
}

void prepare(const AttentionHead& head, const AttentionBackward& result) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim;
#ifdef PYENC_AMX
  if (on_tiles(call, result)) return prepare_tiles(head);
#endif
#ifdef PYENC_BF16_DOT
  if (on_pairs(call, result)) return prepare_pairs(head);
#endif
  (void)result;
  read_rows(call.k, call.dtype, head.first, head.head, head.n, depth, head.keys);
  read_rows(call.v, call.dtype, head.first, head.head, head.n, depth, head.keys + head.n * depth);
}

std::int64_t scratch_size(std::int64_t head_dim) {
  std::int64_t size = FloatScratch::size(head_dim);
  const auto as_large_as = [&](std::int64_t other) { size = other > size ? other : size; };
#ifdef PYENC_BF16_DOT
  as_large_as(PairScratch::size(head_dim));
#endif
#ifdef PYENC_AMX
  as_large_as(TileScratch::size(head_dim));
#endif
  (void)as_large_as;
  return size;
}

}  // namespace

extern const AttentionBackwardKernels attention_backward_kernels;
const AttentionBackwardKernels attention_backward_kernels{
    {enter_thread<false>, leave_thread<false>}, scratch_size, padded, keys_size, prepare, backward_tile, write_rows};

}  // namespace PYENC_ISA
}  // namespace pyenc
