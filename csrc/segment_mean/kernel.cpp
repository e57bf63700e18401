// The arithmetic of the segment mean over a run of tokens, compiled once per instruction set.

#include <cmath>

#include "segment_mean/arguments.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Tokens summed in float before the sum moves to double. Short enough that the rounding of a sum of
// any length stays near that of one addition, long enough that the doubles cost little.
constexpr std::int64_t kGroup = 32;

// Partial sums side by side, so that a reduction vectorises without leave to reorder it.
constexpr int kLanes = 16;

constexpr double kSmallestNorm = 1e-12;

// pair(c) summed over [0, count). `Sum` is the type of the lanes; they are added up in double.
template <class Sum, class Pair>
inline double reduce(std::int64_t count, const Pair& pair) {
  Sum lanes[kLanes] = {};
  std::int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    for (int i = 0; i < kLanes; ++i) lanes[i] += pair(c + i);
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  for (; c < count; ++c) total += pair(c);
  return total;
}

template <class Scalar>
void add_tokens_as(const Scalar* __restrict x, const float* __restrict weights, std::int64_t n,
                   std::int64_t c, float* __restrict group, double* __restrict sum) {
  const auto weight = [=](std::int64_t t) { return weights ? weights[t] : 1.0f; };
  for (std::int64_t first = 0; first < n; first += kGroup) {
    const std::int64_t last = first + kGroup < n ? first + kGroup : n;
    for (std::int64_t i = 0; i < c; ++i) group[i] = 0;
    std::int64_t t = first;
    // Four tokens at a time: one load and store of the group for four of x.
    for (; t + 4 <= last; t += 4) {
      const Scalar* x0 = x + t * c;
      const Scalar *x1 = x0 + c, *x2 = x1 + c, *x3 = x2 + c;
      const float w0 = weight(t), w1 = weight(t + 1), w2 = weight(t + 2), w3 = weight(t + 3);
      for (std::int64_t i = 0; i < c; ++i)
        group[i] += (w0 * widen(x0[i]) + w1 * widen(x1[i])) + (w2 * widen(x2[i]) + w3 * widen(x3[i]));
    }
    for (; t < last; ++t) {
      const Scalar* row = x + t * c;
      const float w = weight(t);
      for (std::int64_t i = 0; i < c; ++i) group[i] += w * widen(row[i]);
    }
    for (std::int64_t i = 0; i < c; ++i) sum[i] += group[i];
  }
}

void add_tokens(const void* x, Dtype dtype, const float* weights, std::int64_t n, std::int64_t c,
                float* group, double* sum) {
  switch (dtype) {
    case Dtype::f32: return add_tokens_as(static_cast<const float*>(x), weights, n, c, group, sum);
    case Dtype::bf16:
      return add_tokens_as(static_cast<const BFloat16*>(x), weights, n, c, group, sum);
    case Dtype::f16: return add_tokens_as(static_cast<const Float16*>(x), weights, n, c, group, sum);
  }
}

void finish(const double* __restrict sum, double weight_sum, std::int64_t c, bool normalize,
            float* __restrict out, float* stats) {
  // Without weight there is no mean: zeros, whatever the tokens hold.
  if (weight_sum == 0) {
    for (std::int64_t i = 0; i < c; ++i) out[i] = 0;
    stats[0] = stats[1] = 0;
    return;
  }
  double norm = 0, scale = 1 / weight_sum;
  if (normalize) {
    const double per_weight = scale;
    norm = std::sqrt(reduce<double>(c, [=](std::int64_t i) {
      return (sum[i] * per_weight) * (sum[i] * per_weight);
    }));
    // Written so that a NaN stays one.
    scale /= norm < kSmallestNorm ? kSmallestNorm : norm;
  }
  for (std::int64_t i = 0; i < c; ++i) out[i] = static_cast<float>(sum[i] * scale);
  stats[0] = static_cast<float>(weight_sum);
  stats[1] = static_cast<float>(norm);
}

void prepare_backward(const float* __restrict grad_out, const float* __restrict out,
                      const float* stats, std::int64_t c, bool normalize, float* __restrict grad_sum,
                      float* __restrict mean) {
  const double weight_sum = stats[0], norm = stats[1];
  if (weight_sum == 0) {
    for (std::int64_t i = 0; i < c; ++i) grad_sum[i] = mean[i] = 0;
    return;
  }
  // y = m / max(|m|, eps): its gradient g becomes (g - y (y.g)) / |m|, or g / eps below eps.
  double length = 1, along = 0;
  if (normalize) {
    length = norm < kSmallestNorm ? kSmallestNorm : norm;
    if (!(norm < kSmallestNorm))
      along = reduce<double>(c, [=](std::int64_t i) {
        return static_cast<double>(grad_out[i]) * static_cast<double>(out[i]);
      });
  }
  const double scale = 1 / (length * weight_sum);
  for (std::int64_t i = 0; i < c; ++i) {
    grad_sum[i] = static_cast<float>((grad_out[i] - along * out[i]) * scale);
    mean[i] = static_cast<float>(out[i] * length);
  }
}

template <class Scalar>
void backward_tokens_as(const Scalar* __restrict x, const float* __restrict weights, std::int64_t n,
                        std::int64_t c, const float* __restrict grad_sum,
                        const float* __restrict mean, Scalar* __restrict grad_x,
                        float* __restrict grad_weights) {
  for (std::int64_t t = 0; t < n; ++t) {
    if (grad_x) {
      const float w = weights ? weights[t] : 1.0f;
      Scalar* to = grad_x + t * c;
      for (std::int64_t i = 0; i < c; ++i) narrow(w * grad_sum[i], to[i]);
    }
    if (grad_weights) {
      const Scalar* row = x + t * c;
      // The mean is taken off each channel and not off the sum, where the two would cancel.
      grad_weights[t] = static_cast<float>(reduce<float>(
          c, [=](std::int64_t i) { return (widen(row[i]) - mean[i]) * grad_sum[i]; }));
    }
  }
}

void backward_tokens(const void* x, Dtype dtype, const float* weights, std::int64_t n, std::int64_t c,
                     const float* grad_sum, const float* mean, void* grad_x, float* grad_weights) {
  switch (dtype) {
    case Dtype::f32:
      return backward_tokens_as(static_cast<const float*>(x), weights, n, c, grad_sum, mean,
                                static_cast<float*>(grad_x), grad_weights);
    case Dtype::bf16:
      return backward_tokens_as(static_cast<const BFloat16*>(x), weights, n, c, grad_sum, mean,
                                static_cast<BFloat16*>(grad_x), grad_weights);
    case Dtype::f16:
      return backward_tokens_as(static_cast<const Float16*>(x), weights, n, c, grad_sum, mean,
                                static_cast<Float16*>(grad_x), grad_weights);
  }
}

}  // namespace

extern const SegmentMeanKernels segment_mean_kernels;
const SegmentMeanKernels segment_mean_kernels{add_tokens, finish, prepare_backward, backward_tokens};

}  // namespace PYENC_ISA
}  // namespace pyenc
