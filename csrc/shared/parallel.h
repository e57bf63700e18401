// A loop shared among threads, with OpenMP or without.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pyenc {

// body(index, thread) for each index in [0, count), with 0 <= thread < threads. The indices go to
// whichever thread is free, so the result must not depend on who does what; body must not throw.
//
// The team is the whole one, as torch sets it, and who is not needed goes home: with teams of
// changing size GNU's runtime ends threads and starts new ones, ours and torch's, all the time.
//
// What scope() returns lives on each thread from before its first index till after its last.
template <class Scope, class Body>
void parallel_for(std::int64_t count, int threads, const Scope& scope, const Body& body) {
#ifdef _OPENMP
  std::atomic<std::int64_t> next{0};
#pragma omp parallel if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    if (thread < threads) {
      const auto held = scope();
      for (std::int64_t i = next++; i < count; i = next++) body(i, thread);
      (void)held;
    }
  }
#else
  (void)threads;
  const auto held = scope();
  for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  (void)held;
#endif
}

template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  parallel_for(count, threads, [] { return 0; }, body);
}

// Below this many elements a thread costs more to wake than it saves.
constexpr std::int64_t kElementsPerThread = 32768;

inline int threads_for_elements(std::int64_t elements, int threads) {
  const std::int64_t by_size = elements / kElementsPerThread;
  return by_size < 1 ? 1 : by_size < threads ? static_cast<int>(by_size) : threads;
}

// body(first, last, thread) over rows of so many columns, a run of rows at a time.
template <class Body>
void parallel_rows(std::int64_t rows, std::int64_t columns, int threads, const Body& body) {
  const int used = threads_for_elements(rows * columns, threads);
  // A few runs a thread, for one may start late.
  const std::int64_t runs = used == 1 ? 1 : 4 * static_cast<std::int64_t>(used);
  parallel_for(runs, used, [&](std::int64_t run, int thread) {
    const std::int64_t first = rows * run / runs, last = rows * (run + 1) / runs;
    if (first < last) body(first, last, thread);
  });
}

}  // namespace pyenc
