// The norms over threads. Sums over rows are taken in runs of a fixed length and added in order: the
// same bits for any number of threads.

#include "norm/arguments.h"

#include <vector>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(NormKernels, norm_kernels)

namespace {

// Rows whose share of grad_weight and grad_bias is summed in float.
constexpr std::int64_t kRun = 64;

// Floats of the widest vector, to which a row is filled up.
constexpr std::int64_t kWidestVector = 16;

}  // namespace

void norm_forward(const Norm& call, const void* x, const void* residual, void* total, void* normed,
                  float* stats) {
  const NormKernels& kernels = norm_kernels();
  const std::int64_t size = call.columns + kWidestVector;
  std::vector<float> memory(static_cast<std::size_t>(call.threads * size));
  parallel_rows(call.rows, call.columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int thread) {
                  kernels.forward(call, first, last, x, residual, total, normed, stats,
                                  memory.data() + thread * size);
                });
}

void norm_backward(const Norm& call, const void* grad_normed, const void* grad_total,
                   const void* total, const float* stats, void* grad_x, float* grad_weight,
                   float* grad_bias) {
  const NormKernels& kernels = norm_kernels();
  const std::int64_t c = call.columns, runs = (call.rows + kRun - 1) / kRun;
  std::vector<float> sums(static_cast<std::size_t>(runs * 2 * c));
  const int threads = threads_for_elements(call.rows * c, call.threads);
  parallel_for(runs, threads, [&](std::int64_t run, int) {
    const std::int64_t first = run * kRun, last = first + kRun;
    kernels.backward(call, first, last < call.rows ? last : call.rows, grad_normed, grad_total,
                     total, stats, grad_x, sums.data() + run * 2 * c);
  });
  for (std::int64_t i = 0; i < 2 * c; ++i) {
    double sum = 0;
    for (std::int64_t run = 0; run < runs; ++run) sum += sums[static_cast<std::size_t>(run * 2 * c + i)];
    if (i < c) grad_weight[i] = static_cast<float>(sum);
    else if (grad_bias) grad_bias[i - c] = static_cast<float>(sum);
  }
}

}  // namespace pyenc
