// Panels of parts and their products, compiled once per instruction set.
//
// Which two numbers of a step's 32 stand side by side in a word does not matter as long as both
// operands agree: 0 and 16, 1 and 17, and so on, for then whole vectors are split and none shuffled.

#include "linear/product.h"

#include "shared/activation.h"
#include "shared/parts.h"

namespace pyenc {
namespace PYENC_ISA {

#ifdef PYENC_AMX

namespace {

constexpr std::int64_t kPanelTiles = kPanelLines / kTile;
static_assert(kStep == kTilePairs && step_words(1) == kPanelTiles * kTileWords, "as tiles are");

// 16 numbers from `from` on, of which `left` are there; null: none.
template <bool Whole>
PYENC_INLINE Floats numbers(const float* from, std::int64_t left) {
  if (Whole) return load(from);
  if (!from || left <= 0) return Floats{};
  return left >= kLanes ? load(from) : read_some(from, left);
}

// The parts of a tile of 16 lines and a step, `lines` and `depth` of which are there.
// Along: the numbers of a line are neighbours in memory, else those of a step are. Turned: the other way
// round than they come. most: the bits of magnitudes, a vector a line, or (not along) a lane a line.
template <int P, bool Along, bool Turned, bool Whole>
PYENC_INLINE void pack_tile(Lines x, std::int64_t lines, std::int64_t depth, Ints* most, float* to) {
  TileRows rows[P];
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    const float* at = x.at + i * (Along ? x.line : x.k);
    const float* above = at + kTile * (Along ? 1 : x.k);
    if (!Whole && i >= (Along ? lines : depth)) at = nullptr;
    if (!Whole && i + (Along ? 0 : kTile) >= (Along ? lines : depth)) above = nullptr;
    const Floats lower = numbers<Whole>(at, Along ? depth : lines);
    const Floats upper = numbers<Whole>(above, Along ? depth - kTile : lines);
    const Ints low = as_ints(lower) & 0x7fffffff, high = as_ints(upper) & 0x7fffffff;
    const Ints larger_bits = low > high ? low : high;
    Ints& kept = most[Along ? i : 0];
    kept = larger_bits > kept ? larger_bits : kept;
    Ints parts[P];
    split_pair(lower, upper, parts);
    for (int p = 0; p < P; ++p) {
      if (Turned)
        rows[p][i] = parts[p];
      else
        put_words(parts[p], to + p * kTileWords + i * kTile);
    }
  }
  for (int p = 0; p < P && Turned; ++p) {
    turn_tile(rows[p]);
    put_tile(rows[p], to + p * kTileWords);
  }
}

template <int P, bool Along, bool Turned>
void pack_as(Lines x, std::int64_t lines, std::int64_t depth, float* to, std::int32_t* most) {
  constexpr int kVectors = Along ? kTile : 1;  // of a tile's magnitudes
  Ints seen[kPanelTiles][kVectors] = {};
  for (std::int64_t k = 0; k < depth; k += kStep)
    for (std::int64_t tile = 0; tile < kPanelTiles; ++tile, to += P * kTileWords) {
      const std::int64_t line = tile * kTile;
      const Lines from{x.at + line * x.line + k * x.k, x.line, x.k};
      if (line + kTile <= lines && k + kStep <= depth)
        pack_tile<P, Along, Turned, true>(from, kTile, kStep, seen[tile], to);
      else
        pack_tile<P, Along, Turned, false>(from, lines - line, depth - k, seen[tile], to);
    }
  for (std::int64_t line = 0; line < kPanelLines; ++line)
    for (int lane = 0; lane < (Along ? kLanes : 1); ++lane) {
      const std::int64_t i = line % kTile;
      const std::int32_t bits = seen[line / kTile][Along ? i : 0][Along ? lane : i];
      most[line] = bits > most[line] ? bits : most[line];
    }
}

template <int P>
void pack_parts(Lines x, std::int64_t lines, std::int64_t depth, bool columns, float* to,
                std::int32_t* most) {
  if (x.k == 1 && columns) return pack_as<P, true, true>(x, lines, depth, to, most);
  if (x.k == 1) return pack_as<P, true, false>(x, lines, depth, to, most);
  if (columns) return pack_as<P, false, false>(x, lines, depth, to, most);
  pack_as<P, false, true>(x, lines, depth, to, most);
}

void pack(Lines x, std::int64_t lines, std::int64_t depth, int parts, bool columns, float* to,
          std::int32_t* most) {
  if (parts == 2) return pack_parts<2>(x, lines, depth, columns, to, most);
  pack_parts<3>(x, lines, depth, columns, to, most);
}

// tiles 0 to 3 (2 x 2) = the sum over `steps` of six products each, or of two parts three, what is small of
// a step first. Twice two operands at a time, each loaded once for as many products as can follow.
template <int P>
PYENC_INLINE void multiply_panels(const float* a, const float* b, std::int64_t steps) {
  const auto a_part = [&](int part) __attribute__((always_inline)) {
    tile_load<4>(a + part * kTileWords, kTile);
    tile_load<5>(a + (P + part) * kTileWords, kTile);
  };
  const auto b_part = [&](int part) __attribute__((always_inline)) {
    tile_load<6>(b + part * kTileWords, kTile);
    tile_load<7>(b + (P + part) * kTileWords, kTile);
  };
  const auto add = []() __attribute__((always_inline)) {
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  };
  constexpr int h = 0, m = 1, l = 2;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (std::int64_t s = 0; s < steps; ++s, a += step_words(P), b += step_words(P)) {
    if constexpr (P == 2) {
      a_part(m), b_part(h), add();
      a_part(h), add();
      b_part(m), add();
    } else {
      a_part(l), b_part(h), add();
      a_part(m), add();
      b_part(m), add();
      a_part(h), add();
      b_part(l), add();
      b_part(h), add();
    }
  }
}

template <class Finish>
PYENC_INLINE void write_block(const Product& call, const float* block, std::int64_t row,
                              std::int64_t column, bool add, const float* bias,
                              const Finish& finish) {
  const std::int64_t rows = call.rows - row, columns = call.columns - column;
  for (std::int64_t r = 0; r < kPanelLines && r < rows; ++r, block += kPanelLines) {
    float* to = call.out + (row + r) * call.columns + column;
    for_columns(columns < kPanelLines ? columns : kPanelLines, [&](std::int64_t i, auto at) {
      Floats sum = load(block + i);
      if (add) sum += at.get(to + i);
      if (bias) sum += at.get(bias + column + i);
      at.put(finish(sum), to + i);
    });
  }
}

void multiply(const Product& call, const float* a, const float* b, std::int64_t steps,
              std::int64_t row, std::int64_t column, bool first, bool last) {
  alignas(64) float block[kPanelLines * kPanelLines];
  call.parts == 2 ? multiply_panels<2>(a, b, steps) : multiply_panels<3>(a, b, steps);
  tile_store<0>(block, kPanelLines);
  tile_store<1>(block + kTile, kPanelLines);
  tile_store<2>(block + kTile * kPanelLines, kPanelLines);
  tile_store<3>(block + kTile * kPanelLines + kTile, kPanelLines);
  const auto as_it_is = [](Floats x) __attribute__((always_inline)) { return x; };
  const float* bias = last ? call.bias : nullptr;
  if (!last || call.plain) return write_block(call, block, row, column, !first, bias, as_it_is);
  with_activation(call.activation, [&](auto chosen) {
    write_block(call, block, row, column, !first, bias, [](Floats x) __attribute__((always_inline)) {
      return activate<decltype(chosen)::value, false>(x);
    });
  });
}

}  // namespace

extern const ProductKernels product_kernels;
const ProductKernels product_kernels{[] { configure_tiles(); }, [] { release_tiles(); }, pack, multiply};

#else

extern const ProductKernels product_kernels;
const ProductKernels product_kernels{nullptr, nullptr, nullptr, nullptr};

#endif

}  // namespace PYENC_ISA
}  // namespace pyenc
