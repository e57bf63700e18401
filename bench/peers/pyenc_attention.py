"""Our own attention, a backend each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bench import attention_data as data
from bench.compare import Case, Ready, Tensors
from bench.peers.attention_call import ready
from pyenc.ops import attention, computed_share


def ours(backend: str, skip_eps: float | None = None) -> Callable[[Case, Tensors], Ready]:
    def prepare(case: Case, x: Tensors) -> Ready:
        bias, window = data.bias_object(case, x["q"].device), data.window(case)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = attention(
                q, k, v, x["cu_seqlens"],
                bias=bias, window=window, skip_eps=skip_eps, backend=backend,
            )  # fmt: skip
            assert isinstance(out, Tensor)
            return out

        return ready(case, x, forward)

    return prepare


def share(backend: str, skip_eps: float | None = None) -> Callable[[Case, Tensors], float]:
    """What the backend's kernels say of themselves."""

    def of(case: Case, x: Tensors) -> float:
        return computed_share(
            x["q"], x["k"], x["v"], x["cu_seqlens"], bias=data.bias_object(case, x["q"].device),
            window=data.window(case), skip_eps=skip_eps, backend=backend,
        )  # fmt: skip

    return of
