// out = activation(x W^T + bias) of few rows, a short text's, with the weight as it lies: every number of
// out is a dot product of two rows in memory. So the weight is read once, in order, and there is no second
// copy of it whose standing for the first would have to be looked after.
//
// Shapes: x (T, C), W (F, C), bias (F,), out (T, F). Rows of x and of W may be apart, their numbers not;
// out is contiguous. Sums are in float, those of halves are rounded once, after the activation.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

enum class Activation : int;

struct FewRows {
  Dtype dtype;  // of all four, if nothing else is said
  std::int64_t rows, columns, depth;  // T, F, C
  const void* x;
  std::int64_t x_row;
  const void* weight;
  std::int64_t weight_row;
  const void* bias;  // null: none
  bool plain;        // no activation
  Activation activation;
  void* out;
  int threads;
  const float* tiles;  // x in tiles, as FewRowsKernels has it; null: as it lies
};

// A row's numbers are the same bits whatever rows are with it, and however many threads there are.
// Throws std::bad_alloc.
void few_rows(const FewRows& call);

// Columns that a kernel takes in a step: bounds between runs of columns are multiples of it.
constexpr std::int64_t kFewColumns = 6;

// Floats of a row of a run's sums: whole vectors. Each object has its own (shared/isa.h).
namespace {
constexpr std::int64_t few_sums(std::int64_t columns) { return (columns + 15) / 16 * 16; }
}  // namespace

// Compiled once per instruction set.
struct FewRowsKernels {
  // Columns [first, last) of out. sums: room for T rows of few_sums(last - first).
  void (*multiply)(const FewRows& call, std::int64_t first, std::int64_t last, float* sums);
  // Of bfloat16 on matrix units x comes in tiles, as bf16_pack makes the columns of a second operand of its
  // rows, and a thread enters before it multiplies; null where there are none.
  void (*enter)();
  void (*leave)();
};

// The same in eight bits: `x` unsigned, its last row all ones, and `weight` signed. Column by column,
// of all other rows y (T - 1, F) = the sum of products times `scale` (F), and of the last one `sums` (F).
struct Int8FewKernels {
  // spare: room for T rows of few_sums(last - first).
  void (*multiply)(const FewRows& call, std::int64_t first, std::int64_t last, const float* scale,
                   std::int32_t* spare, float* y, float* sums);
};

// out = activation(x W^T + bias) of few rows, x rounded to steps of eight bits, and W given in them: the
// passes of linear/arguments.h around a product of integers, without a pack; the same bits. `weight` int8,
// `bias` and `scale` (F) float.
void int8_few_rows(const FewRows& call, float steps, float least, const float* scale);

}  // namespace pyenc
