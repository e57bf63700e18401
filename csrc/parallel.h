// A loop shared among threads, with OpenMP or without.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pyenc {

// body(index, thread) for each index in [0, count), with 0 <= thread < threads. The indices go to
// whichever thread is free, so the result must not depend on who does what; body must not throw.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) body(i, omp_get_thread_num());
#else
  (void)threads;
  for (std::int64_t i = 0; i < count; ++i) body(i, 0);
#endif
}

// Below this many elements a thread costs more to wake than it saves.
constexpr std::int64_t kElementsPerThread = 32768;

inline int threads_for_elements(std::int64_t elements, int threads) {
  const std::int64_t by_size = elements / kElementsPerThread;
  return by_size < 1 ? 1 : by_size < threads ? static_cast<int>(by_size) : threads;
}

// body(first, last) over rows of so many columns, a run of rows at a time.
template <class Body>
void parallel_rows(std::int64_t rows, std::int64_t columns, int threads, const Body& body) {
  const int used = threads_for_elements(rows * columns, threads);
  // A few runs a thread, for one may start late.
  const std::int64_t runs = used == 1 ? 1 : 4 * static_cast<std::int64_t>(used);
  parallel_for(runs, used, [&](std::int64_t run, int) {
    const std::int64_t first = rows * run / runs, last = rows * (run + 1) / runs;
    if (first < last) body(first, last);
  });
}

}  // namespace pyenc
