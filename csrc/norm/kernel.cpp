// The norms of a run of rows, compiled once per instruction set.

#include "norm/arguments.h"

#include <cmath>

#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

struct Spread {
  float off, variance;  // the mean less the rough one
};

// Over `count` floats, filled up with their rough mean to whole vectors; about zero where
// `about_zero`. From the rough mean outward, not by squares less a square, where the two would
// cancel; how far the rough one is off, when the numbers are far from zero, is seen on the way.
PYENC_INLINE Spread spread_of(const float* row, std::int64_t count, float rough, bool about_zero) {
  Floats even = {}, odd = {}, rest = {};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count + kLanes - 1; i += 2 * kLanes) {
    const Floats a = load(row + i) - rough, b = load(row + i + kLanes) - rough;
    even += a * a;
    odd += b * b;
    rest += a + b;
  }
  if (i < count) {
    const Floats a = load(row + i) - rough;
    even += a * a;
    rest += a;
  }
  const float share = 1.0f / static_cast<float>(count), squares = share * sum_of(even + odd);
  if (about_zero) return {0.0f, squares};
  const float off = share * sum_of(rest), variance = squares - off * off;
  return {off, variance > 0.0f || variance != variance ? variance : 0.0f};
}

template <class Scalar>
void forward_as(const Norm& call, std::int64_t first, std::int64_t last, const Scalar* x,
                const Scalar* residual, Scalar* total, Scalar* normed, float* stats, float* row) {
  const std::int64_t c = call.columns, padded = (c + kLanes - 1) / kLanes * kLanes;
  const float share = 1.0f / static_cast<float>(c);
  for (std::int64_t r = first; r < last; ++r) {
    const Scalar* from = x + r * c;
    // The row as floats stays near; its sum with the residual is what is kept of it, rounded.
    Floats sum = {};
    for_columns(c, [&](std::int64_t i, auto at) {
      Floats value = at.get(from + i);
      if (residual) {
        value += at.get(residual + r * c + i);
        at.put(value, total + r * c + i);
        if (!std::is_same_v<Scalar, float>) value = at.get(total + r * c + i);
      }
      at.put(value, row + i);
      sum += value;
    });
    const float rough = call.rms ? 0.0f : share * sum_of(sum);
    for (std::int64_t i = c; i < padded; ++i) row[i] = rough;
    const Spread spread = spread_of(row, c, rough, call.rms);
    const float scale = 1.0f / std::sqrt(spread.variance + call.eps);
    for_columns(c, [&](std::int64_t i, auto at) {
      // One after the other: their sum, rounded, is off by as much as a mean far above the spread.
      Floats value = ((at.get(row + i) - rough) - spread.off) * scale * at.get(call.weight + i);
      if (call.bias) value += at.get(call.bias + i);
      at.put(value, normed + r * c + i);
    });
    stats[2 * r] = rough + spread.off;
    stats[2 * r + 1] = scale;
  }
}

template <class Scalar>
void backward_as(const Norm& call, std::int64_t first, std::int64_t last, const Scalar* grad_normed,
                 const Scalar* grad_total, const Scalar* total, const float* stats, Scalar* grad_x,
                 float* sums) {
  const std::int64_t c = call.columns;
  const float share = 1.0f / static_cast<float>(c);
  float *grad_weight = sums, *grad_bias = sums + c;
  for (std::int64_t i = 0; i < 2 * c; ++i) sums[i] = 0;
  for (std::int64_t r = first; r < last; ++r) {
    const Scalar *g = grad_normed + r * c, *from = total + r * c;
    const float mean = stats[2 * r], scale = stats[2 * r + 1];
    Floats along = {}, plain = {};
    for_columns(c, [&](std::int64_t i, auto at) {
      const Floats incoming = at.get(g + i), unit = (at.get(from + i) - mean) * scale;
      const Floats weighted = incoming * at.get(call.weight + i);
      along += weighted * unit;
      plain += weighted;
      at.put(at.get(grad_weight + i) + incoming * unit, grad_weight + i);
      at.put(at.get(grad_bias + i) + incoming, grad_bias + i);
    });
    const float by_unit = share * sum_of(along), by_one = call.rms ? 0.0f : share * sum_of(plain);
    for_columns(c, [&](std::int64_t i, auto at) {
      const Floats unit = (at.get(from + i) - mean) * scale;
      const Floats weighted = at.get(g + i) * at.get(call.weight + i);
      Floats value = scale * (weighted - by_one - unit * by_unit);
      if (grad_total) value += at.get(grad_total + r * c + i);
      at.put(value, grad_x + r * c + i);
    });
  }
}

void forward(const Norm& call, std::int64_t first, std::int64_t last, const void* x,
             const void* residual, void* total, void* normed, float* stats, float* row) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    forward_as(call, first, last, static_cast<const Scalar*>(x),
               static_cast<const Scalar*>(residual), static_cast<Scalar*>(total),
               static_cast<Scalar*>(normed), stats, row);
  });
}

void backward(const Norm& call, std::int64_t first, std::int64_t last, const void* grad_normed,
              const void* grad_total, const void* total, const float* stats, void* grad_x,
              float* sums) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    backward_as(call, first, last, static_cast<const Scalar*>(grad_normed),
                static_cast<const Scalar*>(grad_total), static_cast<const Scalar*>(total), stats,
                static_cast<Scalar*>(grad_x), sums);
  });
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels{forward, backward};

}  // namespace PYENC_ISA
}  // namespace pyenc
