// The Python face of what positions add to scores; see bindings.h. Called by
// pyenc/ops/disentangled/cpu.py alone.

#include "bindings.h"
#include "disentangled/arguments.h"

namespace pyenc {
namespace {

Disentangled call_of(Address rows, Address turned, std::int64_t n_heads, std::int64_t n_queries, std::int64_t n_keys,
                     std::int64_t n_rows, float scale, int threads) {
  return {at<const std::int32_t>(rows), at<const std::int32_t>(turned), n_heads, n_queries, n_keys, n_rows, scale, threads};
}

}  // namespace

void bind_disentangled(py::module_& module) {
  module.def(
      "disentangled_bias",
      [](Address of_queries, Address of_keys, Address rows, Address turned, std::int64_t n_heads,
         std::int64_t n_queries, std::int64_t n_keys, std::int64_t n_rows, float scale, Address bias,
         int threads) {
        disentangled_bias(call_of(rows, turned, n_heads, n_queries, n_keys, n_rows, scale, threads),
                          at<const float>(of_queries), at<const float>(of_keys), at<float>(bias));
      },
      py::kw_only(), py::arg("of_queries"), py::arg("of_keys"), py::arg("rows"), py::arg("turned"),
      py::arg("n_heads"),
      py::arg("n_queries"), py::arg("n_keys"), py::arg("n_rows"), py::arg("scale"), py::arg("bias"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "disentangled_by_rows",
      [](Address pairs, Address rows, std::int64_t n_heads, std::int64_t n_queries,
         std::int64_t n_keys, std::int64_t n_rows, float scale, Address of_queries, Address of_keys,
         int threads) {
        disentangled_by_rows(call_of(rows, 0, n_heads, n_queries, n_keys, n_rows, scale, threads),
                             at<const float>(pairs), at<float>(of_queries), at<float>(of_keys));
      },
      py::kw_only(), py::arg("pairs"), py::arg("rows"), py::arg("n_heads"), py::arg("n_queries"),
      py::arg("n_keys"), py::arg("n_rows"), py::arg("scale"), py::arg("of_queries"),
      py::arg("of_keys"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyenc
