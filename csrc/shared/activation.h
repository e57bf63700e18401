// The activations of gated and plain feed-forwards on vectors, and their derivatives.
//
// gelu is the exact x Phi(x) (Hendrycks & Gimpel, arXiv 1606.08415), gelu_tanh its approximation.
#pragma once

#include "shared/simd.h"

namespace pyenc {

// The codes that the Python side sends (ACTIVATION_CODES in pyenc/ops/activation.py).
enum class Activation : int { gelu = 0, gelu_tanh = 1, silu = 2, relu = 3 };

namespace PYENC_ISA {
namespace {

// An activation's value and derivative at x.
struct Activated {
  Floats value, slope;
};

// 1 / (1 + e^-x); 0 and 1 far out, NaN for NaN.
PYENC_INLINE Floats sigmoid(Floats x) {
  const Floats power = x * -1.4426950408889634f;
  // 0 and not 2^-126, for x may be as large; a NaN is not greater and stays one.
  return power > 126.0f ? Floats{} : 1.0f / (1.0f + exp2_of(power));
}

// Phi(x), the normal distribution, within (5 + 2 x^2) 1e-7 of itself also where it is tiny.
//
// erfc(z) = t 2^(P(t) - z^2 log2 e) with t = 1 / (1 + z / 2): in t the logarithm of what is left is
// nearly straight. P is the minimax polynomial of degree 9 for t in [0.045, 1] (7.5e-8).
PYENC_INLINE Floats normal_distribution(Floats x) {
  const Floats z = magnitude(x) * 0.70710678118654752f;
  const Floats t = 1.0f / (1.0f + 0.5f * z);
  Floats p = t * 0x1.01e048p-2f - 0x1.36109ep+0f;
  p = p * t + 0x1.193f3ap+1f;
  p = p * t - 0x1.b11356p+0f;
  p = p * t + 0x1.bf8118p-2f;
  p = p * t - 0x1.20fb32p-2f;
  p = p * t + 0x1.2435c4p-3f;
  p = p * t + 0x1.1422f0p-1f;
  p = p * t + 0x1.715804p+0f;
  p = p * t - 0x1.d36440p+0f;
  const Floats tail = 0.5f * t * exp2_of(p - z * z * 1.4426950408889634f);
  return x > 0.0f ? 1.0f - tail : tail;
}

// The same for results in half precision: to 2^-16.8 of itself above -5.6, to 1e-13 below. The
// logarithm of what lies beyond |x| is nearly a parabola. Least maximum of |error| on 0 to 5.6 by
// iterated weighted least squares; the last coefficient is negative, so that far out nothing is left.
PYENC_INLINE Floats rough_normal_distribution(Floats x) {
  const Floats z = magnitude(x);
  Floats log = z * -1.6400987536543882e-06f + 5.7679329430374826e-05f;
  log = log * z - 0.0008992813613623821f;
  log = log * z + 0.00838276754506909f;
  log = log * z - 0.05369711675980954f;
  log = log * z - 0.45873882610071015f;
  log = log * z - 1.1511325798807575f;
  log = log * z - 1.0000076162718727f;
  const Floats beyond = exp2_of(log);
  return x > 0.0f ? 1.0f - beyond : beyond;
}

// Half: the result will be rounded to half precision.
template <Activation A, bool Half>
PYENC_INLINE Floats activate(Floats x) {
  if constexpr (A == Activation::gelu)
    return x * (Half ? rough_normal_distribution(x) : normal_distribution(x));
  if constexpr (A == Activation::gelu_tanh)
    return x * sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
  if constexpr (A == Activation::silu) return x * sigmoid(x);
  return x < 0.0f ? Floats{} : x;
}

template <Activation A>
PYENC_INLINE Activated activate_with_slope(Floats x) {
  if constexpr (A == Activation::gelu) {
    const Floats below = normal_distribution(x);
    const Floats density = 0.39894228040143268f * exp2_of(x * x * -0.72134752044448170f);
    return {x * below, below + x * density};
  }
  if constexpr (A == Activation::gelu_tanh) {
    const Floats s = sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
    const Floats inner = 1.5957691216057308f * (1.0f + 0.134145f * x * x);
    const Floats bend = x * s * (1.0f - s);
    // Where it has gone to zero, x * x may be infinite.
    return {x * s, bend == 0.0f ? s : s + bend * inner};
  }
  if constexpr (A == Activation::silu) {
    const Floats s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
  return {x < 0.0f ? Floats{} : x, x > 0.0f ? splat(1.0f) : Floats{}};
}

// body(activation as a constant).
template <Activation A>
struct Constant {
  static constexpr Activation value = A;
};

template <class Body>
PYENC_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::gelu: return body(Constant<Activation::gelu>());
    case Activation::gelu_tanh: return body(Constant<Activation::gelu_tanh>());
    case Activation::silu: return body(Constant<Activation::silu>());
    case Activation::relu: return body(Constant<Activation::relu>());
  }
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
