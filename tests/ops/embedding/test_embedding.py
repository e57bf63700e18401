"""A sum of embeddings and its norm: the torch backend, the reference, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyenc.errors import InputError
from pyenc.ops import add_layer_norm, add_rms_norm, embedding_norm, extension
from pyenc.ops.embedding import backend_table
from tests.ops.elementwise import DTYPES, check

IDS, TYPES = torch.tensor([[4, 0, 4], [6, 1, 2]]), torch.tensor([[0, 1, 1]] * 2)
WORDS, KINDS, COLUMNS = 7, 2, 24


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_oracle_with_gradients(dtype: torch.dtype, rms: bool) -> None:
    def op(word: Tensor, types: Tensor, places: Tensor, weight: Tensor, *rest: Any, backend: Any):
        bias = None if rms else rest[0]
        return embedding_norm(
            IDS, word, weight, bias, 1e-6, token_type_ids=TYPES, token_type=types,
            position_ids=IDS.flip(0), position=places, rms=rms, backend=backend,
        )  # fmt: skip

    tables = [torch.randn(rows, COLUMNS) * 3 for rows in (WORDS, KINDS, WORDS)]
    check(op, dtype, [*tables, *torch.randn(1 if rms else 2, COLUMNS)])


@pytest.mark.parametrize("backend", [None, "torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_what_it_is_made_of(dtype: torch.dtype, backend: str | None) -> None:
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    word, types, places = (torch.randn(n, COLUMNS).to(dtype) for n in (WORDS, KINDS, WORDS))
    weight, bias = torch.randn(2, COLUMNS).to(dtype)
    known = {"token_type": types, "position": places, "position_ids": IDS, "backend": backend}
    got = embedding_norm(IDS, word, weight, bias, 1e-5, **known)  # type: ignore[arg-type]
    total = word[IDS] + types[0] + places[IDS]
    assert torch.equal(got, add_layer_norm(total, None, weight, bias, 1e-5, backend=backend)[0])
    got = embedding_norm(IDS, word, weight, None, 1e-5, rms=True, backend=backend)
    assert torch.equal(got, add_rms_norm(word[IDS], None, weight, 1e-5, backend=backend)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_types_is_added_up_wide(dtype: torch.dtype) -> None:
    """In the half, as torch's own gather adds them up, the types of many tokens are off by a tenth
    and more."""
    tokens = 8192
    word, types = (torch.randn(n, COLUMNS).to(dtype) for n in (WORDS, KINDS))
    ids, kinds = torch.randint(WORDS, (tokens,)), torch.randint(KINDS, (tokens,))
    onto = (torch.randn(tokens, COLUMNS) + 0.5).to(dtype)

    def gradient(wanted: torch.dtype) -> Tensor:
        table = types.to(wanted).requires_grad_()
        out = embedding_norm(
            ids, word.to(wanted), torch.ones(COLUMNS, dtype=wanted), None, 1e-5,
            token_type_ids=kinds, token_type=table,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(out, table, onto.to(wanted))
        return grad.double()

    right = gradient(torch.float64)
    assert (gradient(dtype) - right).norm() <= torch.finfo(dtype).eps * right.norm()


def test_the_kernel_is_first_on_a_card_alone() -> None:
    with FakeTensorMode():
        on_card = torch.empty(2, 64, device="cuda")
    assert list(backend_table(on_card)) == ["triton", "torch", "cpu", "reference"]
    assert next(iter(backend_table(torch.empty(2, 64)))) == "torch"


GOOD = {
    "input_ids": IDS, "word": torch.randn(WORDS, COLUMNS), "weight": torch.ones(COLUMNS),
    "bias": None, "eps": 1e-5, "token_type_ids": TYPES, "token_type": torch.randn(KINDS, COLUMNS),
    "position_ids": IDS, "position": torch.randn(WORDS, COLUMNS),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": IDS.float()},
            r"input_ids must be an int32 or int64 tensor, got torch.float",
        ),
        ({"input_ids": [1, 2]}, "input_ids must be an int32 or int64 tensor, got list"),
        ({"position_ids": IDS[0]}, r"position_ids must be as input_ids, \(2, 3\); got \(3,\)"),
        ({"position_ids": None}, "position needs position_ids"),
        ({"position": None}, "position_ids without the table"),
        ({"token_type": None}, "token_type_ids without the table"),
        ({"token_type": torch.ones(2, 5)}, r"token_type must be \(rows, 24\), got \(2, 5\)"),
        ({"word": torch.ones(24)}, r"word must be \(vocabulary, C\), got \(24,\)"),
        ({"weight": torch.ones(5)}, r"weight must be \(24,\), got \(5,\)"),
        ({"bias": torch.ones(5)}, r"bias must be \(24,\), got \(5,\)"),
        ({"bias": torch.ones(24), "rms": True}, "RMSNorm has no bias"),
        ({"eps": -1.0}, "embedding_norm: eps must be finite and not negative, got -1"),
        ({"eps": math.nan, "rms": True}, "embedding_norm: eps must be .* got nan"),
        ({"token_type_ids": TYPES.to("meta")}, "token_type_ids is on meta, its table on cpu"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    embedding_norm(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        embedding_norm(**GOOD | change)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
def test_an_id_beyond_its_table_is_an_error(name: str) -> None:
    bad = IDS.clone()
    bad[1, 1] = 99
    with pytest.raises(IndexError):
        embedding_norm(**GOOD | {name: bad}, backend="torch")  # type: ignore[arg-type]
