// What forward and backward over threads share: the heads of a call, dearest first.
//
// Heads differ in work tenfold (long beside short sequences, shallow beside steep slopes); handed
// out dearest first, the last to run are the cheapest, and no thread waits long at the end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/arguments.h"

namespace pyenc {

// Shorter sequences have no far keys to leave out, and those of one tile no bounds.
constexpr std::int64_t kShortestSkipping = 192;
static_assert(kShortestSkipping > kQueryTile, "a sequence of one tile has no copy of its keys");

// Where work is taken in groups: so many tiles a thread, that few wait at a group's end.
constexpr std::int64_t kTilesPerThread = 8;

inline std::int64_t tiles_of(std::int64_t n) { return (n + kQueryTile - 1) / kQueryTile; }

// Below this many multiplications a thread costs more to wake than it saves.
constexpr double kWorkPerThread = 2e6;

// ALiBi's, 0 without; attention/tile.h has the one in base 2.
inline double plain_slope(const AttentionHead& head) {
  const bool alibi = head.call->kind == BiasKind::alibi;
  return alibi ? static_cast<const float*>(head.call->bias)[head.head] : 0.0;
}

// The keys of a far-reaching bias that a query of this head is near to; 0 where all are alike to it. A
// slope that is negative or not a number never skips.
inline double nearby_of(const AttentionHead& head) {
  const Attention& call = *head.call;
  if (call.kind == BiasKind::distance) return call.nearby ? call.nearby[head.head] : 0.0;
  const double slope = plain_slope(head);
  return slope > 0 ? 80 / slope : 0.0;
}

// The keys that a query of this head meets, more or less; enough to order the work.
inline double keys_of(const AttentionHead& head) {
  const double n = static_cast<double>(head.n);
  return head.skips ? std::min(n, nearby_of(head) + 2 * kKeyBlock) : n;
}

inline double work_of(const AttentionHead& head) {
  return keys_of(head) * static_cast<double>((head.end - head.begin) * head.call->head_dim) * 2;
}

inline double work_of(const std::vector<AttentionHead>& heads) {
  double work = 0;
  for (const AttentionHead& head : heads) work += work_of(head);
  return work;
}

inline std::vector<AttentionHead> heads_of(const Attention& call) {
  std::vector<AttentionHead> heads;
  for (std::int64_t s = 0; s < call.n_sequences; ++s) {
    const std::int64_t first = call.cu_seqlens[s], n = call.cu_seqlens[s + 1] - first;
    for (std::int64_t h = 0; h < call.n_heads && n > 0; ++h) {
      AttentionHead head{&call, s,   first, n, h, false, nullptr, nullptr, 0, n,
                         kQueryTile * call.threads};
      head.skips = n >= kShortestSkipping && call.skip_eps > 0 && nearby_of(head) > 0;
      heads.push_back(head);
    }
  }
  std::stable_sort(heads.begin(), heads.end(), [](const AttentionHead& a, const AttentionHead& b) {
    return work_of(a) > work_of(b);
  });
  return heads;
}

inline int threads_for(const std::vector<AttentionHead>& heads, std::int64_t tasks) {
  if (heads.empty()) return 1;
  const double limit = std::min<double>({static_cast<double>(heads[0].call->threads),
                                         static_cast<double>(tasks), work_of(heads) / kWorkPerThread});
  return static_cast<int>(std::max(limit, 1.0));
}

// What the processor keeps for a thread, for as long as an object of this lives.
class ThreadScope {
 public:
  ThreadScope(const ThreadKernels& kernels, const Attention& call) : kernels_(kernels), call_(call) {
    kernels_.enter(call_);
  }
  ~ThreadScope() { kernels_.leave(call_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  const ThreadKernels& kernels_;
  const Attention& call_;
};

// Cache lines: memory that two threads write, and rows of tiles, should not share one.
constexpr std::int64_t kLineFloats = 64 / sizeof(float);

constexpr std::int64_t whole_lines(std::int64_t floats) {
  return (floats + kLineFloats - 1) / kLineFloats * kLineFloats;
}

inline float* on_a_line(float* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return memory + (64 - address % 64) % 64 / sizeof(float);
}

// So many floats a thread, on cache lines of their own.
class ScratchPool {
 public:
  ScratchPool(int threads, std::int64_t floats)
      : stride_(whole_lines(floats)), memory_(new float[threads * stride_ + kLineFloats]) {}

  float* of(int thread) const { return on_a_line(memory_.get()) + thread * stride_; }

 private:
  std::int64_t stride_;
  std::unique_ptr<float[]> memory_;
};

}  // namespace pyenc
