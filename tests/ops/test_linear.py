"""`linear`: right on every backend, and never with a pack that the weight has outlived."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import BackendError, InputError
from pyenc.ops import linear, linear_onednn, linear_packs, linear_trial, linear_wide
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table
from pyenc.ops.reference import linear_reference
from tests.oracle import assert_right

onednn = pytest.mark.skipif(
    linear_onednn.why_not(torch.float32) is not None,
    reason=str(linear_onednn.why_not(torch.float32)),
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["torch", pytest.param("onednn", marks=onednn)]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "silu", "relu"]


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without packs, measurements and wishes of the environment."""
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    monkeypatch.setattr(linear_onednn, "_timed", {})
    linear_packs.forget_all()
    yield
    linear_packs.forget_all()


def faster(monkeypatch: pytest.MonkeyPatch, gain: float = 2.0) -> None:
    """As if oneDNN had been measured that many times faster, in one pass with GELU too."""
    timed = {(dtype, activation): gain for dtype in DTYPES for activation in ("", "gelu")}
    monkeypatch.setattr(linear_onednn, "_timed", timed)


def layer(c: int = 24, f: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return nn.Parameter(torch.randn(f, c, dtype=dtype)), nn.Parameter(torch.randn(f, dtype=dtype))


def packed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return linear(x, weight, bias, backend="onednn")


def check(got: Tensor, *inputs: Tensor | None, activation: str | None = None) -> None:
    """`got` is right for these x, weight and bias as they are now."""
    values = [None if t is None else t.detach() for t in inputs]
    wide = [None if t is None else t.double() for t in values]
    naive, oracle = (linear_reference(*(*three, None)[:3], activation) for three in (values, wide))
    assert_right(got, naive, oracle)


def cut(x: Tensor, kind: str) -> Tensor:
    """The same values in another arrangement of memory."""
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "strided":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.usefixtures("poison")
def test_against_the_oracle(
    backend: str,
    dtype: torch.dtype,
    activation: str | None,
    fuses: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backend == "onednn" and (reason := linear_onednn.why_not(dtype)):
        pytest.skip(reason)
    faster(monkeypatch, 2.0 if fuses else 0.5)
    for shape, f, biased, kind in (
        ((7, 24), 40, True, "plain"),
        ((1, 1), 1, True, "plain"),
        ((2, 3, 5, 17), 33, False, "plain"),
        ((65,), 3, True, "plain"),
        ((33, 129), 65, True, "transposed"),
        ((5, 64), 128, False, "strided"),
        ((0, 24), 40, True, "plain"),
        ((3, 0, 24), 40, False, "plain"),
        ((257, 96), 130, True, "plain"),
    ):
        x = torch.randn(shape, dtype=dtype)
        weight = torch.randn(f, shape[-1], dtype=dtype)
        bias = torch.randn(f, dtype=dtype) if biased else None
        given = (cut(x, kind), cut(weight, kind), bias)
        naive = linear_reference(x, weight, bias, activation)
        wide = [None if t is None else t.double() for t in (x, weight, bias)]
        oracle = linear_reference(*wide, activation)
        with torch.no_grad():
            got = linear(*given, activation, backend=backend)
            again = linear(*given, activation, backend=backend)
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert torch.equal(got, again)
        assert_right(got, naive, oracle, what=f"{shape} {kind}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_against_the_oracle(backend: str, activation: str | None) -> None:
    inputs = [torch.randn(2, 9, 24), *layer()]
    weight = torch.randn(2, 9, 40)

    def gradients(
        function: Callable[..., Tensor], dtype: torch.dtype, **named: str
    ) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        out = function(*leaves, activation, **named)
        return torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)

    for got, naive, oracle in zip(
        gradients(linear, torch.float32, backend=backend),
        gradients(linear_reference, torch.float32),
        gradients(linear_reference, torch.float64),
        strict=True,
    ):
        assert_right(got, naive, oracle, gradient=True)


@onednn
def test_only_the_gradients_that_are_wanted() -> None:
    """The private op of torch leaves x.grad None; ours must not."""
    x, (weight, _) = torch.randn(3, 24, requires_grad=True), layer()
    weight.requires_grad_(False)
    linear(x, weight, None, "gelu", backend="onednn").sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def step(optimizer: type[torch.optim.Optimizer], **options: object) -> Callable[[Tensor], None]:
    def update(weight: Tensor) -> None:
        weight.grad = torch.randn_like(weight)
        optimizer([weight], lr=0.1, **options).step()  # type: ignore[call-arg]

    return update


def load(weight: Tensor) -> None:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = weight
    module.load_state_dict({"weight": torch.randn_like(weight)})


def swap_back_and_forth(weight: Tensor) -> None:
    """Another storage that may well lie where the first one lay."""
    weight.data = torch.randn(weight.shape)
    weight.data = torch.randn(weight.shape)


@torch.no_grad()
def in_place(weight: Tensor) -> None:
    weight.mul_(2)


@torch.no_grad()
def through_a_view(weight: Tensor) -> None:
    weight[1:2].add_(1)


def to_bfloat16_and_back(weight: Tensor) -> None:
    weight.data = weight.data.bfloat16().float()


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "in place": in_place,
    "through a view": through_a_view,
    "load_state_dict": load,
    "another .data": swap_back_and_forth,
    "in place through .data": lambda w: w.data.mul_(-1),
    "through numpy": lambda w: w.detach().numpy().__imul__(3),
    ".to(dtype) and back": to_bfloat16_and_back,
    "transposed": lambda w: setattr(w, "data", w.data.t().contiguous().t()),
    "SGD": step(torch.optim.SGD),
    "AdamW": step(torch.optim.AdamW),
    "AdamW, fused": step(torch.optim.AdamW, fused=True),
    "AdamW, foreach": step(torch.optim.AdamW, foreach=True),
}


@onednn
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_packed_anew(change: str) -> None:
    x, (weight, bias) = torch.randn(9, 40), layer(40, 40)
    for _ in range(3):
        check(packed(x, weight, bias), x, weight, bias)
        assert linear_packs.held() == weight.numel() * 4
        CHANGES[change](weight)


@onednn
def test_one_element_by_an_optimizer() -> None:
    """Torch's fused optimizers count no version, and a sample need not see one element."""
    x, (weight, _) = torch.randn(9, 384), layer(384, 768)
    packed(x, weight)
    weight.grad = torch.zeros_like(weight)
    weight.grad[5, 7] = 1.0
    torch.optim.SGD([weight], lr=1.0, fused=True).step()
    check(packed(x, weight), x, weight)


@onednn
def test_a_pack_goes_with_its_weight_and_with_its_storage() -> None:
    x, (weight, _) = torch.randn(9, 24), layer()
    packed(x, weight)
    assert linear_packs.held() > 0
    weight.data = weight.data.double()
    assert linear_packs.held() == 0
    weight.data = weight.data.float()
    packed(x, weight)
    del weight
    gc.collect()
    assert linear_packs.held() == 0
    for _ in range(20):
        packed(x, layer()[0])
    gc.collect()
    assert linear_packs.held() == 0


@onednn
def test_copies_carry_no_pack() -> None:
    x, module = torch.randn(9, 24), nn.Linear(24, 40)
    expected = packed(x, module.weight, module.bias)
    size = 24 * 40 * 4
    assert linear_packs.held() == size
    for copied in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        twin = copied(module)
        assert linear_packs.held() == size
        assert torch.equal(packed(x, twin.weight, twin.bias), expected)
        with torch.no_grad():
            twin.weight.zero_()
        assert torch.equal(packed(x, twin.weight, twin.bias), twin.bias.detach().expand(9, 40))
        assert torch.equal(packed(x, module.weight, module.bias), expected)
        del twin


@onednn
def test_many_threads_one_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    packs = []
    pack = linear_onednn.pack
    monkeypatch.setattr(linear_onednn, "pack", lambda w: packs.append(1) or pack(w))
    weights, x = [layer(64, 64) for _ in range(4)], torch.randn(50, 64)
    work = [pair for pair in weights for _ in range(25)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda pair: packed(x, *pair), work))
    for pair, y in zip(work, got, strict=True):
        check(y, x, *pair)
    assert len(packs) == len(weights)


@onednn
def test_inference_mode() -> None:
    """Ordinary weights serve there, and their packs after it; inference tensors tell no changes."""
    x, (weight, bias) = torch.randn(9, 24), layer()
    with torch.inference_mode():
        inside = linear(x, weight, bias, "gelu", backend="onednn")
        born = nn.Parameter(torch.randn(40, 24))
        with pytest.raises(BackendError, match="inference tensor"):
            linear(x, born, backend="onednn")
        assert torch.equal(torch.ops.pyenc.linear(x, born, None, ""), F.linear(x, born))
        born.zero_()
        assert not linear(x, born).any()
    assert torch.equal(linear(x, weight, bias, "gelu", backend="onednn"), inside)
    y = linear(x.requires_grad_(), weight, bias, backend="onednn")
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(9, 24))


@onednn
def test_shared_memory_is_left_to_torch() -> None:
    weight = nn.Parameter(torch.randn(40, 24).share_memory_(), requires_grad=False)
    table = backend_table(torch.randn(3, 24), weight)
    assert "shared memory" in explain(table)["onednn"]


@pytest.mark.parametrize("backend", [None, "torch", "cpu", "triton"])
def test_autocast_is_torchs(backend: str | None) -> None:
    x, (weight, bias) = torch.randn(9, 24), layer()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear(x, weight, bias, "gelu", backend=backend)
        assert torch.equal(got, F.gelu(F.linear(x, weight, bias)))
        assert got.dtype == torch.bfloat16
        mixed = linear(x.bfloat16(), weight, bias, backend=backend)
        assert torch.equal(mixed, F.linear(x, weight, bias))


def test_meta_and_float64() -> None:
    x = torch.empty(2, 3, 24, device="meta")
    assert linear(x, torch.empty(40, 24, device="meta")).shape == (2, 3, 40)
    wide, (weight, bias) = torch.randn(9, 24).double(), layer(dtype=torch.float64)
    assert torch.equal(linear(wide, weight, bias), F.linear(wide, weight, bias))


def test_nothing_to_multiply() -> None:
    with torch.no_grad():
        for f, c in ((0, 3), (3, 0)):
            weight, bias = nn.Parameter(torch.randn(f, c)), torch.randn(f)
            got = torch.ops.pyenc.linear(torch.randn(2, c), weight, bias, "")
            assert torch.equal(got, linear(torch.randn(2, c), weight, bias))
            assert torch.equal(got, bias.expand(2, f))


def test_func_transforms() -> None:
    x, (weight, bias) = torch.randn(4, 9, 24), layer()
    got = torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    torch.testing.assert_close(got, F.linear(x, weight, bias))


@onednn
@pytest.mark.parametrize("activation", ["", "gelu"])
def test_opcheck(activation: str) -> None:
    x, (weight, bias) = torch.randn(2, 9, 24, requires_grad=True), layer()
    for arguments in ((x, weight, bias, activation), (x.detach(), weight.detach(), None, "")):
        torch.library.opcheck(torch.ops.pyenc.linear.default, arguments)


@onednn
@pytest.mark.parametrize("backend", [None, "onednn"])
def test_compiled_without_a_graph_break(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch)
    module = nn.Linear(24, 40)
    x = torch.randn(9, 24)

    def forward(x: Tensor) -> Tensor:
        return linear(x, module.weight, module.bias, "gelu", backend=backend)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torch.no_grad():
            check(compiled(x), x, module.weight, module.bias, activation="gelu")
            module.weight.mul_(-1.5)
            check(compiled(x), x, module.weight, module.bias, activation="gelu")
        assert linear_packs.held() == 40 * 24 * 4
        grads = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
        exact = torch.autograd.grad(F.gelu(module(x)).square().sum(), list(module.parameters()))
        torch.testing.assert_close(grads, exact)
        torch.optim.AdamW(module.parameters(), fused=True).step()


@onednn
def test_nothing_is_measured_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(linear_trial, "ratio", never)
    x, (weight, bias) = torch.randn(999, 384), layer(384, 384)
    compiled = torch.compile(lambda x: linear(x, weight, bias), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), F.linear(x, weight, bias))
    assert linear_packs.held() == 0


@onednn
def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(700, 384), layer(384, 384)

    def serves(x: Tensor = x, weight: Tensor = weight) -> str:
        return explain(backend_table(x, weight, bias))["onednn"]

    assert serves() == "a gradient is needed"
    with torch.no_grad():
        faster(monkeypatch, 1.1)
        assert serves() == "measured 1.10x F.linear, needs 1.15x"
        faster(monkeypatch, 1.2)
        assert serves() == "serves"
        assert serves(x[:1]) == "the product is too small to gain"
        assert "no parameter" in serves(weight=weight * 2)
        linear(x[:1], weight, bias)
        assert linear_packs.held() == 0
        linear(x, weight, bias)
        assert linear_packs.held() == weight.numel() * 4
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            assert serves() == "torch.backends.mkldnn is disabled"
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert serves() == "PYENC_LINEAR=torch"
        monkeypatch.setenv(linear_onednn.VARIABLE, "onednn")
        faster(monkeypatch, 0.1)
        assert serves(x[:1]) == "serves"
        monkeypatch.setenv(linear_onednn.VARIABLE, "mkl")
        with pytest.raises(BackendError, match="must be auto, onednn or torch, got 'mkl'"):
            serves()


@onednn
def test_the_measurement_is_short_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ratio = linear_trial.ratio
    monkeypatch.setattr(linear_trial, "ratio", lambda *two: calls.append(1) or ratio(*two))
    state = torch.get_rng_state()
    answers = {linear_onednn.slower(torch.float32) for _ in range(5)}
    assert len(answers) == len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert linear_onednn._timed[torch.float32, ""] > 0


def test_the_ratio_is_the_cautious_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half the rounds of the one disturbed nor one lucky round of the other count."""
    now = [0.0]

    def taking(*seconds: float) -> Callable[[], None]:
        left = itertools.cycle(seconds)
        return lambda: now.__setitem__(0, now[0] + next(left))

    monkeypatch.setattr(linear_trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(linear_trial, "_SECONDS", 1e9)
    assert linear_trial.ratio(taking(1, 9, 9), taking(1)) == 1
    assert linear_trial.ratio(taking(1), taking(1, 1, 0.1)) == 1
    assert linear_trial.ratio(taking(3), taking(2)) == 1.5


def broken(*_: object) -> Tensor:
    raise RuntimeError("no such processor\nstack")


@pytest.mark.parametrize(
    ("name", "instead", "says"),
    [
        ("pack", broken, "this torch or processor cannot: no such processor"),
        ("run", lambda x, packed, *_: x.new_full((5, 48), 3.0), "its answers are wrong here"),
        ("run", lambda x, packed, *_: x.new_full((5, 48), float("nan")), "answers are wrong"),
    ],
)
def test_where_the_private_op_fails_torch_serves(
    name: str, instead: Callable[..., Tensor], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch)
    monkeypatch.setattr(linear_onednn, "_tried", {})
    if name == "run":
        monkeypatch.setattr(linear_onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(linear_onednn, name, instead)
    x, (weight, bias) = torch.randn(999, 384), layer(384, 384)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(torch.ops.pyenc.linear(x, weight, bias, ""), F.linear(x, weight, bias))
        with pytest.raises(BackendError, match=says):
            linear(x, weight, bias, backend="onednn")


def test_bad_arguments_are_named() -> None:
    x, (weight, bias) = torch.randn(9, 24), layer()
    for given, message in (
        ((x[:, 1:], weight), r"weight must be \(F, C\).* \(40, 24\) and \(9, 23\)"),
        ((x, weight[0]), r"weight must be \(F, C\)"),
        ((torch.tensor(1.0), weight), r"weight must be \(F, C\)"),
        ((x, weight, bias[1:]), r"bias must be \(40,\), got \(39,\)"),
        ((x, weight, bias, "elu"), "unknown activation 'elu'"),
        ((x.double(), weight, bias), r"share a dtype; got \['torch.float32', 'torch.float64'\]"),
        ((x.long(), weight), "x must be float"),
        ((x, weight.to("meta")), "weight is on meta, x on cpu"),
    ):
        with pytest.raises(InputError, match=message):
            linear(*given)


@pytest.mark.parametrize("dtype", linear_wide.DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_halves_are_widened_where_that_is_faster(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, (weight, bias) = torch.randn(2, 1100, 96).to(dtype), layer(96, 200, dtype=dtype)
    widened = []
    plain = linear_wide.linear
    monkeypatch.setattr(linear_wide, "linear", lambda *a: widened.append(1) or plain(*a))
    for gain, times in ((1.1, 0), (1.2, 1)):
        monkeypatch.setattr(linear_wide, "_gains", {dtype: gain})
        with torch.no_grad():
            check(linear(x, weight, bias, activation), x, weight, bias, activation=activation)
        assert len(widened) == times
    linear(x, weight, bias)  # with a gradient
    with torch.no_grad():
        linear(x[0, :63], weight, bias)
        linear(x.float(), weight.float())
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, bias)
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(widened) == 1


def test_whether_widening_is_faster_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(linear_wide, "_gains", {})
    monkeypatch.setattr(linear_trial, "ratio", lambda *two: asked.append(two) or 1.3)
    assert [linear_wide.faster(torch.bfloat16) for _ in range(3)] == [True] * 3
    assert not linear_wide.faster(torch.float32)
    assert len(asked) == 1
    for way in asked[0]:
        assert way().shape == (256, 512)
