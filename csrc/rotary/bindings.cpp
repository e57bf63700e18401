// The Python face of the rotation; see bindings.h. Called by pyenc/ops/rotary/cpu.py alone.

#include "bindings.h"
#include "rotary/arguments.h"

namespace pyenc {

void bind_rotary(py::module_& module) {
  module.def(
      "rotary_turn",
      [](int dtype, Address x, std::int64_t row, std::int64_t head, Address cos, Address sin,
         Address positions, std::int64_t tokens, std::int64_t heads, std::int64_t head_dim,
         bool back, int threads, Address out) {
        rotary_turn({static_cast<Dtype>(dtype), at<const void>(x), row, head, at<const float>(cos),
                     at<const float>(sin), at<const std::int64_t>(positions), tokens, heads,
                     head_dim, back, threads},
                    at<void>(out));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyenc
