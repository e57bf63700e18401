"""`experts`: a mixture's feed-forwards, of which each token goes through a few.

Shapes as suffixes: T packed tokens, K experts of a token, E experts, C channels, F feed-forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import oracle
from ..activation import check_activation
from ..autocast import as_autocast, exactly
from ..backend import (
    BACKENDS,
    OF_LINEAR,
    WhyNot,
    always,
    choose,
    compiling,
    hides_values,
    jit_traces,
    requested_backend,
    transformed,
)
from ..validation import check_beside, check_float, check_given
from . import registration as _registration  # noqa: F401  (it registers the op)
from .grouped import summed
from .reference import experts_reference

_TABLE: dict[str, WhyNot] = {"torch": always, "reference": always}
OTHERS = tuple(name for name in (*BACKENDS, *OF_LINEAR) if name not in _TABLE)
"""What is asked of the products alone."""


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str = "gelu",
    *,
    backend: str | None = None,
) -> Tensor:
    """sum_k w_tk * activation(x_t up_e^T) down_e, e = chosen_tk: a sparse mixture (Shazeer et al.,
    arXiv 1701.06538), dropless (Gale et al., MegaBlocks, arXiv 2211.15841).

    Tokens are taken together by expert, and each expert makes two products (`linear`) of its own
    tokens alone; none is left out, however many go to one. What a token gets is the sum over its
    own experts in the order of `chosen`, so that who else is there counts no more than in
    `linear`. How many tokens each expert has is read on the host: on a GPU one wait a call, and no
    CUDA graph.

    Args:
        x: (T, C), float16/32/64 or bfloat16. Under autocast it and the experts are taken in its
            dtype.
        chosen: (T, K) int32 or int64, experts of each token, from 0 to E - 1.
        weights: (T, K) floating point, of each of them; halves are best weighted in float32.
        up, down: (E, F, C) each, in x's dtype; the second product takes the rows of `down` as they
            are, not turned.
        activation: one of `ACTIVATIONS`.
        backend: a name that `linear` has, for the products; "reference" is the dense formula of
            every token through every expert, as torch.func and torch.jit's traces have it with
            each. Differentiable with each.

    Returns:
        (T, C), dtype of x (under autocast, autocast's), rounded once.

    Raises:
        InputError: shapes, dtypes, the activation's name or a chosen expert are wrong.
        BackendError: `backend` cannot serve this call.
    """
    check_given("experts", x=x, chosen=chosen, weights=weights, up=up, down=down)
    check_float("experts", x=x, weights=weights, up=up, down=down)
    check_beside("experts", x, chosen=chosen)
    _check(x, chosen, weights, up, down)
    check_activation("experts", activation)
    x, up, down = (as_autocast(tensor) for tensor in (x, up, down))
    if x.dtype != up.dtype or x.dtype != down.dtype:
        raise InputError(
            f"experts: x, up and down must share a dtype; got {x.dtype}, {up.dtype}, {down.dtype}"
        )
    name = choose("experts", backend, _TABLE, others=OTHERS)
    # torch.func may take many choices at once, and a trace of torch.jit would keep this call's.
    if name == "reference" or transformed() or jit_traces():
        with exactly(x.device):
            wide = experts_reference(
                oracle.widen(x), chosen, oracle.widen(weights), oracle.widen(up),
                oracle.widen(down), activation,
            )  # fmt: skip
        return oracle.narrow(wide, x.dtype)
    if compiling() or hides_values(x, chosen):
        opaque: Tensor = torch.ops.pyenc.experts(
            x, chosen, weights, up, down, activation, requested_backend(backend)
        )
        return opaque
    return summed(x, chosen, weights, up, down, activation, backend)


def _check(x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> None:
    if up.ndim != 3 or 0 in up.shape or down.shape != up.shape:
        raise InputError(
            f"experts: up and down must be (E, F, C) each, of one shape and none of it zero; got "
            f"{tuple(up.shape)} and {tuple(down.shape)}"
        )
    if x.ndim != 2 or x.shape[1] != up.shape[2]:
        raise InputError(f"experts: x must be (T, {up.shape[2]}), got {tuple(x.shape)}")
    if chosen.dtype not in (torch.int32, torch.int64):
        raise InputError(f"experts: chosen must be int32 or int64, got {chosen.dtype}")
    if chosen.ndim != 2 or chosen.shape[0] != x.shape[0] or chosen.shape[1] < 1:
        raise InputError(
            f"experts: chosen must be ({x.shape[0]}, K) with K at least 1, got "
            f"{tuple(chosen.shape)}"
        )
    if weights.shape != chosen.shape:
        raise InputError(
            f"experts: weights must be as chosen, {tuple(chosen.shape)}; got {tuple(weights.shape)}"
        )
