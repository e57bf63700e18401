"""`disentangled_attention` gives the formula's sums and gradients, whatever serves it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError, InputError, InputTypeError
from pyenc.ops import DistanceRows, disentangled_attention, extension
from pyenc.ops.disentangled import blocks
from pyenc.ops.disentangled import cpu as kernels
from pyenc.ops.disentangled import terms as terms_module
from tests.oracle import assert_right, naively
from tests.seeds import seed

BUILT = extension.load() is not None
BACKENDS = ("torch", "cpu") if BUILT else ("torch",)
needs_extension = pytest.mark.skipif(not BUILT, reason=extension.why_missing())

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    heads: int
    dim: int
    rows: DistanceRows
    terms: str = "both"
    holes: bool = False

    def operands(self) -> list[Tensor | None]:
        """q, k, v, position keys and queries, in float64."""
        shapes = [(sum(self.lengths), self.heads, self.dim)] * 3
        shapes += [(self.rows.count, self.heads, self.dim)] * 2
        made: list[Tensor | None] = [torch.randn(s, dtype=torch.float64) for s in shapes]
        for at, term in ((3, "keys"), (4, "queries")):
            if self.terms not in ("both", term):
                made[at] = None
        return made

    def call(self, given: list[Tensor | None], **named: Any) -> Tensor:
        q, k, v, keys, queries = given
        positions = None
        if self.holes:
            generator = torch.Generator().manual_seed(3)
            steps = [torch.randint(1, 5, (n,), generator=generator) for n in self.lengths]
            positions = torch.cat([x.cumsum(0) for x in steps])
        assert q is not None
        assert k is not None
        assert v is not None
        return disentangled_attention(
            q, k, v, bounds(*self.lengths), position_keys=keys, position_queries=queries,
            rows=self.rows, positions=positions, **({"scale": (3 * self.dim) ** -0.5} | named),
        )  # fmt: skip


def bounds(*lengths: int) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def cast(given: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if x is None else x.detach().to(dtype).requires_grad_() for x in given]


def leaves(given: list[Tensor | None]) -> list[Tensor]:
    return [x for x in given if x is not None]


CASES = {
    "ragged, buckets": Case((5, 1, 9), 2, 8, DistanceRows(4, 4, 16)),
    "one head dim": Case((4, 4, 2), 3, 1, DistanceRows(4, 4, 16)),
    "distances themselves": Case((5, 5, 5, 7), 3, 16, DistanceRows(8)),
    "beyond the table": Case((23, 2), 2, 8, DistanceRows(3)),
    "keys alone": Case((70, 3), 2, 24, DistanceRows(16, 16, 64), "keys"),
    "queries alone": Case((70, 3), 2, 24, DistanceRows(16, 16, 64), "queries"),
    "odd buckets, holes": Case((33, 0, 17), 2, 5, DistanceRows(5, 5, 32), holes=True),
    "many alike": Case((40,) * 9, 2, 16, DistanceRows(16, 16, 64)),
    "alike but apart": Case((31, 7, 31, 8, 31), 2, 16, DistanceRows(16, 16, 64)),
    "a head dim of 100": Case((18, 13), 1, 100, DistanceRows(256, 256, 512)),
    "far beyond the table, holes": Case((60, 3), 2, 8, DistanceRows(4, 4, 16), holes=True),
    "few rows of many": Case((18, 13), 2, 8, DistanceRows(256, 256, 512).within(17)),
    "none at all": Case((0, 0), 2, 8, DistanceRows(4, 4, 16)),
    "no sequences": Case((), 2, 8, DistanceRows(4, 4, 16)),
}
whatever = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@whatever
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula_and_its_gradients(case: Case, dtype: torch.dtype) -> None:
    torch.manual_seed(seed(sum(case.lengths)))
    given = cast(case.operands(), dtype)
    onto = torch.randn(sum(case.lengths), case.heads, case.dim, dtype=torch.float64)
    onto = onto.to(dtype)
    exact = cast(given, torch.float64)
    right = case.call(exact, backend="reference")
    right_grads = torch.autograd.grad(right, leaves(exact), onto.double())
    with naively():
        naive = case.call(given, backend="reference")
        naive_grads = torch.autograd.grad(naive, leaves(given), onto)
    for backend in BACKENDS:
        if backend == "cpu" and dtype == torch.float64:
            continue
        found = case.call(given, backend=backend)
        assert found.dtype == dtype
        assert_right(found, naive, right, what=backend)
        grads = torch.autograd.grad(found, leaves(given), onto)
        named = [
            n
            for n, x in zip(("q", "k", "v", "keys", "queries"), given, strict=True)
            if x is not None
        ]
        for what, a, b, c in zip(named, grads, naive_grads, right_grads, strict=True):
            assert_right(a, b, c, gradient=True, what=f"{backend}: {what}")


@pytest.mark.parametrize("backend", BACKENDS)
@whatever
def test_the_same_bits(case: Case, backend: str) -> None:
    torch.manual_seed(seed(5))
    given = cast(case.operands(), torch.float32)
    first, second = (case.call(given, backend=backend) for _ in range(2))
    assert torch.equal(first, second)
    one, two = (torch.autograd.grad(x.square().sum(), leaves(given)) for x in (first, second))
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("elements", [300, 5000])
def test_blocks_and_slabs_of_every_size(
    elements: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few queries at a time, and sequences taken together or not."""
    torch.manual_seed(seed(2))
    cases = [replace(CASES[name], terms=t) for name in CASES for t in ("both", "keys", "queries")]
    wanted = []
    for case in cases:
        given = cast(case.operands(), torch.float64 if backend == "torch" else torch.float32)
        out = case.call(given, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves(given))
        wanted.append((given, out, grads))
    for module in (terms_module, kernels):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(kernels, "TILE_ROWS", 4)
    for case, (given, right, right_grads) in zip(cases, wanted, strict=True):
        out = case.call(given, backend=backend)
        torch.testing.assert_close(out, right)
        grads = torch.autograd.grad(out.square().sum(), leaves(given))
        for a, b in zip(grads, right_grads, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_dropout_is_of_the_weights_and_the_same_in_the_backward() -> None:
    """With its mask read off by values that are one-hot, out is that weight over what was kept."""
    torch.manual_seed(seed(7))
    case = Case((16, 16), 2, 16, DistanceRows(4, 4, 16))
    given = cast(case.operands(), torch.float64)
    eye = torch.eye(16, dtype=torch.float64)[:, None].expand(16, 2, 16).repeat(2, 1, 1)
    given[2] = eye.clone().requires_grad_()
    plain = case.call(given)
    torch.manual_seed(11)
    dropped = case.call(given, dropout_p=0.4)
    kept = dropped != 0
    assert 0.4 < kept.double().mean().item() < 0.8
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.6)
    # The gradient of what was kept is that of the plain weights over 0.6, whole rows included.
    onto = torch.randn_like(plain)
    found = torch.autograd.grad(dropped, leaves(given), onto)
    right = torch.autograd.grad(plain, leaves(given), onto * kept / 0.6)
    for at, (a, b) in enumerate(zip(found, right, strict=True)):
        if at != 2:  # of v it is the weights themselves
            torch.testing.assert_close(a, b)
    torch.manual_seed(11)
    assert torch.equal(case.call(given, dropout_p=0.4), dropped)


def test_autocast_takes_all_in_its_dtype() -> None:
    torch.manual_seed(seed(3))
    case = CASES["ragged, buckets"]
    given = cast(case.operands(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.call(given)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, case.call(cast(given, torch.bfloat16)))


@needs_extension
def test_scores_beyond_the_kernels_range_are_blocks() -> None:
    torch.manual_seed(seed(4))
    case = CASES["one head dim"]
    q, k, v, keys, queries = leaves(case.operands())
    q, k = torch.ones_like(q), torch.full_like(k, 2.4e38)
    k[1] = k[5] = 2.6e38  # log2(e) of which is no float32
    keys, queries = torch.zeros_like(keys), torch.zeros_like(queries)
    far = cast([q, k, v, keys, queries], torch.float32)
    found = case.call(far, backend="cpu", scale=1.0)
    assert torch.equal(found[:4], v[1].float().expand(4, 3, 1))
    assert torch.equal(found, case.call(far, backend="torch", scale=1.0))
    one, two = (
        torch.autograd.grad(case.call(far, backend=b, scale=1.0)[:4].sum(), leaves(far)[:3])
        for b in BACKENDS
    )
    assert all(map(torch.equal, one, two))


@needs_extension
def test_strided_operands() -> None:
    """q, k, v as an encoder has them: three of one tensor."""
    torch.manual_seed(seed(6))
    case = CASES["ragged, buckets"]
    q, k, v, keys, queries = (x.float() for x in leaves(case.operands()))
    packed = torch.stack([q, k, v], 1)
    views: list[Tensor | None] = [*packed.unbind(1), keys, queries]
    assert not views[0].is_contiguous()  # type: ignore[union-attr]
    right = case.call([q, k, v, keys, queries], backend="cpu")
    assert torch.equal(case.call(views, backend="cpu"), right)
    turned = keys.transpose(1, 2).contiguous().transpose(1, 2)
    found = case.call([*views[:3], turned, queries], backend="cpu")
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
@pytest.mark.parametrize("backend", [None, *BACKENDS, "reference"])
def test_no_tokens_however_they_lie(backend: str | None, lengths: tuple[int, ...]) -> None:
    """`contiguous` leaves the strides of an empty tensor as they are."""
    case = replace(CASES["ragged, buckets"], lengths=lengths)
    apart = [torch.randn(0, case.heads, case.dim, 2)[..., 0].requires_grad_() for _ in range(3)]
    tables = [table.float().requires_grad_() for table in leaves(case.operands())[3:]]
    out = case.call([*apart, *tables], backend=backend)
    assert out.shape == apart[0].shape
    grads = torch.autograd.grad(out.sum(), [*apart, *tables])
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_a_card_are_those_of_a_cpu(dtype: torch.dtype) -> None:
    """In whole numbers, whose sums go by no order; what is no number stays none."""
    torch.manual_seed(seed(8))
    numbers = torch.randn(3, 5, 70, dtype=dtype) * torch.logspace(-9, 9, 5, dtype=dtype)[:, None]
    index = torch.randint(0, 6, (5, 70)).expand(numbers.shape)
    like = numbers.new_zeros(3, 5, 6)
    right = like.double().scatter_add_(2, index, numbers.double())
    found = blocks.in_whole_numbers(like, index, numbers)
    off = (found.double() - right).abs().max() / right.abs().max()
    assert off < (1e-7 if dtype == torch.float32 else 1e-13)
    turned = blocks.in_whole_numbers(like, index.flip(2), numbers.flip(2))
    assert torch.equal(found, turned)
    assert not blocks.in_whole_numbers(like, index, torch.zeros_like(numbers)).any()
    for odd in (torch.nan, torch.inf):
        numbers[1, 2, 3] = odd
        assert not torch.isfinite(blocks.in_whole_numbers(like, index, numbers)).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("terms", ["both", "keys", "queries"])
def test_opcheck(backend: str, terms: str) -> None:
    case = replace(CASES["ragged, buckets"], terms=terms)
    given = cast(case.operands(), torch.float32)
    arguments = (
        *given, bounds(*case.lengths), None, 4, 4, 16, 0, 8, 0.3, 0.0, None, True, backend,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyenc.disentangled_attention.default, arguments)


def test_a_graph_does_not_break() -> None:
    case = CASES["ragged, buckets"]
    given = cast(case.operands(), torch.float32)
    compiled = torch.compile(lambda *x: case.call(list(x)), backend="aot_eager", fullgraph=True)
    right = case.call(given)
    found = compiled(*given)
    assert torch.equal(found, right)
    one, two = (torch.autograd.grad(x.square().sum(), leaves(given)) for x in (right, found))
    assert all(map(torch.equal, one, two))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q": torch.ones(9, 2, 4)}, "must all be"),
        ({"rows": DistanceRows(3, 3, 9)}, r"position_keys must be \(R, H, D\), \(6, 2, 8\)"),
        ({"rows": 8}, "rows must be DistanceRows, got int"),
        ({"position_keys": None, "position_queries": None}, "must be there"),
        ({"position_queries": torch.ones(8, 2, 8, dtype=torch.float64)}, "share a dtype"),
        ({"cu_seqlens": torch.tensor([0, 4, 8])}, "ends at 8, but there are 9"),
        ({"positions": torch.arange(8)}, r"positions must be \(9,\)"),
        ({"positions": torch.zeros(9, dtype=torch.int64)}, "increase strictly"),
        ({"positions": torch.arange(9.0)}, "int32 or int64"),
        ({"dropout_p": 1.0}, r"dropout_p must be in \[0, 1\)"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"rows": DistanceRows(8, 8, 32, 4, 12)}, "a distance of 5 reads rows 3 to 13 of 16"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    x = torch.ones(9, 2, 8)
    given: dict[str, Any] = {
        "q": x, "k": x, "v": x, "cu_seqlens": torch.tensor([0, 3, 9]),
        "position_keys": torch.ones(8, 2, 8), "position_queries": torch.ones(8, 2, 8),
        "rows": DistanceRows(4, 4, 16),
    }  # fmt: skip
    disentangled_attention(**given)
    for backend in (None, "reference"):
        with pytest.raises((InputError, InputTypeError), match=said):
            disentangled_attention(**(given | change), backend=backend)


def test_what_a_backend_cannot_serve() -> None:
    case = CASES["ragged, buckets"]
    given = cast(case.operands(), torch.float32)
    for backend in ("cpu", "reference"):
        with pytest.raises(BackendError, match="dropout"):
            case.call(given, backend=backend, dropout_p=0.1)
    wide = Case((3,), 1, 300, DistanceRows(4))
    with pytest.raises(BackendError, match="head dim 300 is more than 256"):
        wide.call(cast(wide.operands(), torch.float32), backend="cpu")
    wide.call(cast(wide.operands(), torch.float32))


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_what_torch_does_not_look_through_is_refused(backend: str | None) -> None:
    case = CASES["ragged, buckets"]
    q, *rest = (x.float() for x in leaves(case.operands()))

    def call(x: Tensor, backend: str | None) -> Tensor:
        return case.call([x, *rest], backend=backend)

    with pytest.raises(BackendError, match="reference"):
        torch.func.grad(lambda x: call(x, backend).sum())(q)
    with pytest.raises(BackendError, match="derivative"):
        torch.func.jvp(lambda x: call(x, backend), (q,), (q,))
    _, slope = torch.func.jvp(lambda x: call(x, "reference"), (q,), (q,))
    assert slope.any()


def test_memory_is_linear() -> None:
    """No number for each pair of a long text is held at once, in either direction."""
    n, heads = 3000, 2
    case = Case((n,), heads, 4, DistanceRows(8, 8, 64))
    largest = 0

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                largest = max(largest, made.untyped_storage().nbytes())
            return made

    for backend in BACKENDS:
        given = cast(case.operands(), torch.float32)
        with Watching():
            case.call(given, backend=backend).sum().backward()
    assert 0 < largest <= 4 * terms_module.BLOCK_ELEMENTS < 4 * heads * n * n


def main() -> None:
    """On the instruction set that serves, for tests/ops/test_instruction_sets.py."""
    for case in CASES.values():
        for dtype in DTYPES[1:]:
            test_the_formula_and_its_gradients(case, dtype)
