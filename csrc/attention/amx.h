// Intel's matrix units (AMX): eight tile registers of 16 rows of 64 bytes, and the product of two tiles
// of bfloat16 pairs, added to a tile of floats.
//
// A tile of pairs has 16 words a row, each two neighbours of the sum, as in attention/pairs.h; an
// operand's words are kept in arrays of floats. Registers are named by template arguments: they are
// part of the instruction.
//
// PYENC_EMULATE_AMX: the same in plain C++, sum by sum as the instruction does it, for the tests. A
// tile that is used on a thread without a configuration ends the process there too.
#pragma once

#include "attention/pairs.h"

#ifdef PYENC_AMX

#include <cstdlib>

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
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row * 4), "i"(T) : "memory");
}

template <int T>
PYENC_INLINE void tile_store(float* to, std::int64_t row) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row * 4), "i"(T) : "memory");
}

// sum += a b, a's rows times b's columns of pairs.
template <int Sum, int A, int B>
PYENC_INLINE void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Tiles are a thread's own, and so is their configuration. Nobody may count on finding any across a
// call (the x86-64 ABI), and a thread that has none is cheaper to switch.
// Floats: whether float32 is computed with them too, by its parts.
template <bool Floats>
inline bool takes_tiles(const Attention& call) {
  return call.dtype == Dtype::bf16 || (Floats && call.dtype == Dtype::f32);
}

template <bool Floats>
inline void enter_thread(const Attention& call) {
#ifdef PYENC_AMX
  if (takes_tiles<Floats>(call)) configure_tiles();
#endif
  (void)call;
}

template <bool Floats>
inline void leave_thread(const Attention& call) {
#ifdef PYENC_AMX
  if (takes_tiles<Floats>(call)) release_tiles();
#endif
  (void)call;
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
