// Attention's products on matrix units, 16 queries at a time, and what joins scores and bias.
//
// Few tile registers are alive at a time: more cost time. Operands: attention/amx_layout.h.
#pragma once

#include "attention/amx_layout.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// weight_of, which bfloat16 cannot tell from the exact one: 2.8e-6 is a thousandth of its spacing.
PYENC_INLINE Floats brief_weight_of(Floats x) { return exp2_down_to<kFaintest, 4>(x); }

// 2^x within 8.6e-5 of itself, a twentieth of what rounding to bfloat16 does, and 1 for 0: 0 below
// 2^-126, infinity from 2^128, NaN for NaN. 2^x = 2^n 2^f, n the next whole number below x; for 2^f the
// polynomial of least relative error on [0, 1] among those of its degree that are 1 at 0.
PYENC_INLINE Floats power_of_two(Floats x) {
  const auto mantissa = [](Floats f) __attribute__((always_inline)) {
    const Floats p = f * 0x1.3baaa6p-4f + 0x1.d2378ap-3f;
    return (p * f + 0x1.63e658p-1f) * f + 1.0f;
  };
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(PYENC_EMULATE_BF16_DOT)
  // Both take n by themselves: f = x - n, and p 2^n, to zero or infinity where they are beyond.
  return _mm512_scalef_ps(mantissa(_mm512_reduce_ps(x, 9)), x);
#else
  x = larger(splat(-127.0f), x);  // the exponent of zero
  x = x > 128.0f ? splat(128.0f) : x;
  constexpr float kMagic = 12582912.0f;
  Floats n = (x + kMagic) - kMagic;
  n = n > x ? n - 1.0f : n;
  return mantissa(x - n) * as_floats(as_ints(n + (kMagic + 127.0f)) << 23);
#endif
}

// Two weights to a pair of bfloat16, the nearest, halves upward. Not for NaN: the sums tell of those.
PYENC_INLINE Ints pair_of_weights(Floats low, Floats high) {
  const Ints below = as_ints(low) + 0x8000, above = as_ints(high) + 0x8000;
  return ((below >> 16) & 0xffff) | (above & (Ints{} - 65536));
}

// One register's column of scores: s (keys, 16 queries) = k q, of the first `groups` times 16 keys.
// pause() is called after each few products.
template <int W, class Pause>
PYENC_INLINE void score_column(const float* k, const float* q, std::int64_t tiles,
                               std::int64_t groups, float* s, const Pause& pause) {
  if (tiles <= 2) {
    const bool two = tiles == 2;
    tile_load<4>(q, W);
    if (two) tile_load<5>(q + kTile * W, W);
    // A group is stored after the next one's products.
    const auto group = [&](auto odd, std::int64_t g) __attribute__((always_inline)) {
      constexpr int kSum = decltype(odd)::value, kBefore = 1 - kSum;
      const float* at = k + g * tiles * kTileWords;
      tile_zero<kSum>();
      tile_load<2>(at, kTile);
      tile_dot<kSum, 2, 4>();
      if (two) {
        tile_load<2>(at + kTileWords, kTile);
        tile_dot<kSum, 2, 5>();
      }
      if (g > 0) {
        tile_store<kBefore>(s + (g - 1) * kTile * W, W);
        tile_zero<kBefore>();
      }
      pause();
    };
    group(std::integral_constant<int, 0>(), 0);
    if (groups > 1) group(std::integral_constant<int, 1>(), 1);
    if (groups > 2) group(std::integral_constant<int, 0>(), 2);
    if (groups > 3) group(std::integral_constant<int, 1>(), 3);
    float* last = s + (groups - 1) * kTile * W;
    if (groups % 2)
      tile_store<0>(last, W);
    else
      tile_store<1>(last, W);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    for (std::int64_t t = 0; t < tiles; ++t) {
      const auto add = [&](auto group) __attribute__((always_inline)) {
        constexpr int kSum = decltype(group)::value;
        if (kSum >= groups) return;
        tile_load<5>(k + (kSum * tiles + t) * kTileWords, kTile);
        tile_dot<kSum, 5, 4>();
      };
      tile_load<4>(q + t * kTile * W, W);
      add(std::integral_constant<int, 0>());
      add(std::integral_constant<int, 1>());
      add(std::integral_constant<int, 2>());
      add(std::integral_constant<int, 3>());
      pause();
    }
    tile_store<0>(s, W);
    if (groups > 1) tile_store<1>(s + kTile * W, W);
    if (groups > 2) tile_store<2>(s + 2 * kTile * W, W);
    if (groups > 3) tile_store<3>(s + 3 * kTile * W, W);
  }
}

constexpr std::int64_t score_pauses(std::int64_t tiles, std::int64_t groups) {
  return tiles <= 2 ? groups : tiles;
}

// o (D, 16 queries) += v p, p the pairs of 32 keys, or 64 if `two`; pause() after each tile of o.
template <int W, class Pause>
PYENC_INLINE void value_column(const float* v, const float* p, std::int64_t tiles, bool two, float* o,
                               const Pause& pause) {
  tile_load<4>(p, W);
  if (two) tile_load<5>(p + kTile * W, W);
  const auto part = [&](auto odd, std::int64_t t) __attribute__((always_inline)) {
    constexpr int kSum = decltype(odd)::value, kBefore = 1 - kSum;
    const float* at = v + t * kPairTiles * kTileWords;
    tile_load<kSum>(o + t * kTile * W, W);
    tile_load<2>(at, kTile);
    tile_dot<kSum, 2, 4>();
    if (two) {
      tile_load<2>(at + kTileWords, kTile);
      tile_dot<kSum, 2, 5>();
    }
    if (t > 0) {
      tile_store<kBefore>(o + (t - 1) * kTile * W, W);
      tile_zero<kBefore>();
    }
    pause();
  };
  for (std::int64_t t = 0; t < tiles; t += 2) {
    part(std::integral_constant<int, 0>(), t);
    if (t + 1 < tiles) part(std::integral_constant<int, 1>(), t + 1);
  }
  float* last = o + (tiles - 1) * kTile * W;
  if (tiles % 2)
    tile_store<0>(last, W);
  else
    tile_store<1>(last, W);
}

// A tile register that is alive costs time, also one that nobody will read.
PYENC_INLINE void forget_tiles() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_zero<4>();
  tile_zero<5>();
}

// The scores of a column join their bias, one number a key if `uniform`, else one a pair, with W floats
// from key to key; keys beyond the last have none. Their largest.
template <int W>
PYENC_INLINE Floats collect_column(float* s, std::int64_t count, float scale, bool uniform,
                                   const float* bias) {
  constexpr int kTops = 4;  // a single one would wait for itself
  Floats top[kTops];
  for (int i = 0; i < kTops; ++i) top[i] = splat(-kInfinity);
  const auto take = [&](std::int64_t j, Floats& most) __attribute__((always_inline)) {
    const Floats more = uniform ? splat(bias[j]) : load(bias + j * W);
    const Floats score = load(s + j * W) * scale + more;
    store(s + j * W, score);
    most = larger(score, most);
  };
  std::int64_t j = 0;
  for (; j + kTops <= count; j += kTops)
    for (int i = 0; i < kTops; ++i) take(j + i, top[i]);
  for (; j < count; ++j) take(j, top[0]);
  for (; j < kTileKeys; ++j) store(s + j * W, splat(-kInfinity));
  return larger(larger(top[0], top[1]), larger(top[2], top[3]));
}

// to (16 keys, D) += a b: a has the 16 keys' rows of pairs of queries, `a_row` words each, and b (pairs
// of queries, D) `width` words each, a tile of pairs or two. Of the keys `count` are there.
PYENC_INLINE void add_rows(const float* a, std::int64_t a_row, const float* b, std::int64_t width,
                           bool two, std::int64_t count, float* to) {
  tile_load<4>(a, a_row);
  if (two) tile_load<5>(a + kTile, a_row);
  const auto part = [&](auto odd, std::int64_t d) __attribute__((always_inline)) {
    constexpr int kSum = decltype(odd)::value;
    if (count < kTile)
      tile_zero<kSum>();
    else
      tile_load<kSum>(to + d, width);
    tile_load<2>(b + d, width);
    tile_dot<kSum, 4, 2>();
    if (two) {
      tile_load<3>(b + kTile * width + d, width);
      tile_dot<kSum, 5, 3>();
    }
    if (count < kTile) {
      // Beyond the last key there is another's memory.
      alignas(64) float sum[kTileWords];
      tile_store<kSum>(sum, kTile);
      for (std::int64_t i = 0; i < count; ++i) {
        float* place = to + i * width + d;
        store(place, load(place) + load(sum + i * kTile));
      }
    } else {
      tile_store<kSum>(to + d, width);
    }
  };
  for (std::int64_t d = 0; d < width; d += 2 * kTile) {
    part(std::integral_constant<int, 0>(), d);
    if (d + kTile < width) part(std::integral_constant<int, 1>(), d + kTile);
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
