// out = activation(a b + bias) in bfloat16 on matrix units (AMX), sums in float32, rounded once after the
// activation.
//
// Shapes: a (M, K), b (K, N), bias (N,), out (M, N), K at least 1. Of a and b one of the two strides is 1:
// so a weight, its transpose, a batch of rows and its transpose serve as they lie. b may come packed.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

enum class Activation : int;

// x(line, k), line a row of a or a column of b.
struct Bf16Lines {
  const BFloat16* at;
  std::int64_t line, k;  // strides
};

struct Bf16Product {
  std::int64_t rows, columns, depth;  // M, N, K
  Bf16Lines a, b;
  const float* packed;  // b as bf16_pack has made it; null: b is packed meanwhile
  const BFloat16* bias;  // null: none
  bool plain;            // no activation
  Activation activation;
  BFloat16* out;
  std::int64_t out_row;  // numbers from row to row
  int threads;
};

// Whether this processor computes any.
bool bf16_product_serves();

// A number of out is the same bits whatever other rows and columns are with it, b packed or not, and
// however many threads there are. Subnormal numbers count as zero, as the matrix units have it.
// Throws std::bad_alloc.
void bf16_product(const Bf16Product& call);

// b (K, N) in the order in which it is read: panels of 32 columns, each the tiles of its steps of depth;
// zero where there is no column or number. to: room for bf16_pack_words, on a line of the cache.
void bf16_pack(Bf16Lines b, std::int64_t columns, std::int64_t depth, int threads, float* to);

// Lines of a panel, numbers of a step of depth, and a panel's words of a step: two tiles.
constexpr std::int64_t kBf16Lines = 32, kBf16Step = 32, kBf16StepWords = 2 * 256;

constexpr std::int64_t bf16_panels(std::int64_t lines) { return (lines + kBf16Lines - 1) / kBf16Lines; }
constexpr std::int64_t bf16_steps(std::int64_t depth) { return (depth + kBf16Step - 1) / kBf16Step; }
constexpr std::int64_t bf16_pack_words(std::int64_t columns, std::int64_t depth) {
  return bf16_panels(columns) * bf16_steps(depth) * kBf16StepWords;
}

// Panels of a beside panels of b, over some steps of the depth.
struct Bf16Blocks {
  const float *a, *b;                  // the first panels' words of the first of these steps
  std::int64_t a_panel, b_panel;       // words from one panel's to the next one's
  std::int64_t a_panels, b_panels;
  std::int64_t steps;
  std::int64_t row, column;            // of out, where the first block begins
  bool first, last;                    // whether there are no steps before these, and none after
  float* sums;                         // what earlier steps gave, 1,024 floats a block; null: first and last
};

// Compiled once per instruction set; null where there are no matrix units.
struct Bf16ProductKernels {
  // A thread that has entered may call the rest.
  void (*enter)();
  void (*leave)();
  // A panel of up to 32 lines of `depth` numbers from `x` on; columns: as the second operand has them.
  void (*pack)(Bf16Lines x, std::int64_t lines, std::int64_t depth, bool columns, float* to);
  void (*multiply)(const Bf16Product& call, const Bf16Blocks& blocks);
};

}  // namespace pyenc
