// Products of few rows over threads, a run of columns at a time.

#include "linear/few_rows.h"

#include <algorithm>
#include <memory>

#include "linear/arguments.h"
#include "linear/bf16_product.h"
#include "linear/entered.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE_WITH_AMX(FewRowsKernels, few_rows_kernels)
PYENC_KERNEL_TABLE(Int8FewKernels, int8_few_kernels)

namespace {

// Below so many multiplications a thread costs more to wake than it saves.
constexpr std::int64_t kWorkPerThread = std::int64_t{1} << 18;
// Of a run: sums and all that is read meanwhile stay near.
constexpr std::int64_t kMostColumns = 16 * kFewColumns;

std::int64_t cut(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

// How columns go to threads.
struct Runs {
  explicit Runs(const FewRows& call) {
    const std::int64_t by_work = call.rows * call.columns * call.depth / kWorkPerThread;
    threads = static_cast<int>(
        std::max<std::int64_t>(1, std::min<std::int64_t>(call.threads, by_work)));
    // Two runs a thread, for one may start late.
    const std::int64_t share = threads == 1 ? kMostColumns : cut(call.columns, 2 * threads);
    run = std::min(kMostColumns, cut(share, kFewColumns) * kFewColumns);
    room = call.rows * few_sums(run);
  }

  // body(first column, last, thread), within what scope() returns.
  template <class Scope, class Body>
  void each(const FewRows& call, const Scope& scope, const Body& body) const {
    parallel_for(cut(call.columns, run), threads, scope, [&](std::int64_t i, int thread) {
      body(i * run, std::min(call.columns, (i + 1) * run), thread);
    });
  }
  template <class Body>
  void each(const FewRows& call, const Body& body) const {
    each(call, [] { return 0; }, body);
  }

  int threads;
  std::int64_t run, room;  // columns; of a thread's sums
};

template <class Number>
std::unique_ptr<Number[]> room_for(std::int64_t count) {
  return std::unique_ptr<Number[]>(new Number[static_cast<std::size_t>(count)]);
}

}  // namespace

// Of more rows, who asks for them by name, so many at a time: sums take little memory.
constexpr std::int64_t kMostRows = 256;

void few_rows(const FewRows& call) {
  if (call.rows == 0 || call.columns == 0) return;
  if (call.rows > kMostRows) {
    const std::int64_t size = call.dtype == Dtype::f32 ? 4 : 2;
    for (std::int64_t row = 0; row < call.rows; row += kMostRows) {
      FewRows part = call;
      part.rows = std::min(kMostRows, call.rows - row);
      part.x = static_cast<const char*>(call.x) + row * call.x_row * size;
      part.out = static_cast<char*>(call.out) + row * call.columns * size;
      few_rows(part);
    }
    return;
  }
  const Runs runs(call);
  const auto sums = room_for<float>(runs.room * runs.threads);
  const FewRowsKernels& kernels = few_rows_kernels();
  const auto multiply = [&](const FewRows& part) {
    return [&](std::int64_t first, std::int64_t last, int thread) {
      kernels.multiply(part, first, last, sums.get() + thread * runs.room);
    };
  };
  if (call.dtype != Dtype::bf16 || !kernels.enter || call.depth == 0)
    return runs.each(call, multiply(call));
  const TileMemory tiles(bf16_pack_words(call.rows, call.depth));
  const Bf16Lines x{static_cast<const BFloat16*>(call.x), call.x_row, 1};
  bf16_pack(x, call.rows, call.depth, 1, tiles.at(0));
  FewRows part = call;
  part.tiles = tiles.at(0);
  runs.each(part, [&] { return Entered<FewRowsKernels>(kernels); }, multiply(part));
}

void int8_few_rows(const FewRows& call, float steps, float least, const float* scale) {
  if (call.rows == 0 || call.columns == 0) return;
  const std::int64_t rows = call.rows, columns = call.columns, depth = call.depth;
  const auto bytes = room_for<std::uint8_t>((rows + 1) * depth);
  const auto floats = room_for<float>(rows * columns + columns + 2 * rows);
  float* y = floats.get();
  float *sums = y + rows * columns, *step = sums + columns, *zero = step + rows;
  const Int8Rows of_x{call.dtype, rows, depth, call.threads};
  int8_quantize(of_x, steps, least, call.x, bytes.get(), step, zero);
  std::fill_n(bytes.get() + rows * depth, depth, std::uint8_t{1});
  FewRows product = call;
  product.x = bytes.get(), product.x_row = depth, product.rows = rows + 1;
  const Runs runs(product);
  const auto spare = room_for<std::int32_t>(runs.room * runs.threads);
  const Int8FewKernels& kernels = int8_few_kernels();
  runs.each(product, [&](std::int64_t first, std::int64_t last, int thread) {
    kernels.multiply(product, first, last, scale, spare.get() + thread * runs.room, y, sums);
  });
  int8_finish({call.dtype, rows, columns, call.threads}, call.plain, call.activation, y, step, zero,
              sums, static_cast<const float*>(call.bias), call.out);
}

}  // namespace pyenc
