// The gated activation over threads. Elements are apart from each other: the same bits for any
// number of threads.

#include "gated/arguments.h"

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(GatedKernels, gated_kernels)

void gated_forward(const Gated& call, Strided gate, const void* bias, Strided value, Strided out) {
  const GatedKernels& kernels = gated_kernels();
  parallel_rows(call.rows, call.columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.forward(call, first, last, gate, bias, value, out);
  });
}

void gated_backward(const Gated& call, Strided grad_out, Strided gate, Strided value,
                    Strided grad_gate, Strided grad_value) {
  const GatedKernels& kernels = gated_kernels();
  parallel_rows(call.rows, call.columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.backward(call, first, last, grad_out, gate, value, grad_gate, grad_value);
  });
}

}  // namespace pyenc
