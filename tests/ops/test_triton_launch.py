"""Which cards the Triton kernels are asked to run on."""

from __future__ import annotations

import re

import pytest
import torch

from pyenc.ops import triton_launch


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        ([(8, 0), (12, 0)], None),
        ([(9, 0), (7, 5)], r"need sm_80 or later, and card 1 \(Card 1\) is sm_75 "),
        ([(7, 0)], r"card 0 \(Card 0\) is sm_70 "),
    ],
)
def test_cards_that_are_too_old(
    cards: list[tuple[int, int]], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: cards[number])
    monkeypatch.setattr(torch.cuda, "get_device_name", "Card {}".format)
    monkeypatch.setattr(triton_launch.pyenc_kernels, "unavailable_reason", lambda kind: None)
    found = triton_launch.missing("cuda")
    assert found is None if reason is None else re.search(reason, found or "")


def test_where_triton_is_missing_no_card_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch.pyenc_kernels, "unavailable_reason", lambda kind: "none")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("asked"))
    assert triton_launch.missing("cuda") == "none"
