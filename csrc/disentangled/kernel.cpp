// What positions add to the scores of one query, compiled once per instruction set.

#include "disentangled/arguments.h"

#include "shared/simd.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

template <bool Queries, bool Keys>
PYENC_INLINE void fill(const std::int32_t* rows, std::int64_t n_keys, std::int64_t n_rows,
                       float scale, const float* of_query, const float* of_keys, float* bias) {
  Ints lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane * static_cast<std::int32_t>(n_rows);
  std::int64_t j = 0;
  for (; j + kLanes <= n_keys; j += kLanes) {
    const Ints at = load_ints(rows + j);
    Floats sum{};
    if constexpr (Queries) sum = gather(of_query, at);
    if constexpr (Keys) sum += gather(of_keys + j * n_rows, at + lanes);
    store(bias + j, sum * scale);
  }
  for (; j < n_keys; ++j) {
    float sum = 0;
    if constexpr (Queries) sum = of_query[rows[j]];
    if constexpr (Keys) sum += of_keys[j * n_rows + rows[j]];
    bias[j] = sum * scale;
  }
}

void bias(const std::int32_t* rows, std::int64_t n_keys, std::int64_t n_rows, float scale,
          const float* of_query, const float* of_keys, float* bias) {
  if (of_query && of_keys)
    fill<true, true>(rows, n_keys, n_rows, scale, of_query, of_keys, bias);
  else if (of_query)
    fill<true, false>(rows, n_keys, n_rows, scale, of_query, of_keys, bias);
  else
    fill<false, true>(rows, n_keys, n_rows, scale, of_query, of_keys, bias);
}

}  // namespace

extern const DisentangledKernels disentangled_kernels;
const DisentangledKernels disentangled_kernels{bias};

}  // namespace PYENC_ISA
}  // namespace pyenc
