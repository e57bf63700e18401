"""What torch.compile keeps on disk is of one pyenc alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import pyenc
from pyenc.ops import graph_keys, segment_mean


def found_and_missed() -> tuple[int, int]:
    """Of the graphs of one function that a new process would compile."""
    torch._dynamo.reset()
    counters.clear()
    bounds = torch.tensor([0, 2, 5])

    def forward(x: Tensor) -> Tensor:
        return segment_mean(x, bounds)

    x = torch.randn(5, 8, requires_grad=True)
    torch.compile(forward, fullgraph=True)(x).sum().backward()
    kept = counters["aot_autograd"]
    return kept["autograd_cache_hit"], kept["autograd_cache_miss"]


def test_another_pyenc_is_not_handed_a_graph_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = torch.compiler.config
    with config.patch(cache_key_tag="my own"), fresh_cache():
        assert found_and_missed() == (0, 1)
        assert config.cache_key_tag.startswith("my own pyenc ")
        assert found_and_missed() == (1, 0)
        monkeypatch.setattr(graph_keys, "_mine", lambda: "pyenc of tomorrow")
        assert found_and_missed() == (0, 1)
    torch._dynamo.reset()


def test_it_goes_by_all_sources_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(graph_keys, "sources_digest", lambda *a: (asked.append(a), "digest")[1])
    assert graph_keys._mine.__wrapped__() == f"pyenc {pyenc.__version__} digest"
    assert asked == [(Path(pyenc.__file__).parent, (".py",))]
