"""Our own attention, a backend each."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from bench import attention_data as data
from bench.compare import Case, Ready, Tensors
from bench.peers.attention_call import ready
from pyenc.ops import attention


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


def computed_share(case: Case, x: Tensors, skip_eps: float | None = None) -> float | None:
    """What the kernels of the device say of themselves, None where they have no say."""
    where = "cpu" if x["q"].device.type == "cpu" else "triton"
    try:
        share = importlib.import_module(f"pyenc.ops.attention_{where}").computed_share
    except (ImportError, AttributeError):
        return None
    bias, window = data.bias_object(case, x["q"].device), data.window(case)
    return float(
        share(x["q"], x["k"], x["v"], x["cu_seqlens"], bias=bias, window=window, skip_eps=skip_eps)
    )


def share_without_skipping(case: Case, x: Tensors) -> float | None:
    return computed_share(case, x, 0.0)
