// The extension module: which kernels serve, and the ops that bind themselves to it.

#include "bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "built_from.h"
#include "shared/isa.h"
#include "shared/large_pages.h"

namespace {

// Whether 0 = c[0] <= c[1] <= ... <= c[n_segments] = n_tokens.
template <class Index>
bool fits(const Index* cu_seqlens, std::int64_t n_segments, std::int64_t n_tokens) {
  bool good = cu_seqlens[0] == 0 && cu_seqlens[n_segments] == n_tokens;
  for (std::int64_t i = 0; i < n_segments; ++i) good &= cu_seqlens[i] <= cu_seqlens[i + 1];
  return good;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of pyenc. Arguments are addresses and are not checked.";
  pyenc::chosen_isa();  // a PYENC_CPU_ISA that cannot serve fails here, as an ImportError
  module.attr("version") = pyenc::built_version();
  module.attr("sources") = pyenc::built_sources();
  module.def("isa", [] { return std::string(pyenc::isa_name(pyenc::chosen_isa())); },
             "The instruction set whose kernels serve.");
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (pyenc::Isa isa : pyenc::available_isas()) names.emplace_back(pyenc::isa_name(isa));
    return names;
  }, "Those compiled in that this processor can run, the oldest first.");
  module.def("cu_seqlens_fit", [](pyenc::Address cu_seqlens, bool wide, std::int64_t n_segments,
                                  std::int64_t n_tokens) {
    return wide ? fits(pyenc::at<const std::int64_t>(cu_seqlens), n_segments, n_tokens)
                : fits(pyenc::at<const std::int32_t>(cu_seqlens), n_segments, n_tokens);
  }, "Whether cu_seqlens runs from 0 to n_tokens without decreasing.");
  module.def("advise_large_pages", &pyenc::advise_large_pages,
             "Ask for large pages for memory, if it is large enough to be a mapping of its own.");
  pyenc::bind_attention(module);
  pyenc::bind_disentangled(module);
  pyenc::bind_gated(module);
  pyenc::bind_linear(module);
  pyenc::bind_norm(module);
  pyenc::bind_norm_rotary(module);
  pyenc::bind_peak(module);
  pyenc::bind_rotary(module);
  pyenc::bind_segment_mean(module);
}
