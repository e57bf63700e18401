// Norm and rotation of a run of tokens, compiled once per instruction set. Computed in float and
// rounded once. A head is read twice, the second time from the nearest cache.

#include "norm_rotary/arguments.h"

#include <cmath>

#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// One over the root mean square of a head, whose halves are read side by side.
template <class Scalar>
PYENC_INLINE float scale_of(const Scalar* head, std::int64_t half, float eps) {
  Floats squares = {};
  for_columns(half, [&](std::int64_t i, auto at) {
    const Floats a = at.get(head + i), b = at.get(head + half + i);
    squares += a * a + b * b;
  });
  return 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(2 * half) + eps);
}

template <class Scalar>
void forward_as(const NormRotary& call, std::int64_t first, std::int64_t last, Scalar* out) {
  const std::int64_t half = call.head_dim / 2, queries = call.heads - call.k_heads;
  for (std::int64_t t = first; t < last; ++t) {
    const float* cos = call.cos + call.positions[t] * half;
    const float* sin = call.sin + call.positions[t] * half;
    for (std::int64_t h = 0; h < call.heads; ++h) {
      const Scalar* from = static_cast<const Scalar*>(call.x) + t * call.row + h * call.head;
      const float* weight = h < queries ? call.weight : call.k_weight;
      Scalar* to = out + (t * call.heads + h) * call.head_dim;
      const float scale = scale_of(from, half, call.eps);
      for_columns(half, [&](std::int64_t i, auto at) {
        const Floats a = at.get(from + i) * scale * at.get(weight + i);
        const Floats b = at.get(from + half + i) * scale * at.get(weight + half + i);
        const Floats c = at.get(cos + i), s = at.get(sin + i);
        at.put(a * c - b * s, to + i);
        at.put(b * c + a * s, to + half + i);
      });
    }
  }
}

template <class Scalar>
void backward_as(const NormRotary& call, std::int64_t first, std::int64_t last,
                 const Scalar* grad_out, Scalar* grad_x, float* sums) {
  const std::int64_t d = call.head_dim, half = d / 2, queries = call.heads - call.k_heads;
  for (std::int64_t i = 0; i < 2 * d; ++i) sums[i] = 0;
  for (std::int64_t t = first; t < last; ++t) {
    const float* cos = call.cos + call.positions[t] * half;
    const float* sin = call.sin + call.positions[t] * half;
    for (std::int64_t h = 0; h < call.heads; ++h) {
      const Scalar* from = static_cast<const Scalar*>(call.x) + t * call.row + h * call.head;
      const Scalar* grad = grad_out + (t * call.heads + h) * d;
      Scalar* to = grad_x + (t * call.heads + h) * d;
      const float* weight = h < queries ? call.weight : call.k_weight;
      float* sum = h < queries ? sums : sums + d;
      const float scale = scale_of(from, half, call.eps);
      // Of the norm, before the rotation: turned back.
      const auto turned_back = [&](std::int64_t i, auto at, Floats& a, Floats& b) {
        const Floats g = at.get(grad + i), e = at.get(grad + half + i);
        const Floats c = at.get(cos + i), s = at.get(sin + i);
        a = g * c + e * s;
        b = e * c - g * s;
      };
      Floats along = {};
      for_columns(half, [&](std::int64_t i, auto at) {
        Floats a, b;
        turned_back(i, at, a, b);
        a *= at.get(from + i) * scale;
        b *= at.get(from + half + i) * scale;
        at.put(at.get(sum + i) + a, sum + i);
        at.put(at.get(sum + half + i) + b, sum + half + i);
        along += a * at.get(weight + i) + b * at.get(weight + half + i);
      });
      const float by_unit = sum_of(along) / static_cast<float>(d);
      for_columns(half, [&](std::int64_t i, auto at) {
        Floats a, b;
        turned_back(i, at, a, b);
        a = a * at.get(weight + i) - at.get(from + i) * scale * by_unit;
        b = b * at.get(weight + half + i) - at.get(from + half + i) * scale * by_unit;
        at.put(a * scale, to + i);
        at.put(b * scale, to + half + i);
      });
    }
  }
}

void forward(const NormRotary& call, std::int64_t first, std::int64_t last, void* out) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    forward_as(call, first, last, static_cast<Scalar*>(out));
  });
}

void backward(const NormRotary& call, std::int64_t first, std::int64_t last, const void* grad_out,
              void* grad_x, float* sums) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    backward_as(call, first, last, static_cast<const Scalar*>(grad_out),
                static_cast<Scalar*>(grad_x), sums);
  });
}

}  // namespace

extern const NormRotaryKernels norm_rotary_kernels;
const NormRotaryKernels norm_rotary_kernels{forward, backward};

}  // namespace PYENC_ISA
}  // namespace pyenc
