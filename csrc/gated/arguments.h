// activation(gate + bias) * value, elementwise, forward and backward; without a value, the activation
// alone, without a bias, of the gate as it is.
//
// Shapes: T rows, F columns; bias (F,), in the dtype of the rest. Columns are contiguous, rows have
// strides: gate and value are often the halves of one (T, 2F) tensor.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

enum class Activation : int;

struct Gated {
  Dtype dtype;
  Activation activation;
  std::int64_t rows, columns;
  int threads;
};

struct Strided {
  void* at;          // null: not there
  std::int64_t row;  // elements from one row to the next
};

// out may be gate: each element is read before it is written.
void gated_forward(const Gated& call, Strided gate, const void* bias, Strided value, Strided out);

void gated_backward(const Gated& call, Strided grad_out, Strided gate, Strided value,
                    Strided grad_gate, Strided grad_value);

// Rows [first, last), compiled once per instruction set.
struct GatedKernels {
  void (*forward)(const Gated& call, std::int64_t first, std::int64_t last, Strided gate,
                  const void* bias, Strided value, Strided out);
  void (*backward)(const Gated& call, std::int64_t first, std::int64_t last, Strided grad_out,
                   Strided gate, Strided value, Strided grad_gate, Strided grad_value);
};

}  // namespace pyenc
