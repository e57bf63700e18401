// Intel's matrix units (AMX): eight tile registers of 16 rows of 64 bytes, and the product of two tiles
// of bfloat16 pairs, added to a tile of floats.
//
// A tile of pairs has 16 words a row, each two neighbours of the sum; an operand's words are kept in
// arrays of floats. Registers are named by template arguments: they are part of the instruction.
//
// PYENC_EMULATE_AMX: the same in plain C++, sum by sum as the instruction does it, for the tests. A
// tile that is used on a thread without a configuration ends the process there too.
#pragma once

#include <cstdlib>
#include <cstring>

#include "shared/simd.h"

// Whether there are matrix units, or what stands for them in the tests.
#if defined(PYENC_EMULATE_AMX) || (defined(__AMX_TILE__) && defined(__AMX_BF16__))
#define PYENC_AMX 1
#endif

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

constexpr std::int64_t kTile = 16;             // rows of a tile, and words of a row
constexpr std::int64_t kTileWords = kTile * kTile;
constexpr std::int64_t kTilePairs = 2 * kTile;  // numbers of a row of pairs
static_assert(kLanes == kTile, "a row of a tile is a vector");

#ifdef PYENC_EMULATE_AMX

struct EmulatedTiles {
  bool configured = false;
  float words[8][kTileWords] = {};
};
thread_local EmulatedTiles emulated_tiles;

inline float* tile_at(int tile) {
  if (!emulated_tiles.configured) std::abort();
  return emulated_tiles.words[tile];
}

inline void configure_tiles() { emulated_tiles.configured = true; }
inline void release_tiles() { emulated_tiles.configured = false; }

template <int T>
PYENC_INLINE void tile_zero() {
  float* tile = tile_at(T);
  for (std::int64_t i = 0; i < kTileWords; ++i) tile[i] = 0;
}

template <int T>
PYENC_INLINE void tile_load(const float* from, std::int64_t row) {
  float* tile = tile_at(T);
  for (std::int64_t i = 0; i < kTile; ++i) store(tile + i * kTile, load(from + i * row));
}

template <int T>
PYENC_INLINE void tile_stream(const float* from, std::int64_t row) {
  tile_load<T>(from, row);
}

template <int T>
PYENC_INLINE void tile_load_apart(const void* from, std::int64_t row_bytes) {
  float* tile = tile_at(T);
  for (std::int64_t i = 0; i < kTile; ++i)
    std::memcpy(tile + i * kTile, static_cast<const char*>(from) + i * row_bytes, 4 * kTile);
}

template <int T>
PYENC_INLINE void tile_store(float* to, std::int64_t row) {
  const float* tile = tile_at(T);
  for (std::int64_t i = 0; i < kTile; ++i) store(to + i * row, load(tile + i * kTile));
}

// Lower and upper numbers are summed apart from zero, and then their sum is added: so the
// instruction's own description. A product of two bfloat16 numbers is exact.
template <int Sum, int A, int B>
PYENC_INLINE void tile_dot() {
  float* sum = tile_at(Sum);
  const float *a = tile_at(A), *b = tile_at(B);
  const Ints high = Ints{} - 65536;
  for (std::int64_t i = 0; i < kTile; ++i) {
    Floats lower = {}, upper = {};
    for (std::int64_t k = 0; k < kTile; ++k) {
      const Ints row = static_cast<std::int32_t>(word_at(a + i * kTile + k)) - Ints{};
      const Ints column = load_words(b + k * kTile);
      lower += as_floats(row << 16) * as_floats(column << 16);
      upper += as_floats(row & high) * as_floats(column & high);
    }
    store(sum + i * kTile, load(sum + i * kTile) + (lower + upper));
  }
}

#else

// Behind each load and product: eight instructions that do nothing. On a core that is shared, as it seems,
// matrix units slow down, and more so where their instructions follow each other at once: 1.6 times the time
// that they take with these between them. Why is not known. Where they are at full rate these cost nothing
// (bench/NOTES.md).
#define PYENC_BREATH "\n.rept 8\n nop\n.endr"

// All eight tiles, whole. A compiler's own intrinsics say less than they read and write, so that
// stores before them may get lost (GCC 12); hence words of assembly that clobber memory.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "as the instruction reads it");

inline void configure_tiles() {
  const TileConfiguration configuration;
  __asm__ volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
}

inline void release_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

template <int T>
PYENC_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
PYENC_INLINE void tile_load(const float* from, std::int64_t row) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" PYENC_BREATH ::"r"(from), "r"(row * 4), "i"(T)
                   : "memory");
}

// The same of what is read once: it comes from the second level of memory, and what is in the first stays.
template <int T>
PYENC_INLINE void tile_stream(const float* from, std::int64_t row) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" PYENC_BREATH ::"r"(from), "r"(row * 4), "i"(T)
                   : "memory");
}

// Of rows that lie where they lie, their numbers side by side.
template <int T>
PYENC_INLINE void tile_load_apart(const void* from, std::int64_t row_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" PYENC_BREATH ::"r"(from), "r"(row_bytes), "i"(T)
                   : "memory");
}

template <int T>
PYENC_INLINE void tile_store(float* to, std::int64_t row) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row * 4), "i"(T) : "memory");
}

// sum += a b, a's rows times b's columns of pairs.
template <int Sum, int A, int B>
PYENC_INLINE void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" PYENC_BREATH ::"i"(Sum), "i"(A), "i"(B));
}

#endif

// A tile's rows of words, in registers. Words are moved, never computed with: as floats many would be
// subnormal.
typedef Ints TileRows[kTile];

// Turned round.
PYENC_INLINE void turn_tile(TileRows& rows) {
#if defined(__AVX512F__) && !defined(PYENC_EMULATE_BF16_DOT)
  const auto wide = [](Ints x) { return reinterpret_cast<__m512i>(x); };
  __m512i twos[kTile], fours[kTile];  // columns of two rows, and of four, by lanes of four words
#pragma GCC unroll 8
  for (int i = 0; i < kTile; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(wide(rows[i]), wide(rows[i + 1]));
    twos[i + 1] = _mm512_unpackhi_epi32(wide(rows[i]), wide(rows[i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
  }
  // fours[4 i + c] has in its lane l the column 4 l + c of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i upper = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x44);
    const __m512i upper_end = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xee);
    const __m512i lower = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x44);
    const __m512i lower_end = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xee);
    rows[c] = (Ints)_mm512_shuffle_i32x4(upper, lower, 0x88);
    rows[4 + c] = (Ints)_mm512_shuffle_i32x4(upper, lower, 0xdd);
    rows[8 + c] = (Ints)_mm512_shuffle_i32x4(upper_end, lower_end, 0x88);
    rows[12 + c] = (Ints)_mm512_shuffle_i32x4(upper_end, lower_end, 0xdd);
  }
#else
  for (int r = 0; r < kTile; ++r)
    for (int c = 0; c < r; ++c) {
      const std::int32_t word = rows[r][c];
      rows[r][c] = rows[c][r];
      rows[c][r] = word;
    }
#endif
}

PYENC_INLINE void put_tile(const TileRows& rows, float* to) {
#pragma GCC unroll 16
  for (int r = 0; r < kTile; ++r) put_words(rows[r], to + r * kTile);
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
