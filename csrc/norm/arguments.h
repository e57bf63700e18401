// Residual addition and LayerNorm or RMSNorm in one pass over memory, forward and backward.
//
// Shapes: T rows, C columns; everything contiguous.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

struct Norm {
  Dtype dtype;
  bool rms;
  std::int64_t rows, columns;
  float eps;
  const float* weight;  // (C,)
  const float* bias;    // (C,), or null
  int threads;
};

// total = x + residual (not written where residual is null: it is x); normed = its norm. stats (T, 2):
// mean (0 for RMSNorm) and 1 / deviation.
void norm_forward(const Norm& call, const void* x, const void* residual, void* total, void* normed,
                  float* stats);

// grad_x = by normed and, where grad_total is not null, by total; grad_weight and grad_bias (C,).
void norm_backward(const Norm& call, const void* grad_normed, const void* grad_total,
                   const void* total, const float* stats, void* grad_x, float* grad_weight,
                   float* grad_bias);

// Rows [first, last), compiled once per instruction set.
struct NormKernels {
  // row: scratch for a row of floats, filled up to whole vectors.
  void (*forward)(const Norm& call, std::int64_t first, std::int64_t last, const void* x,
                  const void* residual, void* total, void* normed, float* stats, float* row);
  // sums (2, C): what the rows add to grad_weight and grad_bias, which it starts at zero.
  void (*backward)(const Norm& call, std::int64_t first, std::int64_t last, const void* grad_normed,
                   const void* grad_total, const void* total, const float* stats, void* grad_x,
                   float* sums);
};

}  // namespace pyenc
