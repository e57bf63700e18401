// Elementary functions on vectors, close to the last digit.
#pragma once

#include "shared/activation.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// e^x within a few units in the last place; infinity beyond what floats hold, 0 for what is subnormal.
PYENC_INLINE Floats exp_of(Floats x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds
  const Floats kept = x < -104.0f ? splat(-104.0f) : x;
  const Floats whole = (kept * 1.4426950408889634f + kMagic) - kMagic;
  // ln 2 in two numbers, the first of few digits so that its product with a whole number is exact.
  const Floats rest = (kept - whole * 0x1.62ep-1f) - whole * 0x1.0bfbe8p-15f;
  const Floats power = exp2_fraction<5>(rest * 1.4426950408889634f, 1.0f) * exp2_of(whole - 1.0f) * 2.0f;
  return x > 88.722839f ? splat(__builtin_inff()) : power;
}

// tanh(x) = x + x^3 P(x^2) near 0, where the other form would lose digits: least maximum of the relative
// error on [0, 0.6] by iterated weighted least squares (2.8e-9 before rounding).
PYENC_INLINE Floats tanh_of(Floats x) {
  const Floats size = magnitude(x), square = x * x;
  Floats p = square * -0x1.82584cp-8f + 0x1.54b89ep-6f;
  p = p * square - 0x1.b898dep-5f;
  p = p * square + 0x1.1109aep-3f;
  p = p * square - 0x1.55553ep-2f;
  const Floats near = x + x * (square * p);
  const Floats capped = size > 20.0f ? splat(20.0f) : size;
  const Floats far = 1.0f - 2.0f / (exp2_of(capped * 2.8853900817779268f) + 1.0f);
  const Floats signed_far = x < 0.0f ? -far : far;
  return size > 0.6f ? signed_far : near;  // a NaN is not greater, and stays one
}

PYENC_INLINE Floats root_of(Floats x) {
  Floats y;
  for (int lane = 0; lane < kLanes; ++lane) y[lane] = __builtin_sqrtf(x[lane]);
  return y;
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
