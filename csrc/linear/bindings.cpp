// The Python face of the passes around a product in eight bits, called by pyenc/ops/linear/int8_rows.py
// alone, of the products on matrix units, by parts.py and amx.py there, and of few rows, by few_rows.py; see
// bindings.h.

#include <tuple>

#include "bindings.h"
#include "linear/arguments.h"
#include "linear/bf16_product.h"
#include "linear/few_rows.h"
#include "linear/product.h"

namespace pyenc {
namespace {

Int8Rows call_of(int dtype, std::int64_t rows, std::int64_t columns, int threads) {
  return {static_cast<Dtype>(dtype), rows, columns, threads};
}

using LinesAt = std::tuple<Address, std::int64_t, std::int64_t>;

Lines lines_of(LinesAt x) {
  return {at<const float>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)};
}

Bf16Lines bf16_lines_of(LinesAt x) {
  return {at<const BFloat16>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)};
}

using RowsAt = std::tuple<Address, std::int64_t>;

}  // namespace

void bind_linear(py::module_& module) {
  module.def(
      "int8_quantize",
      [](int dtype, std::int64_t rows, std::int64_t columns, int threads, float steps, float least,
         Address x, Address u, Address step, Address zero) {
        int8_quantize(call_of(dtype, rows, columns, threads), steps, least, at<const void>(x),
                      at<std::uint8_t>(u), at<float>(step), at<float>(zero));
      },
      py::call_guard<py::gil_scoped_release>());
  // activation: a negative number stands for none.
  module.def(
      "int8_finish",
      [](int dtype, std::int64_t rows, std::int64_t columns, int threads, int activation, Address y,
         Address step, Address zero, Address sums, Address bias, Address out) {
        int8_finish(call_of(dtype, rows, columns, threads), activation < 0,
                    static_cast<Activation>(activation), at<const float>(y), at<const float>(step),
                    at<const float>(zero), at<const float>(sums), at<const float>(bias),
                    at<void>(out));
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("product_serves", &product_serves);
  // parts: 3 or 2. activation: a negative number stands for none. Lines: (address, stride of lines, of depth).
  module.def(
      "product",
      [](int parts, std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads,
         int activation, LinesAt a, LinesAt b, Address bias, Address out) {
        return product({parts, rows, columns, depth, lines_of(a), lines_of(b), at<const float>(bias),
                        activation < 0, static_cast<Activation>(activation), at<float>(out), threads});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def("bf16_product_serves", &bf16_product_serves);
  module.def("bf16_pack_words", &bf16_pack_words);
  module.def(
      "bf16_pack",
      [](std::int64_t columns, std::int64_t depth, int threads, LinesAt b, Address to) {
        bf16_pack(bf16_lines_of(b), columns, depth, threads, at<float>(to));
      },
      py::call_guard<py::gil_scoped_release>());
  // packed: 0 where b is to be packed meanwhile. The rest as above.
  module.def(
      "bf16_product",
      [](std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads, int activation,
         LinesAt a, LinesAt b, Address packed, Address bias, Address out) {
        bf16_product({rows, columns, depth, bf16_lines_of(a), bf16_lines_of(b),
                      at<const float>(packed), at<const BFloat16>(bias), activation < 0,
                      static_cast<Activation>(activation), at<BFloat16>(out), columns, threads});
      },
      py::call_guard<py::gil_scoped_release>());
  // activation: a negative number stands for none. x, weight: (address, numbers from row to row).
  module.def(
      "few_rows",
      [](int dtype, std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads,
         int activation, RowsAt x, RowsAt weight, Address bias, Address out) {
        few_rows({static_cast<Dtype>(dtype), rows, columns, depth, at<const void>(std::get<0>(x)),
                  std::get<1>(x), at<const void>(std::get<0>(weight)), std::get<1>(weight),
                  at<const void>(bias), activation < 0, static_cast<Activation>(activation),
                  at<void>(out), threads, nullptr});
      },
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "int8_few_rows",
      [](int dtype, std::int64_t rows, std::int64_t columns, std::int64_t depth, int threads,
         int activation, float steps, float least, Address x, RowsAt weight, Address scale,
         Address bias, Address out) {
        int8_few_rows({static_cast<Dtype>(dtype), rows, columns, depth, at<const void>(x), depth,
                       at<const void>(std::get<0>(weight)), std::get<1>(weight),
                       at<const void>(bias), activation < 0, static_cast<Activation>(activation),
                       at<void>(out), threads, nullptr},
                      steps, least, at<const float>(scale));
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyenc
