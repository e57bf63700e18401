// Attention backward over threads: one task a head of one sequence, or a run of its queries where
// there are fewer heads than threads. Every sum has a fixed order, so that the same call gives the
// same bits.

#include "attention_plan.h"
#include "isa.h"
#include "parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(AttentionBackwardKernels, attention_backward_kernels)

namespace {

// Tasks a thread below which heads are cut, and the most runs that one head is cut into: each has
// sums of its own for all keys.
constexpr std::int64_t kTasksPerThread = 2;
constexpr std::int64_t kMostRuns = 16;

struct Task {
  std::size_t head;
  std::int64_t run, first, last;  // queries [first, last)
};

}  // namespace

void attention_backward(const Attention& call, const AttentionBackward& result) {
  const AttentionBackwardKernels& kernels = attention_backward_kernels();
  std::vector<AttentionHead> heads = heads_of(call);
  if (heads.empty()) return;
  const std::int64_t depth = call.head_dim, width = kernels.padded(depth);
  const auto n_heads = static_cast<std::int64_t>(heads.size());
  std::int64_t longest = 0;
  for (const AttentionHead& head : heads) longest = std::max(longest, head.n);

  // The gradient by distance has as many sums as keys; its heads are not cut.
  const bool cut = call.kind != BiasKind::distance || !result.grad_bias;
  const std::int64_t wanted = (kTasksPerThread * call.threads + n_heads - 1) / n_heads;
  std::vector<Task> tasks;
  std::int64_t runs = 1;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const std::int64_t n = heads[i].n, tiles = (n + kQueryTile - 1) / kQueryTile;
    const std::int64_t pieces = cut ? std::min({wanted, tiles, kMostRuns}) : 1;
    runs = std::max(runs, pieces);
    for (std::int64_t p = 0; p < pieces; ++p)
      tasks.push_back({i, p, std::min(n, tiles * p / pieces * kQueryTile),
                       std::min(n, tiles * (p + 1) / pieces * kQueryTile)});
  }
  const int threads = threads_for(heads, static_cast<std::int64_t>(tasks.size()));
  // A thread's copy of keys and values, and the sums of their gradients.
  const std::int64_t sums = 2 * longest * width;
  const ScratchPool pool(threads, kernels.scratch(depth));
  const ScratchPool copies(threads, 2 * longest * depth + (runs == 1 ? sums : 0));
  std::unique_ptr<float[]> partial(runs > 1 ? new float[n_heads * runs * sums] : nullptr);
  std::vector<double> slopes(static_cast<std::size_t>(n_heads * runs), 0.0);

  const auto write = [&](const AttentionHead& head, const float* grad_keys) {
    kernels.write_rows(head, 0, head.n, grad_keys, result.grad_k);
    kernels.write_rows(head, 0, head.n, grad_keys + head.n * width, result.grad_v);
  };
  parallel_for(static_cast<std::int64_t>(tasks.size()), threads, [&](std::int64_t i, int thread) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    AttentionHead head = heads[task.head];
    const std::int64_t place = static_cast<std::int64_t>(task.head) * runs + task.run;
    head.keys = copies.of(thread);
    kernels.prepare(head);
    float* grad_keys = runs > 1 ? partial.get() + place * sums : head.keys + 2 * longest * depth;
    std::fill(grad_keys, grad_keys + 2 * head.n * width, 0.0f);
    double *slope = nullptr, *line = nullptr;
    if (result.grad_bias && call.kind == BiasKind::alibi) slope = &slopes[place];
    if (result.grad_bias && call.kind == BiasKind::distance)
      line = result.grad_bias +
             (head.sequence * call.n_heads + head.head) * (2 * call.reach + 1) + call.reach;
    for (std::int64_t q = task.first; q < task.last; q += kQueryTile)
      kernels.tile(head, q, std::min(q + kQueryTile, task.last), result, grad_keys, slope, line,
                   pool.of(thread));
    if (runs == 1) write(head, grad_keys);
  });
  if (runs > 1)
    parallel_for(n_heads, threads, [&](std::int64_t i, int) {
      const AttentionHead& head = heads[static_cast<std::size_t>(i)];
      float* total = partial.get() + i * runs * sums;
      for (const Task& task : tasks) {
        if (task.head != static_cast<std::size_t>(i) || task.run == 0) continue;
        const float* part = total + task.run * sums;
        for (std::int64_t k = 0; k < 2 * head.n * width; ++k) total[k] += part[k];
      }
      write(head, total);
    });
  if (result.grad_bias && call.kind == BiasKind::alibi)
    for (std::size_t i = 0; i < heads.size(); ++i) {
      double sum = 0;
      for (std::int64_t r = 0; r < runs; ++r) sum += slopes[i * static_cast<std::size_t>(runs) + r];
      result.grad_bias[heads[i].sequence * call.n_heads + heads[i].head] = sum;
    }
}

}  // namespace pyenc
