// The register-only peak over threads.

#include "peak/arguments.h"

#include <algorithm>
#include <chrono>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(PeakKernels, peak_kernels)

namespace {

// Long beside the waking of a thread and the short spells in which a processor clocks higher.
constexpr double kSecondsOfARun = 0.1;

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

}  // namespace

double peak_flops(Peak peak, int threads, double seconds) {
  const PeakKernels& kernels = peak_kernels();
  const bool bf16 = peak == Peak::dot_bf16;
  float (*const run)(std::int64_t) = bf16 ? kernels.dot_bf16 : kernels.fma_f32;
  const std::int64_t flop = bf16 ? kernels.dot_bf16_flop : kernels.fma_f32_flop;
  if (run == nullptr) return 0;

  const auto timed = [&](std::int64_t rounds) {
    volatile float kept;  // or the whole run would be left out
    const double start = seconds_now();
    parallel_for(threads, threads, [&](std::int64_t, int) { kept = run(rounds); });
    (void)kept;
    return seconds_now() - start;
  };

  std::int64_t rounds = 1 << 12;
  while (timed(rounds) < kSecondsOfARun) rounds *= 2;
  double best = 0;
  const double end = seconds_now() + seconds;
  do {
    const double rate = static_cast<double>(rounds * flop) * threads / timed(rounds);
    best = std::max(best, rate);
  } while (seconds_now() < end);
  return best;
}

}  // namespace pyenc
