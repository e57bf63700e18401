// The product of bfloat16 over threads: each takes runs of a's panels, copies them into tiles and
// multiplies them with groups of b's panels that stay in the second level of memory meanwhile.

#include "linear/bf16_product.h"

#include <algorithm>

#include "linear/entered.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(Bf16ProductKernels, bf16_product_kernels)

namespace {

// Steps of depth that are taken at once, 1,536 numbers. More go in blocks, whose sums are kept as floats
// from one to the next.
constexpr std::int64_t kWholeSteps = 48, kBlockSteps = 24;
// Words of the panels of a that a thread has at a time, 512 KB, and of those of b that each of them meets,
// 1.25 MB, in a block of steps: both lie in the second level of memory, and b comes from beyond it once for
// a run.
constexpr std::int64_t kRunWords = std::int64_t{1} << 17, kGroupWords = std::int64_t{5} << 16;
constexpr std::int64_t kRun = 16;
// Where their sums are kept beside them, 4 KB of each of a's with each of b's, fewer.
constexpr std::int64_t kSummedRun = 8, kSummedGroup = 16;
// Words of b that are packed at a time where it does not come packed, 16 MB.
constexpr std::int64_t kPackedWords = std::int64_t{1} << 22;

std::int64_t cut(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

Bf16Lines from(Bf16Lines x, std::int64_t line, std::int64_t k) {
  return {x.at + line * x.line + k * x.k, x.line, x.k};
}

void pack_panel(const Bf16ProductKernels& kernels, Bf16Lines x, std::int64_t lines, std::int64_t depth,
                std::int64_t panel, bool columns, float* to) {
  const std::int64_t line = panel * kBf16Lines;
  kernels.pack(from(x, line, 0), std::min(kBf16Lines, lines - line), depth, columns, to);
}

// How a product is cut.
struct Plan {
  explicit Plan(const Bf16Product& call) {
    const std::int64_t steps = bf16_steps(call.depth);
    a_panels = bf16_panels(call.rows), b_panels = bf16_panels(call.columns);
    blocks = steps <= kWholeSteps ? 1 : cut(steps, kBlockSteps);
    block = cut(steps, blocks);
    const auto fitting = [&](std::int64_t words) {
      return std::max<std::int64_t>(1, words / (block * kBf16StepWords));
    };
    // A few tasks a thread, for one may start late: runs of a's panels, and where those are few, each with
    // some of b's, as many times as the run is then copied.
    const std::int64_t wanted = call.threads == 1 ? 1 : 4 * static_cast<std::int64_t>(call.threads);
    run = std::clamp<std::int64_t>(a_panels / wanted, 1, std::min(blocks == 1 ? kRun : kSummedRun, fitting(kRunWords)));
    runs = cut(a_panels, run);
    shares = std::clamp<std::int64_t>(wanted / runs, 1, b_panels);
    group = std::min(blocks == 1 ? fitting(kGroupWords) : kSummedGroup, cut(b_panels, shares));
    group = cut(b_panels, cut(b_panels, group));  // all nearly as large
    groups = cut(b_panels, group);
    shares = std::min(shares, groups);
  }

  std::int64_t a_panels, b_panels;
  std::int64_t blocks, block;         // of steps; steps in each
  std::int64_t run, runs;             // panels of a
  std::int64_t group, groups, shares; // panels of b; runs of groups that are a task with a run
};

void multiply_packed(const Bf16ProductKernels& kernels, const Bf16Product& call) {
  const Plan plan(call);
  const std::int64_t steps = bf16_steps(call.depth);
  const std::int64_t a_words = plan.run * plan.block * kBf16StepWords;
  const std::int64_t sums = plan.blocks == 1 ? 0 : plan.run * plan.group * kBf16Lines * kBf16Lines;
  const TileMemory memory((a_words + sums) * call.threads);
  const auto scope = [&] { return Entered<Bf16ProductKernels>(kernels); };
  parallel_for(plan.runs * plan.shares, call.threads, scope, [&](std::int64_t task, int thread) {
    float* a = memory.at((a_words + sums) * thread);
    Bf16Blocks at{};
    const std::int64_t first_a = task / plan.shares * plan.run, share = task % plan.shares;
    at.a_panels = std::min(plan.run, plan.a_panels - first_a);
    at.row = first_a * kBf16Lines;
    at.b_panel = steps * kBf16StepWords;
    at.sums = sums ? a + a_words : nullptr;
    const std::int64_t begin = plan.groups * share / plan.shares;
    const std::int64_t end = plan.groups * (share + 1) / plan.shares;
    for (std::int64_t g = begin; g < end; ++g)
      for (std::int64_t step = 0; step < steps; step += plan.block) {
        at.steps = std::min(plan.block, steps - step);
        at.first = step == 0, at.last = step + at.steps == steps;
        at.a = a, at.a_panel = at.steps * kBf16StepWords;
        const std::int64_t k = step * kBf16Step;
        if (g == begin || plan.blocks > 1)
          for (std::int64_t i = 0; i < at.a_panels; ++i)
            pack_panel(kernels, from(call.a, 0, k), call.rows,
                       std::min(call.depth - k, at.steps * kBf16Step), first_a + i, false,
                       a + i * at.a_panel);
        at.b_panels = std::min(plan.group, plan.b_panels - g * plan.group);
        at.column = g * plan.group * kBf16Lines;
        at.b = call.packed + g * plan.group * at.b_panel + step * kBf16StepWords;
        kernels.multiply(call, at);
      }
  });
}

}  // namespace

bool bf16_product_serves() { return bf16_product_kernels().multiply != nullptr; }

void bf16_pack(Bf16Lines b, std::int64_t columns, std::int64_t depth, int threads, float* to) {
  const Bf16ProductKernels& kernels = bf16_product_kernels();
  const std::int64_t words = bf16_steps(depth) * kBf16StepWords;
  parallel_for(bf16_panels(columns), threads, [&](std::int64_t panel, int) {
    pack_panel(kernels, b, columns, depth, panel, true, to + panel * words);
  });
}

void bf16_product(const Bf16Product& call) {
  if (call.rows == 0 || call.columns == 0 || call.depth == 0) return;
  const Bf16ProductKernels& kernels = bf16_product_kernels();
  if (call.packed) return multiply_packed(kernels, call);
  const std::int64_t panel = bf16_steps(call.depth) * kBf16StepWords;
  const std::int64_t panels =
      std::clamp<std::int64_t>(kPackedWords / panel, 1, bf16_panels(call.columns));
  const TileMemory packed(panels * panel);
  for (std::int64_t column = 0; column < call.columns; column += panels * kBf16Lines) {
    Bf16Product part = call;
    part.columns = std::min(panels * kBf16Lines, call.columns - column);
    part.b = from(call.b, column, 0);
    part.packed = packed.at(0);
    part.bias = call.bias ? call.bias + column : nullptr;
    part.out = call.out + column;
    bf16_pack(part.b, part.columns, call.depth, call.threads, packed.at(0));
    multiply_packed(kernels, part);
  }
}

}  // namespace pyenc
