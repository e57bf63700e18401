// Slabs over threads: forward a task a tile of queries, backward a task a head, whose sums have one
// order. The same bits for any number of threads.

#include "attention/slabs.h"

#include "attention/plan.h"
#include "shared/flush.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(AttentionForwardKernels, attention_forward_kernels)
PYENC_KERNEL_TABLE_WITH_AMX(AttentionBackwardKernels, attention_backward_kernels)

namespace {

// body(i, thread) for i in [0, count), each thread with what the processor keeps for it.
template <class Body>
void each(const Attention& call, const ThreadKernels& kernels, std::int64_t count, int threads,
          const Body& body) {
  const auto scope = [&] { return ThreadScope(kernels, call); };
  parallel_for(count, threads, scope, [&](std::int64_t i, int thread) {
    const FlushSubnormals flush;
    body(static_cast<std::size_t>(i), thread);
  });
}

}  // namespace

SlabHeads::SlabHeads(const Attention& call) : call_(call), heads_(heads_of(call_)) {}

void SlabHeads::serve(std::int64_t first, std::int64_t last, const MapProgram& map) {
  serve(first, last, nullptr);
  call_.kind = BiasKind::none;
  call_.map = &map;
}

void SlabHeads::serve(std::int64_t first, std::int64_t last, const float* bias) {
  call_.kind = BiasKind::dense;
  call_.bias = bias;
  call_.map = nullptr;
  call_.rows = last - first;
  for (AttentionHead& head : heads_) {
    head.begin = std::min(first, head.n);
    head.end = std::min(last, head.n);
  }
}

ForwardSlabs::ForwardSlabs(const Attention& call, const AttentionForward& result)
    : SlabHeads(call), result_(result) {
  const AttentionForwardKernels& kernels = attention_forward_kernels();
  std::int64_t floats = 0;
  std::vector<std::int64_t> place;
  for (const AttentionHead& head : heads_) {
    place.push_back(floats);
    // One tile reads its keys itself.
    if (head.n > kQueryTile) floats += whole_lines(kernels.keys_size(head));
  }
  memory_.reset(new float[static_cast<std::size_t>(floats + kLineFloats)]);
  float* start = on_a_line(memory_.get());
  const auto count = static_cast<std::int64_t>(heads_.size());
  each(call_, kernels.thread, count, threads_for(heads_, count), [&](std::size_t i, int) {
    AttentionHead& head = heads_[i];
    if (head.n <= kQueryTile) return;
    head.keys = start + place[i];
    kernels.prepare(head);
  });
}

void ForwardSlabs::slab(std::int64_t first, std::int64_t last, const float* bias) {
  serve(first, last, bias);
  run();
}

void ForwardSlabs::slab(std::int64_t first, std::int64_t last, const MapProgram& map) {
  serve(first, last, map);
  run();
}

void ForwardSlabs::run() {
  const AttentionForwardKernels& kernels = attention_forward_kernels();
  struct Task {
    std::size_t head;
    std::int64_t first, last;
  };
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < heads_.size(); ++i)
    for (std::int64_t q = heads_[i].begin; q < heads_[i].end; q += kQueryTile)
      tasks.push_back({i, q, std::min(q + kQueryTile, heads_[i].end)});
  const auto count = static_cast<std::int64_t>(tasks.size());
  const int threads = threads_for(heads_, count);
  const ScratchPool pool(threads, kernels.scratch(call_.head_dim));
  each(call_, kernels.thread, count, threads, [&](std::size_t i, int thread) {
    PairCount met{0, 0, 0};
    kernels.tile(heads_[tasks[i].head], tasks[i].first, tasks[i].last, result_, pool.of(thread), met);
  });
}

BackwardSlabs::BackwardSlabs(const Attention& call, const AttentionBackward& result)
    : SlabHeads(call), result_(result), width_(attention_backward_kernels().padded(call.head_dim)) {
  const AttentionBackwardKernels& kernels = attention_backward_kernels();
  std::int64_t floats = 0;
  for (const AttentionHead& head : heads_) {
    place_.push_back(floats);
    floats += whole_lines(kernels.keys_size(call_, result_, head.n)) + whole_lines(2 * head.n * width_);
  }
  memory_.reset(new float[static_cast<std::size_t>(floats + kLineFloats)]);
  float* start = on_a_line(memory_.get());
  const auto count = static_cast<std::int64_t>(heads_.size());
  each(call_, kernels.thread, count, threads_for(heads_, count), [&](std::size_t i, int) {
    AttentionHead& head = heads_[i];
    head.keys = start + place_[i];
    kernels.prepare(head, result_);
    std::fill_n(sums_of(i), 2 * head.n * width_, 0.0f);
  });
}

float* BackwardSlabs::sums_of(std::size_t i) const {
  const AttentionHead& head = heads_[i];
  return head.keys + whole_lines(attention_backward_kernels().keys_size(call_, result_, head.n));
}

void BackwardSlabs::slab(std::int64_t first, std::int64_t last, const float* bias,
                         float* grad_pairs) {
  serve(first, last, bias);
  result_.grad_pairs = grad_pairs;
  run();
}

void BackwardSlabs::slab(std::int64_t first, std::int64_t last, const MapProgram& map) {
  serve(first, last, map);
  result_.grad_pairs = nullptr;  // another slab's
  run();
}

void BackwardSlabs::run() {
  const AttentionBackwardKernels& kernels = attention_backward_kernels();
  const auto count = static_cast<std::int64_t>(heads_.size());
  const int threads = threads_for(heads_, count);
  const ScratchPool pool(threads, kernels.scratch(call_.head_dim));
  each(call_, kernels.thread, count, threads, [&](std::size_t i, int thread) {
    const AttentionHead& head = heads_[i];
    GradBias to{nullptr, nullptr, 0};
    if (result_.grad_pairs)
      to.pairs = result_.grad_pairs + (head.sequence * call_.n_heads + head.head) * call_.rows * call_.reach;
    for (std::int64_t q = head.begin; q < head.end; q += kQueryTile)
      kernels.tile(head, q, std::min(q + kQueryTile, head.end), result_, sums_of(i), to,
                   pool.of(thread));
  });
}

void BackwardSlabs::finish() {
  const AttentionBackwardKernels& kernels = attention_backward_kernels();
  const auto count = static_cast<std::int64_t>(heads_.size());
  parallel_for(count, threads_for(heads_, count), [&](std::int64_t i, int) {
    const FlushSubnormals flush;
    const AttentionHead& head = heads_[static_cast<std::size_t>(i)];
    const float* sums = sums_of(static_cast<std::size_t>(i));
    kernels.write_rows(head, 0, head.n, sums, result_.grad_k);
    kernels.write_rows(head, 0, head.n, sums + head.n * width_, result_.grad_v);
  });
}

}  // namespace pyenc
