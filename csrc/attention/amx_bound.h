// The bounds of attention/bound.h for keys in bfloat16 on matrix units.
//
// Any vector may be a centre, so the mean key is rounded to bfloat16 and its products with keys and
// queries are those of pairs. With s the rounding of a sum of D products and c the centre,
// |k - c|^2 = |k|^2 - 2 k.c + |c|^2 is computed within s (|k| + |c|)^2, and |k| <= |c| + |k - c|, so that
// |k - c|^2 <= (computed + 8 s |c|^2) / (1 - 2 s).
// Blocks have no centres of their own: asking for them takes as long as what they save.
#pragma once

#include "attention/amx_layout.h"
#include "attention/key_bounds.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Lane r: the sum of x[r] over its lanes.
PYENC_INLINE Floats sums_of(Floats (&x)[kTile]) {
  TileRows rows;
#pragma GCC unroll 16
  for (int r = 0; r < kTile; ++r) rows[r] = as_ints(x[r]);
  turn_tile(rows);
  Floats sum = as_floats(rows[0]);
#pragma GCC unroll 16
  for (int r = 1; r < kTile; ++r) sum += as_floats(rows[r]);
  return sum;
}

// The numbers of even and odd places.
PYENC_INLINE Floats evens_of(Ints words) { return as_floats(words << 16); }
PYENC_INLINE Floats odds_of(Ints words) { return as_floats(words & (Ints{} - 65536)); }

constexpr std::int64_t kMostTiles = pair_tiles(kMostDepth);

// A centre's words, tile by tile, and its length.
struct Centre {
  Ints words[kMostTiles];
  Floats square = {};

  // Of the mean's numbers at even and odd places.
  void put(std::int64_t t, Floats evens, Floats odds) {
    words[t] = pair_of(evens, odds);
    square = dot_pairs(square, words[t], words[t]);
  }
  float length() const { return std::sqrt(sum_of(square)); }
};

// The largest |k - c| of keys whose `most` is the largest computed |k|^2 - 2 k.c.
inline float distance_of(float most, float length, std::int64_t depth) {
  const float slack = slack_of(depth), square = most + length * length;
  return std::sqrt(((square < 0 ? 0 : square) + 8 * slack * length * length) * (1 + 4 * slack));
}

// keys: as read_as_rows lays them out.
inline void make_tile_bounds(const AttentionHead& head, const float* keys) {
  const std::int64_t depth = head.call->head_dim, blocks = blocks_of(head), tiles = pair_tiles(depth);
  const KeyBounds bounds(head);
  const std::int64_t rows = (head.n + kTile - 1) / kTile;  // of tiles; beyond the last key there are zeros
  const auto words_of = [&](std::int64_t row, std::int64_t r, std::int64_t t) {
    return load_words(keys + (row * tiles + t) * kTileWords + r * kTile);
  };
  Centre center;
  for (std::int64_t t = 0; t < tiles; ++t) {
    Floats even[2] = {}, odd[2] = {};
    for (std::int64_t row = 0; row < rows; ++row) {
      // A tile's sums apart: a single one over thousands would round at its size.
      Floats tile_even[2] = {}, tile_odd[2] = {};
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < kTile; ++r) {
        const Ints words = words_of(row, r, t);
        tile_even[r % 2] += evens_of(words), tile_odd[r % 2] += odds_of(words);
      }
      for (int i = 0; i < 2; ++i) even[i] += tile_even[i], odd[i] += tile_odd[i];
    }
    const float each = 1.0f / static_cast<float>(head.n);
    center.put(t, (even[0] + even[1]) * each, (odd[0] + odd[1]) * each);
    put_words(center.words[t], bounds.center + t * kTile);
  }
  const float length = center.length();
  *head.bounds = length;
  for (std::int64_t b = 0; b < blocks; ++b) {
    Floats most = splat(-kInfinity);
    Ints lost = {};
    for (std::int64_t row = b * kKeyTiles; row < (b + 1) * kKeyTiles && row < rows; ++row) {
      Floats squares[kTile];  // less |c|^2, by lanes yet to be summed
#pragma GCC unroll 16
      for (std::int64_t r = 0; r < kTile; ++r) {
        Floats square = {}, along = {};
        for (std::int64_t t = 0; t < tiles; ++t) {
          const Ints words = words_of(row, r, t);
          square = dot_pairs(square, words, words);
          along = dot_pairs(along, words, center.words[t]);
        }
        squares[r] = square - 2.0f * along;
      }
      const Floats here = sums_of(squares);
      const Ints there = counting() < static_cast<float>(head.n - row * kTile);
      lost |= here != here;
      most = larger(there ? here : splat(-kInfinity), most);
    }
    float largest = most[0];
    for (int lane = 1; lane < kLanes; ++lane) largest = larger_of(most[lane], largest);
    // A key that is no number must be met.
    bounds.left[b] = bounds.right[b] = bounds.radius[b] =
        any(lost) ? kInfinity : distance_of(largest, length, depth);
  }
  spread_outward(bounds, blocks);
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
