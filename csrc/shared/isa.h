// Which instruction set serves, and how a kernel compiled for several of them is chosen.
//
// A file named kernel.cpp or *_kernel.cpp is compiled once per instruction set (setup.py), each time with PYENC_ISA
// set to the identifier of a namespace below and with that set's compiler flags. All the others are
// compiled once, for the oldest machine the wheel promises.
//
// A kernel file must define nothing with external linkage outside its own namespace, and must not
// instantiate templates of the standard library: the linker keeps one copy of such a function, and
// it may be the one that an older processor cannot run.
#pragma once

#include <string>
#include <vector>

namespace pyenc {

// `generic` is what the compiler takes for granted: SSE2 on x86-64, NEON on 64-bit ARM. Of
// x86_64_v4_amx there are the kernels that multiply tiles alone (setup.py); all others are those of x86_64_v4_bf16.
enum class Isa { generic, x86_64_v3, x86_64_v4, x86_64_v4_bf16, x86_64_v4_amx };

const char* isa_name(Isa isa);

// Those compiled in that this processor can run, the oldest first. That the kernel would not grant the
// matrix units when asked (shared/amx_permission.h) shows when they are chosen.
std::vector<Isa> available_isas();

// The newest available, or the one PYENC_CPU_ISA names. Read once.
// Throws std::runtime_error when the one named is unknown or cannot run here.
Isa chosen_isa();

}  // namespace pyenc

#ifdef PYENC_HAVE_X86_64_V3
#define PYENC_IF_X86_64_V3(...) __VA_ARGS__
#else
#define PYENC_IF_X86_64_V3(...)
#endif

#ifdef PYENC_HAVE_X86_64_V4
#define PYENC_IF_X86_64_V4(...) __VA_ARGS__
#else
#define PYENC_IF_X86_64_V4(...)
#endif

#ifdef PYENC_HAVE_X86_64_V4_BF16
#define PYENC_IF_X86_64_V4_BF16(...) __VA_ARGS__
#else
#define PYENC_IF_X86_64_V4_BF16(...)
#endif

#ifdef PYENC_HAVE_X86_64_V4_AMX
#define PYENC_IF_X86_64_V4_AMX(...) __VA_ARGS__
#else
#define PYENC_IF_X86_64_V4_AMX(...)
#endif

// Inside namespace pyenc: declares the tables that the objects of one kernel file define, and
// `name()`, which gives the one to use.
#define PYENC_KERNEL_TABLE(Table, name)                                                    \
  PYENC_KERNEL_TABLES(Table, name,                                                         \
                      PYENC_IF_X86_64_V4_AMX(case Isa::x86_64_v4_amx                       \
                                             : return x86_64_v4_bf16::name;))

// The same of a kernel file that is compiled for matrix units too.
#define PYENC_KERNEL_TABLE_WITH_AMX(Table, name)                                           \
  PYENC_IF_X86_64_V4_AMX(namespace x86_64_v4_amx { extern const Table name; })             \
  PYENC_KERNEL_TABLES(Table, name,                                                         \
                      PYENC_IF_X86_64_V4_AMX(case Isa::x86_64_v4_amx                       \
                                             : return x86_64_v4_amx::name;))

#define PYENC_KERNEL_TABLES(Table, name, amx_case)                                         \
  namespace generic { extern const Table name; }                                           \
  PYENC_IF_X86_64_V3(namespace x86_64_v3 { extern const Table name; })                     \
  PYENC_IF_X86_64_V4(namespace x86_64_v4 { extern const Table name; })                     \
  PYENC_IF_X86_64_V4_BF16(namespace x86_64_v4_bf16 { extern const Table name; })           \
  inline const Table& name() {                                                             \
    switch (chosen_isa()) {                                                                \
      amx_case                                                                             \
      PYENC_IF_X86_64_V4_BF16(case Isa::x86_64_v4_bf16 : return x86_64_v4_bf16::name;)     \
      PYENC_IF_X86_64_V4(case Isa::x86_64_v4 : return x86_64_v4::name;)                    \
      PYENC_IF_X86_64_V3(case Isa::x86_64_v3 : return x86_64_v3::name;)                    \
      default: return generic::name;                                                       \
    }                                                                                      \
  }
