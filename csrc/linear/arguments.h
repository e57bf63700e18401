// What stands around a linear layer's product in eight bits: rows are cut into steps before it, and
// scales, zero points, bias and activation are put on its result in one pass.
//
// Shapes: T rows, C columns in, F columns out; everything contiguous.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

enum class Activation : int;

struct Int8Rows {
  Dtype dtype;  // of x and of out
  std::int64_t rows, columns;
  int threads;
};

// u (T, C) of x (T, C), and of each row the step and zero point with x = about step (u - zero). A row's
// range, 0 in it, is `steps` steps; none is smaller than `least`. A row that is not finite has a step
// that is NaN.
void int8_quantize(const Int8Rows& call, float steps, float least, const void* x, std::uint8_t* u,
                   float* step, float* zero);

// Of each row and channel: out = activation((y - zero sums) step + bias), y (T, F) with the channels'
// scales on it; bias (F,) float or null. `plain`: no activation.
void int8_finish(const Int8Rows& call, bool plain, Activation activation, const float* y,
                 const float* step, const float* zero, const float* sums, const float* bias, void* out);

// Rows [first, last), compiled once per instruction set.
struct Int8Kernels {
  void (*quantize)(const Int8Rows& call, std::int64_t first, std::int64_t last, float steps, float least,
                   const void* x, std::uint8_t* u, float* step, float* zero);
  void (*finish)(const Int8Rows& call, std::int64_t first, std::int64_t last, bool plain,
                 Activation activation, const float* y, const float* step, const float* zero,
                 const float* sums, const float* bias, void* out);
};

}  // namespace pyenc
