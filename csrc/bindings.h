// What the Python faces of the kernels share: addresses and sizes in, next to nothing out.
//
// Tensors travel as integers (tensor.data_ptr()), so the build needs no torch. Whoever calls these
// functions has checked shapes, dtypes, strides and cu_seqlens (pyenc/ops/*/cpu.py); nothing is
// checked here. Each op binds itself in <op>/bindings.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pyenc {

namespace py = pybind11;

using Address = std::uintptr_t;  // 0 stands for a tensor that is not there

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_attention(py::module_& module);
void bind_disentangled(py::module_& module);
void bind_gated(py::module_& module);
void bind_linear(py::module_& module);
void bind_norm(py::module_& module);
void bind_norm_rotary(py::module_& module);
void bind_peak(py::module_& module);
void bind_rotary(py::module_& module);
void bind_segment_mean(py::module_& module);

}  // namespace pyenc
