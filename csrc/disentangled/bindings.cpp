// The Python face of what positions add to scores; see bindings.h. Called by
// pyenc/ops/disentangled/cpu.py alone.

#include <pybind11/stl.h>

#include <array>

#include "attention/fields.h"
#include "disentangled/arguments.h"

namespace pyenc {
namespace {

Tokens tokens_of(const py::handle& of) {
  const auto [address, token, head] = of.cast<std::array<std::int64_t, 3>>();
  return {at<const float>(static_cast<Address>(address)), token, head};
}

Disentangled call_of(const py::dict& fields) {
  const auto number = [&](const char* name) { return fields[name].cast<std::int64_t>(); };
  const auto address = [&](const char* name) { return fields[name].cast<Address>(); };
  return {tokens_of(fields["queries"]), tokens_of(fields["keys"]),
          at<const float>(address("position_keys")), at<const float>(address("position_queries")),
          number("table_step"), number("n_heads"), number("n_sequences"), number("head_dim"),
          number("n_queries"), number("n_keys"), number("n_rows"), at<const std::int32_t>(address("rows")),
          at<const std::int32_t>(address("turned")), number("rows_step"), number("turned_step"),
          fields["scale"].cast<float>(), fields["threads"].cast<int>()};
}

}  // namespace

void bind_disentangled(py::module_& module) {
  module.def(
      "disentangled_forward",
      [](const py::dict& call, py::tuple queries, py::tuple keys, Address position_keys,
         Address position_queries, std::int64_t n_rows, Address of_distance, std::int64_t reach,
         bool with_backward, Address out, Address lse, Address shift, Address total) {
        Attention attention = attention_of(call);
        attention.with_backward = with_backward;
        const PositionTables tables{
            rows_at(queries), rows_at(keys), at<const float>(position_keys),
            at<const float>(position_queries), n_rows, at<const std::int32_t>(of_distance) + reach,
            reach};
        const py::gil_scoped_release released;
        disentangled_forward(
            attention, tables,
            {at<void>(out), at<float>(lse), nullptr, at<float>(shift), at<float>(total)});
      },
      py::arg("call"), py::kw_only(), py::arg("queries"), py::arg("keys"), py::arg("position_keys"),
      py::arg("position_queries"), py::arg("n_rows"), py::arg("of_distance"), py::arg("reach"),
      py::arg("with_backward"), py::arg("out"), py::arg("lse"), py::arg("shift"), py::arg("total"));
  module.def("disentangled_of_keys", [](const py::dict& fields, Address to) {
    const Disentangled call = call_of(fields);
    const py::gil_scoped_release released;
    disentangled_of_keys(call, at<float>(to));
  });
  module.def("disentangled_bias", [](const py::dict& fields, Address of_keys, Address bias) {
    const Disentangled call = call_of(fields);
    const py::gil_scoped_release released;
    disentangled_bias(call, at<const float>(of_keys), at<float>(bias));
  });
  module.def("disentangled_by_rows", [](const py::dict& fields, Address pairs, Address of_queries,
                                        Address of_keys) {
    const Disentangled call = call_of(fields);
    const py::gil_scoped_release released;
    disentangled_by_rows(call, at<const float>(pairs), at<float>(of_queries), at<float>(of_keys));
  });
}

}  // namespace pyenc
