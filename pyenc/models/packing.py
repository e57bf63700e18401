"""Padded rows to packed tokens and back: the only place that sees a padding mask.

Shapes: B rows, N padded length, T packed tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..ops.backend import compiling
from ..ops.constant import constant_result
from ..ops.validation import (
    check_beside,
    check_cu_seqlens,
    check_dense,
    check_mask,
    sequence_bounds,
)
from .config import EncoderConfig
from .places import sequence_of_token


@dataclass(frozen=True)
class Packed:
    """Tokens side by side, and where they came from."""

    input_ids: Tensor  # (T,)
    token_type_ids: Tensor | None  # (T,)
    cu_seqlens: Tensor  # (B + 1,) int64
    positions: Tensor  # (T,) columns of the padded rows
    position_ids: Tensor | None  # (T,) counted from the padding id, masked tokens counted too
    has_holes: bool
    """Some row has zeros between its tokens: distances are then not differences of places."""
    index: Tensor | None  # (T,) places in the flattened (B * N); None: all of them, in order
    shape: tuple[int, int]

    def unpack(self, hidden: Tensor) -> Tensor:
        """(T, C) -> (B, N, C), exact zeros where there was padding; differentiable."""
        if self.index is None:
            return hidden.unflatten(0, self.shape)
        rows = hidden.new_zeros(self.shape[0] * self.shape[1], hidden.shape[1])
        return rows.index_copy_(0, self.index, hidden).unflatten(0, self.shape)


def pack(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    padding_id: int | None = None,
) -> Packed:
    """Pack (B, N) ids under a 0/1 mask of any shape: right, left or no padding, holes, empty rows.

    padding_id: of a family whose positions are counted from it. They are counted here, where the
    masked tokens still are: an id that is masked, and no padding, takes a position.

    Raises:
        InputError: shapes or devices disagree, ids are not integers, or the mask is not of zeros
            and ones.
    """
    _check_integers("input_ids", input_ids)
    _check_values("Encoder", input_ids)
    if input_ids.ndim != 2:
        raise InputError(f"input_ids must be (B, N), got {tuple(input_ids.shape)}")
    if token_type_ids is not None:
        check_like("token_type_ids", token_type_ids, input_ids)
    position_ids = None
    if padding_id is not None:
        rows, length = input_ids.shape
        bounds = torch.arange(rows + 1, device=input_ids.device) * length
        position_ids = count_from_padding(input_ids.reshape(-1), bounds, padding_id)
    if attention_mask is None:
        return _all(input_ids, token_type_ids, position_ids)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask must be a tensor shaped as input_ids, {tuple(input_ids.shape)}; got "
            f"{getattr(attention_mask, 'shape', type(attention_mask).__name__)}"
        )
    check_mask("Encoder", "attention_mask", attention_mask)
    check_beside("Encoder", input_ids, attention_mask=attention_mask)
    kept = attention_mask != 0
    zeros_and_ones = (kept == attention_mask).all()
    message = "attention_mask must hold zeros and ones only (it is not additive)"
    one_graph = compiling() and _one_graph()
    if one_graph:
        torch._assert_async(zeros_and_ones, message)
    elif not bool(zeros_and_ones):
        raise InputError(message)
    rows, length = input_ids.shape
    index = kept.reshape(-1).nonzero().squeeze(-1)
    counts = kept.sum(1)
    cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    positions = index % length if length else index
    return Packed(
        input_ids=input_ids.reshape(-1)[index],
        token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1)[index],
        cu_seqlens=cu_seqlens,
        positions=positions,
        position_ids=None if position_ids is None else position_ids[index],
        # To ask for the values would break the graph; holes are what is right for every mask.
        has_holes=one_graph or _has_holes(kept, counts),
        index=index,
        shape=(rows, length),
    )


@constant_result
def _one_graph() -> bool:
    """Whether torch.compile takes the number of tokens under a mask into its graph."""
    import torch._dynamo.config as dynamo

    return bool(dynamo.capture_dynamic_output_shape_ops)


def _all(input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Packed:
    """Without a mask nothing depends on values, so torch.compile sees every shape."""
    rows, length = input_ids.shape
    columns = torch.arange(length, device=input_ids.device)
    return Packed(
        input_ids=input_ids.reshape(-1),
        token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1),
        cu_seqlens=torch.arange(rows + 1, device=input_ids.device) * length,
        positions=columns.repeat(rows),
        position_ids=position_ids,
        has_holes=False,
        index=None,
        shape=(rows, length),
    )


def _check_integers(name: str, ids: Tensor) -> None:
    if not isinstance(ids, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        raise InputError(f"{name} must be integers, int32 or int64, got {ids.dtype}")
    check_dense("Encoder", name, ids)


def _check_values(what: str, ids: Tensor) -> None:
    """Ids are looked at."""
    if ids.device.type == "meta":
        raise InputError(
            f"{what}: input_ids are on meta, where they have no values; to be read, they "
            "and the encoder's parameters must be on another device"
        )


def check_like(name: str, given: Tensor, input_ids: Tensor) -> None:
    """Token types and positions are integers, one for each token, and on one device."""
    _check_integers(name, given)
    check_beside("Encoder", input_ids, **{name: given})
    if given.shape != input_ids.shape:
        raise InputError(
            f"{name} must be shaped as input_ids, {tuple(input_ids.shape)}; got "
            f"{tuple(given.shape)}"
        )


def check_packed(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None = None,
    *,
    values: bool = True,
) -> None:
    """Packed ids (T,), their cumulative lengths and what else each token has fit together, or an
    `InputError` says why.

    values: also what is in cu_seqlens, which on a GPU waits for it.
    """
    _check_integers("input_ids", input_ids)
    if input_ids.ndim != 1:
        raise InputError(f"forward_packed: input_ids must be (T,), got {tuple(input_ids.shape)}")
    check_cu_seqlens("forward_packed", cu_seqlens)
    for name, given in (
        ("positions", positions),
        ("position_ids", position_ids),
        ("token_type_ids", token_type_ids),
    ):
        if given is not None:
            check_like(name, given, input_ids)
    if values and not compiling():
        _check_values("forward_packed", input_ids)
        check_beside("forward_packed", input_ids, cu_seqlens=cu_seqlens)
        sequence_bounds("forward_packed", cu_seqlens, input_ids.shape[0])


def check_ranges(
    config: EncoderConfig,
    input_ids: Tensor,
    position_ids: Tensor | None,
    token_type_ids: Tensor | None,
) -> None:
    """Packed values (T,) are rows of the encoder's tables, or an `InputError` says which is not.

    Not looked at under torch.compile.
    """
    if compiling() or input_ids.numel() == 0:
        return
    limits = [("token id", input_ids, config.vocab_size)]
    if token_type_ids is not None:
        limits.append(("token type", token_type_ids, max(1, config.type_vocab_size)))
    if position_ids is not None:
        limits.append(("position", position_ids, config.num_positions))
    for what, values, limit in limits:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= limit:
            bad = low if low < 0 else high
            t = int((values == bad).nonzero()[0])
            story = ""
            if what == "position" and config.padding_id is not None:
                most = limit - config.padding_id - 1
                story = f", counted from after the padding id {config.padding_id}: {most} tokens"
            raise InputError(
                f"{what} {bad} at packed token {t} is out of range: this checkpoint has 0 to "
                f"{limit - 1}{story}"
            )


def count_from_padding(input_ids: Tensor, cu_seqlens: Tensor, padding_id: int) -> Tensor:
    """RoBERTa's positions, (T,) int64: the n-th id of a sequence that is not the padding id stands
    at n + padding_id (the first is n = 1), and padding ids at padding_id.
    """
    real = input_ids != padding_id
    # One sum over all, less what it was at the beginning of each sequence.
    before = torch.nn.functional.pad(real.cumsum(0), (1, 0))
    starts = cu_seqlens.long()[sequence_of_token(cu_seqlens, input_ids.shape[0])]
    return (before[1:] - before[starts]) * real + padding_id


def _has_holes(kept: Tensor, counts: Tensor) -> bool:
    if kept.shape[1] == 0:
        return False
    first = kept.int().argmax(1)
    last = kept.shape[1] - 1 - kept.flip(1).int().argmax(1)
    return bool(((counts > 0) & (last - first + 1 != counts)).any())
