// Whether this process may use the tile registers of Intel's matrix units (AMX).
//
// Three have a say: the processor (cpuid), the operating system, which must save the registers (XCR0),
// and on Linux the kernel once more, which lets a process touch the 8 KiB of tiles only after it asked
// (arch_prctl(2)); before that the first instruction ends it with SIGILL. The permission holds for all
// threads of the process, those that run already too, and its forks.
#pragma once

#include <cstdint>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyenc {

// Linux's names and numbers (asm/prctl.h).
constexpr int kGetSupportedStates = 0x1021, kGetPermission = 0x1022, kRequestPermission = 0x1023;
constexpr unsigned long kTileData = 18;  // of the extended states

// Whether processor and system have tiles of bfloat16. Changes nothing.
// System: cpuid(leaf, subleaf, registers), xcr0(), arch_prctl(code, argument); tests have others.
template <class System>
bool has_tiles(const System& system) {
  unsigned registers[4];  // eax, ebx, ecx, edx
  if (!system.cpuid(1, 0, registers) || !(registers[2] >> 27 & 1)) return false;  // OSXSAVE
  if (!system.cpuid(7, 0, registers)) return false;
  const bool bf16 = registers[3] >> 22 & 1, tile = registers[3] >> 24 & 1;
  if (!bf16 || !tile) return false;
  const std::uint64_t saved = std::uint64_t{1} << 17 | std::uint64_t{1} << kTileData;
  if ((system.xcr0() & saved) != saved) return false;
  unsigned long states = 0;
  const auto address = reinterpret_cast<unsigned long>(&states);
  return system.arch_prctl(kGetSupportedStates, address) == 0 && (states >> kTileData & 1);
}

// Asks for them. Whether they are granted.
template <class System>
bool request_tiles(const System& system) {
  if (!has_tiles(system) || system.arch_prctl(kRequestPermission, kTileData) != 0) return false;
  unsigned long states = 0;
  const auto address = reinterpret_cast<unsigned long>(&states);
  return system.arch_prctl(kGetPermission, address) == 0 && (states >> kTileData & 1);
}

struct ThisSystem {
#if defined(__linux__) && defined(__x86_64__)
  bool cpuid(unsigned leaf, unsigned subleaf, unsigned (&to)[4]) const {
    return __get_cpuid_count(leaf, subleaf, &to[0], &to[1], &to[2], &to[3]) != 0;
  }
  std::uint64_t xcr0() const {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
  }
  long arch_prctl(int code, unsigned long argument) const {
    return syscall(SYS_arch_prctl, code, argument);
  }
#else
  bool cpuid(unsigned, unsigned, unsigned (&)[4]) const { return false; }
  std::uint64_t xcr0() const { return 0; }
  long arch_prctl(int, unsigned long) const { return -1; }
#endif
};

}  // namespace pyenc
