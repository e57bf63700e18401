// Attention backward over threads: one task a head of one sequence, or a run of its queries where
// that is too long for one thread. Every sum has a fixed order, so that the same call gives the same
// bits.

#include <cmath>

#include "attention/plan.h"
#include "shared/flush.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(AttentionBackwardKernels, attention_backward_kernels)

namespace {

// As many tasks a thread as there should be at least, and the most runs that one head is cut into.
constexpr std::int64_t kTasksPerThread = 2;
constexpr std::int64_t kMostRuns = 16;

struct Task {
  std::size_t head;
  std::int64_t first, last;  // queries [first, last)
  std::int64_t sums;         // where its sums begin in the shared memory, -1: the thread's own
};

// How the heads are cut, and what that takes.
struct Plan {
  std::vector<Task> tasks;
  std::vector<std::size_t> first_task;  // of each head, and one more
  std::int64_t shared = 0;              // floats of the runs of heads that are cut
  std::int64_t longest = 0, longest_whole = 0;
};

// No run has more than `most_work`, if that can be.
Plan plan_for(const std::vector<AttentionHead>& heads, std::int64_t width, double most_work) {
  Plan plan;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const std::int64_t n = heads[i].n, tiles = (n + kQueryTile - 1) / kQueryTile;
    const auto wanted = static_cast<std::int64_t>(std::ceil(work_of(heads[i]) / most_work));
    const std::int64_t runs = std::max<std::int64_t>(1, std::min({wanted, tiles, kMostRuns}));
    plan.longest = std::max(plan.longest, n);
    if (runs == 1) plan.longest_whole = std::max(plan.longest_whole, n);
    plan.first_task.push_back(plan.tasks.size());
    for (std::int64_t r = 0; r < runs; ++r) {
      plan.tasks.push_back({i, std::min(n, tiles * r / runs * kQueryTile),
                            std::min(n, tiles * (r + 1) / runs * kQueryTile),
                            runs == 1 ? -1 : plan.shared});
      if (runs > 1) plan.shared += 2 * n * width;
    }
  }
  plan.first_task.push_back(plan.tasks.size());
  return plan;
}

// Runs short enough that no thread waits long for another, whose sums, one a key and run, take no
// more than the gradients themselves.
Plan plan_for(const Attention& call, const std::vector<AttentionHead>& heads, std::int64_t width) {
  double work = 0;
  std::int64_t gradients = 0;
  for (const AttentionHead& head : heads) {
    work += work_of(head);
    gradients += 3 * head.n * width;
  }
  double most = work / static_cast<double>(kTasksPerThread * call.threads);
  if (call.threads == 1) most = work;
  Plan plan = plan_for(heads, width, most);
  while (plan.shared > gradients) plan = plan_for(heads, width, most *= 1.5);
  return plan;
}

// The gradient by distance of a head of a sequence has so many sums on each side: as far as its keys
// are, or as the bias changes.
std::int64_t reach_of(const Attention& call, const AttentionHead& head) {
  const float* at = call.positions + head.first;
  const auto span = static_cast<std::int64_t>(at[head.n - 1] - at[0]);
  return std::min(span, call.saturation);
}

}  // namespace

void attention_backward(const Attention& call, const AttentionBackward& result) {
  const AttentionBackwardKernels& kernels = attention_backward_kernels();
  const std::vector<AttentionHead> heads = heads_of(call);
  if (heads.empty()) return;
  const std::int64_t depth = call.head_dim, width = kernels.padded(depth);
  const Plan plan = plan_for(call, heads, width);
  const auto n_tasks = static_cast<std::int64_t>(plan.tasks.size());
  const int threads = threads_for(heads, n_tasks);
  // A thread's copy of keys and values, and the sums of their gradients.
  const ScratchPool pool(threads, kernels.scratch(depth));
  const std::int64_t copy = whole_lines(kernels.keys_size(call, result, plan.longest));
  const ScratchPool copies(threads, copy + 2 * plan.longest_whole * width);
  const std::unique_ptr<float[]> memory(plan.shared ? new float[plan.shared + kLineFloats] : nullptr);
  float* shared = on_a_line(memory.get());

  const bool by_distance = result.grad_bias && call.kind == BiasKind::distance;
  std::vector<double> slopes(plan.tasks.size(), 0.0);
  std::vector<std::size_t> line_at;
  std::vector<double> lines;
  if (by_distance) {
    std::size_t size = 0;
    for (const Task& task : plan.tasks) {
      line_at.push_back(size);
      size += static_cast<std::size_t>(2 * reach_of(call, heads[task.head]) + 1);
    }
    lines.assign(size, 0.0);
  }

  const auto write = [&](const AttentionHead& head, const float* grad_keys) {
    kernels.write_rows(head, 0, head.n, grad_keys, result.grad_k);
    kernels.write_rows(head, 0, head.n, grad_keys + head.n * width, result.grad_v);
  };
  const auto scope = [&] { return ThreadScope(kernels.thread, call); };
  parallel_for(n_tasks, threads, scope, [&](std::int64_t i, int thread) {
    const FlushSubnormals flush;
    const auto place = static_cast<std::size_t>(i);
    const Task& task = plan.tasks[place];
    AttentionHead head = heads[task.head];
    head.keys = copies.of(thread);
    kernels.prepare(head, result);
    float* grad_keys = task.sums < 0 ? head.keys + copy : shared + task.sums;
    std::fill(grad_keys, grad_keys + 2 * head.n * width, 0.0f);
    GradBias bias{nullptr, nullptr, 0};
    if (result.grad_bias && call.kind == BiasKind::alibi) bias.slope = &slopes[place];
    if (by_distance) {
      bias.reach = reach_of(call, head);
      bias.line = &lines[line_at[place]] + bias.reach;
    }
    for (std::int64_t q = task.first; q < task.last; q += kQueryTile)
      kernels.tile(head, q, std::min(q + kQueryTile, task.last), result, grad_keys, bias,
                   pool.of(thread));
    if (task.sums < 0) write(head, grad_keys);
  });
  if (plan.shared)
    parallel_for(static_cast<std::int64_t>(heads.size()), threads, [&](std::int64_t i, int) {
      const FlushSubnormals flush;
      const auto place = static_cast<std::size_t>(i);
      const std::size_t first = plan.first_task[place], last = plan.first_task[place + 1];
      if (last - first == 1) return;
      const AttentionHead& head = heads[place];
      float* total = shared + plan.tasks[first].sums;
      for (std::size_t t = first + 1; t < last; ++t) {
        const float* part = shared + plan.tasks[t].sums;
        for (std::int64_t k = 0; k < 2 * head.n * width; ++k) total[k] += part[k];
      }
      write(head, total);
    });
  if (!result.grad_bias) return;
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) {
    const AttentionHead& head = heads[plan.tasks[i].head];
    if (call.kind == BiasKind::alibi) result.grad_bias[head.head] += slopes[i];
    if (!by_distance) continue;
    const std::int64_t reach = reach_of(call, head);
    double* to = result.grad_bias + head.head * (2 * result.grad_reach + 1) + result.grad_reach;
    for (std::int64_t x = -reach; x <= reach; ++x)
      to[x] += lines[line_at[i] + static_cast<std::size_t>(x + reach)];
  }
}

}  // namespace pyenc
