// The Python face of the register-only peak.

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "peak/arguments.h"

namespace pyenc {

void bind_peak(py::module_& module) {
  module.def(
      "fma_peak",
      [](const std::string& kind, int threads, double seconds) -> std::optional<double> {
        const bool bf16 = kind == "bfloat16";
        if (!bf16 && kind != "float32")
          throw std::invalid_argument("fma_peak: kind must be float32 or bfloat16, got " + kind);
        if (threads < 1 || !(seconds > 0 && seconds <= 60))
          throw std::invalid_argument("fma_peak: threads must be from 1, seconds in (0, 60]");
        const py::gil_scoped_release release;
        const double rate = peak_flops(bf16 ? Peak::dot_bf16 : Peak::fma_f32, threads, seconds);
        return rate > 0 ? std::optional<double>(rate) : std::nullopt;
      },
      py::arg("kind"), py::kw_only(), py::arg("threads"), py::arg("seconds") = 0.2,
      "Operations a second of multiply-adds in registers alone: what the cores could do at most. "
      "None where the instruction set has no such instruction (bfloat16: a dot product of pairs).");
}

}  // namespace pyenc
