"""`computed_share`: how much of attention's arithmetic a backend does for a call."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose
from ..registered import on_card_of
from . import as_line, backend_table, cpu, triton
from .shared_heads import repeated
from .terms import Bias, is_own, skip_eps_of, terms_of
from .validation import check_arguments, check_values


def computed_share(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: Bias = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
    skip_eps: float | None = None,
    backend: str | None = None,
) -> float:
    """The share of the arithmetic of `attention` that a backend does for a call, in [0, 1].

    Args:
        q, k, v, cu_seqlens, bias, positions, scale, window, skip_eps: as `attention` takes them.
        backend: whose share: "cpu" and "triton" leave out what `skip_eps` lets them, all others
            compute everything; None: of the one that `attention` would choose.

    Returns:
        "cpu": (pairs scored + pairs summed) / (2 * all pairs of a query and a key of its sequence);
        "triton": pairs of grains of 128 met / all of them, which waits for the device, and 1 where
        sequences are on average too short for it to look ("range_length" in pyenc_kernels'
        configs.json); otherwise 1.

    Raises:
        InputError: shapes, dtypes, cu_seqlens or positions are wrong; the message says which.
        BackendError: `backend` cannot serve this call.
    """
    check_arguments(q, k, v, cu_seqlens, bias, positions, window, scale, 0.0, skip_eps)
    table = backend_table(q, k, v, bias, positions=positions, cu_seqlens=cu_seqlens)
    name = choose("attention", backend, table)
    check_values(q, cu_seqlens, bias, positions)
    if name not in ("cpu", "triton"):
        return 1.0
    bias = as_line(bias, q, cu_seqlens, positions, name)
    if k.shape[1] != q.shape[1]:
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    if name == "cpu" and is_own(bias):  # pair by pair
        return 1.0
    terms, eps = terms_of(q, bias, positions, scale, window), skip_eps_of(q, skip_eps)
    if name == "triton":
        with on_card_of(q):
            return triton.computed_share(q, k, cu_seqlens, terms, eps)
    return cpu.forward(q, k, v, cu_seqlens, terms, eps)[-1]
