// Mean of each segment of packed tokens, weighted and of unit length where asked.
//
// Shapes: T packed tokens, B segments, C channels; everything contiguous.
#pragma once

#include <cstdint>

#include "shared/numeric.h"

namespace pyenc {

struct SegmentMean {
  const void* x;           // (T, C) of `dtype`
  Dtype dtype;
  const void* cu_seqlens;  // (B + 1,), from 0 to T, not decreasing: the caller has checked
  bool wide;               // cu_seqlens is int64, else int32
  const float* weights;    // (T,), or null for ones
  std::int64_t n_segments;
  std::int64_t n_channels;
  bool normalize;
  int threads;
};

// out (B, C) and stats (B, 2): the sum of weights, and the norm of the mean (0 unless normalising).
void segment_mean_forward(const SegmentMean& call, float* out, float* stats);

// grad_x (T, C) of `dtype` and grad_weights (T,), each null when not wanted.
void segment_mean_backward(const SegmentMean& call, const float* grad_out, const float* out,
                           const float* stats, void* grad_x, float* grad_weights);

// What is compiled once per instruction set; x and grad_x point at the first of `n` tokens.
struct SegmentMeanKernels {
  // sum (C,) += the weighted tokens. group (C,) is scratch.
  void (*add_tokens)(const void* x, Dtype dtype, const float* weights, std::int64_t n, std::int64_t c,
                     float* group, double* sum);
  // sum (C,) and the weights' sum to out (C,) and stats (2,).
  void (*finish)(const double* sum, double weight_sum, std::int64_t c, bool normalize, float* out,
                 float* stats);
  // From grad_out (C,), out (C,) and stats (2,) of one segment: the gradient of its weighted sum
  // per unit of weight, and its mean before normalising; both (C,).
  void (*prepare_backward)(const float* grad_out, const float* out, const float* stats,
                           std::int64_t c, bool normalize, float* grad_sum, float* mean);
  void (*backward_tokens)(const void* x, Dtype dtype, const float* weights, std::int64_t n,
                          std::int64_t c, const float* grad_sum, const float* mean, void* grad_x,
                          float* grad_weights);
};

}  // namespace pyenc
