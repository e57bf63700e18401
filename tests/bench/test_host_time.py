"""bench/host_time.py and the card that is not there: what a whole encoder launches on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import pyenc
from bench import host_time
from bench.mocked_launch import Launch, mocked, mocked_card
from pyenc.models.call import call_of
from pyenc.models.layers import Layer, PreNormLayer
from pyenc.models.meta import on_meta
from pyenc.models.rotary import Rotary
from pyenc.models.straight import straight, straight_pre_norm
from pyenc_kernels import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")

LAYER_9_0 = ["attention_forward", "norm_forward", "gated_linear_forward", "norm_forward"]
LAYER_8_0 = ["attention_forward", "norm_forward", "gated_forward", "norm_forward"]


@pytest.fixture
def noted() -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    with mocked(noted=launches):
        yield launches


def made(layers: int = 2, **fields: Any) -> pyenc.Encoder:
    fields = {"position": "alibi", "gated": True, "up_bias": False} | fields
    config = pyenc.EncoderConfig(
        vocab_size=8, hidden_size=768, num_layers=layers, num_heads=12, intermediate_size=3072,
        max_length=8192, **fields,
    )  # fmt: skip
    with on_meta():
        encoder = pyenc.Encoder(config).to(torch.bfloat16).eval()
    return encoder.to_empty(device="cpu")


def run(dtype: torch.dtype, bounds: Tensor, layers: int = 2, **fields: Any) -> Tensor:
    encoder = made(layers, **fields)
    ids = torch.zeros(int(bounds[-1]), dtype=torch.int64)
    with mocked_card((9, 0)), torch.inference_mode():
        return encoder.forward_packed(ids, bounds.to(dtype), contiguous=True, checked=True)


def told(launch: Launch) -> tuple[Any, ...]:
    """Of a launch what is the same each time; a kernel sees no shapes, but numbers."""
    kinds = [
        (x.dtype, x.numel()) if isinstance(x, Tensor) else (type(x), x) for x in launch.arguments
    ]
    return launch.kernel.name, launch.kernel.key, launch.grid, kinds


KNOWN = {*LAYER_9_0, "rotary_turn", "norm_rotary_forward"}
ONE = ["attention_forward", "norm_forward", "norm_forward"]
BERT = {"gated": False, "up_bias": True, "position": "absolute", "num_positions": 600}
PRE = {"norm_first": True, "embedding_norm": False}
QWEN3 = PRE | {"position": "rotary", "rotary": Rotary(1e4), "num_kv_heads": 4, "norm": "rms",
               "head_norm": True}  # fmt: skip
OTHERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bert": (BERT, ONE),
    "mpnet": (BERT | {"relative_buckets": 32}, ONE),
    "table": (BERT | {"position": "table_alibi", "num_positions": 0}, ONE),
    "nomic": (
        {"position": "rotary", "rotary": Rotary(1e4), "activation": "silu"},
        ["rotary_turn", *LAYER_9_0],
    ),
    "t5": (
        BERT | PRE | {"position": "relative", "num_positions": 0, "relative_buckets": 32,
                      "norm": "rms"},
        ["norm_forward", "attention_forward", "norm_forward"],
    ),
    "modernbert": (
        PRE | {"position": "rotary", "rotary": Rotary(1e4), "local_rotary": Rotary(1e5),
               "window": 64, "local": (False, True, True)},
        ["norm_forward", "rotary_turn", *LAYER_9_0[:-1]],
    ),
    "eurobert": (
        PRE | {"position": "rotary", "rotary": Rotary(1e4), "num_kv_heads": 4, "norm": "rms"},
        ["norm_forward", "rotary_turn", *LAYER_9_0[:-1]],
    ),
    "qwen3": (QWEN3, ["norm_forward", "norm_rotary_forward", *LAYER_9_0[:-1]]),
    "gemma": (
        QWEN3 | {"local_rotary": Rotary(1e5), "window": 64, "local": (False, True, True),
                 "term_norm": True, "norm_plus_one": True},
        ["norm_forward", "norm_rotary_forward", "attention_forward", "norm_forward",
         *LAYER_9_0[1:-1], "norm_forward"],
    ),
    "jina qk": (
        {"position": "alibi", "qk_norm": True, "second_residual": True},
        ["norm_forward", "norm_forward", "attention_forward", "norm_forward", *LAYER_9_0[1:]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_launch_the_same(
    family: str, noted: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of each goes straight, and to what it launches by its modules."""
    fields, layer = OTHERS[family]
    went: list[bool] = []

    def noted_by(way: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any) -> Any:
            found = way(*given)
            went.append(found is not None)
            return found

        return noting

    for way in (straight, straight_pre_norm):
        monkeypatch.setattr(f"pyenc.models.encoder.{way.__name__}", noted_by(way))
    run(torch.int32, torch.tensor([0, 250, 600]), 3, **fields)
    assert went == [True] * 3
    found = [told(launch) for launch in noted]
    launched = [name for name, *_ in found if name in KNOWN]
    assert launched == 3 * layer + ["norm_forward"] * fields.get("norm_first", False)
    noted.clear()
    for way in (straight, straight_pre_norm):
        monkeypatch.setattr(f"pyenc.models.encoder.{way.__name__}", lambda *given: None)
    run(torch.int32, torch.tensor([0, 250, 600]), 3, **fields)
    assert [told(launch) for launch in noted] == found


@pytest.mark.parametrize("tokens", [600, 8192])
def test_straight_or_not_the_same_is_launched(
    tokens: int, noted: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole encoder, and with --tokens 8192 the passes before attention too."""
    bounds = torch.tensor([0, tokens])
    hidden = run(torch.int32, bounds)
    straight = [told(launch) for launch in noted]
    assert (hidden.shape, hidden.dtype) == ((tokens, 768), torch.bfloat16)
    kernels = [name for name, *_ in straight]
    assert kernels[0] == "embedding_norm"
    assert [name for name in kernels if name in LAYER_9_0] == 2 * LAYER_9_0
    assert ("key_ranges" in kernels) == (tokens == 8192)
    for name in ("models.straight", "ops.norm", "ops.gated", "ops.attention.straight"):
        module = importlib.import_module(f"pyenc.{name}")
        monkeypatch.setattr(module, "plain", lambda *tensors: False)
    noted.clear()
    run(torch.int32, bounds)
    assert [told(launch) for launch in noted] == straight


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_are_cast_once_a_batch(dtype: torch.dtype, noted: list[Launch]) -> None:
    """Whatever is given, every layer's kernel is the one that is tuned and warmed."""
    run(dtype, torch.tensor([0, 300, 600]))
    launches = [launch for launch in noted if launch.kernel.name == "attention_forward"]
    at = list(launches[0].kernel.signature).index("p_cu")
    bounds = [launch.arguments[at] for launch in launches]
    assert [x.dtype for x in bounds] == [torch.int32] * 2
    assert bounds[0] is bounds[1]


def test_q_and_k_are_turned_in_one_launch(noted: list[Launch]) -> None:
    """Where they lie, beside v; the second time by a plan's memory, to the same kernel."""
    encoder = made(1, position="rotary", rotary=Rotary(1e4))
    layer: Any = encoder.layers[0]
    call = call_of(
        encoder.config, None, 600, torch.tensor([0, 300, 600]), None, True, None, None, None
    )
    x = torch.empty(600, 768, dtype=torch.bfloat16)
    with mocked_card(), torch.inference_mode():
        layer.attention(x, call)
        layer.attention(x, call)
    turns = [launch for launch in noted if launch.kernel.name == "rotary_turn"]
    assert [told(launch) for launch in turns] == 2 * [told(turns[0])]
    names = list(turns[0].kernel.signature)
    given = dict(zip(names, turns[0].arguments, strict=True))
    assert (given["s_t"], given["s_h"], given["n_heads"]) == (3 * 768, 64, 24)


def test_the_program_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(host_time, "CALLS", 1)
    monkeypatch.setattr(host_time, "LAYERS", 2)
    monkeypatch.setattr("sys.argv", ["host_time.py", "--rounds", "3", "--tokens", "32"])
    host_time.main()
    said = capsys.readouterr().out
    rows = [line.rsplit(None, 3)[0] for line in said.splitlines()[3:-1]]
    assert [row.strip() for row in rows] == ["a layer", "attention", "gated", "norms", "linears"]


@pytest.mark.parametrize("family", host_time.FAMILIES)
def test_every_family_goes_straight(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program times of a family is what an encoder does, and no layer is asked itself."""
    monkeypatch.setattr(host_time, "LAYERS", 3)
    calls = host_time.runs(family, 2, 40, torch.bfloat16)
    with mocked(), mocked_card(), torch.inference_mode():
        with monkeypatch.context() as patch:
            for layer in (Layer, PreNormLayer):
                patch.setattr(layer, "__call__", pytest.fail)
            calls[host_time.WHOLE]()
        for call in calls.values():
            call()
