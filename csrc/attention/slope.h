// The gradient of ALiBi's slope, in double.
//
// It is one number a head, summed from all pairs of all sequences, and most of it cancels: with p a
// row's weights, dp = V g and d the distances,
//   -grad = sum over rows of (sum p dp d - delta sum p d) / sum p,  delta = sum p dp / sum p - dlse.
// A thousandth of the terms is left in a typical sum, and what single precision rounds away of a
// score (its products with the keys, the bias, the exponential, the log-sum-exp) is then as large
// as what the whole gradient may be off. So the scores and dp of a row are taken once more from q,
// k, v and g, and its four sums with them. Divided by their own sum the weights need no exact
// log-sum-exp, and delta no output, which was rounded.
#pragma once

#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// As wide as a register, so half as many: a compiler takes wider ones apart lane by lane.
constexpr int kHalf = kLanes / 2;
typedef double Doubles __attribute__((vector_size(8 * kHalf)));
typedef std::int64_t Longs __attribute__((vector_size(8 * kHalf)));
typedef float HalfFloats __attribute__((vector_size(4 * kHalf), aligned(4), may_alias));

PYENC_INLINE Doubles load_wide(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const HalfFloats*>(from), Doubles);
}

// to = 2^x for |x| <= 1000, within 1e-11 of itself; NaN for NaN. As exp2_down_to in shared/simd.h,
// with the exponential series to the ninth power.
PYENC_INLINE void exp2_wide(const Doubles& x, Doubles& to) {
  constexpr double kMagic = 6755399441055744.0 + 1023.0;
  const Doubles shifted = x + kMagic;
  const Doubles f = (x - (shifted - kMagic)) * 0.69314718055994531;
  Doubles p = f * (1.0 / 362880) + 1.0 / 40320;
  p = p * f + 1.0 / 5040;
  p = p * f + 1.0 / 720;
  p = p * f + 1.0 / 120;
  p = p * f + 1.0 / 24;
  p = p * f + 1.0 / 6;
  p = p * f + 0.5;
  p = p * f + 1.0;
  p = p * f + 1.0;
  to = p * reinterpret_cast<Doubles>(reinterpret_cast<Longs>(shifted) << 52);
}

// acc[row][lane] = sum_k a(row, k) b[k][lane]: multiply() of shared/product.h in double.
template <int R, int W>
PYENC_INLINE void multiply_wide(const float* a, std::int64_t a_row, const float* b, std::int64_t ldb,
                                std::int64_t depth, Doubles (&result)[R][W]) {
  Doubles acc[R][W] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Doubles column[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) column[w] = load_wide(b + w * kHalf);
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const Doubles row = static_cast<double>(a[r * a_row + k]) - Doubles{};
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) acc[r][w] += row * column[w];
    }
    b += ldb;
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) result[r][w] = acc[r][w];
}

// The four sums of each query of a strip.
template <int C>
struct SlopeSums {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;
  static constexpr int W = 2 * C;  // vectors of doubles
  Doubles weight[W], weight_far[W], grad[W], grad_far[W];  // p, p d, p dp, p dp d

  void start() {
    for (int w = 0; w < W; ++w) weight[w] = weight_far[w] = grad[w] = grad_far[w] = Doubles{};
  }

  // Meets keys [first, first + count). q, g: (D, strip), not scaled; k, v: the block's rows; shift: a
  // score near the largest, in base 2, or the log-sum-exp: any that is the same for a row, for the sums
  // are divided by that of the weights. ds (keys, strip) = p (dp - delta), which the other gradients are
  // made of. For them p is `known` (keys, strip), made from single-precision scores as the shift was:
  // what both rounded away cancels, which it does not where the scores alone are exact.
  void meet(const AttentionHead& head, const Strip<C>& strip, std::int64_t first, std::int64_t count,
            const float* k, const float* v, const float* q, const float* g, const Floats (&shift)[C],
            const Floats (&delta)[C], const float* known, float* ds) {
    // So that the sums in double fill the registers: 3 rows of 2 or 4 vectors, two registers each.
    std::int64_t j = 0;
    for (; j + 3 <= count; j += 3) meet_rows<3>(head, strip, first, j, k, v, q, g, shift, delta, known, ds);
    for (; j < count; ++j) meet_rows<1>(head, strip, first, j, k, v, q, g, shift, delta, known, ds);
  }

  template <int R>
  PYENC_INLINE void meet_rows(const AttentionHead& head, const Strip<C>& strip, std::int64_t first,
                              std::int64_t j, const float* k, const float* v, const float* q,
                              const float* g, const Floats (&shift)[C], const Floats (&delta)[C],
                              const float* known, float* ds) {
    constexpr double kLog2eWide = 1.4426950408889634;
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim;
    const double scale = call.scale * kLog2eWide;
    const double slope = static_cast<const float*>(call.bias)[head.head] * kLog2eWide;
    const double left = call.window_left < 0 ? 1e300 : static_cast<double>(call.window_left);
    const double right = call.window_right < 0 ? 1e300 : static_cast<double>(call.window_right);
    const auto* position = reinterpret_cast<const float*>(strip.position);
    const auto* known_shift = reinterpret_cast<const float*>(shift);
    const auto* known_delta = reinterpret_cast<const float*>(delta);
    Doubles p[R][W], dp[R][W];
    multiply_wide<R, W>(k + j * depth, depth, q, kWidth, depth, p);
    multiply_wide<R, W>(v + j * depth, depth, g, kWidth, depth, dp);
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) {
        const double at = call.positions[head.first + first + j + r];
        const Doubles back = load_wide(position + w * kHalf) - at;
        const Doubles far = back < 0.0 ? -back : back;
        const Doubles power = p[r][w] * scale - far * slope - load_wide(known_shift + w * kHalf);
        Doubles weighed;
        exp2_wide(power, weighed);
        const Longs hidden = (back > left) | (back < -right) | (power < kFaintest);
        weighed = hidden ? Doubles{} : weighed;
        const Doubles part = weighed * dp[r][w];
        weight[w] += weighed;
        weight_far[w] += weighed * far;
        grad[w] += part;
        grad_far[w] += part * far;
        *reinterpret_cast<HalfFloats*>(ds + (j + r) * kWidth + w * kHalf) =
            __builtin_convertvector(
                load_wide(known + (j + r) * kWidth + w * kHalf) *
                    (dp[r][w] - load_wide(known_delta + w * kHalf)),
                HalfFloats);
      }
  }

  // What the queries add to the gradient; dlse: the gradient of each log-sum-exp.
  double total(std::int64_t queries, const Floats (&dlse)[C]) const {
    double result = 0;
    for (std::int64_t i = 0; i < queries; ++i) {
      const std::int64_t w = i / kHalf, lane = i % kHalf;
      const double mass = weight[w][lane], due = dlse[i / kLanes][i % kLanes];
      if (mass == 0) continue;
      const double delta = grad[w][lane] / mass - due;
      result -= (grad_far[w][lane] - delta * weight_far[w][lane]) / mass;
    }
    return result;
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
