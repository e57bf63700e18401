// How the operands of attention's products are laid out for matrix units, in bfloat16.
//
// Queries stand in the columns of a tile. Keys and values are kept by blocks of kTileKeys keys, each a
// row of tiles, so that a tile is 1,024 bytes in one piece. What a tile has and a head has not (D that
// is no multiple, keys beyond the last) is zero in both operands: zero times a NaN is one.
#pragma once

#include "attention/amx.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

constexpr std::int64_t kKeyTiles = kTileKeys / kTile;        // of 16 keys, as rows
constexpr std::int64_t kPairTiles = kTileKeys / kTilePairs;  // of 32 keys, as pairs

constexpr std::int64_t tile_blocks(std::int64_t keys) { return (keys + kTileKeys - 1) / kTileKeys; }
// Tiles that D takes as pairs, and as rows.
constexpr std::int64_t pair_tiles(std::int64_t depth) { return (depth + kTilePairs - 1) / kTilePairs; }
constexpr std::int64_t row_tiles(std::int64_t depth) { return (depth + kTile - 1) / kTile; }

// Words of `count` keys as rows (key, pairs of D), and as columns (D, pairs of keys).
constexpr std::int64_t row_words(std::int64_t count, std::int64_t depth) {
  return tile_blocks(count) * kKeyTiles * pair_tiles(depth) * kTileWords;
}
constexpr std::int64_t column_words(std::int64_t count, std::int64_t depth) {
  return tile_blocks(count) * kPairTiles * row_tiles(depth) * kTileWords;
}

// 32 numbers, of which the first `left` are there and the others zero. They may lie where no word does.
PYENC_INLINE Ints read_numbers(const BFloat16* from, std::int64_t left) {
  Ints words = {};
  if (left >= kTilePairs)
    __builtin_memcpy(&words, from, sizeof words);
  else if (left > 0)
    __builtin_memcpy(&words, from, static_cast<std::size_t>(2 * left));
  return words;
}

PYENC_INLINE void put_numbers(Ints words, std::int64_t left, BFloat16* to) {
  if (left >= kTilePairs)
    __builtin_memcpy(to, &words, sizeof words);
  else if (left > 0)
    __builtin_memcpy(to, &words, static_cast<std::size_t>(2 * left));
}

// 32 numbers of two rows side by side: the words of the first 16, and of the others.
PYENC_INLINE void pair_up(Ints low, Ints high, Ints& first, Ints& second) {
#if defined(__AVX512BW__) && !defined(PYENC_EMULATE_BF16_DOT)
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                         39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i later = _mm512_add_epi16(order, _mm512_set1_epi16(16));
  first = (Ints)_mm512_permutex2var_epi16((__m512i)low, order, (__m512i)high);
  second = (Ints)_mm512_permutex2var_epi16((__m512i)low, later, (__m512i)high);
#else
  const auto number = [](Ints words, int i) { return words[i / 2] >> (16 * (i % 2)) & 0xffff; };
  for (int i = 0; i < kTile; ++i) {
    first[i] = number(low, i) | static_cast<std::int32_t>(
                                    static_cast<std::uint32_t>(number(high, i)) << 16);
    second[i] = number(low, kTile + i) |
                static_cast<std::int32_t>(static_cast<std::uint32_t>(number(high, kTile + i)) << 16);
  }
#endif
}

// As ask_for in attention/tile.h, further ahead and to the second level, which has many more reads
// under way than the first.
constexpr std::int64_t kFetchAhead = 48;

template <class Scalar>
PYENC_INLINE void fetch(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t depth) {
  const Scalar* row = row_of<Scalar>(x, token, head);
  for (std::int64_t d = 0; d < depth; d += 64 / static_cast<std::int64_t>(sizeof(Scalar)))
    __builtin_prefetch(row + d, 0, 2);
}

// The row of token + r, of which `count` are there, or null.
PYENC_INLINE const BFloat16* row_or_none(const Rows3& x, std::int64_t token, std::int64_t head,
                                         std::int64_t r, std::int64_t count) {
  return r < count ? row_of<BFloat16>(x, token + r, head) : nullptr;
}

PYENC_INLINE Ints numbers_of(const BFloat16* row, std::int64_t at, std::int64_t depth) {
  return row ? read_numbers(row + at, depth - at) : Ints{};
}

// to: block by block, tiles of 16 keys, of each the pairs of D.
inline void read_as_rows(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t count,
                         std::int64_t depth, float* to) {
  const std::int64_t tiles = pair_tiles(depth);
  for (std::int64_t r = 0; r < tile_blocks(count) * kTileKeys; ++r) {
    float* place = to + r / kTile * tiles * kTileWords + r % kTile * kTile;
    const BFloat16* row = row_or_none(x, token, head, r, count);
    if (r + kFetchAhead < count) fetch<BFloat16>(x, token + r + kFetchAhead, head, depth);
    for (std::int64_t t = 0; t < tiles; ++t)
      put_words(numbers_of(row, t * kTilePairs, depth), place + t * kTileWords);
  }
}

// to: block by block, tiles of 16 rows of D, of each the pairs of keys.
inline void read_as_columns(const Rows3& x, std::int64_t token, std::int64_t head,
                            std::int64_t count, std::int64_t depth, float* to) {
  const std::int64_t tiles = row_tiles(depth);
  for (std::int64_t first = 0; first < tile_blocks(count) * kTileKeys; first += kTilePairs) {
    const std::int64_t part = first % kTileKeys / kTilePairs;
    float* block = to + first / kTileKeys * kPairTiles * tiles * kTileWords + part * kTileWords;
    for (std::int64_t r = first + kFetchAhead; r < first + kFetchAhead + kTilePairs && r < count; ++r)
      fetch<BFloat16>(x, token + r, head, depth);
    for (std::int64_t t = 0; t < tiles; t += 2) {
      TileRows even, odd;
      for (std::int64_t p = 0; p < kTile; ++p) {
        const BFloat16* low = row_or_none(x, token, head, first + 2 * p, count);
        const BFloat16* high = row_or_none(x, token, head, first + 2 * p + 1, count);
        pair_up(numbers_of(low, t * kTile, depth), numbers_of(high, t * kTile, depth), even[p], odd[p]);
      }
      turn_tile(even);
      put_tile(even, block + t * kPairTiles * kTileWords);
      if (t + 1 == tiles) break;
      turn_tile(odd);
      put_tile(odd, block + (t + 1) * kPairTiles * kTileWords);
    }
  }
}

// to (pairs of D, 16 queries), tile by tile: rows token to token + count, at most 16.
inline void read_queries(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t count,
                         std::int64_t depth, float* to) {
  for (std::int64_t at = 0; at < depth; at += kTilePairs, to += kTileWords) {
    TileRows rows;
#pragma GCC unroll 16
    for (std::int64_t r = 0; r < kTile; ++r)
      rows[r] = numbers_of(row_or_none(x, token, head, r, count), at, depth);
    turn_tile(rows);
    put_tile(rows, to);
  }
}

// Rows of 16 queries, of which `count` are there, of a contiguous (T, H, D) tensor of bfloat16 =
// factor * from, (D, 16 queries) in whole tiles.
inline void write_queries(const AttentionHead& head, std::int64_t first, std::int64_t count,
                          const float* from, Floats factor, void* tensor) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim, row = call.n_heads * depth;
  const std::int64_t token = head.first + first, live = row_tiles(depth) * kTile;
  BFloat16* to = static_cast<BFloat16*>(tensor) + token * row + head.head * depth;
  for (std::int64_t at = 0; at < depth; at += kTilePairs) {
    TileRows rows;
#pragma GCC unroll 16
    for (std::int64_t p = 0; p < kTile; ++p) {
      const float* pair = from + (at + 2 * p) * kTile;
      rows[p] = at + 2 * p < live ? pair_of(load(pair) * factor, load(pair + kTile) * factor) : Ints{};
    }
    turn_tile(rows);
    for (std::int64_t r = 0; r < count; ++r) put_numbers(rows[r], depth - at, to + r * row + at);
  }
}

// to (pairs of D, lanes) = rows (count, D) of floats that are bfloat16 numbers, turned round.
inline void turn_to_pairs(const float* rows, std::int64_t count, std::int64_t depth,
                          std::int64_t lanes, float* to) {
  const std::int64_t pairs = pair_tiles(depth) * kTile;
  alignas(64) float words[kColumns * kLanes * kMostDepth / 2];  // (count, pairs)
  for (std::int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * depth;
    float* place = words + i * pairs;
    std::int64_t p = 0;
    for (; 2 * p + 1 < depth; ++p)
      put_word(place + p, bits_of(row[2 * p]) >> 16, bits_of(row[2 * p + 1]) >> 16);
    if (2 * p < depth) put_word(place + p, bits_of(row[depth - 1]) >> 16, 0), ++p;
    for (; p < pairs; ++p) place[p] = 0;
  }
  for (std::int64_t i = 0; count < lanes && i < pairs * lanes; ++i) to[i] = 0;
  transpose(words, count, pairs, pairs, to, lanes);
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
