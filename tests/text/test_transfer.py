"""What goes to a GPU and comes back makes nobody wait; without a card, by what is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyenc.text import transfer

CPU = torch.device("cpu")


def test_sent_in_one_piece() -> None:
    arrays = [
        np.arange(5, dtype=np.int32), np.zeros(0, dtype=np.int64), np.arange(100, 117),
        np.array([7, -8]),
    ]  # fmt: skip
    got = transfer.sent(arrays, CPU)
    assert [x.tolist() for x in got] == [a.tolist() for a in arrays]
    assert {x.dtype for x in got} == {torch.int64}
    assert len({x.untyped_storage().data_ptr() for x in got}) == 1
    assert not any(x.storage_offset() % 16 for x in got)
    assert got[0].untyped_storage().nbytes() == 8 * (16 + 0 + 32 + 16)
    assert {x.device.type for x in transfer.sent(arrays, torch.device("meta"))} == {"meta"}


def test_what_is_sent_to_a_card_is_pinned_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []

    def pinned(self: Tensor) -> Tensor:
        calls.append("pinned")
        return self

    def moved(self: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        calls.append((device.type, non_blocking))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "to", moved)
    transfer.sent([np.arange(3), np.arange(2)], torch.device("cuda", 0))
    assert calls == ["pinned", ("cuda", True)]


class OnACard(Tensor):
    """Says that it lies on one."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def test_a_batch_is_waited_for_when_the_next_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def leaving(values: Tensor) -> Callable[[], Tensor]:
        number = int(values[0])
        seen.append(f"leaves {number}")

        def wait() -> Tensor:
            seen.append(f"waited for {number}")
            return torch.tensor([number])

        return wait

    def batches() -> Iterator[tuple[int, Tensor]]:
        for number in (4, 2, 9):
            seen.append(f"runs {number}")
            yield number, torch.tensor([number]).as_subclass(OnACard)

    monkeypatch.setattr(transfer, "leaving", leaving)
    got = [(number, values.tolist()) for number, values in transfer.landed(batches(), CPU)]
    assert got == [(4, [4]), (2, [2]), (9, [9])]
    assert seen == [
        "runs 4", "leaves 4", "runs 2", "leaves 2", "waited for 4",
        "runs 9", "leaves 9", "waited for 2", "waited for 9",
    ]  # fmt: skip


def test_on_the_host_nothing_is_held_back() -> None:
    seen: list[int] = []

    def batches() -> Iterator[tuple[int, Tensor]]:
        for number in range(3):
            seen.append(number)
            yield number, torch.tensor([number])

    got = [(seen[-1], number, int(values)) for number, values in transfer.landed(batches(), CPU)]
    assert got == [(number, number, number) for number in range(3)]
    assert list(transfer.landed(iter(()), CPU)) == []


def test_what_stays_off_the_host_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transfer, "leaving")
    batches = ((number, torch.ones(2).as_subclass(OnACard)) for number in (3, 1))
    got = list(transfer.landed(batches, torch.device("meta")))
    assert [(number, values.device.type) for number, values in got] == [(3, "meta"), (1, "meta")]
