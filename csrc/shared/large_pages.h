// Large pages for memory that is about to be written for the first time.
//
// A tensor of 64 MB is 16,384 ordinary pages, and the system stops the thread that first touches each,
// for as long as a matrix product of a feed-forward takes altogether. Linux gives pages of 2 MiB where it
// is asked to, if it is set up so (transparent_hugepage: madvise or always; never is respected).
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pyenc {

// The GNU C library takes memory of this size and more from the system and gives it back as it is freed
// (M_MMAP_THRESHOLD's largest): the advice ends with the tensor. Less of it may be any other's next.
constexpr std::int64_t kOwnMapping = std::int64_t{32} << 20;

inline void advise_large_pages(std::uintptr_t address, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kOwnMapping) return;
  constexpr std::uintptr_t kPage = 4096;
  const std::uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const std::uintptr_t last = (address + static_cast<std::uintptr_t>(bytes)) / kPage * kPage;
  // Advice: where it cannot be taken nothing changes.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace pyenc
