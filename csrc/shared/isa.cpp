#include "shared/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "shared/amx_permission.h"

namespace pyenc {
namespace {

// __builtin_cpu_supports also asks whether the operating system saves the wide registers. GCC knows
// the levels by name since version 12; elsewhere a few of their features stand for the rest, which
// came to market together.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define PYENC_RUNS_V3 __builtin_cpu_supports("x86-64-v3")
#define PYENC_RUNS_V4 __builtin_cpu_supports("x86-64-v4")
#else
#define PYENC_RUNS_V3                                                  \
  (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&  \
   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
#define PYENC_RUNS_V4                                                          \
  (PYENC_RUNS_V3 && __builtin_cpu_supports("avx512f") &&                       \
   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") && \
   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#endif

#define PYENC_RUNS_V4_BF16                                           \
  (PYENC_RUNS_V4 && __builtin_cpu_supports("avx512bf16") &&          \
   __builtin_cpu_supports("avx512vnni"))

#define PYENC_RUNS_V4_AMX (PYENC_RUNS_V4_BF16 && has_tiles(ThisSystem()))

// Whether it serves, once it is chosen: tiles are asked for then, and not before.
bool is_granted(Isa isa) { return isa != Isa::x86_64_v4_amx || request_tiles(ThisSystem()); }

Isa choose() {
  std::vector<Isa> available = available_isas();
  const char* asked = std::getenv("PYENC_CPU_ISA");
  const bool any = asked == nullptr || *asked == '\0';
  if ((any || asked == std::string(isa_name(available.back()))) && !is_granted(available.back()))
    available.pop_back();
  if (any) return available.back();
  std::string names;
  for (Isa isa : available) {
    if (asked == std::string(isa_name(isa))) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("PYENC_CPU_ISA=" + std::string(asked) + " cannot serve here; can: " + names);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::x86_64_v3: return "x86-64-v3";
    case Isa::x86_64_v4: return "x86-64-v4";
    case Isa::x86_64_v4_bf16: return "x86-64-v4-bf16";
    case Isa::x86_64_v4_amx: return "x86-64-v4-amx";
    default: return "generic";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::generic};
#ifdef PYENC_HAVE_X86_64_V3
  if (PYENC_RUNS_V3) isas.push_back(Isa::x86_64_v3);
#endif
#ifdef PYENC_HAVE_X86_64_V4
  if (PYENC_RUNS_V4) isas.push_back(Isa::x86_64_v4);
#endif
#ifdef PYENC_HAVE_X86_64_V4_BF16
  if (PYENC_RUNS_V4_BF16) isas.push_back(Isa::x86_64_v4_bf16);
#endif
#ifdef PYENC_HAVE_X86_64_V4_AMX
  if (PYENC_RUNS_V4_AMX) isas.push_back(Isa::x86_64_v4_amx);
#endif
  return isas;
}

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace pyenc
