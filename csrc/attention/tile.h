// What forward and backward share of a strip of queries and a block of keys: reading them into
// scratch, and the bias between them.
#pragma once

#include <cmath>
#include <type_traits>

#include "attention/arguments.h"
#include "shared/product.h"
#include "shared/tiles.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Keys of a block. A product of matrix units sums over 32 keys.
#ifdef PYENC_AMX
constexpr std::int64_t kTileKeys = 64, kMostKeys = kTileKeys;
inline std::int64_t key_block(const AttentionHead& head) {
  const Attention& call = *head.call;
  return head.split || (call.dtype == Dtype::bf16 && !call.drops()) ? kTileKeys : kKeyBlock;
}
#else
constexpr std::int64_t kMostKeys = kKeyBlock;
constexpr std::int64_t key_block(const AttentionHead&) { return kKeyBlock; }
#endif

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kInfinity = __builtin_inff();

// The weight of a score that lies `x` above its row's maximum, or its log-sum-exp. Below about 2^-100
// it is zero: no row shows it, and with what it is multiplied by it would soon be subnormal
// (shared/flush.h).
constexpr int kFaintest = -100;
PYENC_INLINE Floats weight_of(Floats x) { return exp2_down_to<kFaintest>(x); }

template <class Scalar>
PYENC_INLINE const Scalar* row_of(const Rows3& x, std::int64_t token, std::int64_t head) {
  return static_cast<const Scalar*>(x.at) + token * x.row + head * x.head;
}

// body(a pointer of the dtype, null) so that templates can be chosen by it.
template <class Body>
PYENC_INLINE void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::f32: return body(static_cast<const float*>(nullptr));
    case Dtype::bf16: return body(static_cast<const BFloat16*>(nullptr));
    case Dtype::f16: return body(static_cast<const Float16*>(nullptr));
  }
}

// Rows of one head lie H D numbers apart, each in a page of its own, where processors do not look
// ahead by themselves: so many rows are asked for early.
constexpr std::int64_t kRowsAhead = 16;

template <class Scalar>
PYENC_INLINE void ask_for(const Scalar* row, std::int64_t depth) {
  for (std::int64_t d = 0; d < depth; d += 64 / static_cast<std::int64_t>(sizeof(Scalar)))
    __builtin_prefetch(row + d);
}

// to (count, D) = the rows of one head as floats, one behind the other.
inline void read_rows(const Rows3& x, Dtype dtype, std::int64_t token, std::int64_t head,
                      std::int64_t count, std::int64_t depth, float* __restrict to) {
  with_dtype(dtype, [&](auto type) {
    using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (std::int64_t r = 0; r < count; ++r) {
      const Scalar* __restrict row = row_of<Scalar>(x, token + r, head);
      if (r + kRowsAhead < count) ask_for(row_of<Scalar>(x, token + r + kRowsAhead, head), depth);
      for (std::int64_t d = 0; d < depth; ++d) to[r * depth + d] = widen(row[d]);
    }
  });
}

// Rows [first, first + count) of the head in a contiguous (T, H, D) tensor of its dtype = `from`,
// with `from_row` floats a row.
inline void put_rows(const AttentionHead& head, std::int64_t first, std::int64_t count,
                     const float* __restrict from, std::int64_t from_row, void* tensor) {
  const Attention& call = *head.call;
  with_dtype(call.dtype, [&](auto type) {
    using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t token = head.first + first + i;
      Scalar* __restrict to = static_cast<Scalar*>(tensor) +
                              (token * call.n_heads + head.head) * call.head_dim;
      for (std::int64_t d = 0; d < call.head_dim; ++d) narrow(from[i * from_row + d], to[d]);
    }
  });
}

// to (depth, lanes) = factor * rows (count, depth) turned round; zero in the lanes beyond count.
inline void turn(const float* rows, std::int64_t count, std::int64_t depth, std::int64_t lanes,
                 float factor, float* to) {
  if (count < lanes)
    for (std::int64_t i = 0; i < depth * lanes; ++i) to[i] = 0;
  transpose(rows, count, depth, depth, to, lanes);
  for (std::int64_t i = 0; i < depth * lanes; ++i) to[i] *= factor;
}

// Of the queries. Scores are in base 2, but for a map, which is given them as they are.
inline float query_factor(const Attention& call) {
  return call.map ? call.scale : call.scale * kLog2e;
}

// Whose rows a strip of C vectors holds: queries [first, first + count) of the sequence.
template <int C>
struct Strip {
  static constexpr std::int64_t kWidth = C * kLanes;
  std::int64_t first, count;
  Floats position[C];  // of the queries; beyond `count` that of the last one

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query) {
    first = first_query;
    count = last_query - first_query < kWidth ? last_query - first_query : kWidth;
    const float* at = head.call->positions + head.first + first;
    for (int c = 0; c < C; ++c) {
      if ((c + 1) * kLanes <= count) {
        position[c] = load(at + c * kLanes);
        continue;
      }
      for (int lane = 0; lane < kLanes; ++lane)
        position[c][lane] = at[c * kLanes + lane < count ? c * kLanes + lane : count - 1];
    }
  }
};

// The strips of a tile of queries: as many of C vectors as are full, then narrow ones for the rest.
// `Walk<C>` is what a strip of C vectors carries along.
template <template <int> class Walk, int C = kColumns>
struct Tile {
  static constexpr std::int64_t kWide = C * kLanes;
  Walk<C> full[kQueryTile / kWide];
  Walk<1> narrow[C];
  std::int64_t n_full = 0, n_narrow = 0;

  // start(walk, first query of the strip) for each.
  template <class Start>
  void start(std::int64_t first_query, std::int64_t last_query, const Start& start) {
    for (std::int64_t at = first_query; at < last_query;) {
      // A narrow strip runs at little more than half the speed of a full one.
      if (last_query - at > kWide / 2) {
        start(full[n_full++], at);
        at += kWide;
      } else {
        start(narrow[n_narrow++], at);
        at += kLanes;
      }
    }
  }

  template <class Body>
  void each(const Body& body) {
    for (std::int64_t i = 0; i < n_full; ++i) body(full[i]);
    for (std::int64_t i = 0; i < n_narrow; ++i) body(narrow[i]);
  }
};

// How a block of keys lies to a strip of queries.
enum class Side { left, right, both, none };

struct Placement {
  Side side;     // none: hidden by the window, all of it
  bool uniform;  // the bias is a column (one number a key) plus a row (one number a query)
};

template <int C>
inline Placement placement(const AttentionHead& head, const Strip<C>& strip, std::int64_t first_key,
                           std::int64_t last_key) {
  const Attention& call = *head.call;
  const float* at = call.positions + head.first;
  const float q_low = at[strip.first], q_high = at[strip.first + strip.count - 1];
  const float k_low = at[first_key], k_high = at[last_key - 1];
  const auto left = static_cast<float>(call.window_left);
  const auto right = static_cast<float>(call.window_right);
  if (call.window_left >= 0 && q_low - k_high > left) return {Side::none, false};
  if (call.window_right >= 0 && k_low - q_high > right) return {Side::none, false};
  const bool edge = (call.window_left >= 0 && q_high - k_low > left) ||
                    (call.window_right >= 0 && k_high - q_low > right);
  const Side side = first_key >= strip.first + strip.count ? Side::right
                    : last_key <= strip.first              ? Side::left
                                                           : Side::both;
  if (edge || call.kind == BiasKind::dense) return {side, false};
  if (call.kind == BiasKind::alibi) return {side, side != Side::both};
  if (call.kind == BiasKind::distance) {
    const auto far = static_cast<float>(call.saturation);
    return {side, (side == Side::right && k_low - q_high >= far) ||
                      (side == Side::left && q_low - k_high >= far)};
  }
  return {side, true};
}

inline float slope_of(const AttentionHead& head) {
  return static_cast<const float*>(head.call->bias)[head.head] * kLog2e;
}

inline const float* line_of(const AttentionHead& head) {
  const std::int64_t reach = head.call->reach;
  return static_cast<const float*>(head.call->bias) + head.head * (2 * reach + 1) + reach;
}

// The bias of a uniform block: column[key] + row[query].
//
// For ALiBi both are distances to the block's key nearest to the queries, so that neither is larger
// than the bias itself and the scores that matter most round least.
template <int C>
inline void uniform_bias(const AttentionHead& head, const Strip<C>& strip, Side side,
                         std::int64_t first_key, std::int64_t last_key, float* column,
                         Floats (&row)[C]) {
  const Attention& call = *head.call;
  const float* at = call.positions + head.first;
  const std::int64_t count = last_key - first_key;
  for (int c = 0; c < C; ++c) row[c] = Floats{};
  if (call.kind == BiasKind::alibi) {
    const float slope = slope_of(head);
    const float nearest = at[side == Side::right ? first_key : last_key - 1];
    for (std::int64_t j = 0; j < count; ++j)
      column[j] = -slope * std::fabs(at[first_key + j] - nearest);
    for (int c = 0; c < C; ++c) row[c] = -slope * magnitude(strip.position[c] - nearest);
    return;
  }
  float constant = 0;
  if (call.kind == BiasKind::distance)
    constant = kLog2e * line_of(head)[side == Side::right ? -call.saturation : call.saturation];
  for (std::int64_t j = 0; j < count; ++j) column[j] = constant;
}

// In base 2. The most negative numbers, which hide a key unless all are hidden so, stay finite.
inline Floats dense_bias(Floats x) {
  const Floats scaled = kLog2e * x;
  return (scaled < -2.9e38f) & (x != -kInfinity) ? splat(-2.9e38f) : scaled;
}

// tile (keys, strip) = the dense bias of keys [first_key, first_key + count).
template <int C>
inline void dense_tile(const AttentionHead& head, const Strip<C>& strip, std::int64_t first_key,
                       std::int64_t count, float* tile) {
  constexpr std::int64_t kWidth = Strip<C>::kWidth;
  const Attention& call = *head.call;
  const std::int64_t side = call.reach;
  const std::int64_t at =
      (head.head * call.rows + strip.first - head.begin) * side + first_key;
  if (strip.count < kWidth)
    for (std::int64_t i = 0; i < count * kWidth; ++i) tile[i] = 0;
  if (call.bias_dtype == Dtype::f32) {
    transpose(static_cast<const float*>(call.bias) + at, strip.count, count, side, tile, kWidth);
  } else {
    alignas(64) float rows[kWidth * kMostKeys];
    with_dtype(call.bias_dtype, [&](auto type) {
      using Scalar = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      const Scalar* from = static_cast<const Scalar*>(call.bias) + at;
      for (std::int64_t i = 0; i < strip.count; ++i)
        for (std::int64_t j = 0; j < count; ++j) rows[i * kMostKeys + j] = widen(from[i * side + j]);
    });
    transpose(rows, strip.count, count, kMostKeys, tile, kWidth);
  }
  for (std::int64_t i = 0; i < count * kWidth; i += kLanes) store(tile + i, dense_bias(load(tile + i)));
}

// tile (keys, strip) = the bias of every pair, -infinity where the window hides the key.
template <int C>
inline void pair_bias(const AttentionHead& head, const Strip<C>& strip, std::int64_t first_key,
                      std::int64_t last_key, float* tile) {
  constexpr std::int64_t kWidth = Strip<C>::kWidth;
  const Attention& call = *head.call;
  const float* at = call.positions + head.first;
  const std::int64_t count = last_key - first_key;
  if (call.kind == BiasKind::dense) {
    dense_tile(head, strip, first_key, count, tile);
  } else if (call.kind == BiasKind::alibi) {
    const float slope = slope_of(head);
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c)
        store(tile + j * kWidth + c * kLanes,
              -slope * magnitude(strip.position[c] - at[first_key + j]));
  } else if (call.kind == BiasKind::distance && call.contiguous) {
    const float* line = line_of(head) + strip.first - first_key;
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c)
        store(tile + j * kWidth + c * kLanes, kLog2e * load(line - j + c * kLanes));
  } else if (call.kind == BiasKind::distance) {
    const float* line = line_of(head);
    const auto reach = static_cast<float>(call.reach);
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c)
        for (int lane = 0; lane < kLanes; ++lane) {
          float x = strip.position[c][lane] - at[first_key + j];
          x = x > reach ? reach : x < -reach ? -reach : x;
          tile[j * kWidth + c * kLanes + lane] = kLog2e * line[static_cast<std::int64_t>(x)];
        }
  } else {
    for (std::int64_t j = 0; j < count * kWidth; ++j) tile[j] = 0;
  }
  if (call.window_left < 0 && call.window_right < 0) return;
  const float left = call.window_left < 0 ? kInfinity : static_cast<float>(call.window_left);
  const float right = call.window_right < 0 ? kInfinity : static_cast<float>(call.window_right);
  for (std::int64_t j = 0; j < count; ++j)
    for (int c = 0; c < C; ++c) {
      const Floats back = strip.position[c] - at[first_key + j];
      float* place = tile + j * kWidth + c * kLanes;
      store(place, (back > left) | (back < -right) ? splat(-kInfinity) : load(place));
    }
}

// Scores of a block: s (keys, strip) = k (keys, D) q (D, strip) + bias, and the largest of each
// query in `top`. With Tile the bias is one number a pair, else one a key.
template <int C, bool Tile>
inline void scores_of(const float* k, const float* q, std::int64_t depth, std::int64_t count,
                      const float* bias, float* s, Floats (&top)[C]) {
  constexpr std::int64_t kWidth = Strip<C>::kWidth;
  for (int c = 0; c < C; ++c) top[c] = splat(-kInfinity);
  for_rows(count, [&](std::int64_t row, auto n) {
    constexpr int R = decltype(n)::count;
    Floats acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        acc[r][c] = Tile ? load(bias + (row + r) * kWidth + c * kLanes) : splat(bias[row + r]);
    multiply_in_runs<R, C>({k + row * depth, depth, 1}, q, kWidth, depth, s + row * kWidth, kWidth,
                           acc);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        store(s + (row + r) * kWidth + c * kLanes, acc[r][c]);
        top[c] = larger(acc[r][c], top[c]);
      }
  });
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
