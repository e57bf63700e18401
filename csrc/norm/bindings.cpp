// The Python face of the norms; see bindings.h. Called by pyenc/ops/norm/cpu.py alone.

#include "bindings.h"
#include "norm/arguments.h"

namespace pyenc {
namespace {

Norm call_of(int dtype, bool rms, std::int64_t rows, std::int64_t columns, float eps,
             Address weight, Address bias, int threads) {
  return {static_cast<Dtype>(dtype), rms, rows, columns, eps, at<const float>(weight),
          at<const float>(bias), threads};
}

}  // namespace

void bind_norm(py::module_& module) {
  module.def(
      "norm_forward",
      [](int dtype, bool rms, std::int64_t rows, std::int64_t columns, float eps, Address weight,
         Address bias, int threads, Address x, Address residual, Address total, Address normed,
         Address stats) {
        norm_forward(call_of(dtype, rms, rows, columns, eps, weight, bias, threads),
                     at<const void>(x), at<const void>(residual), at<void>(total),
                     at<void>(normed), at<float>(stats));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "norm_backward",
      [](int dtype, bool rms, std::int64_t rows, std::int64_t columns, float eps, Address weight,
         Address bias, int threads, Address grad_normed, Address grad_total, Address total,
         Address stats, Address grad_x, Address grad_weight, Address grad_bias) {
        norm_backward(call_of(dtype, rms, rows, columns, eps, weight, bias, threads),
                      at<const void>(grad_normed), at<const void>(grad_total),
                      at<const void>(total), at<const float>(stats), at<void>(grad_x),
                      at<float>(grad_weight), at<float>(grad_bias));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyenc
