"""`check_score_bias`: whether a bias's Triton functions are what its torch form says.

Shapes: H heads, I queries, J keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError, InputError
from .. import triton_launch
from .bias import ScoreBias, ScoreMap, apply_own

_TOLERANCE = 1e-4
"""Of the largest number of its kind; float32 functions of exact positions are off by 1e-6."""


def check_score_bias(bias: ScoreBias | ScoreMap, *, span: int = 600, device: str = "cuda") -> None:
    """Hold everything that `bias.kernel()` promises against the torch form, at random places.

    Its scores, their slope, and the gradients of the object's `parameters()`; that it falls off at
    least as fast as `decay` says; that it is affine, or flat, from `affine_from` on.

    Args:
        bias: an object of one's own with `block` or `score`, and `kernel`.
        span: positions are drawn from 0 to this.
        device: where the kernels run: "cuda", or "cpu" in Triton's interpreter (TRITON_INTERPRET=1
            before anything imports Triton).

    Raises:
        InputError: something disagrees; the message names the function, by how much, and where.
        BackendError: the kernels cannot run on the device.
    """
    if (reason := triton_launch.why_not(torch.empty(0, device=device))) is not None:
        raise BackendError(f"check_score_bias: {reason}")
    name = type(bias).__name__
    function, params = bias.kernel()  # type: ignore[union-attr]
    if params.ndim != 2:
        raise InputError(f"{name}.kernel: params must be (H, P), got {tuple(params.shape)}")
    places = torch.randperm(span)[:96]
    i, j = places[:40], torch.cat([places[:8], places[40:]])  # some pairs on the diagonal
    s = 3 * torch.randn(params.shape[0], len(i), len(j), dtype=torch.float64)
    probe = triton_launch.module_for("attention.score_probe")
    narrow = params.detach().float().contiguous().to(device)
    placed = (x.float().to(device) for x in (s, i, j))
    score, slope, learned = probe.values(function, *placed, narrow)
    s = s.float().double().requires_grad_()
    twin = apply_own(bias, s.to(params.device), i.to(params.device), j.to(params.device))
    twin = twin.cpu().double()
    _compare(name, "score", score, twin.detach(), (i, j))
    # A key that is hidden gives no gradient to anything, whatever a function says there.
    hidden = twin == float("-inf")
    twin, (slope, *learned) = (
        twin.masked_fill(hidden, 0),
        [x.cpu().double().masked_fill(hidden, 0) for x in (slope, *learned)],
    )
    by_s = torch.autograd.grad(twin.sum(), s, retain_graph=True)[0]
    _compare(name, "slope (d score / d s; None says 1)", slope, by_s, (i, j))
    said = "parameter" if function.lookup is None else "lookup"
    _check_learned(name, said, bias, params, learned, twin)
    rates = probe.decay_rates(function, narrow)
    if rates is not None:
        added = (twin - s).detach().masked_fill(hidden, float("-inf"))
        _check_decay(name, added, i, j, rates.cpu().double())
    if function.affine_from is not None:
        _check_affine(name, bias, function, params, span)


def _check_learned(
    name: str, said: str, bias: Any, params: Tensor, learned: list[Tensor], twin: Tensor
) -> None:
    """The object's own tensors must get the same gradient through `params` as through the twin."""
    leaves = [x for x in getattr(bias, "parameters", tuple)() if x.requires_grad]
    if not leaves:
        if learned:
            raise InputError(
                f"{name}: nothing in parameters() requires a gradient, so that its slopes by them "
                "cannot be checked; check an object whose tensors do"
            )
        return
    if not params.requires_grad:
        raise InputError(f"{name}: params of kernel() must be made of parameters() by torch ops")
    if not learned:
        raise InputError(
            f"{name}: its tensors want gradients, but its ScoreFunction has neither parameter nor "
            "lookup"
        )
    weight = torch.randn_like(twin)
    wanted = torch.autograd.grad((twin * weight).sum(), leaves, allow_unused=True)
    by_params = torch.zeros(params.shape, dtype=torch.float64)
    for index, slope in enumerate(learned):
        by_params[:, index] = (slope * weight).sum((1, 2))
    given = torch.autograd.grad(
        params, leaves, by_params.to(params.device, params.dtype), allow_unused=True
    )
    for number, (a, b, leaf) in enumerate(zip(given, wanted, leaves, strict=True)):
        got, right = ((torch.zeros_like(leaf) if x is None else x) for x in (a, b))
        _compare(name, f"{said}: the gradient of parameters()[{number}]", got, right, None)


def _check_decay(name: str, added: Tensor, i: Tensor, j: Tensor, rates: Tensor) -> None:
    back = (i[:, None] - j[None, :]).double()
    for side, away in enumerate((back.clamp(min=0), (-back).clamp(min=0))):
        over = torch.where(away > 0, added + rates[:, side, None, None].clamp(min=0) * away, 0)
        scale = max(1.0, added.nan_to_num(0, 0, 0).abs().max().item())
        if not over.max().item() <= _TOLERANCE * scale:  # a NaN is wrong too
            h, a, b = _where(over)
            raise InputError(
                f"{name}: decay promises a rate of {rates[h, side]:.4g} on the "
                f"{('left', 'right')[side]} of head {h}, but what is added at i={int(i[a])}, "
                f"j={int(j[b])} is {added[h, a, b]:.4g}, more than {-rates[h, side]:.4g} * |i - j|"
            )


def _check_affine(name: str, bias: Any, function: Any, params: Tensor, span: int) -> None:
    """On either side, moving the query adds the same whatever the key, and the other way round."""
    width = max(span // 4, 8)
    near, far = torch.randperm(width)[:8], width + function.affine_from + torch.randperm(width)[:8]
    for side, i, j in (("left", far, near), ("right", near, far)):
        zero = torch.zeros(params.shape[0], 8, 8, dtype=torch.float64, device=params.device)
        added = apply_own(bias, zero, i.to(params.device), j.to(params.device)).detach()
        added = added.cpu().double()
        bent = added - added[:, :1] - added[:, :, :1] + added[:, :1, :1]
        what = "affine"
        if function.flat:
            bent, what = added - added[:, :1, :1], "flat"
        if not bent.abs().max().item() <= _TOLERANCE * max(1.0, added.abs().max().item()):
            h, a, b = _where(bent.abs())
            raise InputError(
                f"{name}: affine_from={function.affine_from} promises a bias that is {what} from "
                f"there on; on the {side} of head {h} it isn't, by {bent[h, a, b].abs():.4g} at "
                f"i={int(i[a])}, j={int(j[b])}"
            )


def _compare(
    name: str, what: str, got: Tensor, wanted: Tensor, places: tuple[Tensor, Tensor] | None
) -> None:
    got, wanted = got.cpu().double(), wanted.cpu().double()
    off = (got - wanted).abs()
    off = torch.where((got == wanted) | (got.isnan() & wanted.isnan()), 0, off)
    scale = max(1.0, wanted.nan_to_num(0, 0, 0).abs().max().item() if wanted.numel() else 0.0)
    if not bool((off <= _TOLERANCE * scale).all()):
        at = ""
        if places is not None:
            h, a, b = _where(off.nan_to_num(nan=float("inf")))
            at = f" at head {h}, i={int(places[0][a])}, j={int(places[1][b])}: "
            at += f"{got[h, a, b]:.6g}, the torch form says {wanted[h, a, b]:.6g}"
        raise InputError(f"{name}: {what} is off by up to {off.max():.3g}{at}")


def _where(x: Tensor) -> tuple[int, int, int]:
    """The place of the largest number of x (H, I, J)."""
    h, a, b = torch.unravel_index(x.argmax(), x.shape)
    return int(h), int(a), int(b)
