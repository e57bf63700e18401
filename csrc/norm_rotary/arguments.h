// RMSNorm of each head, then rotary position embedding, in one pass over memory each way. Zhang &
// Sennrich, arXiv 1910.07467; Su et al., arXiv 2104.09864. Pairs are (d, d + D/2).
//
// Shapes: T tokens, H heads, of which the last K are keys, D head dim, P positions.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

struct NormRotary {
  Dtype dtype;
  const void* x;  // (T, H, D), the last axis contiguous
  std::int64_t row, head;  // its other strides in elements
  const float *weight, *k_weight;  // (D,), of the keys the second
  const float *cos, *sin;  // (P, D/2)
  const std::int64_t* positions;  // (T,), each in [0, P)
  std::int64_t tokens, heads, k_heads, head_dim;
  float eps;
  int threads;
};

// out (T, H, D), contiguous.
void norm_rotary_forward(const NormRotary& call, void* out);

// grad_out and grad_x (T, H, D), contiguous; grad_weight and grad_k_weight (D,).
void norm_rotary_backward(const NormRotary& call, const void* grad_out, void* grad_x,
                          float* grad_weight, float* grad_k_weight);

// Tokens [first, last), compiled once per instruction set.
struct NormRotaryKernels {
  void (*forward)(const NormRotary& call, std::int64_t first, std::int64_t last, void* out);
  // sums (2, D): what the tokens add to the gradients of the weights, which it starts at zero.
  void (*backward)(const NormRotary& call, std::int64_t first, std::int64_t last,
                   const void* grad_out, void* grad_x, float* sums);
};

}  // namespace pyenc
