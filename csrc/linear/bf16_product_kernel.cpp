// Panels of bfloat16 and their products on matrix units, compiled once per instruction set.
//
// A panel of a is multiplied with one of b after another: it stays in the first level of memory while
// those stream past it from the second. What a block of 32 x 32 gave is activated, rounded and written a
// row at a time between the next block's tile instructions, which would else wait for it.

#include "linear/bf16_product.h"

#include "shared/activation.h"
#include "shared/rows.h"
#include "shared/tiles.h"

namespace pyenc {
namespace PYENC_ISA {

#ifdef PYENC_AMX

namespace {

constexpr std::int64_t kPanelTiles = kBf16Lines / kTile;
constexpr std::int64_t kBlock = kBf16Lines * kBf16Lines;
static_assert(kBf16Step == kTilePairs && kBf16StepWords == kPanelTiles * kTileWords, "as tiles are");

// Pairs wherever a number may lie.
typedef std::int32_t LoosePairs __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));

// 32 numbers in pairs, of which `left` are there.
PYENC_INLINE Ints pairs_along(const BFloat16* from, std::int64_t left) {
  if (left >= kTilePairs) return *reinterpret_cast<const LoosePairs*>(from);
  BFloat16 some[kTilePairs] = {};
  for (std::int64_t i = 0; i < left; ++i) some[i] = from[i];
  return *reinterpret_cast<const LoosePairs*>(some);
}

// 16 numbers, of which `left` are there, in the lower halves of words.
PYENC_INLINE Ints lower_halves(const BFloat16* from, std::int64_t left) {
  if (left >= kTile)
    return reinterpret_cast<Ints>(
        __builtin_convertvector(*reinterpret_cast<const LooseWords*>(from), Bits));
  Ints some = {};
  for (std::int64_t i = 0; i < left; ++i) some[i] = from[i].bits;
  return some;
}

// A tile of 16 lines and a step, of which `lines` and `depth` are there. Along: the numbers of a line are
// neighbours in memory, and a row of the tile is a line; else a row is a pair of depth.
template <bool Along>
PYENC_INLINE void read_tile(Bf16Lines x, std::int64_t lines, std::int64_t depth, TileRows& rows) {
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < kTile; ++i) {
    if (Along) {
      rows[i] = i < lines ? pairs_along(x.at + i * x.line, depth) : Ints{};
      continue;
    }
    const BFloat16* at = x.at + 2 * i * x.k;
    const Ints lower = 2 * i < depth ? lower_halves(at, lines) : Ints{};
    const Ints upper = 2 * i + 1 < depth ? lower_halves(at + x.k, lines) : Ints{};
    rows[i] = lower | upper << 16;
  }
}

template <bool Along>
void pack_as(Bf16Lines x, std::int64_t lines, std::int64_t depth, bool columns, float* to) {
  TileRows rows;
  for (std::int64_t k = 0; k < depth; k += kBf16Step)
    for (std::int64_t line = 0; line < kBf16Lines; line += kTile, to += kTileWords) {
      const Bf16Lines from{x.at + line * x.line + k * x.k, x.line, x.k};
      read_tile<Along>(from, lines - line, depth - k, rows);
      if (columns == Along) turn_tile(rows);
      put_tile(rows, to);
    }
}

void pack(Bf16Lines x, std::int64_t lines, std::int64_t depth, bool columns, float* to) {
  x.k == 1 ? pack_as<true>(x, lines, depth, columns, to) : pack_as<false>(x, lines, depth, columns, to);
}

PYENC_INLINE void write_two(Floats low, Floats high, BFloat16* to) {
#if defined(__AVX512BF16__) && !defined(PYENC_EMULATE_BF16_DOT)
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  _mm512_storeu_si512(to, (__m512i)both);
#else
  write(low, to);
  write(high, to + kLanes);
#endif
}

// The rows of a block that are still to be written.
template <class Finish>
class Waiting {
 public:
  explicit Waiting(const Bf16Product& call) : call_(call) {}

  float* block() { return block_; }
  bool any() const { return row_ < rows_; }

  // The block is full: it is that of out from (row, column) on.
  PYENC_INLINE void begin(std::int64_t row, std::int64_t column) {
    row_ = 0, rows_ = call_.rows - row < kBf16Lines ? call_.rows - row : kBf16Lines;
    columns_ = call_.columns - column;
    to_ = call_.out + row * call_.out_row + column;
    if (!call_.bias) return;
    const BFloat16* bias = call_.bias + column;
    low_ = columns_ >= kLanes ? read(bias) : read_some(bias, columns_);
    const std::int64_t left = columns_ - kLanes;
    high_ = left >= kLanes ? read(bias + kLanes) : left > 0 ? read_some(bias + kLanes, left) : Floats{};
  }

  PYENC_INLINE void write_row() {
    if (row_ >= rows_) return;
    const float* from = block_ + row_ * kBf16Lines;
    const Floats low = Finish::of(load(from) + low_), high = Finish::of(load(from + kLanes) + high_);
    if (columns_ >= kBf16Lines) {
      write_two(low, high, to_);
    } else if (columns_ >= kLanes) {
      write(low, to_);
      write_some(high, to_ + kLanes, columns_ - kLanes);
    } else {
      write_some(low, to_, columns_);
    }
    to_ += call_.out_row, ++row_;
  }

 private:
  alignas(64) float block_[kBlock];
  const Bf16Product& call_;
  BFloat16* to_ = nullptr;
  std::int64_t row_ = 0, rows_ = 0, columns_ = 0;
  Floats low_ = {}, high_ = {};  // the bias
};

struct AsItIs {
  static PYENC_INLINE Floats of(Floats x) { return x; }
};

template <Activation A>
struct Activate {
  static PYENC_INLINE Floats of(Floats x) { return activate<A, true>(x); }
};

// How far ahead of its use b is asked for from beyond the second level of memory, 16 KB, and lines of it after
// each of a step's four products.
constexpr std::int64_t kAhead = 8 * kBf16StepWords;
constexpr int kLines = kBf16StepWords / kTile / 4;

// tiles 0 to 3 (2 x 2) += a step's product, with `between` after each. Half: of a's first 16 lines alone.
template <bool Half, class Between>
PYENC_INLINE void multiply_step(const float* a, const float* b, const Between& between) {
  tile_load<4>(a, kTile);
  tile_stream<6>(b, kTile);
  tile_dot<0, 4, 6>();
  between();
  tile_stream<7>(b + kTileWords, kTile);
  tile_dot<1, 4, 7>();
  between();
  if (!Half) {
    tile_load<5>(a + kTileWords, kTile);
    tile_dot<2, 5, 6>();
  }
  between();
  if (!Half) tile_dot<3, 5, 7>();
  between();
}

template <class Finish, bool Half>
void multiply_as(const Bf16Product& call, const Bf16Blocks& blocks) {
  Waiting<Finish> waiting(call);
  for (std::int64_t i = 0; i < blocks.a_panels; ++i)
    for (std::int64_t j = 0; j < blocks.b_panels; ++j) {
      const float *a = blocks.a + i * blocks.a_panel, *b = blocks.b + j * blocks.b_panel;
      float* sums = blocks.sums ? blocks.sums + (i * blocks.b_panels + j) * kBlock : nullptr;
      if (blocks.first) {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
      } else {
        tile_load<0>(sums, kBf16Lines);
        tile_load<1>(sums + kTile, kBf16Lines);
        tile_load<2>(sums + kTile * kBf16Lines, kBf16Lines);
        tile_load<3>(sums + kTile * kBf16Lines + kTile, kBf16Lines);
      }
      std::int64_t step = 0;
      const auto take = [&](std::int64_t end, const auto& between) __attribute__((always_inline)) {
        for (; step < end; ++step, a += kBf16StepWords, b += kBf16StepWords)
          multiply_step<Half>(a, b, between);
      };
      // b comes from afar once.
      const float* ahead = b + kAhead;
      if (i == 0)
        take(blocks.steps, [&]() __attribute__((always_inline)) {
          for (int line = 0; line < kLines; ++line, ahead += kTile) __builtin_prefetch(ahead, 0, 2);
          waiting.write_row();
        });
      while (waiting.any() && step < blocks.steps)
        take(step + 1, [&]() __attribute__((always_inline)) { waiting.write_row(); });
      take(blocks.steps, []() __attribute__((always_inline)) {});
      while (waiting.any()) waiting.write_row();
      float* to = blocks.last ? waiting.block() : sums;
      tile_store<0>(to, kBf16Lines);
      tile_store<1>(to + kTile, kBf16Lines);
      tile_store<2>(to + kTile * kBf16Lines, kBf16Lines);
      tile_store<3>(to + kTile * kBf16Lines + kTile, kBf16Lines);
      if (blocks.last) waiting.begin(blocks.row + i * kBf16Lines, blocks.column + j * kBf16Lines);
    }
  while (waiting.any()) waiting.write_row();
}

template <class Finish>
void multiply_and(const Bf16Product& call, const Bf16Blocks& blocks) {
  // No lines but these: a tile that is not multiplied stays zero.
  if (call.rows <= kTile) return multiply_as<Finish, true>(call, blocks);
  multiply_as<Finish, false>(call, blocks);
}

void multiply(const Bf16Product& call, const Bf16Blocks& blocks) {
  if (call.plain) return multiply_and<AsItIs>(call, blocks);
  with_activation(call.activation, [&](auto chosen) {
    multiply_and<Activate<decltype(chosen)::value>>(call, blocks);
  });
}

}  // namespace

extern const Bf16ProductKernels bf16_product_kernels;
const Bf16ProductKernels bf16_product_kernels{[] { configure_tiles(); }, [] { release_tiles(); }, pack,
                                              multiply};

#else

extern const Bf16ProductKernels bf16_product_kernels;
const Bf16ProductKernels bf16_product_kernels{nullptr, nullptr, nullptr, nullptr};

#endif

}  // namespace PYENC_ISA
}  // namespace pyenc
