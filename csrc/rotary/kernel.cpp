// The rotation of a run of tokens, compiled once per instruction set.

#include "rotary/arguments.h"

#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

void turn(const Rotary& call, std::int64_t first, std::int64_t last, void* out) {
  const std::int64_t half = call.head_dim / 2;
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    for (std::int64_t t = first; t < last; ++t) {
      const float* cos = call.cos + call.positions[t] * half;
      const float* sin = call.sin + call.positions[t] * half;
      for (std::int64_t h = 0; h < call.heads; ++h) {
        const Scalar* from = static_cast<const Scalar*>(call.x) + t * call.row + h * call.head;
        Scalar* to = static_cast<Scalar*>(out) + (t * call.heads + h) * call.head_dim;
        for_columns(half, [&](std::int64_t i, auto at) {
          const Floats a = at.get(from + i), b = at.get(from + half + i), c = at.get(cos + i);
          const Floats s = call.back ? -at.get(sin + i) : at.get(sin + i);
          at.put(a * c - b * s, to + i);
          at.put(b * c + a * s, to + half + i);
        });
      }
    }
  });
}

}  // namespace

extern const RotaryKernels rotary_kernels;
const RotaryKernels rotary_kernels{turn};

}  // namespace PYENC_ISA
}  // namespace pyenc
