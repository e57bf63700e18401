// The Python face of the segment mean; see bindings.h. Called by pyenc/ops/segment_mean/cpu.py alone.

#include "bindings.h"
#include "segment_mean/arguments.h"

namespace pyenc {
namespace {

SegmentMean segment_mean_call(Address x, int dtype, Address cu_seqlens, bool wide,
                                     Address weights, std::int64_t n_segments,
                                     std::int64_t n_channels, bool normalize, int threads) {
  return {at<const void>(x), static_cast<Dtype>(dtype), at<const void>(cu_seqlens), wide,
          at<const float>(weights), n_segments, n_channels, normalize, threads};
}

}  // namespace

void bind_segment_mean(py::module_& module) {
  module.def(
      "segment_mean_forward",
      [](Address x, int dtype, Address cu_seqlens, bool wide, Address weights,
         std::int64_t n_segments, std::int64_t n_channels, bool normalize, Address out,
         Address stats, int threads) {
        segment_mean_forward(segment_mean_call(x, dtype, cu_seqlens, wide, weights,
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
        segment_mean_backward(
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

}  // namespace pyenc
