// The sums of few rows of bfloat16 on matrix units (AMX): rows of W, as they lie, are the first operand and
// rows of x, in tiles, the second, so that W is read once and needs no pack. What comes out is turned.
//
// In an unnamed namespace: each instruction set gets its own copies (see shared/isa.h).
#pragma once

#include <type_traits>

#include "linear/bf16_product.h"
#include "linear/few_rows.h"
#include "shared/tiles.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Numbers of a row of W that are asked for before they are read, into the second level of memory.
constexpr std::int64_t kFewAhead = 8 * kBf16Step;

// 32 rows of W and a step of their depth, of which there may be fewer: then zeros.
class WeightTiles {
 public:
  WeightTiles(const FewRows& call, std::int64_t column)
      : at_(static_cast<const BFloat16*>(call.weight) + column * call.weight_row),
        row_(call.weight_row), rows_(call.columns - column), depth_(call.depth) {}

  // Whether the second sixteen has any.
  bool two() const { return rows_ > kTile; }

  // Registers T and T + 1. First: W comes from afar, and so will the step behind it.
  template <int T, bool First>
  PYENC_INLINE void load(std::int64_t k) {
    const std::int64_t left = depth_ - k;
    if (First) ask(k + kFewAhead);
    half<T>(at_ + k, rows_, left);
    if (two()) half<T + 1>(at_ + kTile * row_ + k, rows_ - kTile, left);
  }

 private:
  template <int T>
  PYENC_INLINE void half(const BFloat16* from, std::int64_t rows, std::int64_t left) {
    if (rows >= kTile && left >= kBf16Step)
      return tile_load_apart<T>(from, row_ * static_cast<std::int64_t>(sizeof(BFloat16)));
    alignas(64) BFloat16 some[kTile * kBf16Step] = {};
    const std::int64_t count = left < kBf16Step ? left : kBf16Step;
    for (std::int64_t r = 0; r < kTile && r < rows; ++r)
      for (std::int64_t i = 0; i < count; ++i) some[r * kBf16Step + i] = from[r * row_ + i];
    tile_load_apart<T>(some, kBf16Step * static_cast<std::int64_t>(sizeof(BFloat16)));
  }

  // A line of each row; of the next 32 rows where these end.
  PYENC_INLINE void ask(std::int64_t k) const {
    const BFloat16* from = k < depth_ ? at_ + k : at_ + kBf16Lines * row_ + (k - depth_);
    for (int r = 0; r < kBf16Lines; ++r) __builtin_prefetch(from + r * row_, 0, 2);
  }

  const BFloat16* at_;
  std::int64_t row_, rows_, depth_;
};

// Columns [column, column + 32) of the sums of 32 rows of x, `x` their tiles; rows, columns: how many there are.
template <bool First, bool Half>
PYENC_INLINE void few_block(const FewRows& call, WeightTiles weight, const float* x, std::int64_t rows,
                            std::int64_t columns, float* sums, std::int64_t sums_row) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  const bool two = weight.two();
  for (std::int64_t k = 0; k < call.depth; k += kBf16Step, x += kBf16StepWords) {
    weight.load<4, First>(k);
    tile_load<6>(x, kTile);
    tile_dot<0, 4, 6>();
    if (two) tile_dot<2, 5, 6>();
    if (Half) continue;
    tile_load<7>(x + kTileWords, kTile);
    tile_dot<1, 4, 7>();
    if (two) tile_dot<3, 5, 7>();
  }
  alignas(64) float block[4 * kTileWords];  // a tile a quarter
  tile_store<0>(block, kTile);
  tile_store<1>(block + kTileWords, kTile);
  tile_store<2>(block + 2 * kTileWords, kTile);
  tile_store<3>(block + 3 * kTileWords, kTile);
  for (std::int64_t c = 0; c < kBf16Lines && c < columns; c += kTile)
    for (std::int64_t r = 0; r < kBf16Lines && r < rows; r += kTile) {
      const float* from = block + (c / kTile * 2 + r / kTile) * kTileWords;
      TileRows tile;
      for (int i = 0; i < kTile; ++i) tile[i] = load_words(from + i * kTile);
      turn_tile(tile);
      for (std::int64_t i = 0; i < kTile && r + i < rows; ++i)
        put_words(tile[i], sums + (r + i) * sums_row + c);
    }
}

// sums: of columns [first, last), as FewRowsKernels::multiply has it.
void sums_on_units(const FewRows& call, std::int64_t first, std::int64_t last, float* sums) {
  const std::int64_t sums_row = few_sums(last - first);
  const std::int64_t panel = bf16_steps(call.depth) * kBf16StepWords;
  for (std::int64_t column = first; column < last; column += kBf16Lines) {
    const WeightTiles weight(call, column);
    for (std::int64_t row = 0; row < call.rows; row += kBf16Lines) {
      const float* x = call.tiles + row / kBf16Lines * panel;
      float* to = sums + row * sums_row + column - first;
      const std::int64_t rows = call.rows - row, columns = last - column;
      const auto block = [&](auto is_first, auto half) __attribute__((always_inline)) {
        few_block<decltype(is_first)::value, decltype(half)::value>(call, weight, x, rows, columns, to,
                                                                   sums_row);
      };
      constexpr std::true_type kYes;
      constexpr std::false_type kNo;
      if (row == 0) {
        rows <= kTile ? block(kYes, kYes) : block(kYes, kNo);
      } else {
        rows <= kTile ? block(kNo, kYes) : block(kNo, kNo);
      }
    }
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX
