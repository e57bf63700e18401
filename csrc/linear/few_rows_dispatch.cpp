// The product of few rows over threads, a run of columns at a time.

#include "linear/few_rows.h"

#include <algorithm>
#include <memory>

#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(FewRowsKernels, few_rows_kernels)

namespace {

// Below so many multiplications a thread costs more to wake than it saves.
constexpr std::int64_t kWorkPerThread = std::int64_t{1} << 18;
// Of a run: sums and all that is read meanwhile stay near.
constexpr std::int64_t kMostColumns = 16 * kFewColumns;

std::int64_t cut(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

}  // namespace

void few_rows(const FewRows& call) {
  if (call.rows == 0 || call.columns == 0) return;
  const std::int64_t by_work = call.rows * call.columns * call.depth / kWorkPerThread;
  const int threads = static_cast<int>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(call.threads, by_work)));
  // Two runs a thread, for one may start late.
  const std::int64_t share = threads == 1 ? kMostColumns : cut(call.columns, 2 * threads);
  const std::int64_t run = std::min(kMostColumns, cut(share, kFewColumns) * kFewColumns);
  const std::int64_t room = call.rows * few_sums(run);
  const std::unique_ptr<float[]> sums(new float[static_cast<std::size_t>(room * threads)]);
  const FewRowsKernels& kernels = few_rows_kernels();
  parallel_for(cut(call.columns, run), threads, [&](std::int64_t i, int thread) {
    kernels.multiply(call, i * run, std::min(call.columns, (i + 1) * run),
                     sums.get() + thread * room);
  });
}

}  // namespace pyenc
