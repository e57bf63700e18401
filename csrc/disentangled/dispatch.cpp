// Heads of sequences over threads. They are apart from each other; forward, so are queries, while backward
// the queries of a head add to the same numbers of its keys, in their order: the same bits for any number
// of threads.

#include "disentangled/arguments.h"

#include <algorithm>
#include <memory>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(DisentangledKernels, disentangled_kernels)

namespace {

// body(head, first token, how many, thread) over all heads, kTokens at a time.
template <class Body>
void for_tokens(const Disentangled& call, std::int64_t tokens, const Body& body) {
  const std::int64_t runs = (tokens + kTokens - 1) / kTokens;
  const std::int64_t work = kTokens * call.n_rows * call.head_dim / 16;
  parallel_rows(call.n_heads * runs, work, call.threads,
                [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t first = at % runs * kTokens;
      body(at / runs, first, std::min(kTokens, tokens - first), thread);
    }
  });
}

const float* of_head(const Disentangled& call, const float* tables, std::int64_t head) {
  return tables + head / call.n_sequences * call.head_dim * call.table_step;
}

}  // namespace

void disentangled_of_keys(const Disentangled& call, float* to) {
  const DisentangledKernels& kernels = disentangled_kernels();
  const Tokens& keys = call.keys;
  for_tokens(call, call.n_keys, [&](std::int64_t head, std::int64_t first, std::int64_t count, int) {
    kernels.numbers(keys.at + head * keys.head + first * keys.token, keys.token, count,
                    of_head(call, call.position_queries, head), call.table_step, call.head_dim,
                    call.n_rows, to + (head * call.n_keys + first) * call.n_rows, call.n_rows);
  });
}

void disentangled_bias(const Disentangled& call, const float* of_keys, float* bias) {
  const DisentangledKernels& kernels = disentangled_kernels();
  const Tokens& queries = call.queries;
  const std::int64_t room = kTokens * call.n_rows + kSpare;
  const std::unique_ptr<float[]> memory(
      call.position_keys ? new float[static_cast<std::size_t>(room * call.threads)]() : nullptr);
  for_tokens(call, call.n_queries,
             [&](std::int64_t head, std::int64_t first, std::int64_t count, int thread) {
    float* of_queries = nullptr;
    if (call.position_keys) {
      of_queries = memory.get() + thread * room;
      kernels.numbers(queries.at + head * queries.head + first * queries.token, queries.token, count,
                      of_head(call, call.position_keys, head), call.table_step, call.head_dim,
                      call.n_rows, of_queries, call.n_rows);
    }
    kernels.bias(call, first, count, of_queries,
                 of_keys ? of_keys + head * call.n_keys * call.n_rows : nullptr,
                 bias + head * call.n_queries * call.n_keys);
  });
}

void disentangled_by_rows(const Disentangled& call, const float* pairs, float* of_queries,
                          float* of_keys) {
  const DisentangledKernels& kernels = disentangled_kernels();
  const std::int64_t n = call.n_keys;
  parallel_rows(call.n_heads, call.n_queries * n, call.threads,
                [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t head = first; head < last; ++head)
      kernels.by_rows(call, pairs + head * call.n_queries * n,
                      of_queries ? of_queries + head * call.n_queries * call.n_rows : nullptr,
                      of_keys ? of_keys + head * n * call.n_rows : nullptr);
  });
}

}  // namespace pyenc
