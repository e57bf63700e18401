// Norm and rotation over threads: tokens are apart from each other. The weights' sums over tokens
// are taken in runs of a fixed length and added in order: the same bits for any number of threads.

#include "norm_rotary/arguments.h"

#include <vector>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(NormRotaryKernels, norm_rotary_kernels)

namespace {

// Tokens, with all their heads, whose share of a weight's gradient is summed in float.
constexpr std::int64_t kRun = 8;

}  // namespace

void norm_rotary_forward(const NormRotary& call, void* out) {
  const NormRotaryKernels& kernels = norm_rotary_kernels();
  parallel_rows(call.tokens, call.heads * call.head_dim, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.forward(call, first, last, out);
  });
}

void norm_rotary_backward(const NormRotary& call, const void* grad_out, void* grad_x,
                          float* grad_weight, float* grad_k_weight) {
  const NormRotaryKernels& kernels = norm_rotary_kernels();
  const std::int64_t d = call.head_dim, runs = (call.tokens + kRun - 1) / kRun;
  std::vector<float> sums(static_cast<std::size_t>(runs * 2 * d));
  const int threads = threads_for_elements(call.tokens * call.heads * d, call.threads);
  parallel_for(runs, threads, [&](std::int64_t run, int) {
    const std::int64_t first = run * kRun, last = first + kRun;
    kernels.backward(call, first, last < call.tokens ? last : call.tokens, grad_out, grad_x,
                     sums.data() + run * 2 * d);
  });
  for (std::int64_t i = 0; i < 2 * d; ++i) {
    double sum = 0;
    for (std::int64_t run = 0; run < runs; ++run) sum += sums[static_cast<std::size_t>(run * 2 * d + i)];
    if (i < d) grad_weight[i] = static_cast<float>(sum);
    else if (grad_k_weight) grad_k_weight[i - d] = static_cast<float>(sum);
  }
}

}  // namespace pyenc
