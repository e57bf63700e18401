// The product by parts over threads: of each block of depth, b's panels are made by all threads, then
// every thread takes runs of a's rows, makes their panels and multiplies them with all of b's.
//
// A number of out is the same sum whoever computes it, so the bits do not depend on the threads.

#include "linear/product.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "shared/flush.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(ProductKernels, product_kernels)

namespace {

constexpr std::int64_t kBlockDepth = kSteps * kStep;
constexpr std::int64_t kPanelWords = kSteps * kStepWords;
// Panels of a that a thread has at a time, 768 KB, so that each of b's is read once for all of them.
constexpr std::int64_t kMostPanels = 8;
// Panels of b that meet one of a's after another, 384 KB, so that a row of out is written on.
constexpr std::int64_t kGroup = 4;

// The largest number of a matrix must be finite, and the product of both matrices' far above what is
// subnormal, as a part's part and their products are when it is not.
constexpr float kLeast = 0x1p-60f, kLeastProduct = 0x1p-80f;

class Entered {
 public:
  explicit Entered(const ProductKernels& kernels) : kernels_(kernels) { kernels_.enter(); }
  ~Entered() { kernels_.leave(); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  const ProductKernels& kernels_;
  FlushSubnormals flush_;
};

// Memory whose tiles' rows are lines of the cache.
class Panels {
 public:
  explicit Panels(std::int64_t count)
      : memory_(new float[static_cast<std::size_t>(count * kPanelWords + 16)]) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    first_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
  }
  float* at(std::int64_t panel) const { return first_ + panel * kPanelWords; }

 private:
  std::unique_ptr<float[]> memory_;
  float* first_;
};

class Largest {
 public:
  void note(std::uint32_t bits) {
    std::uint32_t before = bits_.load(std::memory_order_relaxed);
    while (before < bits && !bits_.compare_exchange_weak(before, bits)) {
    }
  }
  float value() const {
    const std::uint32_t bits = bits_.load();
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  std::atomic<std::uint32_t> bits_{0};  // ordered as the numbers are, NaN above infinity
};

bool parts_serve(float a, float b) {
  if (!(a < __builtin_inff()) || !(b < __builtin_inff())) return false;
  return a == 0 || b == 0 || (a >= kLeast && b >= kLeast && a * b >= kLeastProduct);
}

std::int64_t panels_of(std::int64_t lines) { return (lines + kPanelLines - 1) / kPanelLines; }

}  // namespace

bool product_serves() { return product_kernels().multiply != nullptr; }

bool product(const Product& call) {
  const ProductKernels& kernels = product_kernels();
  if (!kernels.multiply || call.depth == 0) return false;
  const std::int64_t a_panels = panels_of(call.rows), b_panels = panels_of(call.columns);
  // A few tasks a thread, for one may start late: runs of a's panels, and where those are few, each with
  // some of b's, as many times as the run is then made.
  const std::int64_t wanted = call.threads == 1 ? 1 : 2 * call.threads;
  const std::int64_t run = std::clamp<std::int64_t>(a_panels / wanted, 1, kMostPanels);
  const std::int64_t runs = (a_panels + run - 1) / run;
  const std::int64_t groups = (b_panels + kGroup - 1) / kGroup;
  const std::int64_t shares = std::clamp<std::int64_t>(wanted / runs, 1, groups);
  const Panels b_memory(b_panels), a_memory(run * call.threads);
  Largest a_most, b_most;
  const auto scope = [&] { return Entered(kernels); };
  for (std::int64_t k = 0; k < call.depth; k += kBlockDepth) {
    const std::int64_t depth = std::min(kBlockDepth, call.depth - k);
    const std::int64_t steps = (depth + kStep - 1) / kStep;
    const auto pack = [&](const Lines& x, std::int64_t lines, std::int64_t panel, bool columns,
                          float* to, Largest& most) {
      const std::int64_t line = panel * kPanelLines;
      most.note(kernels.pack({x.at + line * x.line + k * x.k, x.line, x.k},
                             std::min(kPanelLines, lines - line), depth, columns, to));
    };
    parallel_for(b_panels, call.threads, scope, [&](std::int64_t panel, int) {
      pack(call.b, call.columns, panel, true, b_memory.at(panel), b_most);
    });
    parallel_for(runs * shares, call.threads, scope, [&](std::int64_t task, int thread) {
      const std::int64_t begin = task / shares * run, end = std::min(begin + run, a_panels);
      const std::int64_t share = task % shares;
      float* const own = a_memory.at(thread * run);
      for (std::int64_t i = begin; i < end; ++i)
        pack(call.a, call.rows, i, false, own + (i - begin) * kPanelWords, a_most);
      for (std::int64_t g = groups * share / shares; g < groups * (share + 1) / shares; ++g)
        for (std::int64_t i = begin; i < end; ++i)
          for (std::int64_t j = g * kGroup; j < (g + 1) * kGroup && j < b_panels; ++j)
            kernels.multiply(call, own + (i - begin) * kPanelWords, b_memory.at(j), steps,
                             i * kPanelLines, j * kPanelLines, k == 0, k + depth == call.depth);
    });
  }
  return parts_serve(a_most.value(), b_most.value());
}

}  // namespace pyenc
