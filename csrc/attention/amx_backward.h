// Attention backward on matrix units, in bfloat16 (the formulas: attention/backward_kernel.cpp).
//
// s = K Q^T and dp = V G^T (keys, queries) as the forward has its scores, dq (D, queries) += K^T ds as
// it adds its values; dV and dK (keys, D) sum over queries, and so want p and ds by rows of keys, with
// pairs of queries, against the queries' rows of G and Q. p, and ds with the scale, are rounded to
// bfloat16 for it. The gradient of ALiBi's slopes is no matter of products: where it is wanted, the
// kernel of floats serves.
#pragma once

#include "attention/amx_product.h"
#include "attention/backward_walk.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

struct TileScratch {
  float *rows, *others, *q, *g, *q_pairs, *g_pairs, *dq, *s, *ds, *bias, *column, *p_rows, *ds_rows,
      *ds_pairs;

  static constexpr std::int64_t kRowWords = kWidest / 2;  // pairs of a strip's queries

  static std::int64_t size(std::int64_t depth) {
    return kQueryTile * (2 * depth + 2 * pair_tiles(depth) * kTile + 3 * padded(depth)) +
           3 * kTileKeys * kWidest + kTileKeys + 3 * kTileKeys * kRowWords;
  }

  TileScratch(float* at, std::int64_t depth) {
    rows = at;
    others = rows + kQueryTile * depth;
    q = others + kQueryTile * depth;
    g = q + kQueryTile * pair_tiles(depth) * kTile;
    q_pairs = g + kQueryTile * pair_tiles(depth) * kTile;
    g_pairs = q_pairs + kQueryTile * padded(depth);
    dq = g_pairs + kQueryTile * padded(depth);
    s = dq + kQueryTile * padded(depth);
    ds = s + kTileKeys * kWidest;
    bias = ds + kTileKeys * kWidest;
    column = bias + kTileKeys * kWidest;
    p_rows = column + kTileKeys;
    ds_rows = p_rows + kTileKeys * kRowWords;
    ds_pairs = ds_rows + kTileKeys * kRowWords;
  }
};

// A head's copy: keys and values by rows, and keys by columns.
inline std::int64_t backward_tile_words(std::int64_t n, std::int64_t depth) {
  return 2 * row_words(n, depth) + column_words(n, depth);
}

inline void prepare_tiles(const AttentionHead& head) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim, words = row_words(head.n, depth);
  read_as_rows(call.k, head.first, head.head, head.n, depth, head.keys);
  read_as_rows(call.v, head.first, head.head, head.n, depth, head.keys + words);
  read_as_columns(call.k, head.first, head.head, head.n, depth, head.keys + 2 * words);
}

template <int C>
struct TileWalk : BackwardStrip<C> {
  static constexpr int kWidth = C * kLanes;
  // Words of a row of pairs of queries: a tile of them, or two.
  static constexpr bool kTwo = C > 2;
  static constexpr std::int64_t kPairs = kTwo ? 2 * kTile : kTile;
  static_assert(C == 1 || C == 4, "as strips are wide");
  using BackwardStrip<C>::strip, BackwardStrip<C>::lse, BackwardStrip<C>::delta;
  using BackwardStrip<C>::ledger;

  float *q, *g;              // (pairs of D, strip)
  float *q_pairs, *g_pairs;  // (pairs of queries, padded D)
  float* dq;                 // (padded D, strip)

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const AttentionBackward& result, const TileScratch& scratch, std::int64_t done) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, width = padded(depth);
    strip.start(head, first_query, last_query);
    q = scratch.q + done * pair_tiles(depth) * kTile;
    g = scratch.g + done * pair_tiles(depth) * kTile;
    q_pairs = scratch.q_pairs + done * width, g_pairs = scratch.g_pairs + done * width;
    dq = scratch.dq + done * width;
    const std::int64_t token = head.first + strip.first;
    const auto read = [&](const Rows3& from, float* to) {
      read_rows(from, call.dtype, token, head.head, strip.count, depth, to);
    };
    read(call.q, scratch.rows);
    turn_to_pairs(scratch.rows, strip.count, depth, kWidth, q);
    pair_rows(scratch.rows, strip.count, depth, kPairs, width, q_pairs);
    read(result.grad_out, scratch.rows);
    turn_to_pairs(scratch.rows, strip.count, depth, kWidth, g);
    pair_rows(scratch.rows, strip.count, depth, kPairs, width, g_pairs);
    read(result.out, scratch.others);
    this->take_rows(head, result, scratch.rows, scratch.others, kTileKeys);
    for (std::int64_t i = 0; i < width * kWidth; ++i) dq[i] = 0;
  }

  // Into scratch.s: p of keys [first, last), or false where they are left out.
  bool weigh(const AttentionHead& head, std::int64_t first, std::int64_t last,
             const TileScratch& scratch) {
    Placement place;
    if (!this->meets(head, first, last, place)) return false;
    const std::int64_t depth = head.call->head_dim, count = last - first;
    const std::int64_t tiles = pair_tiles(depth), groups = (count + kTile - 1) / kTile;
    const float* k = head.keys + row_words(first, depth);
    Floats row[C] = {}, top[C];
    if (place.uniform)
      uniform_bias(head, strip, place.side, first, last, scratch.column, row);
    else
      pair_bias(head, strip, first, last, scratch.bias);
    for (int c = 0; c < C; ++c) {
      float* s = scratch.s + c * kLanes;
      score_column<kWidth>(k, q + c * kLanes, tiles, groups, s, [] {});
      top[c] = collect_column<kWidth>(s, count, head.call->scale * kLog2e, place.uniform,
                                      place.uniform ? scratch.column : scratch.bias + c * kLanes);
    }
    forget_tiles();
    const bool may_drop = head.skips && place.side != Side::both;
    for (int c = 0; c < C; ++c) top[c] += row[c] + mass_of(count);
    if (may_drop && ledger.take_power(top, lse)) return false;
    Floats share[C] = {};
    for (std::int64_t j = 0; j < kTileKeys; ++j)
      for (int c = 0; c < C; ++c) {
        float* at = scratch.s + j * kWidth + c * kLanes;
        const Floats p = brief_weight_of(load(at) - (lse[c] - row[c]));
        store(at, p);
        share[c] += p;
      }
    return !(may_drop && ledger.take(share));
  }

  // Into scratch.ds: dp = V g, zero beyond the last key.
  void multiply_values(const AttentionHead& head, std::int64_t first, std::int64_t count,
                       const TileScratch& scratch) const {
    const std::int64_t depth = head.call->head_dim, groups = (count + kTile - 1) / kTile;
    const float* v = head.keys + row_words(head.n, depth) + row_words(first, depth);
    for (int c = 0; c < C; ++c)
      score_column<kWidth>(v, g + c * kLanes, pair_tiles(depth), groups, scratch.ds + c * kLanes,
                           [] {});
    for (std::int64_t i = count * kWidth; i < kTileKeys * kWidth; ++i) scratch.ds[i] = 0;
  }

  void measure(const AttentionHead& head, std::int64_t first, std::int64_t last,
               const TileScratch& scratch) {
    if (!weigh(head, first, last, scratch)) return;
    multiply_values(head, first, last - first, scratch);
    forget_tiles();
    for (int c = 0; c < C; ++c) {
      Floats here{}, due_here{};
      for (std::int64_t j = 0; j < kTileKeys; ++j) {
        const Floats p = load(scratch.s + j * kWidth + c * kLanes);
        here += p;
        due_here += p * load(scratch.ds + j * kWidth + c * kLanes);
      }
      this->mass[c] += here;
      this->due_mass[c] += due_here;
    }
  }

  void meet(const AttentionHead& head, std::int64_t first, std::int64_t last,
            const TileScratch& scratch, const Sums& sums) {
    if (!weigh(head, first, last, scratch)) return;
    const std::int64_t depth = head.call->head_dim, width = padded(depth), count = last - first;
    const float* k_columns =
        head.keys + 2 * row_words(head.n, depth) + column_words(first, depth);
    multiply_values(head, first, count, scratch);
    round_block(head.call->scale, scratch);
    for (int c = 0; c < C; ++c)
      value_column<kWidth>(k_columns, scratch.ds_pairs + c * kLanes, row_tiles(depth),
                           count > kTilePairs, dq + c * kLanes, [] {});
    for (std::int64_t r = 0; r < count; r += kTile) {
      const std::int64_t left = count - r, at = (first + r) * width;
      add_rows(scratch.p_rows + r * kPairs, kPairs, g_pairs, width, kTwo, left, sums.values + at);
      add_rows(scratch.ds_rows + r * kPairs, kPairs, q_pairs, width, kTwo, left, sums.keys + at);
    }
    forget_tiles();
    if (sums.bias.line) this->add_line(head, first, count, scratch.ds, sums.bias);
  }

  // ds = p (dp - delta) in place of dp; p, and ds times the scale, as the products want them.
  void round_block(float scale, const TileScratch& scratch) const {
    for (std::int64_t j = 0; j < kTileKeys; j += 2) {
      Floats p[2][C], scaled[2][C];
      for (int r = 0; r < 2; ++r)
        for (int c = 0; c < C; ++c) {
          const std::int64_t at = (j + r) * kWidth + c * kLanes;
          p[r][c] = load(scratch.s + at);
          const Floats ds = p[r][c] * (load(scratch.ds + at) - delta[c]);
          store(scratch.ds + at, ds);
          scaled[r][c] = ds * scale;
        }
      for (int c = 0; c < C; ++c)
        *reinterpret_cast<LooseInts*>(scratch.ds_pairs + j / 2 * kWidth + c * kLanes) =
            pair_of(scaled[0][c], scaled[1][c]);
      for (int r = 0; r < 2; ++r)
        for (int c = 0; c < C; c += 2) {
          const std::int64_t at = (j + r) * kPairs + c / 2 * kTile;
          const bool alone = c + 1 == C;
          put_halves(p[r][c], alone ? Floats{} : p[r][c + !alone], scratch.p_rows + at);
          put_halves(scaled[r][c], alone ? Floats{} : scaled[r][c + !alone], scratch.ds_rows + at);
        }
    }
  }

  void finish(const AttentionHead& head, const AttentionBackward& result,
              const TileScratch& scratch) {
    this->write_queries(head, result, dq, scratch.rows);
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
