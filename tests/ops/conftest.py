"""What no test of an op may leave to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without packs and wishes of the environment, and with oneDNN: torch turns it
    off by itself once it has no product of bfloat16 on a processor (64-bit ARM without bf16)."""
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    linear_packs.forget_all()
    on = torch.backends.mkldnn.enabled
    yield
    torch.backends.mkldnn.enabled = on  # type: ignore[assignment]
    linear_packs.forget_all()
