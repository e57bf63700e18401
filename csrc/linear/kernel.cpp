// The passes around a product in eight bits of a run of rows, compiled once per instruction set.

#include "linear/arguments.h"

#include "shared/activation.h"
#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef std::uint8_t LooseBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

// The first `count` of numbers from 0 to 255, cut off.
PYENC_INLINE void write_bytes(Floats values, std::int64_t count, std::uint8_t* to) {
  const Bytes bytes = __builtin_convertvector(__builtin_convertvector(values, Ints), Bytes);
  if (count >= kLanes)
    *reinterpret_cast<LooseBytes*>(to) = bytes;
  else
    for (std::int64_t i = 0; i < count; ++i) to[i] = bytes[i];
}

PYENC_INLINE float largest(Floats x) {
  float top = x[0];
  for (int lane = 1; lane < kLanes; ++lane) top = x[lane] > top ? x[lane] : top;
  return top;
}

template <class Scalar>
void quantize_as(const Int8Rows& call, std::int64_t first, std::int64_t last, float steps, float least,
                 const Scalar* x, std::uint8_t* u, float* step, float* zero) {
  const std::int64_t c = call.columns;
  for (std::int64_t r = first; r < last; ++r) {
    const Scalar* from = x + r * c;
    // Zero is in the range. What is not finite is less itself not zero but NaN.
    Floats above = {}, below = {}, strange = {};
    for_columns(c, [&](std::int64_t i, auto at) {
      const Floats value = at.get(from + i);
      above = larger(value, above);
      below = larger(-value, below);
      strange += value - value;
    });
    const float down = largest(below);
    float width = (largest(above) + down) / steps;
    width = (width < least ? least : width) + sum_of(strange);
    width += width - width;
    const float steep = 1.0f / width;
    const float origin = __builtin_nearbyintf(down * steep), offset = origin + 0.5f;
    for_columns(c, [&](std::int64_t i, auto at) {
      // Fused, a number may fall on another step than where it is not.
      write_bytes(unfused(at.get(from + i) * steep) + offset, c - i, u + r * c + i);
    });
    step[r] = width, zero[r] = origin;
  }
}

template <class Scalar, class Finish>
void finish_as(const Int8Rows& call, std::int64_t first, std::int64_t last, const float* y,
               const float* step, const float* zero, const float* sums, const float* bias, Scalar* out,
               const Finish& finish) {
  const std::int64_t f = call.columns;
  for (std::int64_t r = first; r < last; ++r) {
    const float width = step[r], origin = zero[r];
    for_columns(f, [&](std::int64_t i, auto at) {
      Floats value = (at.get(y + r * f + i) - origin * at.get(sums + i)) * width;
      if (bias) value += at.get(bias + i);
      at.put(finish(value), out + r * f + i);
    });
  }
}

void quantize(const Int8Rows& call, std::int64_t first, std::int64_t last, float steps, float least,
              const void* x, std::uint8_t* u, float* step, float* zero) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    quantize_as(call, first, last, steps, least, static_cast<const Scalar*>(x), u, step, zero);
  });
}

void finish(const Int8Rows& call, std::int64_t first, std::int64_t last, bool plain,
            Activation activation, const float* y, const float* step, const float* zero,
            const float* sums, const float* bias, void* out) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    const auto run = [&](const auto& with) {
      finish_as(call, first, last, y, step, zero, sums, bias, static_cast<Scalar*>(out), with);
    };
    if (plain) return run([](Floats x) __attribute__((always_inline)) { return x; });
    with_activation(activation, [&](auto chosen) {
      constexpr bool kHalf = !std::is_same<Scalar, float>::value;
      run([](Floats x) __attribute__((always_inline)) {
        return activate<decltype(chosen)::value, kHalf>(x);
      });
    });
  });
}

}  // namespace

extern const Int8Kernels int8_kernels;
const Int8Kernels int8_kernels{quantize, finish};

}  // namespace PYENC_ISA
}  // namespace pyenc
