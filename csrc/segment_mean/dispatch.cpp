// The segment mean over threads.
//
// Segments are cut into chunks of at most kChunk tokens and short ones put together, so that tasks
// are about equal whether one segment is long and the rest short or all are alike. The cut depends
// on cu_seqlens alone and partial sums are added in order: the same bits for any number of threads.

#include "segment_mean/arguments.h"

#include <algorithm>
#include <vector>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(SegmentMeanKernels, segment_mean_kernels)

namespace {

constexpr std::int64_t kChunk = 128;

constexpr std::int64_t kWhole = -1;

struct Chunk {
  std::int64_t segment, first, last;  // tokens [first, last)
  std::int64_t partial;               // where its sum goes, or kWhole: it is its segment
};

struct Plan {
  std::vector<Chunk> chunks;
  std::vector<std::int64_t> tasks;  // task i is chunks [tasks[i], tasks[i + 1])
  std::int64_t n_partials = 0;
  std::int64_t n_tokens = 0;
};

template <class Index>
Plan plan_from(const Index* cu_seqlens, std::int64_t n_segments) {
  Plan plan;
  plan.chunks.reserve(static_cast<std::size_t>(n_segments));
  plan.tasks.push_back(0);
  plan.n_tokens = cu_seqlens[n_segments];
  std::int64_t in_task = 0;
  for (std::int64_t segment = 0; segment < n_segments; ++segment) {
    const std::int64_t end = cu_seqlens[segment + 1];
    std::int64_t first = cu_seqlens[segment];
    const bool whole = end - first <= kChunk;
    do {
      const std::int64_t last = std::min(first + kChunk, end);
      plan.chunks.push_back({segment, first, last, whole ? kWhole : plan.n_partials++});
      in_task += std::max<std::int64_t>(last - first, 1);
      if (in_task >= kChunk) {
        plan.tasks.push_back(static_cast<std::int64_t>(plan.chunks.size()));
        in_task = 0;
      }
      first = last;
    } while (first < end);
  }
  if (in_task > 0) plan.tasks.push_back(static_cast<std::int64_t>(plan.chunks.size()));
  return plan;
}

Plan plan_of(const SegmentMean& call) {
  return call.wide
             ? plan_from(static_cast<const std::int64_t*>(call.cu_seqlens), call.n_segments)
             : plan_from(static_cast<const std::int32_t*>(call.cu_seqlens), call.n_segments);
}

int threads_for(const SegmentMean& call, const Plan& plan) {
  const auto n_tasks = static_cast<std::int64_t>(plan.tasks.size()) - 1;
  const int by_size = threads_for_elements(plan.n_tokens * call.n_channels, call.threads);
  return static_cast<int>(std::max<std::int64_t>(std::min<std::int64_t>(by_size, n_tasks), 1));
}

std::int64_t element_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// body(chunk, thread) over all chunks, a task at a time.
template <class Body>
void for_chunks(const Plan& plan, int threads, const Body& body) {
  const auto n_tasks = static_cast<std::int64_t>(plan.tasks.size()) - 1;
  parallel_for(n_tasks, threads, [&](std::int64_t task, int thread) {
    for (std::int64_t i = plan.tasks[task]; i < plan.tasks[task + 1]; ++i)
      body(plan.chunks[i], thread);
  });
}

double sum_of_weights(const float* weights, const Chunk& chunk) {
  if (!weights) return static_cast<double>(chunk.last - chunk.first);
  double sum = 0;
  for (std::int64_t t = chunk.first; t < chunk.last; ++t) sum += weights[t];
  return sum;
}

}  // namespace

void segment_mean_forward(const SegmentMean& call, float* out, float* stats) {
  const SegmentMeanKernels& kernels = segment_mean_kernels();
  const Plan plan = plan_of(call);
  const int threads = threads_for(call, plan);
  const std::int64_t c = call.n_channels, row_bytes = c * element_size(call.dtype);
  const auto* x = static_cast<const char*>(call.x);

  std::vector<float> groups(static_cast<std::size_t>(threads * c));
  std::vector<double> sums(static_cast<std::size_t>(threads * c));
  std::vector<double> partials(static_cast<std::size_t>(plan.n_partials * c));
  std::vector<double> partial_weights(static_cast<std::size_t>(plan.n_partials));

  for_chunks(plan, threads, [&](const Chunk& chunk, int thread) {
    const bool whole = chunk.partial == kWhole;
    double* sum = whole ? sums.data() + thread * c : partials.data() + chunk.partial * c;
    std::fill(sum, sum + c, 0.0);
    kernels.add_tokens(x + chunk.first * row_bytes, call.dtype,
                       call.weights ? call.weights + chunk.first : nullptr,
                       chunk.last - chunk.first, c, groups.data() + thread * c, sum);
    const double weight = sum_of_weights(call.weights, chunk);
    if (whole)
      kernels.finish(sum, weight, c, call.normalize, out + chunk.segment * c,
                     stats + 2 * chunk.segment);
    else
      partial_weights[chunk.partial] = weight;
  });

  // The few segments that were cut: their partial sums in order. This is 1 / kChunk of the work.
  for (std::size_t i = 0; i < plan.chunks.size();) {
    const Chunk& head = plan.chunks[i++];
    if (head.partial == kWhole) continue;
    double* sum = partials.data() + head.partial * c;
    double weight = partial_weights[head.partial];
    for (; i < plan.chunks.size() && plan.chunks[i].segment == head.segment; ++i) {
      const std::int64_t index = plan.chunks[i].partial;
      const double* partial = partials.data() + index * c;
      for (std::int64_t k = 0; k < c; ++k) sum[k] += partial[k];
      weight += partial_weights[index];
    }
    kernels.finish(sum, weight, c, call.normalize, out + head.segment * c, stats + 2 * head.segment);
  }
}

void segment_mean_backward(const SegmentMean& call, const float* grad_out, const float* out,
                           const float* stats, void* grad_x, float* grad_weights) {
  const SegmentMeanKernels& kernels = segment_mean_kernels();
  const Plan plan = plan_of(call);
  const int threads = threads_for(call, plan);
  const std::int64_t c = call.n_channels, row_bytes = c * element_size(call.dtype);
  const auto* x = static_cast<const char*>(call.x);
  auto* to = static_cast<char*>(grad_x);
  std::vector<float> scratch(static_cast<std::size_t>(2 * threads * c));

  for_chunks(plan, threads, [&](const Chunk& chunk, int thread) {
    // Made anew for each chunk of a segment: cheaper than keeping it for all segments.
    float* grad_sum = scratch.data() + 2 * thread * c;
    float* mean = grad_sum + c;
    const std::int64_t segment = chunk.segment;
    kernels.prepare_backward(grad_out + segment * c, out + segment * c, stats + 2 * segment, c,
                             call.normalize, grad_sum, mean);
    kernels.backward_tokens(x + chunk.first * row_bytes, call.dtype,
                            call.weights ? call.weights + chunk.first : nullptr,
                            chunk.last - chunk.first, c, grad_sum, mean,
                            to ? to + chunk.first * row_bytes : nullptr,
                            grad_weights ? grad_weights + chunk.first : nullptr);
  });
}

}  // namespace pyenc
