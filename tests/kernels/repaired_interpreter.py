"""Makes Triton's interpreter compute bfloat16, which it keeps as the 16 bits of an integer.

As it comes (3.6 to 3.9) it multiplies those integers in a dot product and cuts off the lower half
of a float where hardware rounds to nearest even. `repair()` mends both, and makes any other
arithmetic on bfloat16 an error: kernels widen first, as they should.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(floats: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(floats), 0x7FC0, rounded).astype(np.uint16)


def repair() -> None:
    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "bfloat16_repaired", False):
        return
    convert, dot, binary = interpreter._convert_float, builder.create_dot, builder.binary_op

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target == tl.bfloat16 and source == tl.float32:
            return narrowed(data)
        return convert(data, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        def wide(x: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return x
            return interpreter.TensorHandle(widened(x.data), tl.float32)

        return dot(self, wide(a), wide(b), *rest)

    def binary_op(self: Any, a: Any, b: Any, op: Any) -> Any:
        if tl.bfloat16 in (a.dtype.scalar, b.dtype.scalar):
            raise TypeError("the interpreter has no arithmetic for bfloat16; widen it first")
        return binary(self, a, b, op)

    _patch_once_a_launch()
    _remember_types()
    _remember_shapes()
    _add_without_unread_checks()
    interpreter._convert_float = convert_float
    builder.create_dot, builder.binary_op = create_dot, binary_op
    builder.bfloat16_repaired = True
    if not hasattr(tl.tensor, "__index__"):
        patch = interpreter._patch_lang_tensor

        def patch_tensor(tensor: Any, *scope: Any) -> None:
            # 3.6 with numpy 2.4: a loop's bounds are arrays of one element, no longer integers.
            patch(tensor, *scope)
            if scope:
                scope[0].set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))
            else:
                tensor.__index__ = lambda self: int(self.handle.data.squeeze())

        interpreter._patch_lang_tensor = patch_tensor


def _patch_once_a_launch() -> None:
    """Let a kernel's helpers find the language as the kernel's launch has patched it.

    The interpreter replaces some hundred functions of `triton.language` at a launch, and once more
    at each call of a function by a kernel, which took a third of these tests' time.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch_lang = interpreter._patch_lang
    patched: set[int] = set()

    def patch_new(fn: Any) -> Any:
        languages = {id(x) for x in fn.__globals__.values() if x is tl or x is tl.core}
        if languages <= patched:
            return interpreter._LangPatchScope()
        scope = patch_lang(fn)
        added = languages - patched
        patched.update(added)
        restore = scope.restore

        def restore_all() -> None:
            patched.difference_update(added)
            restore()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_new


def _remember_types() -> None:
    """Ask once of each type what the interpreter asks at every operation: which numpy has it, and
    whether it is wrapped in a constant."""
    numpy_of, unwrap = interpreter._get_np_dtype, tl.core._unwrap_if_constexpr
    known: dict[tuple[type, str], np.dtype[Any]] = {}
    plain = {int, float, bool, str, type(None), tl.tensor, tl.dtype, tl.block_type}

    def remembered(dtype: Any) -> np.dtype[Any]:
        key = type(dtype), dtype.name
        if key not in known:
            known[key] = numpy_of(dtype)
        return known[key]

    def unwrapped(value: Any) -> Any:
        return value if type(value) in plain else unwrap(value)

    interpreter._get_np_dtype = remembered
    for module in list(sys.modules.values()):
        if getattr(module, "_unwrap_if_constexpr", None) is unwrap:
            module._unwrap_if_constexpr = unwrapped  # type: ignore[attr-defined]


def _remember_shapes() -> None:
    """Make once of each shape what every tensor of it carries, wrapped number by number."""
    start, known = tl.tensor.__init__, {}

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = tuple(type.shape) if type.is_block() else ()
        if shape in known:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.shape, self.numel = known[shape]
            return
        start(self, handle, type)
        if vars(self).keys() == {"handle", "type", "dtype", "shape", "numel"}:
            known[shape] = self.shape, self.numel

    tl.tensor.__init__ = init

    begin, sizes = tl.block_type.__init__, {}

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(x.value if type(x) is tl.constexpr else x for x in shape)
        if key in sizes:
            self.element_ty = element_ty
            self.shape, self.numel, self.name = sizes[key]
            return
        begin(self, element_ty, shape)
        if vars(self).keys() == {"element_ty", "shape", "numel", "name"}:
            sizes[key] = self.shape, self.numel, self.name

    tl.block_type.__init__ = init_type


def _add_without_unread_checks() -> None:
    """Sums of integers are computed once more, wider, and compared with what overflows, for an
    assertion that is made in debugging alone: without it nobody reads the answer."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
