"""The CPU segment mean refuses, in Python, whatever could make the C++ read outside an array."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import extension
from pyenc.ops.segment_mean import cpu

pytestmark = pytest.mark.skipif(
    not extension.required() and extension.load() is None, reason=extension.why_missing()
)

X = torch.zeros(4, 2)
CU = torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("x", "cu_seqlens", "weights", "message"),
    [
        (torch.zeros(4), CU, None, "x must be"),
        (X.double(), CU, None, "x must be float32"),
        (torch.zeros(2, 4).T, CU, None, "x must be contiguous"),
        (X.to("meta"), CU, None, "CPU tensor"),
        (X, CU.int()[None], None, "cu_seqlens must be"),
        (X, CU[:0], None, "cu_seqlens must be"),
        (X, CU.float(), None, "cu_seqlens must be int32 or int64"),
        (X, torch.tensor([0, 9, 1, 9, 4])[::2], None, "cu_seqlens must be contiguous"),
        (X, torch.tensor([1, 4]), None, "start at 0"),
        (X, torch.tensor([-1, 4]), None, "start at 0"),
        (X, torch.tensor([0, 3]), None, "ends at"),
        (X, torch.tensor([0, 5]), None, "ends at"),
        (X, torch.tensor([0, 3, 2, 4]), None, "decreases from"),
        (X, torch.tensor([0, 7, 4]), None, "decreases from"),
        (X, CU, torch.ones(3), "weights must be"),
        (X, CU, torch.ones(4).double(), "weights must be torch.float32"),
        (X, CU, torch.ones(8)[::2], "weights must be contiguous"),
    ],
)
def test_cpu_refuses_what_it_must_not_read(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cpu.forward(x, cu_seqlens, weights)


def test_cpu_backward_refuses_what_it_must_not_read() -> None:
    out, stats = cpu.forward_saving(X, CU)
    good = {"grad_out": torch.zeros(2, 2), "out": out, "stats": stats}
    for name, bad in itertools.product(good, (X, out.double(), out.T[:1].T, X[:1])):
        with pytest.raises(InputError, match=name):
            cpu.backward(**{**good, name: bad}, x=X, cu_seqlens=CU, weights=None, normalize=False)
    with pytest.raises(InputError, match="no weights"):
        cpu.backward(**good, x=X, cu_seqlens=CU, weights=None, normalize=False,
                     need_grad_weights=True)  # fmt: skip
