// The most arithmetic that registers alone allow: what a kernel's rate is measured against.
#pragma once

#include <cstdint>

namespace pyenc {

enum class Peak { fma_f32, dot_bf16 };

// Floating-point operations a second on `threads` threads, the best of what fits into `seconds`.
// 0 where the instruction set that serves has no such instruction.
double peak_flops(Peak peak, int threads, double seconds);

// What is compiled once per instruction set. A run does `rounds` times as many operations as its
// *_flop says and returns a number that needs all of them; null where there is no instruction.
struct PeakKernels {
  float (*fma_f32)(std::int64_t rounds);
  std::int64_t fma_f32_flop;
  float (*dot_bf16)(std::int64_t rounds);
  std::int64_t dot_bf16_flop;
};

}  // namespace pyenc
