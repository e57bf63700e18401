// The Python face of the C++ kernels: addresses and sizes in, nothing out.
//
// Tensors travel as integers (tensor.data_ptr()), so the build needs no torch. Whoever calls this
// has checked shapes, dtypes, contiguity and cu_seqlens (pyenc/ops/*_cpu.py); nothing is checked here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "isa.h"
#include "segment_mean.h"

namespace py = pybind11;

namespace pyenc {
void bind_peak(py::module_& module);
}  // namespace pyenc

namespace {

using Address = std::uintptr_t;  // 0 stands for a tensor that is not there

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Whether 0 = c[0] <= c[1] <= ... <= c[n_segments] = n_tokens.
template <class Index>
bool fits(const Index* cu_seqlens, std::int64_t n_segments, std::int64_t n_tokens) {
  bool good = cu_seqlens[0] == 0 && cu_seqlens[n_segments] == n_tokens;
  for (std::int64_t i = 0; i < n_segments; ++i) good &= cu_seqlens[i] <= cu_seqlens[i + 1];
  return good;
}

pyenc::SegmentMean segment_mean_call(Address x, int dtype, Address cu_seqlens, bool wide,
                                     Address weights, std::int64_t n_segments,
                                     std::int64_t n_channels, bool normalize, int threads) {
  return {at<const void>(x), static_cast<pyenc::Dtype>(dtype), at<const void>(cu_seqlens), wide,
          at<const float>(weights), n_segments, n_channels, normalize, threads};
}

void bind_segment_mean(py::module_& module) {
  module.def(
      "segment_mean_forward",
      [](Address x, int dtype, Address cu_seqlens, bool wide, Address weights,
         std::int64_t n_segments, std::int64_t n_channels, bool normalize, Address out,
         Address stats, int threads) {
        pyenc::segment_mean_forward(segment_mean_call(x, dtype, cu_seqlens, wide, weights,
                                                      n_segments, n_channels, normalize, threads),
                                    at<float>(out), at<float>(stats));
      },
      py::kw_only(), py::arg("x"), py::arg("dtype"), py::arg("cu_seqlens"), py::arg("wide"),
      py::arg("weights"), py::arg("n_segments"), py::arg("n_channels"), py::arg("normalize"),
      py::arg("out"), py::arg("stats"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "segment_mean_backward",
      [](Address grad_out, Address x, int dtype, Address cu_seqlens, bool wide, Address weights,
         std::int64_t n_segments, std::int64_t n_channels, bool normalize, Address out,
         Address stats, Address grad_x, Address grad_weights, int threads) {
        pyenc::segment_mean_backward(
            segment_mean_call(x, dtype, cu_seqlens, wide, weights, n_segments, n_channels,
                              normalize, threads),
            at<const float>(grad_out), at<const float>(out), at<const float>(stats),
            at<void>(grad_x), at<float>(grad_weights));
      },
      py::kw_only(), py::arg("grad_out"), py::arg("x"), py::arg("dtype"), py::arg("cu_seqlens"),
      py::arg("wide"), py::arg("weights"), py::arg("n_segments"), py::arg("n_channels"),
      py::arg("normalize"), py::arg("out"), py::arg("stats"), py::arg("grad_x"),
      py::arg("grad_weights"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of pyenc. Arguments are addresses and are not checked.";
  pyenc::chosen_isa();  // a PYENC_CPU_ISA that cannot serve fails here, as an ImportError
  module.def("isa", [] { return std::string(pyenc::isa_name(pyenc::chosen_isa())); },
             "The instruction set whose kernels serve.");
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (pyenc::Isa isa : pyenc::available_isas()) names.emplace_back(pyenc::isa_name(isa));
    return names;
  }, "Those compiled in that this processor can run, the oldest first.");
  module.def("cu_seqlens_fit", [](Address cu_seqlens, bool wide, std::int64_t n_segments,
                                  std::int64_t n_tokens) {
    return wide ? fits(at<const std::int64_t>(cu_seqlens), n_segments, n_tokens)
                : fits(at<const std::int32_t>(cu_seqlens), n_segments, n_tokens);
  }, "Whether cu_seqlens runs from 0 to n_tokens without decreasing.");
  bind_segment_mean(module);
  pyenc::bind_peak(module);
}
