"""Sum of embeddings and its norm in one call: what an encoder begins with.

Shapes: C channels; ids of any shape (packed: (T,)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from .. import oracle
from ..backend import WhyNot, choose
from ..launch import DTYPE_CODES
from ..norm import add_layer_norm, add_rms_norm
from ..norm import backend_table as norm_table
from ..validation import check_eps, check_float, check_given, check_switch
from . import registration as _registration  # noqa: F401  (it registers the op)
from .reference import embedding_norm_reference


def embedding_norm(
    input_ids: Tensor,
    word: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    token_type_ids: Tensor | None = None,
    token_type: Tensor | None = None,
    position_ids: Tensor | None = None,
    position: Tensor | None = None,
    rms: bool = False,
    backend: str | None = None,
) -> Tensor:
    """norm(word[input_ids] + token_type[token_type_ids] + position[position_ids]), as BERT begins
    (Devlin et al., arXiv 1810.04805).

    Where no gradient is wanted, Triton has one kernel for it, with the bits of gathers, sums and a
    norm apart. With a gradient it is those: what one kernel saves is to write the sum and to read
    it again, and a norm's backward reads it anyway; the tables' gradient is a scatter by ids, which
    torch's gather has.

    Args:
        input_ids: (...) int32 or int64, rows of `word`.
        word: (vocabulary, C).
        weight, bias: (C,), of the norm; bias may be None, and is where `rms`.
        eps: as of `add_layer_norm`.
        token_type_ids, token_type: the same of (types, C); of a table without ids the first row.
        position_ids, position: the same of (positions, C); a table has ids.
        rms: RMSNorm in the place of LayerNorm.
        backend: "triton" (up to 8,192 channels), "cpu", "torch" or "reference"; None chooses. "cpu"
            is of the norm alone.

    Returns:
        (..., C) in the dtype of the tables' sum.

    Raises:
        InputError: shapes or dtypes are wrong, or eps is negative or not finite.
        BackendError: `backend` cannot serve this call.
        IndexError, InputError: an id is beyond its table. On a card it is an assertion on the
            device, in torch's gather as in the kernel's.
    """
    check_eps("embedding_norm", eps)
    check_switch("embedding_norm", "rms", rms)
    _check(input_ids, word, weight, bias, rms, token_type=token_type, position=position)
    _check_ids("input_ids", input_ids, input_ids, word)
    _check_ids("token_type_ids", token_type_ids, input_ids, token_type)
    _check_ids("position_ids", position_ids, input_ids, position)
    if position is not None and position_ids is None:
        raise InputError("embedding_norm: position needs position_ids")
    tables = [table for table in (word, token_type, position) if table is not None]
    given = *tables, weight, bias
    name = choose("embedding_norm", backend, backend_table(word), others=("flash_attn",), of=given)
    if name == "reference":
        wide = embedding_norm_reference(
            input_ids, oracle.widen(word), token_type_ids, oracle.widen(token_type), position_ids,
            oracle.widen(position), oracle.widen(weight), oracle.widen(bias), eps, rms,
        )  # fmt: skip
        return wide.to(_dtype(tables))
    learned = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tables, weight, bias)
    )
    if name == "triton" and not learned and {table.dtype for table in tables} == {word.dtype}:
        weight, bias = _known(weight), None if bias is None else _known(bias)
        normed: Tensor = torch.ops.pyenc.embedding_norm(
            input_ids, word, token_type_ids, token_type, position_ids, position, weight, bias, eps,
            rms,
        )  # fmt: skip
        return normed
    x = F.embedding(input_ids, word)
    if token_type is not None:
        x = x + (token_type[0] if token_type_ids is None else few_rows(token_type_ids, token_type))
    if position is not None and position_ids is not None:
        x = x + F.embedding(position_ids, position)
    if rms:
        return add_rms_norm(x, None, weight, eps, backend=backend)[0]
    return add_layer_norm(x, None, weight, bias, eps, backend=backend)[0]


def few_rows(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table that has few, as of types, whose gradient is added up in float32.

    Of halves torch's gather on a CPU adds it up in the half: of thousands of tokens a row it is off
    by a tenth and more. A wide copy of a table of words would be too dear for what it mends.
    """
    half = table.dtype in (torch.bfloat16, torch.float16) and table.device.type == "cpu"
    if not (half and torch.is_grad_enabled() and table.requires_grad):
        return F.embedding(ids, table)
    return F.embedding(ids, table.float()).to(table.dtype)


def backend_table(x: Tensor) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve a table x, for `choose` and `explain`."""
    table = norm_table(x)
    order = ("torch", "triton") if x.device.type == "cpu" else ("triton", "torch")
    return {name: table[name] for name in (*order, "cpu", "reference")}


def _dtype(tables: list[Tensor]) -> torch.dtype:
    dtype = tables[0].dtype
    for table in tables[1:]:
        dtype = torch.promote_types(dtype, table.dtype)
    return dtype


def _known(x: Tensor) -> Tensor:
    """In a dtype that the kernel reads."""
    return x if x.dtype in DTYPE_CODES else x.to(torch.float32)


def _check(
    input_ids: Tensor, word: Tensor, weight: Tensor, bias: Tensor | None, rms: bool,
    **tables: Tensor | None,
) -> None:  # fmt: skip
    op = "embedding_norm"
    check_given(op, word=word, weight=weight)
    check_float(op, word=word, **tables, weight=weight, bias=bias)
    if word.ndim != 2:
        raise InputError(f"{op}: word must be (vocabulary, C), got {tuple(word.shape)}")
    for name, table in tables.items():
        if table is not None and (table.ndim != 2 or table.shape[1] != word.shape[1]):
            raise InputError(
                f"{op}: {name} must be (rows, {word.shape[1]}), got {tuple(table.shape)}"
            )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != word.shape[1:]:
            raise InputError(f"{op}: {name} must be ({word.shape[1]},), got {tuple(tensor.shape)}")
    if rms and bias is not None:
        raise InputError(f"{op}: RMSNorm has no bias")


def _check_ids(name: str, ids: Tensor | None, input_ids: Tensor, table: Tensor | None) -> None:
    op = "embedding_norm"
    if ids is None and name != "input_ids":
        return
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
        found = getattr(ids, "dtype", type(ids).__name__)
        raise InputError(f"{op}: {name} must be an int32 or int64 tensor, got {found}")
    if table is None:
        raise InputError(f"{op}: {name} without the table that they are rows of")
    if ids.device != table.device:
        raise InputError(f"{op}: {name} is on {ids.device}, its table on {table.device}")
    if ids.shape != input_ids.shape:
        raise InputError(
            f"{op}: {name} must be as input_ids, {tuple(input_ids.shape)}; got {tuple(ids.shape)}"
        )
