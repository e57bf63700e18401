// The gated activation of a run of rows, compiled once per instruction set.

#include "gated/arguments.h"

#include "shared/activation.h"
#include "shared/rows.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

template <class Scalar>
Scalar* row_at(Strided x, std::int64_t row) {
  return static_cast<Scalar*>(x.at) + row * x.row;
}

void forward(const Gated& call, std::int64_t first, std::int64_t last, Strided gate,
             const void* bias, Strided value, Strided out) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    const Scalar* b = static_cast<const Scalar*>(bias);
    with_activation(call.activation, [&](auto chosen) {
      for (std::int64_t r = first; r < last; ++r) {
        const Scalar* g = row_at<Scalar>(gate, r);
        const Scalar* v = value.at ? row_at<Scalar>(value, r) : nullptr;
        Scalar* to = row_at<Scalar>(out, r);
        for_columns(call.columns, [&](std::int64_t i, auto at) {
          const Floats x = b ? at.get(g + i) + at.get(b + i) : at.get(g + i);
          constexpr bool kHalf = !std::is_same<Scalar, float>::value;
          const Floats activated = activate<decltype(chosen)::value, kHalf>(x);
          at.put(v ? activated * at.get(v + i) : activated, to + i);
        });
      }
    });
  });
}

void backward(const Gated& call, std::int64_t first, std::int64_t last, Strided grad_out,
              Strided gate, Strided value, Strided grad_gate, Strided grad_value) {
  as_dtype(call.dtype, [&](auto* type) {
    using Scalar = std::remove_pointer_t<decltype(type)>;
    with_activation(call.activation, [&](auto chosen) {
      for (std::int64_t r = first; r < last; ++r) {
        const Scalar *grad = row_at<Scalar>(grad_out, r), *g = row_at<Scalar>(gate, r);
        const Scalar* v = value.at ? row_at<Scalar>(value, r) : nullptr;
        Scalar* to_gate = row_at<Scalar>(grad_gate, r);
        Scalar* to_value = value.at ? row_at<Scalar>(grad_value, r) : nullptr;
        for_columns(call.columns, [&](std::int64_t i, auto at) {
          const Activated a = activate_with_slope<decltype(chosen)::value>(at.get(g + i));
          const Floats incoming = at.get(grad + i);
          if (!v) return at.put(incoming * a.slope, to_gate + i);
          at.put(incoming * at.get(v + i) * a.slope, to_gate + i);
          at.put(incoming * a.value, to_value + i);
        });
      }
    });
  });
}

}  // namespace

extern const GatedKernels gated_kernels;
const GatedKernels gated_kernels{forward, backward};

}  // namespace PYENC_ISA
}  // namespace pyenc
