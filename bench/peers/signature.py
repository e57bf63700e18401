"""Peers and oracles of ops that are one function of a few tensors: forward, backward, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.compare import Case, Kind, Peer, Ready, Tensors

Function = Callable[[Kind, Tensors], Any]
"""The kind of a case and its inputs to a tensor, or a tuple of them."""


class Signature:
    """What an op's functions take and give: inputs with a gradient, names of the results."""

    def __init__(self, leaves: Sequence[str], results: Sequence[str] = ("out",)) -> None:
        self.leaves, self.results = tuple(leaves), tuple(results)

    def ready(self, case: Case, x: Tensors, function: Function) -> Ready:
        """Forward without gradients; or with, every result's gradient being x["grad"]."""
        if not case.backward:

            def run() -> Any:
                with torch.no_grad():
                    return function(case.kind, x)

            return Ready(run, lambda out: self._named(out))
        present = [name for name in self.leaves if name in x]
        leaves = {name: x[name].detach().requires_grad_() for name in present}

        def run_both() -> Any:
            out = function(case.kind, {**x, **leaves})
            outs = out if isinstance(out, tuple) else (out,)
            grads = torch.autograd.grad(outs, tuple(leaves.values()), [x["grad"]] * len(outs))
            return tuple(each.detach() for each in outs), grads

        return Ready(
            run_both,
            lambda out: self._named(out[0]) | dict(zip([f"d{n}" for n in present], out[1])),  # noqa: B905
        )

    def peer(self, name: str, function: Function, **facts: Any) -> Peer:
        return Peer(name, lambda case, x: self.ready(case, x, function), **facts)

    def compiled(self, name: str, function: Function, **facts: Any) -> Peer:
        """The function through torch.compile, compiled for each shape."""

        def prepare(case: Case, x: Tensors) -> Ready:
            torch._dynamo.config.recompile_limit = 64
            kind, fast = case.kind, torch.compile(function, dynamic=False)
            # A constant of the graph: a dict of lengths would be guarded number by number.
            return self.ready(case, x, lambda _, tensors: fast(kind, tensors))

        return Peer(name, prepare, compiles=True, **facts)

    def reference(self, function: Function) -> Callable[[Case, Tensors, torch.dtype], Tensors]:
        """An oracle of the reference: floating inputs cast to the dtype asked for."""

        def oracle(case: Case, x: Tensors, dtype: torch.dtype) -> Tensors:
            cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in x.items()}
            ready = self.ready(case, cast, function)
            return ready.results(ready.run())

        return oracle

    def _named(self, out: Any) -> Tensors:
        outs = out if isinstance(out, tuple) else (out,)
        return dict(zip(self.results, outs, strict=True))


def few_or_many(quick: bool, device: torch.device) -> int:
    """Tokens of a case: beyond a processor's cache, and enough to fill a GPU."""
    return 512 if quick else 8192 if device.type == "cpu" else 16384


def randn(case: Case, device: torch.device, **shapes: tuple[int, ...]) -> Tensors:
    """Normal numbers of the case's dtype, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(device, case.torch_dtype)
        for name, shape in shapes.items()
    }


def first_rows(count: int) -> Callable[[Case, Tensors], Tensors]:
    """The first rows of each result, where each row depends on its own input row alone."""

    def sample(case: Case, results: Tensors) -> Tensors:
        return {name: tensor[:count] for name, tensor in results.items()}

    return sample
