// The product by parts over threads: of each block of depth, b's panels are made by all threads, then
// every thread takes runs of a's rows, makes their panels and multiplies them with all of b's.
//
// A number of out is the same sum whoever computes it, so the bits do not depend on the threads.

#include "linear/product.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "linear/entered.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(ProductKernels, product_kernels)

namespace {

constexpr std::int64_t kBlockDepth = kSteps * kStep;
// Panels of a that a thread has at a time, 768 KB, so that each of b's is read once for all of them.
constexpr std::int64_t kMostPanels = 8;
// Panels of b that meet one of a's after another, 384 KB, so that a row of out is written on.
constexpr std::int64_t kGroup = 4;

// Panels of b that are there at a time, 12 MB, however many columns there are.
constexpr std::int64_t kColumnPanels = 128;

// Of a line's largest number: its parts must be above what is subnormal, and so must products be that
// matter beside the largest of a sum. And no sum may come near the largest float, nor what is rounded.
constexpr float kLeast = 0x1p-86f, kLeastProduct = 0x1p-80f, kMost = 0x1p127f, kMostProduct = 0x1p100f;

// Panels' memory, a block of depth at a time.
class Panels {
 public:
  Panels(std::int64_t count, int parts)
      : words_(kSteps * step_words(parts)), memory_(count * words_) {}
  float* at(std::int64_t panel) const { return memory_.at(panel * words_); }

 private:
  std::int64_t words_;  // of a panel
  TileMemory memory_;
};

// The largest magnitudes of a matrix's lines.
class Magnitudes {
 public:
  explicit Magnitudes(std::int64_t panels) : bits_(static_cast<std::size_t>(panels * kPanelLines)) {}
  std::int32_t* of(std::int64_t panel) { return bits_.data() + panel * kPanelLines; }

  // The least that is not zero, infinity where all are, and the largest.
  std::pair<float, float> range() const {
    std::int32_t least = kInfinite, most = 0;
    for (const std::int32_t bits : bits_) {
      if (bits != 0) least = std::min(least, bits);
      most = std::max(most, bits);
    }
    return {number(least), number(most)};
  }

 private:
  static constexpr std::int32_t kInfinite = 0x7f800000;
  static float number(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  std::vector<std::int32_t> bits_;
};

bool parts_serve(std::pair<float, float> a, std::pair<float, float> b) {
  if (!(a.second < kMost) || !(b.second < kMost)) return false;
  if (a.second == 0 || b.second == 0) return true;
  return a.first >= kLeast && b.first >= kLeast && a.first * b.first >= kLeastProduct &&
         a.second * b.second <= kMostProduct;
}

std::int64_t panels_of(std::int64_t lines) { return (lines + kPanelLines - 1) / kPanelLines; }

}  // namespace

bool product_serves() { return product_kernels().multiply != nullptr; }

bool product(const Product& call) {
  const ProductKernels& kernels = product_kernels();
  if (!kernels.multiply || call.rows == 0 || call.columns == 0 || call.depth == 0) return false;
  const std::int64_t a_panels = panels_of(call.rows), b_panels = panels_of(call.columns);
  // A few tasks a thread, for one may start late: runs of a's panels, and where those are few, each with
  // some of b's, as many times as the run is then made.
  const std::int64_t wanted = call.threads == 1 ? 1 : 2 * call.threads;
  const std::int64_t run = std::clamp<std::int64_t>(a_panels / wanted, 1, kMostPanels);
  const std::int64_t runs = (a_panels + run - 1) / run;
  const std::int64_t held = std::min(b_panels, kColumnPanels);
  const Panels b_memory(held, call.parts), a_memory(run * call.threads, call.parts);
  Magnitudes a_most(a_panels), b_most(b_panels);
  const auto scope = [&] { return Entered<ProductKernels>(kernels); };
  const auto pack = [&](const Lines& x, std::int64_t lines, std::int64_t panel, std::int64_t k,
                        std::int64_t depth, bool columns, float* to, std::int32_t* most) {
    const std::int64_t line = panel * kPanelLines;
    kernels.pack({x.at + line * x.line + k * x.k, x.line, x.k}, std::min(kPanelLines, lines - line),
                 depth, call.parts, columns, to, most);
  };
  for (std::int64_t from = 0; from < b_panels; from += held)
    for (std::int64_t k = 0; k < call.depth; k += kBlockDepth) {
      const std::int64_t depth = std::min(kBlockDepth, call.depth - k);
      const std::int64_t steps = (depth + kStep - 1) / kStep;
      const std::int64_t panels = std::min(held, b_panels - from);
      const std::int64_t groups = (panels + kGroup - 1) / kGroup;
      const std::int64_t shares = std::clamp<std::int64_t>(wanted / runs, 1, groups);
      parallel_for(panels, call.threads, scope, [&](std::int64_t j, int) {
        pack(call.b, call.columns, from + j, k, depth, true, b_memory.at(j), b_most.of(from + j));
      });
      parallel_for(runs * shares, call.threads, scope, [&](std::int64_t task, int thread) {
        const std::int64_t begin = task / shares * run, end = std::min(begin + run, a_panels);
        const std::int64_t share = task % shares;
        std::int32_t others[kPanelLines] = {};  // who shares a run has the same magnitudes
        for (std::int64_t i = begin; i < end; ++i)
          pack(call.a, call.rows, i, k, depth, false, a_memory.at(thread * run + i - begin),
               share == 0 && from == 0 ? a_most.of(i) : others);
        for (std::int64_t g = groups * share / shares; g < groups * (share + 1) / shares; ++g)
          for (std::int64_t i = begin; i < end; ++i)
            for (std::int64_t j = g * kGroup; j < (g + 1) * kGroup && j < panels; ++j)
              kernels.multiply(call, a_memory.at(thread * run + i - begin), b_memory.at(j), steps,
                               i * kPanelLines, (from + j) * kPanelLines, k == 0,
                               k + depth == call.depth);
      });
    }
  return parts_serve(a_most.range(), b_most.range());
}

}  // namespace pyenc
