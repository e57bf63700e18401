// Both directions over threads. Heads are apart from each other; forward, so are queries, while
// backward the queries of a head add to the same numbers of its keys, in their order: the same bits for
// any number of threads.

#include "disentangled/arguments.h"

#include <algorithm>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(DisentangledKernels, disentangled_kernels)

namespace {
constexpr std::int64_t kStrip = 32;  // queries that one thread takes
}  // namespace

void disentangled_bias(const Disentangled& call, const float* of_queries, const float* of_keys,
                       float* bias) {
  const DisentangledKernels& kernels = disentangled_kernels();
  const std::int64_t strips = (call.n_queries + kStrip - 1) / kStrip;
  parallel_rows(call.n_heads * strips, kStrip * call.n_keys, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t at = first; at < last; ++at) {
      const std::int64_t head = at / strips, query = at % strips * kStrip;
      kernels.bias(call, query, std::min(query + kStrip, call.n_queries),
                   of_queries ? of_queries + head * call.n_queries * call.n_rows : nullptr,
                   of_keys ? of_keys + head * call.n_keys * call.n_rows : nullptr,
                   bias + head * call.n_queries * call.n_keys);
    }
  });
}

void disentangled_by_rows(const Disentangled& call, const float* pairs, float* of_queries,
                          float* of_keys) {
  const std::int64_t n_keys = call.n_keys, n_rows = call.n_rows;
  parallel_rows(call.n_heads, call.n_queries * n_keys, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t row = first * call.n_queries; row < last * call.n_queries; ++row) {
      const std::int64_t head = row / call.n_queries, query = row % call.n_queries;
      const std::int32_t* rows = call.rows + query * n_keys;
      const float* from = pairs + row * n_keys;
      float* of_query = of_queries ? of_queries + row * n_rows : nullptr;
      float* of_head = of_keys ? of_keys + head * n_keys * n_rows : nullptr;
      for (std::int64_t j = 0; j < n_keys; ++j) {
        const float share = call.scale * from[j];
        if (of_query) of_query[rows[j]] += share;
        if (of_head) of_head[j * n_rows + rows[j]] += share;
      }
    }
  });
}

}  // namespace pyenc
