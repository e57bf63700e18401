// Attention's operands in float32 as parts of bfloat16 (shared/parts.h), and their products.
//
// They lie as in attention/amx_layout.h, but that a tile is three.
#pragma once

#include "attention/amx_layout.h"
#include "shared/parts.h"
#include "shared/rows.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// The numbers of even and odd places of 32.
PYENC_INLINE void unzip(Floats first, Floats second, Floats& even, Floats& odd) {
#if defined(__AVX512F__) && !defined(PYENC_EMULATE_BF16_DOT)
  const __m512i places =
      _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  even = _mm512_permutex2var_ps(first, places, second);
  odd = _mm512_permutex2var_ps(first, _mm512_add_epi32(places, _mm512_set1_epi32(1)), second);
#else
  for (int i = 0; i < kLanes; ++i) {
    even[i] = 2 * i < kLanes ? first[2 * i] : second[2 * i - kLanes];
    odd[i] = 2 * i < kLanes ? first[2 * i + 1] : second[2 * i + 1 - kLanes];
  }
#endif
}

// 16 numbers of a row from `at`, zero beyond its end; a row that is not there is null.
PYENC_INLINE Floats floats_of(const float* row, std::int64_t at, std::int64_t depth) {
  if (!row || at >= depth) return Floats{};
  return at + kLanes <= depth ? load(row + at) : read_some(row + at, depth - at);
}

PYENC_INLINE const float* float_row(const Rows3& x, std::int64_t token, std::int64_t head,
                                    std::int64_t r, std::int64_t count) {
  return r < count ? row_of<float>(x, token + r, head) : nullptr;
}

// As read_as_rows: block by block, tiles of 16 keys, of each the pairs of D. Tiles without a key are left
// as they are: no product reads them.
inline void split_as_rows(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t count,
                          std::int64_t depth, float* to) {
  const std::int64_t tiles = pair_tiles(depth);
  for (std::int64_t r = 0; r < (count + kTile - 1) / kTile * kTile; ++r) {
    float* place = to + r / kTile * tiles * kPartsWords + r % kTile * kTile;
    const float* row = float_row(x, token, head, r, count);
    if (r + kRowsAhead < count) ask_for(row_of<float>(x, token + r + kRowsAhead, head), depth);
    for (std::int64_t t = 0; t < tiles; ++t, place += kPartsWords) {
      Floats even, odd;
      Ints parts[kParts];
      unzip(floats_of(row, t * kTilePairs, depth), floats_of(row, t * kTilePairs + kTile, depth), even,
            odd);
      split_pair(even, odd, parts);
      for (int p = 0; p < kParts; ++p) put_words(parts[p], place + p * kTileWords);
    }
  }
}

// As read_as_columns: block by block, tiles of 16 rows of D, of each the pairs of keys.
inline void split_as_columns(const Rows3& x, std::int64_t token, std::int64_t head,
                             std::int64_t count, std::int64_t depth, float* to) {
  const std::int64_t tiles = row_tiles(depth);
  for (std::int64_t first = 0; first < count; first += kTilePairs) {
    const std::int64_t half = first % kTileKeys / kTilePairs;
    float* place = to + (first / kTileKeys * kPairTiles * tiles + half) * kPartsWords;
    for (std::int64_t r = first + kTilePairs; r < first + 2 * kTilePairs && r < count; ++r)
      ask_for(row_of<float>(x, token + r, head), depth);
    for (std::int64_t t = 0; t < tiles; ++t, place += kPairTiles * kPartsWords) {
      TileRows rows[kParts];
      for (std::int64_t p = 0; p < kTile; ++p) {
        const float* low = float_row(x, token, head, first + 2 * p, count);
        const float* high = float_row(x, token, head, first + 2 * p + 1, count);
        Ints parts[kParts];
        split_pair(floats_of(low, t * kTile, depth), floats_of(high, t * kTile, depth), parts);
        for (int i = 0; i < kParts; ++i) rows[i][p] = parts[i];
      }
      for (int i = 0; i < kParts; ++i) {
        turn_tile(rows[i]);
        put_tile(rows[i], place + i * kTileWords);
      }
    }
  }
}

// to (pairs of D, 16 queries) = q (D, 16 queries).
inline void split_queries(const float* q, std::int64_t depth, float* to) {
  for (std::int64_t d = 0; d < pair_tiles(depth) * kTilePairs; d += 2) {
    Ints parts[kParts];
    split_pair(d < depth ? load(q + d * kTile) : Floats{},
               d + 1 < depth ? load(q + (d + 1) * kTile) : Floats{}, parts);
    float* place = to + d / kTilePairs * kPartsWords + d % kTilePairs / 2 * kTile;
    for (int p = 0; p < kParts; ++p) put_words(parts[p], place + p * kTileWords);
  }
}

// Whether the parts of a head's rows serve: no number is infinite or NaN, of which they would make other
// ones (infinity times a part that is zero), and the largest is at most `limit` and lies where no part
// that matters beside it is subnormal.
inline bool parts_serve(const Rows3& x, std::int64_t token, std::int64_t head, std::int64_t count,
                        std::int64_t depth, float limit) {
  Floats most = {};
  Ints beyond = {};
  for (std::int64_t r = 0; r < count; ++r) {
    const float* row = row_of<float>(x, token + r, head);
    if (r + kFetchAhead < count) fetch<float>(x, token + r + kFetchAhead, head, depth);
    for (std::int64_t d = 0; d < depth; d += kLanes) {
      const Floats size = magnitude(floats_of(row, d, depth));
      most = larger(size, most);
      beyond |= ~(size <= limit);
    }
  }
  return !any(beyond) && (any(most >= 0x1p-60f) || !any(most > 0.0f));
}

// c (count tiles of 16 rows, 16 columns) = a b, count at most 4, the sums over `steps` tiles. a: `step`
// words from one of c's tiles to the next. pause() is called split_pauses times.
//
// Four sums in turns, for each waits for itself; of each what is small comes first.
template <class Pause>
PYENC_INLINE void split_product(const float* a, std::int64_t step, std::int64_t count,
                                std::int64_t steps, const float* b, float* c, const Pause& pause) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (std::int64_t k = 0; k < steps; ++k, a += kPartsWords, b += kPartsWords) {
    tile_load<4>(b, kTile);
    tile_load<5>(b + kTileWords, kTile);
    tile_load<6>(b + 2 * kTileWords, kTile);
    const auto add = [&](auto part, auto tile) __attribute__((always_inline)) {
      constexpr int kPart = decltype(part)::value, kSum = decltype(tile)::value;
      if (kSum >= count) return;
      tile_load<7>(a + kSum * step + kPart * kTileWords, kTile);
      if constexpr (kPart == 0) tile_dot<kSum, 7, 6>();
      if constexpr (kPart <= 1) tile_dot<kSum, 7, 5>();
      tile_dot<kSum, 7, 4>();
      pause();
    };
    const auto add_all = [&](auto part) __attribute__((always_inline)) {
      add(part, std::integral_constant<int, 0>());
      add(part, std::integral_constant<int, 1>());
      add(part, std::integral_constant<int, 2>());
      add(part, std::integral_constant<int, 3>());
    };
    add_all(std::integral_constant<int, 2>());
    add_all(std::integral_constant<int, 1>());
    add_all(std::integral_constant<int, 0>());
  }
  tile_store<0>(c, kTile);
  if (count > 1) tile_store<1>(c + kTileWords, kTile);
  if (count > 2) tile_store<2>(c + 2 * kTileWords, kTile);
  if (count > 3) tile_store<3>(c + 3 * kTileWords, kTile);
}

constexpr std::int64_t split_pauses(std::int64_t count, std::int64_t steps) {
  return kParts * count * steps;
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
