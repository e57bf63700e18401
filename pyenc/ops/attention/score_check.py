"""`check_score_bias`: whether a bias's Triton functions are what its torch form says.

Shapes: H heads, I queries, J keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError, InputError
from .. import triton_launch
from ..registered import on_card_of
from .along_check import check_along
from .map_decay_check import check_map_decay
from .own_object import DistanceBias, OwnBias, apply_own
from .tail_check import check_tail

_TOLERANCE = 1e-4
"""Of the largest number of its kind; float32 functions of exact positions are off by 1e-6."""
_ROUNDING = 1e-6
"""Of the numbers that a float32 result was made of."""


def check_score_bias(bias: OwnBias, *, span: int = 8192, device: str = "cuda") -> str:
    """Hold everything that `along` and `kernel()` promise against the torch form, at random places.

    Its scores, their slope, and the gradients of the object's `parameters()`, each head and each
    parameter by its own size; that it falls off at least as fast as `decay` says (a map: from what
    it makes of the same score at no distance, which does not fall as that grows), or that far keys
    are given together no more than `tail` says; that it is
    affine, or flat, from `affine_from` on. Places lie on a geometric ladder: as many within 16
    tokens as within 64, 256 and so on. `along` gives each distance a number of its own, whatever
    others are asked for with it: what `block` or `score` adds, where the object has one, and with
    the same gradients; from its `affine_from` on they lie on a straight line.

    Args:
        bias: an object of one's own, with `kernel`, with `along`, or with both.
        span: tokens of the longest sequence that it will meet, from 96: nothing is checked beyond.
        device: where the kernels of `kernel()` run: "cuda", or "cpu" in Triton's interpreter
            (TRITON_INTERPRET=1 before anything imports Triton). `along` needs none.

    Returns:
        What was checked, and up to which distance, in one line to print.

    Raises:
        InputError: something disagrees; the message names the function, by how much, and where.
        BackendError: the kernels cannot run on the device.
    """
    if span < 96:
        raise InputError(f"check_score_bias: span must be at least 96, got {span}")
    name, checked = type(bias).__name__, []
    i, j = _places(span)
    if isinstance(bias, DistanceBias):
        checked.append(check_along(bias, i, j, span))
    elif not hasattr(bias, "kernel"):
        raise InputError(
            f"check_score_bias: {name} has neither along(offsets) nor kernel(): there is nothing "
            "to hold against its torch form"
        )
    if not hasattr(bias, "kernel"):
        return _said(name, checked, i, j, span)
    if (reason := triton_launch.missing(torch.device(device).type)) is not None:
        raise BackendError(f"check_score_bias: {reason}")
    function, params = bias.kernel()  # type: ignore[union-attr]
    if params.ndim != 2:
        raise InputError(f"{name}.kernel: params must be (H, P), got {tuple(params.shape)}")
    s = 3 * torch.randn(params.shape[0], len(i), len(j), dtype=torch.float64, device="cpu")
    probe = triton_launch.module_for("attention.score_probe")
    narrow = params.detach().float().contiguous().to(device)
    placed = (x.float().to(device) for x in (s, i, j))
    with on_card_of(narrow):
        score, slope, learned = probe.values(function, *placed, narrow)
    s = s.float().double().requires_grad_()
    twin = _torch_form(bias, s, i, j, params)
    plain = twin.detach()
    sizes = _finite(plain - s.detach()), _finite(plain)
    _compare(name, "score", score, plain, _TOLERANCE * sizes[0] + _ROUNDING * sizes[1], (i, j))
    # A key that is hidden gives no gradient to anything, whatever a function says there.
    hidden = twin == float("-inf")
    twin, (slope, *learned) = (
        twin.masked_fill(hidden, 0),
        [x.cpu().double().masked_fill(hidden, 0) for x in (slope, *learned)],
    )
    by_s = torch.autograd.grad(twin.sum(), s, retain_graph=True)[0]
    what = "slope (d score / d s; None says 1)"
    _compare(name, what, slope, by_s, _TOLERANCE * _finite(by_s) + _ROUNDING, (i, j))
    checked += ["score", "slope"]
    forms = "lookup", "parameter"
    said = " and ".join(form for form in forms if getattr(function, form)) or "parameter"
    narrow_twin = _torch_form(bias, s.detach().float(), i, j, params).masked_fill(hidden, 0)
    leaves = _check_learned(name, said, bias, params, learned, twin, narrow_twin)
    checked += [f"{said} (gradients of {leaves} tensors)"] if leaves else []
    rates = probe.decay_rates(function, narrow)
    if rates is not None:
        if function.slope is None:
            added = (twin - s).detach().masked_fill(hidden, float("-inf"))
            _check_decay(name, added, i, j, rates.cpu().double())
        else:
            check_map_decay(
                name, lambda s, i, j: _torch_form(bias, s, i, j, params).detach(), i, j,
                rates.cpu().double(),
            )  # fmt: skip
        checked.append("decay")
    if function.tail is not None:

        def row(i: Tensor, j: Tensor) -> Tensor:
            nothing = torch.zeros(len(narrow), 1, len(j), dtype=torch.float64, device="cpu")
            return _torch_form(bias, nothing, i, j, params).detach()[:, 0]

        check_tail(
            name, row, lambda d: probe.tails(function, d.float().to(device), narrow).cpu().double(),
            span,
        )  # fmt: skip
        checked.append("tail")
    if function.affine_from is not None:
        _check_affine(name, bias, function, params, span)
        checked.append(f"affine_from={function.affine_from}")
    if function.by_distance:
        _check_by_distance(name, bias, params, span)
        checked.append("by_distance")
    return _said(name, checked, i, j, span)


def _said(name: str, checked: list[str], i: Tensor, j: Tensor, span: int) -> str:
    return (
        f"{name}: {', '.join(checked)} agree with the torch form on {len(i) * len(j)} pairs a "
        f"head, at distances up to {span - 1}"
    )


def _ladder(span: int) -> list[int]:
    """16, 64, 256 and so on, and span itself."""
    rungs = [16]
    while rungs[-1] * 4 < span:
        rungs.append(rungs[-1] * 4)
    return [*rungs, span]


def _places(span: int) -> tuple[Tensor, Tensor]:
    """Positions of queries and of keys, some of them the same, with the ends among both."""
    places = {0, span - 1}
    rungs = _ladder(span)
    for number, rung in enumerate(rungs, 1):
        drawn = torch.randperm(rung, device="cpu").tolist()
        wanted = 2 + 94 * number // len(rungs)
        for place in drawn:
            if len(places) >= wanted:
                break
            places.add(place)
    ends = torch.tensor([0, span - 1], dtype=torch.long, device="cpu")
    inner = torch.tensor(sorted(places - {0, span - 1}), dtype=torch.long, device="cpu")
    inner = inner[torch.randperm(len(inner), device="cpu")]
    return torch.cat([ends, inner[:38]]), torch.cat([ends, inner[:6], inner[38:]])


def _torch_form(bias: Any, s: Tensor, i: Tensor, j: Tensor, params: Tensor) -> Tensor:
    """The new scores (H, I, J) of s, float64 on the CPU; computed where and as the bias does."""
    where = params.device
    own = s.to(where).clone()  # a map may write over it
    return apply_own(bias, own, i.to(where), j.to(where)).cpu().double()


def _finite(x: Tensor) -> Tensor:
    """(H, 1, 1): the largest finite number of each head's."""
    return x.detach().abs().nan_to_num(0, 0, 0).amax((1, 2), keepdim=True)


def _check_learned(
    name: str,
    said: str,
    bias: Any,
    params: Tensor,
    learned: list[Tensor],
    twin: Tensor,
    narrow_twin: Tensor,
) -> int:
    """The object's own tensors must get the same gradient through `params` as through the twin;
    how many they are. `narrow_twin`: the twin of float32 scores, for what rounding does to it."""
    leaves = [x for x in getattr(bias, "parameters", tuple)() if x.requires_grad]
    if not leaves:
        if learned:
            raise InputError(
                f"{name}: nothing in parameters() requires a gradient, so that its slopes by them "
                "cannot be checked; check an object whose tensors do"
            )
        return 0
    if not params.requires_grad:
        raise InputError(f"{name}: params of kernel() must be made of parameters() by torch ops")
    if not learned:
        raise InputError(
            f"{name}: its tensors want gradients, but its ScoreFunction has neither parameter nor "
            "lookup"
        )
    weight = torch.rand_like(twin) + 0.5  # of one sign: less cancels
    wanted = torch.autograd.grad((twin * weight).sum(), leaves, allow_unused=True)
    rough = torch.autograd.grad((narrow_twin * weight).sum(), leaves, allow_unused=True)
    by_params = torch.zeros(params.shape, dtype=torch.float64, device="cpu")
    made_of = torch.zeros_like(by_params)
    for index, slope in enumerate(learned):
        by_params[:, index] = (slope * weight).sum((1, 2))
        made_of[:, index] = (slope * weight).abs().sum((1, 2))
    given, size = (
        torch.autograd.grad(
            params, leaves, x.to(params.device, params.dtype), allow_unused=True, retain_graph=True
        )
        for x in (by_params, made_of)
    )
    for number, (leaf, *four) in enumerate(zip(leaves, given, wanted, rough, size, strict=True)):
        got, right, rounded, terms = (
            (torch.zeros_like(leaf) if x is None else x).cpu().double() for x in four
        )
        # Parameters of one tensor may differ in size by any factor, mostly from column to column.
        off = (rounded - right).abs()
        noise = off.amax(tuple(range(off.ndim - 1)), keepdim=True) if off.ndim > 1 else off.amax()
        allowed = _TOLERANCE * right.abs() + 3 * noise + _ROUNDING * terms.abs()
        what = f"{said}: the gradient of parameters()[{number}]"
        _compare(name, what, got, right, allowed, None)
    return len(leaves)


def _check_decay(name: str, added: Tensor, i: Tensor, j: Tensor, rates: Tensor) -> None:
    back = (i[:, None] - j[None, :]).double()
    for side, away in enumerate((back.clamp(min=0), (-back).clamp(min=0))):
        over = torch.where(away > 0, added + rates[:, side, None, None].clamp(min=0) * away, 0)
        beyond = over - _TOLERANCE * _finite(added)
        if not beyond.max().item() <= 0:  # a NaN is wrong too
            h, a, b = _where(beyond)
            raise InputError(
                f"{name}: decay promises a rate of {rates[h, side]:.4g} on the "
                f"{('left', 'right')[side]} of head {h}, but what is added at i={int(i[a])}, "
                f"j={int(j[b])} is {added[h, a, b]:.4g}, more than {-rates[h, side]:.4g} * |i - j|"
            )


def _check_affine(name: str, bias: Any, function: Any, params: Tensor, span: int) -> None:
    """On either side, moving the query adds the same whatever the key, and the other way round."""
    for rung in _ladder(max(span - function.affine_from, 32)):
        near, beyond = (torch.randperm(rung // 2, device="cpu")[:8] for _ in range(2))
        far = rung // 2 + function.affine_from + beyond
        for side, i, j in (("left", far, near), ("right", near, far)):
            zero = torch.zeros(params.shape[0], 8, 8, dtype=torch.float64, device="cpu")
            added = _torch_form(bias, zero, i, j, params).detach()
            bent = added - added[:, :1] - added[:, :, :1] + added[:, :1, :1]
            what = "affine"
            if function.flat:
                bent, what = added - added[:, :1, :1], "flat"
            beyond_tolerance = bent.abs() - _TOLERANCE * _finite(added)
            if not beyond_tolerance.max().item() <= 0:
                h, a, b = _where(beyond_tolerance)
                raise InputError(
                    f"{name}: affine_from={function.affine_from} promises a bias that is {what} "
                    f"from there on; on the {side} of head {h} it isn't, by "
                    f"{bent[h, a, b].abs():.4g} at i={int(i[a])}, j={int(j[b])}"
                )


def _check_by_distance(name: str, bias: Any, params: Tensor, span: int) -> None:
    """Query and key moved together, nothing changes."""
    for rung in _ladder(span):
        at, on = (torch.randperm(rung // 2, device="cpu")[:8] for _ in range(2))
        zero = torch.zeros(params.shape[0], 8, 8, dtype=torch.float64, device="cpu")
        for shift in (1, rung - rung // 2):
            added, moved = (
                _torch_form(bias, zero, at + by, on + by, params).detach() for by in (0, shift)
            )
            off = torch.where(added == moved, 0, (moved - added).abs())  # a hidden key, in both
            beyond = off - _TOLERANCE * _finite(added)
            if not beyond.max().item() <= 0:
                h, a, b = _where(beyond)
                raise InputError(
                    f"{name}: by_distance promises a score that j - i decides; in head {h} it is "
                    f"{added[h, a, b]:.4g} more than q.k at i={int(at[a])}, j={int(on[b])} and "
                    f"{moved[h, a, b]:.4g} more {shift} places further on"
                )


def _compare(
    name: str,
    what: str,
    got: Tensor,
    wanted: Tensor,
    allowed: Tensor,
    places: tuple[Tensor, Tensor] | None,
) -> None:
    got, wanted = got.cpu().double(), wanted.cpu().double()
    off = (got - wanted).abs()
    off = torch.where((got == wanted) | (got.isnan() & wanted.isnan()), 0, off)
    beyond = off - allowed
    if bool((beyond <= 0).all()):
        return
    beyond = beyond.nan_to_num(nan=float("inf"))
    at = ""
    if places is not None:
        h, a, b = _where(beyond)
        at = f" at head {h}, i={int(places[0][a])}, j={int(places[1][b])}: "
        at += f"{got[h, a, b]:.6g}, the torch form says {wanted[h, a, b]:.6g}"
    elif got.ndim:
        place = tuple(int(x) for x in torch.unravel_index(beyond.argmax(), beyond.shape))
        at = f" at {list(place)}: {got[place]:.6g}, the torch form says {wanted[place]:.6g}"
    raise InputError(f"{name}: {what} is off by up to {off.max():.3g}{at}")


def _where(x: Tensor) -> tuple[int, int, int]:
    """The place of the largest number of x (H, I, J)."""
    h, a, b = torch.unravel_index(x.argmax(), x.shape)
    return int(h), int(a), int(b)
