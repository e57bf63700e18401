// Rotary position embedding in its "rotate half" form: pairs are (d, d + D/2). Su et al., RoFormer,
// arXiv 2104.09864.
//
// Shapes: T tokens, H heads, D head dim, P positions.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

struct Rotary {
  Dtype dtype;
  const void* x;  // (T, H, D), the last axis contiguous
  std::int64_t row, head;  // its other strides in elements
  const float *cos, *sin;  // (P, D/2)
  const std::int64_t* positions;  // (T,), each in [0, P)
  std::int64_t tokens, heads, head_dim;
  bool back;  // turn the other way: the gradient
  int threads;
};

// out (T, H, D), contiguous.
void rotary_turn(const Rotary& call, void* out);

// Tokens [first, last), compiled once per instruction set.
struct RotaryKernels {
  void (*turn)(const Rotary& call, std::int64_t first, std::int64_t last, void* out);
};

}  // namespace pyenc
