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

}  // namespace pyenc
