// The Python face of the gated activation; see bindings.h. Called by pyenc/ops/gated/cpu.py alone.

#include "bindings.h"
#include "gated/arguments.h"

namespace pyenc {
namespace {

// (address, elements from one row to the next)
Strided strided(py::tuple given) {
  return {at<void>(given[0].cast<Address>()), given[1].cast<std::int64_t>()};
}

Gated call_of(int dtype, int activation, std::int64_t rows, std::int64_t columns, int threads) {
  return {static_cast<Dtype>(dtype), static_cast<Activation>(activation), rows, columns, threads};
}

}  // namespace

void bind_gated(py::module_& module) {
  module.def(
      "gated_forward",
      [](int dtype, int activation, std::int64_t rows, std::int64_t columns, int threads,
         py::tuple gate, Address bias, py::tuple value, py::tuple out) {
        const Gated call = call_of(dtype, activation, rows, columns, threads);
        const Strided g = strided(gate), v = strided(value), o = strided(out);
        py::gil_scoped_release release;
        gated_forward(call, g, at<void>(bias), v, o);
      });
  module.def(
      "gated_backward",
      [](int dtype, int activation, std::int64_t rows, std::int64_t columns, int threads,
         py::tuple grad_out, py::tuple gate, py::tuple value, py::tuple grad_gate,
         py::tuple grad_value) {
        const Gated call = call_of(dtype, activation, rows, columns, threads);
        const Strided go = strided(grad_out), g = strided(gate), v = strided(value);
        const Strided gg = strided(grad_gate), gv = strided(grad_value);
        py::gil_scoped_release release;
        gated_backward(call, go, g, v, gg, gv);
      });
}

}  // namespace pyenc
