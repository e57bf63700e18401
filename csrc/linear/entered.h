// What a thread holds while it multiplies on matrix units, and memory for what they read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "shared/flush.h"

namespace pyenc {

// A thread's tiles, configured for as long as this lives; subnormal numbers are zero meanwhile.
template <class Kernels>
class Entered {
 public:
  explicit Entered(const Kernels& kernels) : kernels_(kernels) { kernels_.enter(); }
  ~Entered() { kernels_.leave(); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  const Kernels& kernels_;
  FlushSubnormals flush_;
};

// Memory whose tiles' rows are lines of the cache.
class TileMemory {
 public:
  explicit TileMemory(std::int64_t words)
      : memory_(new float[static_cast<std::size_t>(words + kLine)]) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    first_ = memory_.get() + (kBytes - address % kBytes) % kBytes / sizeof(float);
  }
  float* at(std::int64_t word) const { return first_ + word; }

 private:
  static constexpr std::int64_t kLine = 16;
  static constexpr std::uintptr_t kBytes = kLine * sizeof(float);
  std::unique_ptr<float[]> memory_;
  float* first_;
};

}  // namespace pyenc
