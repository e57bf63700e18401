"""Launches of compiled kernels, on a card that is not there: what Triton would launch, with what.

Shapes: T rows, C columns.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench.ahead_of_time import NoDevice, target_of
from bench.mocked_launch import Launch, mocked
from pyenc_kernels import (
    disentangled,
    gated,
    interpreting,
    launching,
    norm,
    norm_rotary,
    rotary,
)
from pyenc_kernels.attention import Terms, forward
from pyenc_kernels.configs import Config
from pyenc_kernels.launching import Known, Plan, specialised
from pyenc_kernels.launching import Launch as KnownLaunch
from pyenc_kernels.norm.kernel import norm_forward
from pyenc_kernels.score_function import ALIBI

pytestmark = pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")

CONSTANTS = {
    "RMS": False, "HAS_RESIDUAL": True, "HAS_BIAS": True, "PLUS_ONE": False, "BLOCK_T": 4,
    "BLOCK_C": 1024, **Config(4, 1024, 4, 1).launch,
}  # fmt: skip
T, C = 8, 768


@pytest.fixture
def noted() -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    with mocked(noted=launches):
        yield launches


@contextlib.contextmanager
def ordinary() -> Iterator[None]:
    """Within, each launch is Triton's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "_straight", False)
        yield


def tensors(dtype: torch.dtype = torch.bfloat16, offset: int = 0) -> tuple[Tensor, ...]:
    """A norm's seven; all but x begin at multiples of 16 bytes."""
    x = torch.empty(T * C + offset, dtype=dtype)[offset:].view(T, C)
    rows = (torch.empty(T, C, dtype=dtype) for _ in range(3))
    residual, total, normed = rows
    weight, bias = torch.empty(C), torch.empty(C)
    return x, residual, weight, bias, total, normed, torch.empty(T, 2)


def numbers(stride: int = C, columns: int = C) -> tuple[float, ...]:
    return stride, stride, T, columns, 1 / columns, 1e-5


def same(one: Launch, other: Launch) -> bool:
    """The same kernel with the same arguments, each of them itself or equal."""
    return (
        (one.kernel.name, one.kernel.key, one.grid, one.stream)
        == (other.kernel.name, other.kernel.key, other.grid, other.stream)
        and len(one.arguments) == len(other.arguments)
        and all(
            a is b or (not isinstance(a, Tensor) and type(a) is type(b) and a == b)
            for a, b in zip(one.arguments, other.arguments, strict=True)
        )
    )


def test_this_triton_launches_as_is_known() -> None:
    """Else every launch is Triton's own, which is right and slow."""
    assert launching._known()
    assert launching._straight == (torch.version.hip is None)


def test_what_is_handed_over_is_what_triton_hands_over(noted: list[Launch]) -> None:
    plan, given, rest = Plan(norm_forward, CONSTANTS), tensors(), numbers()
    with ordinary():
        plan((2,), given, rest)
    for _ in range(3):  # compiled; alike; the same
        plan((2,), given, rest)
    assert len(noted) == 4
    assert all(same(noted[0], launch) for launch in noted)
    assert len(noted[0].arguments) == len(norm_forward.arg_names)


def test_a_known_launch_does_not_ask_triton(
    noted: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, given = Plan(norm_forward, CONSTANTS), tensors()
    plan((2,), given, numbers())

    caches = norm_forward.device_caches
    monkeypatch.setattr(norm_forward, "device_caches", None)  # where Triton would look
    plan((2,), given, numbers())
    plan((2,), given, numbers())
    monkeypatch.setattr(norm_forward, "device_caches", caches)
    assert len({launch.kernel for launch in noted}) == 1
    assert len(noted) == 3


def variants() -> dict[str, tuple[tuple[Tensor, ...], tuple[float, ...]]]:
    tall = tensors()
    return {
        "plain": (tensors(), numbers()),
        "x at an odd address": (tensors(offset=1), numbers()),
        "x at a multiple of 16 bytes": (tensors(offset=8), numbers()),
        "another dtype": (tensors(torch.float16), numbers()),
        "weights in another dtype": (
            (*tall[:2], tall[2].double(), tall[3].double(), *tall[4:]), numbers()
        ),
        "a stride that is no multiple of 16": (tensors(), numbers(stride=C + 1)),
        "another that is one": (tensors(), numbers(stride=C + 16)),
        "a stride of 1": (tensors(), numbers(stride=1)),
        "a stride of 64 bits": (tensors(), numbers(stride=2**32)),
        "columns that are no multiple": (tensors(), numbers(columns=C + 3)),
    }  # fmt: skip


def test_each_takes_the_kernel_that_triton_takes(noted: list[Launch]) -> None:
    """Whichever came before it."""
    named = variants()
    with ordinary():
        for given, rest in named.values():
            Plan(norm_forward, CONSTANTS)((2,), given, rest)
    keys = {name: launch.kernel.key for name, launch in zip(named, noted, strict=True)}
    assert len(set(keys.values())) == len(keys) - 2  # two are as the plain one
    plan = Plan(norm_forward, CONSTANTS)
    order = [name for name in keys for _ in range(3)]
    random.Random(0).shuffle(order)
    for name in order:
        given, rest = named[name]
        plan((2,), given, rest)
        assert noted[-1].kernel.key == keys[name], name
        assert noted[-1].arguments[: len(given)] == given


def test_a_launch_with_known_numbers_is_its_plan_s(noted: list[Launch]) -> None:
    """With whatever tensors: where those lie decides, as ever."""
    named = {name: given for name, (given, _) in variants().items() if " x " in f" {name} "}
    named["plain"] = tensors()
    plan = Plan(norm_forward, CONSTANTS)
    launch = KnownLaunch(plan, (2,), numbers())
    with ordinary():
        for given in named.values():
            launch(given)
    wanted = list(noted)
    assert len({each.kernel.key for each in wanted}) == 2  # x at an odd address, and the others
    for _ in range(3):
        noted.clear()
        for given in named.values():
            launch(given)
        assert all(same(*pair) for pair in zip(noted, wanted, strict=True))
    assert len(launch._found) == 2


def test_calls_that_are_alike_share_their_launches(noted: list[Launch]) -> None:
    """And no others do: a norm's kernel has its eps among its numbers."""
    known: Known = {}
    x, residual, weight, bias, *_ = tensors()

    def run(eps: float, bias: Tensor | None, known: Known | None) -> tuple[Any, ...]:
        norm.forward(x, residual, weight, bias, eps, False, known=known)
        return told(noted[-1])

    forms = [(1e-5, bias), (1e-12, bias), (1e-5, None), (1e-5, bias), (1e-12, bias)]
    assert [run(*form, known) for form in forms] == [run(*form, None) for form in forms]
    assert len(known) == 3
    up = torch.empty(2 * C, C, dtype=x.dtype)
    for weight in (up, up[: 2 * T], up):
        gated.linear_forward(x, weight, None, "gelu", True, known=known)
        gated.linear_forward(x, weight, None, "gelu", True)
        assert told(noted[-1]) == told(noted[-2])


def test_another_device_has_a_kernel_of_its_own() -> None:
    class Two(NoDevice):
        device = 0

        def get_current_device(self) -> int:
            return self.device

        def get_current_stream(self, device: int | None = None) -> int:
            return 70 + self.device

    noted: list[Launch] = []
    driver = Two(target_of("sm_90"))
    with mocked(driver, noted):
        plan, given = Plan(norm_forward, CONSTANTS), tensors()
        for device in (0, 1, 0, 1, 1, 0):
            driver.device = device
            plan((2,), given, numbers())
            assert (noted[-1].kernel.device, noted[-1].stream) == (device, 70 + device)


def test_amd_is_triton_s_own() -> None:
    """Its kernels are specialised to more than is known here."""
    noted: list[Launch] = []
    driver = NoDevice(target_of("sm_90"))
    with mocked(driver, noted):
        plan, given = Plan(norm_forward, CONSTANTS), tensors()
        driver.target = GPUTarget("hip", "gfx942", 64)
        plan((2,), given, numbers())
        assert not plan._alike
        assert not plan._exact


def test_who_listens_hears_of_every_launch(
    noted: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, given = Plan(norm_forward, CONSTANTS), tensors()
    launch = KnownLaunch(plan, (2,), numbers())
    for _ in range(2):
        launch(given)
        plan((2,), given, numbers())
    monkeypatch.setattr(noted[0].kernel, "_run", None)  # nobody launches it straight
    heard = []
    real = JITFunction.run

    def listening(self: Any, *args: Any, **options: Any) -> None:
        heard.append(options["grid"])

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", listening)
        plan((2,), given, numbers())
        launch(given)
        for name, hook in (
            ("enter", knobs.runtime.launch_enter_hook),
            ("exit", knobs.runtime.launch_exit_hook),
        ):
            patch.setattr(JITFunction, "run", real)
            hook.add(heard.append)
            assert launching._listening(norm_forward), name
            hook.remove(heard.append)
        patch.setattr(knobs.runtime, "debug", True)
        assert launching._listening(norm_forward)
    assert heard == [(2,), (2,)]
    assert not launching._listening(norm_forward)


def test_constants_are_the_last_parameters() -> None:
    with pytest.raises(ValueError, match="must be its last"):
        Plan(norm_forward, {**CONSTANTS, "eps": 1e-5, "p_x": None})


def test_what_is_remembered_of_numbers_has_a_bound(
    noted: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "REMEMBERED", 5)
    plan, given = Plan(norm_forward, CONSTANTS), tensors()
    for rows in range(20):
        plan((2,), given, (C, C, rows + 2, C, 1 / C, 1e-5))
        assert len(plan._exact) <= 5
    assert len(plan._alike) == 2  # multiples of 16, and others


def test_numbers_alike_are_alike_to_triton() -> None:
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import native_specialize_impl

    draw = random.Random(0)
    some = [0, 1, 2, 15, 16, 17, -1, -16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1]
    some += [draw.randrange(2 ** draw.randrange(1, 63)) for _ in range(300)]
    seen: dict[object, Any] = {}
    for number in some:
        found = native_specialize_impl(BaseBackend, number, False, True, True)
        assert seen.setdefault(specialised(number), found) == found, number


def calls() -> dict[str, Any]:
    """By name: what launches, on tensors that stay."""
    x, other = torch.empty(64, C, dtype=torch.bfloat16), torch.empty(64, C, dtype=torch.bfloat16)
    weight, bias = torch.empty(C), torch.empty(C)
    halves = torch.empty(64, 2 * C, dtype=torch.bfloat16).chunk(2, -1)
    up = torch.empty(2 * C, C, dtype=torch.bfloat16)
    heads = [torch.empty(3, 64, 12, 64, dtype=torch.bfloat16)[i] for i in range(3)]
    cu_seqlens, slopes = torch.tensor([0, 24, 64], dtype=torch.int32), torch.ones(12)
    alibi = Terms(scale=0.125, bias=ALIBI, params=slopes)
    angles, places = (torch.empty(64, 32), torch.empty(64, 32)), torch.arange(64)
    line = torch.zeros(2 * (9 + disentangled.MARGIN) + 1, dtype=torch.int32)
    moved = torch.empty(64 * C + 1, dtype=torch.bfloat16)[1:].view(64, C)
    return {
        "norm": lambda: norm.forward(x, other, weight, bias, 1e-5, False),
        "norm alone": lambda: norm.forward(x, None, weight, None, 1e-5, True),
        "norm of a moved x": lambda: norm.forward(moved, other, weight, bias, 1e-5, False),
        "gated": lambda: gated.forward(*halves, "gelu"),
        "gated alone": lambda: gated.forward(halves[0], None, "silu"),
        "gated linear": lambda: gated.linear_forward(x, up, None, "gelu", True),
        "gated linear backward": lambda: gated.linear_backward(x, x, up, None, "gelu", True),
        "norm by one and more": lambda: norm.forward(
            x, other, weight, None, 1e-5, True, plus_one=True
        ),
        "norm of heads and rotary": lambda: norm_rotary.forward(
            heads[0], weight[:64], weight[-64:], 4, *angles, places, 1e-5, False
        ),
        "rotary": lambda: rotary.turn(heads[0], *angles, places),
        "attention, shared heads": lambda: forward(
            heads[0], heads[1][:, :4], heads[2][:, :4], cu_seqlens, Terms(scale=0.125)
        ),
        "disentangled attention": lambda: disentangled.forward(
            *heads, cu_seqlens, heads[0][:7], None, line, 0.125
        ),
        "attention": lambda: forward(*heads, cu_seqlens, Terms(scale=0.125)),
        "attention, ALiBi": lambda: forward(*heads, cu_seqlens, alibi),
        "attention, window": lambda: forward(*heads, cu_seqlens, Terms(1, window=(4, 4))),
        "attention, dropout": lambda: forward(
            *heads, cu_seqlens.long(), Terms(1.0, dropout_p=0.5, seed=2**40)
        ),
    }  # fmt: skip


def told(launch: Launch) -> tuple[Any, ...]:
    """Of a launch what is the same each time; outputs are new."""
    kinds = [
        (x.dtype, x.shape, x.stride()) if isinstance(x, Tensor) else (type(x), x)
        for x in launch.arguments
    ]
    return launch.kernel.name, launch.kernel.key, launch.grid, kinds


@pytest.mark.parametrize("name", calls())
def test_every_launcher_launches_what_triton_would(name: str, noted: list[Launch]) -> None:
    call = calls()[name]
    with ordinary():
        call()
    assert len(noted) == 1
    for _ in range(3):
        call()
    assert [told(launch) for launch in noted] == [told(noted[0])] * 4


class Draw:
    """Calls of launchers on tensors of a drawn shape; where those begin is drawn at each call.

    which: of those that have plans in common.
    """

    def __init__(self, seed: int, which: int) -> None:
        draw = random.Random(seed)
        self.dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
        self.columns = draw.choice([1, 16, 31, 96, 768])
        self.heads, self.dim = draw.choice([1, 2, 12]), draw.choice([2, 16, 24, 64])
        self.draw = random.Random(f"{seed} {which}")
        self.rows, self.apart = self.draw.choice([1, 2, 15, 16, 130]), self.draw.choice([0, 1, 16])
        self.known: Known = {}

    def matrix(self, columns: int) -> Tensor:
        first, width = self.draw.choice([0, 0, 1, 2, 4, 8]), columns + self.apart
        whole = torch.empty(first + self.rows * width, dtype=self.dtype)
        return whole[first:].view(self.rows, width)[:, :columns]

    def of_heads(self) -> Tensor:
        return self.matrix(self.heads * self.dim).unflatten(1, (self.heads, self.dim))

    def vector(self, size: int, dtype: torch.dtype) -> Tensor:
        first = self.draw.choice([0, 1, 2, 4])
        return torch.empty(first + size, dtype=dtype)[first:]

    def calls(self) -> list[Any]:
        x, other, gate, up = (self.matrix(self.columns) for _ in range(4))
        weight, of_head = (self.vector(n, self.dtype) for n in (self.columns, self.dim))
        places, ends = self.vector(self.rows, torch.int64), torch.tensor([0, 0, self.rows])
        tables = torch.empty(2, self.rows, self.dim // 2)
        q, k, v = (self.of_heads() for _ in range(3))
        alibi = Terms(scale=0.125, bias=ALIBI, params=self.vector(self.heads, torch.float32))
        return [
            lambda known: norm.forward(x, other, weight, None, 1e-5, True, known=known),
            lambda known: gated.forward(gate, other, "silu", known=known),
            lambda known: gated.linear_forward(x, up[:2], None, "gelu", True, known=known),
            lambda known: rotary.turn(q, *tables, places),
            lambda known: norm_rotary.forward(
                q, of_head, None, 0, *tables, places, 1e-6, False, known=known
            ),
            lambda known: forward(q, k, v, ends, alibi, want_lse=False, known=known),
        ]


@pytest.mark.parametrize("seed", range(24))
def test_whatever_shapes_and_addresses_are(seed: int, noted: list[Launch]) -> None:
    """Launched by the plan, as known from another call, and by Triton."""
    for drawn in [Draw(seed, which) for which in range(4)] * 2:
        for call in drawn.calls():
            noted.clear()
            call(None)
            call(drawn.known)
            with ordinary():
                call(None)
            ways = [told(launch) for launch in noted]
            assert len(ways) in (0, 3)
            assert ways == ways[:1] * len(ways)
