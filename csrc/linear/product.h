// out = activation(a b + bias) in float32, each number of a and b as three of bfloat16, or as two where less
// than float32's accuracy is asked, for processors whose matrix units multiply those at many times the rate
// of floats.
//
// Shapes: a (M, K), b (K, N), bias (N,), out (M, N), rows of out contiguous. Of a and b one of the two
// strides is 1: so a weight, its transpose, a batch of rows and its transpose serve as they lie.
#pragma once

#include <cstdint>

namespace pyenc {

enum class Activation : int;

// x(line, k), line a row of a or a column of b.
struct Lines {
  const float* at;
  std::int64_t line, k;  // strides
};

struct Product {
  int parts;                          // of a number: 3 or 2
  std::int64_t rows, columns, depth;  // M, N, K
  Lines a, b;
  const float* bias;  // null: none
  bool plain;         // no activation
  Activation activation;
  float* out;
  int threads;
};

// Whether it was computed. If not, `out` may have anything, and another product has to serve: this
// processor has no such units, a number of a or b is infinite or NaN (the parts would make NaN of both) or
// so large that a sum's order decides whether it overflows, a line's are all so small that parts or their
// products are lost, or there is nothing to compute.
bool product(const Product& call);

// Whether this processor computes any.
bool product_serves();

// Lines of a panel, and steps of depth of a block. A panel's block is kSteps times the tiles of its 32
// lines' parts, 96 KB of three: one of a and one of b lie in the second level of memory.
constexpr std::int64_t kPanelLines = 32, kStep = 32, kSteps = 16;
constexpr std::int64_t step_words(int parts) { return parts * 2 * 256; }

// Compiled once per instruction set; null where there are no matrix units.
struct ProductKernels {
  // A thread that has entered may call the rest.
  void (*enter)();
  void (*leave)();
  // The `parts` of up to 32 lines of `depth` numbers from `x` on; zero where there is no line or number.
  // columns: as the second operand has them. most: of each of 32 lines the bits of the largest magnitude,
  // which are ordered as the numbers are, NaN above infinity; what is there already counts too.
  void (*pack)(Lines x, std::int64_t lines, std::int64_t depth, int parts, bool columns, float* to,
               std::int32_t* most);
  // The block of out from (row, column) on: the sum over `steps` added to what is there, or in its
  // place in the `first` block; bias and activation in the `last`.
  void (*multiply)(const Product& call, const float* a, const float* b, std::int64_t steps,
                   std::int64_t row, std::int64_t column, bool first, bool last);
};

}  // namespace pyenc
