// The rotation over threads: tokens are apart from each other.

#include "rotary/arguments.h"

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(RotaryKernels, rotary_kernels)

void rotary_turn(const Rotary& call, void* out) {
  const RotaryKernels& kernels = rotary_kernels();
  const std::int64_t columns = call.heads * call.head_dim;
  parallel_rows(call.tokens, columns, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    kernels.turn(call, first, last, out);
  });
}

}  // namespace pyenc
