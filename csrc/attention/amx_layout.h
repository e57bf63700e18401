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

// to: block by block, tiles of 16 keys, of each the pairs of D.
inline void read_as_rows(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t count,
                         std::int64_t depth, float* to) {
  const std::int64_t tiles = pair_tiles(depth);
  for (std::int64_t r = 0; r < tile_blocks(count) * kTileKeys; ++r) {
    float* place = to + r / kTile * tiles * kTileWords + r % kTile * kTile;
    const BFloat16* row = r < count ? row_of<BFloat16>(x, token + r, head) : nullptr;
    if (r + kRowsAhead < count) ask_for(row_of<BFloat16>(x, token + r + kRowsAhead, head), depth);
    for (std::int64_t t = 0; t < tiles; ++t, place += kTileWords) {
      const std::int64_t left = row ? depth - t * kTilePairs : 0;
      if (left >= kTilePairs) {
        __builtin_memcpy(place, row + t * kTilePairs, 4 * kTile);
      } else {
        __builtin_memset(place, 0, 4 * kTile);
        if (left > 0) __builtin_memcpy(place, row + t * kTilePairs, static_cast<std::size_t>(2 * left));
      }
    }
  }
}

// to: block by block, tiles of 16 rows of D, of each the pairs of keys.
inline void read_as_columns(const Rows3& x, std::int64_t token, std::int64_t head,
                            std::int64_t count, std::int64_t depth, float* to) {
  const std::int64_t tiles = row_tiles(depth), width = tiles * kTile;
  alignas(64) float pairs[kTile * kMostDepth];  // (pairs of keys, D)
  for (std::int64_t first = 0; first < tile_blocks(count) * kTileKeys; first += kTilePairs) {
    for (std::int64_t p = 0; p < kTile; ++p) {
      const std::int64_t r = first + 2 * p;
      float* place = pairs + p * width;
      const BFloat16* row = r < count ? row_of<BFloat16>(x, token + r, head) : nullptr;
      const BFloat16* next = r + 1 < count ? row_of<BFloat16>(x, token + r + 1, head) : nullptr;
      std::int64_t d = 0;
      if (next)
        for (; d < depth; ++d) put_word(place + d, row[d].bits, next[d].bits);
      else if (row)
        for (; d < depth; ++d) put_word(place + d, row[d].bits, 0);
      for (; d < width; ++d) place[d] = 0;
    }
    const std::int64_t part = first % kTileKeys / kTilePairs;
    float* block = to + first / kTileKeys * kPairTiles * tiles * kTileWords;
    for (std::int64_t t = 0; t < tiles; ++t)
      transpose(pairs + t * kTile, kTile, kTile, width, block + (t * kPairTiles + part) * kTileWords,
                kTile);
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
  // Moved, never computed with: as floats many words would be subnormal.
  for (std::int64_t i = 0; count < lanes && i < pairs * lanes; ++i) to[i] = 0;
  transpose(words, count, pairs, pairs, to, lanes);
}

// to (pairs of rows, width) = rows (count, D) of floats that are bfloat16 numbers, two in a word.
inline void pair_rows(const float* rows, std::int64_t count, std::int64_t depth, std::int64_t pairs,
                      std::int64_t width, float* to) {
  for (std::int64_t p = 0; p < pairs; ++p, to += width) {
    const float *row = rows + 2 * p * depth, *next = row + depth;
    std::int64_t d = 0;
    if (2 * p + 1 < count)
      for (; d < depth; ++d) put_word(to + d, bits_of(row[d]) >> 16, bits_of(next[d]) >> 16);
    else if (2 * p < count)
      for (; d < depth; ++d) put_word(to + d, bits_of(row[d]) >> 16, 0);
    for (; d < width; ++d) to[d] = 0;
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
