// The passes around a product in eight bits over threads. Rows are apart from each other: the same
// bits for any number of threads.

#include "linear/arguments.h"

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(Int8Kernels, int8_kernels)

void int8_quantize(const Int8Rows& call, float steps, float least, const void* x, std::uint8_t* u,
                   float* step, float* zero) {
  const Int8Kernels& kernels = int8_kernels();
  parallel_rows(call.rows, call.columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.quantize(call, first, last, steps, least, x, u, step, zero);
  });
}

void int8_finish(const Int8Rows& call, bool plain, Activation activation, const float* y,
                 const float* step, const float* zero, const float* sums, const float* bias,
                 void* out) {
  const Int8Kernels& kernels = int8_kernels();
  parallel_rows(call.rows, call.columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.finish(call, first, last, plain, activation, y, step, zero, sums, bias, out);
  });
}

}  // namespace pyenc
