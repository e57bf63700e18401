// Attention forward over threads: one task a head of one sequence where there are many, else a tile of
// its queries. Each writes its own rows alone: the same bits for any number of threads.

#include "attention/plan.h"
#include "shared/flush.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(AttentionForwardKernels, attention_forward_kernels)

namespace {

// A head's keys and values are first copied side by side: tokens lie a row of all heads apart, and
// reading one head of them again and again for each tile of queries costs a tenth of the time in
// addresses to translate. Where heads are few they are taken in groups, with at least a head a thread,
// for whom there are keys to copy, and kTilesPerThread; and at most this many floats beyond that.
constexpr std::int64_t kGroupFloats = 1 << 20;

struct Task {
  std::int64_t head, first, last;  // index into the heads, queries [first, last)
};

// Floats for the copy and the bounds of a head; none where one tile reads it all.
std::int64_t floats_for(const AttentionHead& head) {
  if (head.n <= kQueryTile) return 0;
  const AttentionForwardKernels& kernels = attention_forward_kernels();
  const std::int64_t bounds = kernels.bounds_size(head.n, head.call->head_dim);
  return whole_lines(kernels.keys_size(head)) + (head.skips ? whole_lines(bounds) : 0);
}

void place(AttentionHead& head, float* memory) {
  if (!floats_for(head)) return;
  head.keys = memory;
  if (head.skips)
    head.bounds = memory + whole_lines(attention_forward_kernels().keys_size(head));
}

// Whether so many heads wait that each may stay with one thread: its copy is made where it is read, and
// nobody waits for the others in between. The dearest come first, so that the last are cheap.
bool by_heads(const std::vector<AttentionHead>& heads, int threads) {
  const std::int64_t least = kTilesPerThread * threads;
  return heads.size() >= static_cast<std::size_t>(least) &&
         work_of(heads[0]) * static_cast<double>(least) <= work_of(heads);
}

struct Team {
  const Attention& call;
  const AttentionForward& result;
  const AttentionForwardKernels& kernels;
  int threads;
  ScratchPool pool;
  std::vector<PairCount> counts;  // each thread's, on a line of its own

  Team(const Attention& attention, const AttentionForward& to, int n_threads)
      : call(attention), result(to), kernels(attention_forward_kernels()), threads(n_threads),
        pool(n_threads, attention_forward_kernels().scratch(attention.head_dim)),
        counts(static_cast<std::size_t>(n_threads) * 8, PairCount{0, 0, 0}) {}

  // body(i, thread) for i in [0, count), each thread with what the processor keeps for it.
  template <class Body>
  void each(std::size_t count, const Body& body) const {
    const auto scope = [&] { return ThreadScope(kernels.thread, call); };
    parallel_for(static_cast<std::int64_t>(count), threads, scope, [&](std::int64_t i, int thread) {
      const FlushSubnormals flush;
      body(static_cast<std::size_t>(i), thread);
    });
  }

  void tile(const AttentionHead& head, std::int64_t first, std::int64_t last, int thread) {
    kernels.tile(head, first, last, result, pool.of(thread),
                 counts[static_cast<std::size_t>(thread) * 8]);
  }
};

void run_by_heads(Team& team, std::vector<AttentionHead>& heads) {
  std::int64_t most = 0;
  for (const AttentionHead& head : heads) most = std::max(most, floats_for(head));
  const ScratchPool copies(team.threads, most);
  team.each(heads.size(), [&](std::size_t i, int thread) {
    AttentionHead& head = heads[i];
    head.next_tile = kQueryTile;
    place(head, copies.of(thread));
    team.kernels.prepare(head);
    for (std::int64_t q = 0; q < head.n; q += kQueryTile)
      team.tile(head, q, std::min(q + kQueryTile, head.n), thread);
  });
}

void run_by_tiles(Team& team, std::vector<AttentionHead>& heads) {
  std::unique_ptr<float[]> memory;
  std::int64_t memory_size = 0;
  std::vector<Task> tasks;
  for (std::size_t first = 0, last = 0; first < heads.size(); first = last) {
    tasks.clear();
    std::int64_t floats = 0;
    do {
      const AttentionHead& head = heads[last];
      floats += floats_for(head);
      for (std::int64_t q = 0; q < head.n; q += kQueryTile)
        tasks.push_back({static_cast<std::int64_t>(last), q, std::min(q + kQueryTile, head.n)});
      ++last;
    } while (last < heads.size() &&
             (last - first < static_cast<std::size_t>(team.threads) ||
              static_cast<std::int64_t>(tasks.size()) < kTilesPerThread * team.threads ||
              floats + floats_for(heads[last]) <= kGroupFloats));
    if (floats > memory_size)
      memory.reset(new float[floats + kLineFloats]), memory_size = floats;
    float* next = on_a_line(memory.get());
    for (std::size_t i = first; i < last; ++i) {
      place(heads[i], next);
      next += floats_for(heads[i]);
    }
    parallel_for(static_cast<std::int64_t>(last - first), team.threads, [&](std::int64_t i, int) {
      const FlushSubnormals flush;
      team.kernels.prepare(heads[first + static_cast<std::size_t>(i)]);
    });
    team.each(tasks.size(), [&](std::size_t i, int thread) {
      const Task& task = tasks[i];
      team.tile(heads[static_cast<std::size_t>(task.head)], task.first, task.last, thread);
    });
  }
}

}  // namespace

PairCount attention_forward(const Attention& call, const AttentionForward& result) {
  std::vector<AttentionHead> heads = heads_of(call);
  PairCount count{0, 0, 0};
  std::int64_t n_tiles = 0;
  for (const AttentionHead& head : heads) {
    count.all += head.n * head.n;
    n_tiles += tiles_of(head.n);
  }
  Team team(call, result, threads_for(heads, n_tiles));
  if (!heads.empty() && by_heads(heads, team.threads))
    run_by_heads(team, heads);
  else
    run_by_tiles(team, heads);
  for (const PairCount& part : team.counts) {
    count.scored += part.scored;
    count.summed += part.summed;
  }
  return count;
}

void attention_exp2(const float* from, std::int64_t count, float* to) {
  attention_forward_kernels().exp2(from, count, to);
}

}  // namespace pyenc
