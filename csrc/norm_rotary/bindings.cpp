// The Python face of norm and rotation; see bindings.h. Called by pyenc/ops/norm_rotary/cpu.py
// alone.

#include "bindings.h"
#include "norm_rotary/arguments.h"

namespace pyenc {
namespace {

NormRotary call_of(int dtype, Address x, std::int64_t row, std::int64_t head, Address weight,
                   Address k_weight, Address cos, Address sin, Address positions,
                   std::int64_t tokens, std::int64_t heads, std::int64_t k_heads,
                   std::int64_t head_dim, float eps, int threads) {
  return {static_cast<Dtype>(dtype), at<const void>(x), row, head, at<const float>(weight),
          at<const float>(k_weight), at<const float>(cos), at<const float>(sin),
          at<const std::int64_t>(positions), tokens, heads, k_heads, head_dim, eps, threads};
}

}  // namespace

void bind_norm_rotary(py::module_& module) {
  module.def(
      "norm_rotary_forward",
      [](int dtype, Address x, std::int64_t row, std::int64_t head, Address weight,
         Address k_weight, Address cos, Address sin, Address positions, std::int64_t tokens,
         std::int64_t heads, std::int64_t k_heads, std::int64_t head_dim, float eps, int threads,
         Address out) {
        norm_rotary_forward(call_of(dtype, x, row, head, weight, k_weight, cos, sin, positions,
                                    tokens, heads, k_heads, head_dim, eps, threads),
                            at<void>(out));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "norm_rotary_backward",
      [](int dtype, Address x, std::int64_t row, std::int64_t head, Address weight,
         Address k_weight, Address cos, Address sin, Address positions, std::int64_t tokens,
         std::int64_t heads, std::int64_t k_heads, std::int64_t head_dim, float eps, int threads,
         Address grad_out, Address grad_x, Address grad_weight, Address grad_k_weight) {
        norm_rotary_backward(call_of(dtype, x, row, head, weight, k_weight, cos, sin, positions,
                                     tokens, heads, k_heads, head_dim, eps, threads),
                             at<const void>(grad_out), at<void>(grad_x), at<float>(grad_weight),
                             at<float>(grad_k_weight));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyenc
