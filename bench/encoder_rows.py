"""What the programs of whole encoders have in common: their inputs, and what is said of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench import workloads
from bench.peers.encoders import Peer
from bench.subjects import SUBJECTS, VOCABULARY, tokenizing


def inputs(model: str, lengths: Sequence[int], source: Any = None) -> Any:
    """Texts or token ids of these lengths; source: what the subject's own gave."""
    subject = SUBJECTS[model]
    if subject.texts:
        return workloads.texts_of(lengths, tokenizing(source or subject.source()))
    return workloads.token_ids(lengths, VOCABULARY)


def difference(a: Any, b: Any) -> float:
    """max |a - b|; NaN counts as infinite."""
    a, b = (torch.as_tensor(x) for x in (a, b))
    off = (a.double() - b.to(a.device).double()).abs()
    return float(torch.nan_to_num(off, nan=torch.inf).max())


def best_peer(
    peers: Mapping[str, Peer], precision: str, found: dict[str, Any]
) -> dict[str, Any] | None:
    """The fastest program that computes the same function, ours aside; None without one."""
    ratios = {
        name: result["ratio"]
        for name, result in found.items()
        if result.get("precision") == precision
        and result.get("ratio") is not None
        and peers[name].tolerance is not None
        and not name.startswith("pyenc")
    }
    if not ratios:
        return None
    name = min(ratios, key=lambda name: ratios[name])
    return {"peer": name, "ratio": ratios[name]}
