"""Triton's own fused-attention tutorial."""

from __future__ import annotations

import importlib.util
import os

from torch import Tensor

from bench.compare import CannotServe, Case, Ready, Tensors
from bench.peers.attention_call import in_batches, ready


def attention(case: Case, x: Tensors) -> Ready:
    """Where TRITON_TUTORIAL names its file."""
    path = os.environ.get("TRITON_TUTORIAL")
    if not path:
        raise CannotServe("set TRITON_TUTORIAL to Triton's 06-fused-attention.py")
    plain = case.kind["bias"] == "none" and not case.kind["window"]
    if case.backward or not plain or len(set(case.kind["lengths"])) > 1:
        raise CannotServe("forward without a bias, equal lengths")
    spec = importlib.util.spec_from_file_location("triton_tutorial", path)
    if spec is None or spec.loader is None:
        raise CannotServe(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scale = case.kind["dim"] ** -0.5

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.contiguous() for each in (q, k, v))
        return module.attention(q, k, v, False, scale, False)  # type: ignore[no-any-return]

    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))
