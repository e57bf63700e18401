// Subnormal numbers as zeros, for as long as an object of this lives, on the thread that made it.
//
// A product or a sum that is subnormal costs Intel's processors a hundred cycles and more, and far
// keys of attention make millions of them. The thread may be the caller's own, so the mode it came
// with is put back, whatever happens in between.
#pragma once

#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace pyenc {

class FlushSubnormals {
 public:
  FlushSubnormals() : mode_(mode()) { set(mode_ | kFlush); }
  ~FlushSubnormals() { set(mode_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__SSE2__) || defined(_M_X64)
  static constexpr std::uint64_t kFlush = 0x8040;  // results (FTZ) and operands (DAZ)
  static std::uint64_t mode() { return _mm_getcsr(); }
  static void set(std::uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;  // FZ: both
  static std::uint64_t mode() {
    std::uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(std::uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
  static constexpr std::uint64_t kFlush = 0;
  static std::uint64_t mode() { return 0; }
  static void set(std::uint64_t) {}
#endif

  std::uint64_t mode_;
};

}  // namespace pyenc
