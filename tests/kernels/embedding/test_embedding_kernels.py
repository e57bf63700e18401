"""The Triton kernel of a sum of embeddings and its norm against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import embedding_norm
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right, naively

Given = dict[str, Any]

FORMS = ["all", "positions", "types", "first type", "words"]
"""What is summed up."""
CASES = [("all", 37, 40), ("positions", 1, 3), ("types", 5, 65), ("first type", 9, 64),
         ("words", 4, 129)]  # fmt: skip
"""Form, tokens, columns."""


def made(form: str, tokens: int, columns: int, device: str, ids: torch.dtype) -> Given:
    def table(rows: int) -> Tensor:
        return torch.randn(rows, columns, device=device) * 2 + 1

    def rows_of(count: int) -> Tensor:
        """The last row among them."""
        drawn = torch.randint(count, (tokens,), dtype=ids, device=device)
        drawn[-1] = count - 1
        return drawn

    weight, bias = torch.randn(2, columns, device=device)
    given: Given = {
        "input_ids": rows_of(51), "word": table(51), "weight": weight, "bias": bias, "eps": 1e-6,
    }  # fmt: skip
    if form in ("all", "types", "first type"):
        given["token_type"] = table(3)
    if form in ("all", "types"):
        given["token_type_ids"] = rows_of(3)
    if form in ("all", "positions"):
        given |= {"position": table(23), "position_ids": rows_of(23)}
    return given


def cast(given: Given, dtype: torch.dtype) -> Given:
    return {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in given.items()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(dtype: torch.dtype, rms: bool, seed: int, device: str) -> None:
    torch.manual_seed(torch.initial_seed() + seed)
    for form, tokens, columns in CASES:
        ids = torch.int32 if seed % 2 else torch.int64
        given = cast(made(form, tokens, columns, device, ids), dtype) | {"rms": rms}
        if rms:
            given["bias"] = None
        with naively():
            naive = embedding_norm(**given, backend="reference")
            oracle = embedding_norm(**cast(given, torch.float64), backend="reference")
        got = embedding_norm(**given, backend="triton")
        assert got.dtype == dtype
        assert_right(got, naive, oracle, what=f"{form} {dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_of_gathers_sums_and_a_norm_apart(
    form: str, dtype: torch.dtype, device: str
) -> None:
    """Rounded wherever torch rounds: with a gradient it is torch's sums and the norm's kernel."""
    given = cast(made(form, 21, 48, device, torch.int64), dtype)
    together = embedding_norm(**given, backend="triton")
    given["weight"].requires_grad_()
    apart = embedding_norm(**given, backend="triton")
    assert apart.requires_grad
    assert not together.requires_grad
    assert torch.equal(together, apart.detach())


def test_a_gradient_is_that_of_torch(device: str) -> None:
    """Rows that repeat add up in their table."""
    found = []
    for backend in ("triton", "torch"):
        torch.manual_seed(1)
        given = made("all", 30, 24, device, torch.int64)
        leaves = [given[name].requires_grad_() for name in ("word", "token_type", "position")]
        out = embedding_norm(**given, backend=backend)
        found.append(torch.autograd.grad((out * torch.arange(24, device=device)).sum(), leaves))
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def test_other_shapes_strides_and_dtypes_of_parameters(device: str) -> None:
    given = made("all", 12, 40, device, torch.int64)
    right = embedding_norm(**given, backend="triton")
    square = {n: x.view(3, 4) if n.endswith("ids") else x for n, x in given.items()}
    assert torch.equal(embedding_norm(**square, backend="triton"), right.view(3, 4, 40))
    apart = {n: x[::2] for n, x in given.items() if n.endswith("ids")}
    assert torch.equal(embedding_norm(**given | apart, backend="triton"), right[::2])
    wide = torch.randn(51, 80, device=device)
    wide[:, 40:] = given["word"]
    assert torch.equal(embedding_norm(**given | {"word": wide[:, 40:]}, backend="triton"), right)
    across = given["position"].t().contiguous().t()
    assert torch.equal(embedding_norm(**given | {"position": across}, backend="triton"), right)
    half = cast(given, torch.bfloat16) | {"weight": given["weight"], "bias": given["bias"].double()}
    out = embedding_norm(**half, backend="triton")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), right, rtol=0.05, atol=0.05)


def test_tables_of_two_dtypes_are_summed_apart(device: str) -> None:
    given = made("all", 6, 16, device, torch.int64)
    given["word"] = given["word"].half()
    got, right = (embedding_norm(**given, backend=name) for name in ("triton", "torch"))
    assert got.dtype == right.dtype == torch.float32
    torch.testing.assert_close(got, right)


def test_no_tokens_and_one_row(device: str) -> None:
    given = made("all", 2, 16, device, torch.int64)
    none = {n: x[:0] for n, x in given.items() if n.endswith("ids")}
    assert embedding_norm(**given | none, backend="triton").shape == (0, 16)
    zeros = {n: torch.zeros_like(x) for n, x in given.items() if n.endswith("ids")}
    ones = {n: given[n][:1] for n in ("word", "token_type", "position")}
    got, right = (embedding_norm(**given | zeros | ones, backend=b) for b in ("triton", "torch"))
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("bad", [-1, 10**6])
def test_an_id_beyond_its_table_is_an_error(name: str, bad: int, device: str) -> None:
    if device == "cuda":
        pytest.skip("on a card it is an assertion, which ends the process's use of the card")
    given = made("all", 5, 16, device, torch.int64)
    given[name][3] = bad
    with pytest.raises(InputError, match="an id is out of range: 0 to"):
        embedding_norm(**given, backend="triton")


def test_what_it_cannot_serve_is_named(device: str) -> None:
    from pyenc_kernels.embedding import WIDEST

    wide = torch.ones(2, WIDEST + 1, device=device)
    ids = torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(BackendError, match="8193 channels are longer than a program holds, 8192"):
        embedding_norm(ids, wide, wide[0], None, 1e-5, backend="triton")
    embedding_norm(ids, wide, wide[0], None, 1e-5)
    double = wide[:, :8].double()
    with pytest.raises(BackendError, match=r"no torch\.float64 kernel"):
        embedding_norm(ids, double, double[0], None, 1e-5, backend="triton")


def test_a_gradient_of_the_registered_op_is_refused(device: str) -> None:
    """It would be none, and without a word; `embedding_norm` itself has one, by steps."""
    given = made("words", 4, 8, device, torch.int64)
    given["word"].requires_grad_()
    no_tables = (None,) * 4
    args = (
        given["input_ids"],
        given["word"],
        *no_tables,
        given["weight"],
        given["bias"],
        1e-6,
        False,
    )
    out = torch.ops.pyenc.embedding_norm(*args)
    with pytest.raises(BackendError, match="embedding_norm has no gradient"):
        out.sum().backward()
    embedding_norm(**given, backend="triton").sum().backward()
    assert given["word"].grad is not None
