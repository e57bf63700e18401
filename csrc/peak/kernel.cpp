// Multiply-adds that touch no memory, compiled once per instruction set.
//
// Each accumulator waits for its own last result, 4 or 5 cycles, while up to two instructions start
// in a cycle: with 10 or more of them it is the units that set the pace. All of them, and the two
// constants, must fit into the registers. GCC takes loops of up to 16 rounds apart by itself.

#include "peak/arguments.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace pyenc {
namespace PYENC_ISA {
namespace {

#ifdef __AVX512F__
constexpr int kBytes = 64, kAccumulators = 16;
#elif defined(__AVX__)
constexpr int kBytes = 32, kAccumulators = 12;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kAccumulators = 16;
#else
constexpr int kBytes = 16, kAccumulators = 12;
#endif

#ifdef __GNUC__
constexpr int kLanes = kBytes / 4;
typedef float Vector __attribute__((vector_size(kBytes)));

float fma_f32(std::int64_t rounds) {
  // Volatile: a compiler that knew the numbers would find accumulators that no round changes, and
  // leave those out. They settle at twice the addend.
  volatile float half = 0.5f, one = 1.0f;
  Vector factor, addend, accumulators[kAccumulators];
  for (int lane = 0; lane < kLanes; ++lane) {
    factor[lane] = half;
    addend[lane] = one;
  }
  for (int i = 0; i < kAccumulators; ++i) accumulators[i] = addend * (one + static_cast<float>(i));
  for (std::int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kAccumulators; ++i) accumulators[i] = accumulators[i] * factor + addend;
  float sum = 0;
  for (int i = 0; i < kAccumulators; ++i)
    for (int lane = 0; lane < kLanes; ++lane) sum += accumulators[i][lane];
  return sum;
}

constexpr std::int64_t kFmaFlop = 2 * kAccumulators * kLanes;
#else  // no vector types: what scalars reach is no ceiling
constexpr float (*fma_f32)(std::int64_t) = nullptr;
constexpr std::int64_t kFmaFlop = 0;
#endif

#ifdef __AVX512BF16__
float dot_bf16(std::int64_t rounds) {
  volatile float one = 1.0f;
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(one), _mm512_set1_ps(one));
  __m512 accumulators[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i)
    accumulators[i] = _mm512_set1_ps(one + static_cast<float>(i));
  for (std::int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kAccumulators; ++i)
      accumulators[i] = _mm512_dpbf16_ps(accumulators[i], ones, ones);
  float sum = 0;
  for (int i = 0; i < kAccumulators; ++i) sum += _mm512_reduce_add_ps(accumulators[i]);
  return sum;
}

// 32 pairs an instruction.
constexpr std::int64_t kDotFlop = 2 * kAccumulators * 32;
#else
constexpr float (*dot_bf16)(std::int64_t) = nullptr;
constexpr std::int64_t kDotFlop = 0;
#endif

}  // namespace

extern const PeakKernels peak_kernels;
const PeakKernels peak_kernels{fma_f32, kFmaFlop, dot_bf16, kDotFlop};

}  // namespace PYENC_ISA
}  // namespace pyenc
