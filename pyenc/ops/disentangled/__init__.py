"""`disentangled_attention`: DeBERTa's attention over packed sequences, whose scores have terms of a
token's content beside the other's relative position.

Shapes: T packed tokens, B sequences, H heads, D head dim, R rows of relative positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import BackendError
from .. import launch, oracle
from ..autocast import as_autocast, exactly
from ..backend import WhyNot, always, choose, followed, forward_derivative, transformed
from . import registration as _registration  # noqa: F401  (it registers the ops)
from . import triton as triton_kernel
from .cpu import MAX_HEAD_DIM
from .reference import disentangled_attention_reference
from .rows import DistanceRows
from .validation import OP, check_arguments, check_values


def disentangled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    position_keys: Tensor | None,
    position_queries: Tensor | None,
    rows: DistanceRows,
    positions: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """softmax(s) v within each packed sequence, where r(i - j) is the row of a distance and

        s_ij = scale * (q_i . k_j + q_i . position_keys[r(i - j)]
                        + k_j . position_queries[r(i - j)])

    He et al., DeBERTa, arXiv 2006.03654, equation 4 (there scale is (3 D) ** -0.5). Memory is
    linear in T, forward and backward.

    Args:
        q, k, v: (T, H, D), one floating dtype, one device. Under autocast all are taken in its
            dtype.
        cu_seqlens: (B + 1,) int32 or int64, cumulative lengths: 0 first, T last. On a GPU the
            Triton kernel takes its values, those of positions, and that every distance has its row,
            on trust: to look at them would be to wait for the device. The gradient looks.
        position_keys, position_queries: (R, H, D) in q's dtype, what relative positions are as keys
            and as queries; None leaves a term out, but not both.
        rows: which of them a distance reads.
        positions: (T,) integers, strictly increasing in each sequence; default 0..n-1. They carry
            masks with holes: distances are differences of positions.
        scale: factor of the scores, default D ** -0.5.
        dropout_p: probability of dropping an attention weight, in [0, 1).
        backend: "triton" (no dropout; the forward alone: the gradient is torch's, which reads
            lengths on the host), "cpu" (no dropout), "torch" or "reference"; None chooses.

    Returns:
        (T, H, D) in q's dtype; differentiable once.

    Raises:
        InputError: shapes, dtypes, cu_seqlens, positions or rows are wrong; the message says which.
        BackendError: `backend` cannot serve this call.
    """
    q, k, v = (as_autocast(x) for x in (q, k, v))
    position_keys, position_queries = (as_autocast(x) for x in (position_keys, position_queries))
    check_arguments(
        q, k, v, cu_seqlens, position_keys, position_queries, rows, positions, scale, dropout_p
    )
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    # Drawn from torch's own generator, so that torch.manual_seed makes dropout repeatable.
    seed = torch.randint(2**62, (), device="cpu") if dropout_p > 0 else None
    table = backend_table(q, dropout_p, rows, positions)
    name = choose(OP, backend, table, others=("flash_attn",))
    tables = [x for x in (position_keys, position_queries) if x is not None]
    if name == "reference":
        check_values(q, cu_seqlens, positions, rows)
        with exactly(q.device):
            out = disentangled_attention_reference(
                oracle.widen(q), oracle.widen(k), oracle.widen(v), cu_seqlens,
                position_keys=oracle.widen(position_keys),
                position_queries=oracle.widen(position_queries), rows=rows, positions=positions,
                scale=scale,
            )  # fmt: skip
        return oracle.narrow(out, q.dtype)
    inputs = [q, k, v, *tables]
    if (forward_derivative() and forward_derivative(*inputs)) or (
        transformed() and any(map(followed, inputs))
    ):
        raise BackendError(
            f"{OP}: derivatives forward and transforms of torch.func do not go through its ops; "
            'backend="reference" has them, and torch.autograd.grad goes through all'
        )
    learned = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    made: tuple[Tensor, ...] = torch.ops.pyenc.disentangled_attention(
        q, k, v, position_keys, position_queries, cu_seqlens, positions, rows.span, rows.buckets,
        rows.max_distance, rows.first, rows.end, scale, float(dropout_p), seed, learned, name,
    )  # fmt: skip
    return made[0]


def backend_table(
    q: Tensor,
    dropout_p: float = 0.0,
    rows: DistanceRows | None = None,
    positions: Tensor | None = None,
) -> dict[str, WhyNot]:
    """The backends of this op and why each cannot serve, for `choose` and `explain`."""

    def cpu() -> str | None:
        if q.shape[-1] > MAX_HEAD_DIM:
            return f"head dim {q.shape[-1]} is more than {MAX_HEAD_DIM}"
        return "it has no dropout" if dropout_p > 0 else launch.why_not(q)

    def triton() -> str | None:
        return triton_kernel.why_not(q, dropout_p, rows, positions)

    def reference() -> str | None:
        return "the oracle has no dropout" if dropout_p > 0 else None

    return {"cpu": cpu, "triton": triton, "torch": always, "reference": reference}
