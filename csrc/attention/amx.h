// Whose calls need matrix units (shared/tiles.h), and their configuration for as long as one runs.
#pragma once

#include "attention/pairs.h"
#include "shared/tiles.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Tiles are a thread's own, and so is their configuration. Nobody may count on finding any across a
// call (the x86-64 ABI), and a thread that has none is cheaper to switch.
// Floats: whether float32 is computed with them too, by its parts.
template <bool Floats>
inline bool takes_tiles(const Attention& call) {
  return call.dtype == Dtype::bf16 || (Floats && call.dtype == Dtype::f32);
}

template <bool Floats>
inline void enter_thread(const Attention& call) {
#ifdef PYENC_AMX
  if (takes_tiles<Floats>(call)) configure_tiles();
#endif
  (void)call;
}

template <bool Floats>
inline void leave_thread(const Attention& call) {
#ifdef PYENC_AMX
  if (takes_tiles<Floats>(call)) release_tiles();
#endif
  (void)call;
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc
