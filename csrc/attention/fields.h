// A call of attention as Python sends it (`call_of` in pyenc/ops/attention/cpu.py).
#pragma once

#include "attention/arguments.h"
#include "bindings.h"

namespace pyenc {

inline Rows3 rows_at(py::tuple given) {
  return {at<const void>(given[0].cast<Address>()), given[1].cast<std::int64_t>(),
          given[2].cast<std::int64_t>()};
}

// `call` has the fields of Attention by name; a tensor with strides is (address, row, head).
inline Attention attention_of(const py::dict& call) {
  const auto integer = [&](const char* name) { return call[name].cast<std::int64_t>(); };
  const auto address = [&](const char* name) { return call[name].cast<Address>(); };
  Attention result;
  result.q = rows_at(call["q"]);
  result.k = rows_at(call["k"]);
  result.v = rows_at(call["v"]);
  result.dtype = static_cast<Dtype>(integer("dtype"));
  result.cu_seqlens = at<const std::int64_t>(address("cu_seqlens"));
  result.n_sequences = integer("n_sequences");
  result.n_heads = integer("n_heads");
  result.head_dim = integer("head_dim");
  result.positions = at<const float>(address("positions"));
  result.contiguous = call["contiguous"].cast<bool>();
  result.kind = static_cast<BiasKind>(integer("kind"));
  result.bias = at<const void>(address("bias"));
  result.bias_dtype = static_cast<Dtype>(integer("bias_dtype"));
  result.reach = integer("reach");
  result.saturation = integer("saturation");
  result.rows = result.reach;
  result.tails = at<const float>(address("tails"));
  result.peaks = at<const float>(address("peaks"));
  result.nearby = at<const float>(address("nearby"));
  result.window_left = integer("window_left");
  result.window_right = integer("window_right");
  result.scale = call["scale"].cast<float>();
  result.skip_eps = call["skip_eps"].cast<double>();
  result.threads = call["threads"].cast<int>();
  result.dropout = call["dropout"].cast<double>();
  result.seed = call["seed"].cast<std::uint64_t>();
  return result;
}

}  // namespace pyenc
