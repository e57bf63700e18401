// The Python face of attention; see bindings.h. Called by cpu.py and own_cpu.py of
// pyenc/ops/attention alone.

#include <memory>

#include "attention/fields.h"
#include "attention/slabs.h"

namespace pyenc {
namespace {

// inputs: (address, floats from one head to the next, form, address of the gradient) each; steps: (op, a,
// b, c) each; see attention/map.h.
MapProgram map_of(const py::list& inputs, const py::list& steps, int result) {
  std::vector<MapInput> read;
  for (const py::handle given : inputs) {
    const auto input = given.cast<py::tuple>();
    read.push_back({at<const float>(input[0].cast<Address>()), input[1].cast<std::int64_t>(),
                    static_cast<MapForm>(input[2].cast<int>()), at<void>(input[3].cast<Address>())});
  }
  std::vector<MapStep> made;
  for (const py::handle given : steps) {
    const auto step = given.cast<py::tuple>();
    made.push_back({static_cast<MapOp>(step[0].cast<int>()), step[1].cast<int>(),
                    step[2].cast<int>(), step[3].cast<int>()});
  }
  return MapProgram(std::move(read), std::move(made), result);
}

template <class Slabs>
void bind_map(py::class_<Slabs>& slabs) {
  slabs.def(
      "slab_map",
      [](Slabs& self, std::int64_t first, std::int64_t last, const py::list& inputs,
         const py::list& steps, int result) {
        const MapProgram map = map_of(inputs, steps, result);
        py::gil_scoped_release release;
        self.slab(first, last, map);
      },
      py::arg("first"), py::arg("last"), py::arg("inputs"), py::arg("steps"), py::arg("result"));
}

void bind_slabs(py::module_& module) {
  py::class_<ForwardSlabs> forward(module, "AttentionForwardSlabs");
  bind_map(forward);
  forward
      .def(py::init([](const py::dict& call, Address out, Address lse, Address ranges, Address shift,
                       Address total) {
             Attention attention = attention_of(call);
             attention.with_backward = ranges != 0;
             py::gil_scoped_release release;
             return std::make_unique<ForwardSlabs>(
                 attention, AttentionForward{at<void>(out), at<float>(lse), at<KeyRange>(ranges),
                                             at<float>(shift), at<float>(total)});
           }),
           py::arg("call"), py::kw_only(), py::arg("out"), py::arg("lse"), py::arg("ranges"),
           py::arg("shift"), py::arg("total"))
      .def(
          "slab",
          [](ForwardSlabs& self, std::int64_t first, std::int64_t last, Address bias) {
            py::gil_scoped_release release;
            self.slab(first, last, at<const float>(bias));
          },
          py::arg("first"), py::arg("last"), py::arg("bias"));
  py::class_<BackwardSlabs> backward(module, "AttentionBackwardSlabs");
  bind_map(backward);
  backward
      .def(py::init([](const py::dict& call, py::tuple grad_out, py::tuple out, Address lse,
                       Address grad_lse, Address ranges, Address grad_q, Address grad_k,
                       Address grad_v, Address shift, Address total) {
             const Attention attention = attention_of(call);
             const AttentionBackward result{
                 rows_at(grad_out), rows_at(out), at<const float>(lse), at<const float>(grad_lse),
                 at<const KeyRange>(ranges), at<void>(grad_q), at<void>(grad_k), at<void>(grad_v),
                 nullptr, 0, nullptr, at<const float>(shift), at<const float>(total)};
             py::gil_scoped_release release;
             return std::make_unique<BackwardSlabs>(attention, result);
           }),
           py::arg("call"), py::kw_only(), py::arg("grad_out"), py::arg("out"), py::arg("lse"),
           py::arg("grad_lse"), py::arg("ranges"), py::arg("grad_q"), py::arg("grad_k"),
           py::arg("grad_v"), py::arg("shift"), py::arg("total"))
      .def(
          "slab",
          [](BackwardSlabs& self, std::int64_t first, std::int64_t last, Address bias,
             Address grad_pairs) {
            py::gil_scoped_release release;
            self.slab(first, last, at<const float>(bias), at<float>(grad_pairs));
          },
          py::arg("first"), py::arg("last"), py::arg("bias"), py::arg("grad_pairs"))
      .def("finish", [](BackwardSlabs& self) {
        py::gil_scoped_release release;
        self.finish();
      });
}

}  // namespace

void bind_attention(py::module_& module) {
  bind_slabs(module);
  module.def(
      "attention_forward",
      [](const py::dict& call, Address out, Address lse, Address ranges, Address shift,
         Address total) {
        Attention attention = attention_of(call);
        attention.with_backward = ranges != 0;
        PairCount count;
        {
          py::gil_scoped_release release;
          count = attention_forward(
              attention, {at<void>(out), at<float>(lse), at<KeyRange>(ranges), at<float>(shift),
                          at<float>(total)});
        }
        return py::make_tuple(count.scored, count.summed, count.all);
      },
      py::arg("call"), py::kw_only(), py::arg("out"), py::arg("lse"), py::arg("ranges"),
      py::arg("shift"), py::arg("total"),
      "(query, key) pairs that were scored, that were summed, and that there are.");
  module.def(
      "attention_backward",
      [](const py::dict& call, py::tuple grad_out, py::tuple out, Address lse, Address grad_lse,
         Address ranges, Address grad_q, Address grad_k, Address grad_v, Address grad_bias,
         std::int64_t grad_reach, Address shift, Address total) {
        const Attention attention = attention_of(call);
        const AttentionBackward result{
            rows_at(grad_out), rows_at(out), at<const float>(lse), at<const float>(grad_lse),
            at<const KeyRange>(ranges), at<void>(grad_q), at<void>(grad_k),
            at<void>(grad_v), at<double>(grad_bias), grad_reach, nullptr, at<const float>(shift),
            at<const float>(total)};
        py::gil_scoped_release release;
        attention_backward(attention, result);
      },
      py::arg("call"), py::kw_only(), py::arg("grad_out"), py::arg("out"), py::arg("lse"),
      py::arg("grad_lse"), py::arg("ranges"), py::arg("grad_q"), py::arg("grad_k"),
      py::arg("grad_v"), py::arg("grad_bias"), py::arg("grad_reach"), py::arg("shift"),
      py::arg("total"));
  module.def(
      "attention_exp2",
      [](Address from, std::int64_t count, Address to) {
        attention_exp2(at<const float>(from), count, at<float>(to));
      },
      "2^x of floats as the kernels compute it.");
}

}  // namespace pyenc
