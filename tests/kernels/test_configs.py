"""Which configuration a call takes: the card's, the nearest shape's, else a default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench import aot_calls, tunables, tune
from pyenc_kernels import configs, embedding, gated, norm, norm_rotary, rotary, segment_mean
from pyenc_kernels.attention import call as attention_call
from pyenc_kernels.configs import Config, entry

TABLE: dict[str, Any] = {
    "default": {"k": {"any": {"64": [1, 1, 4, 1], "256": [2, 2, 4, 1]}}},
    "sm_90": {"k": {"bfloat16": {"64": [3, 3, 4, 1]}}},
    "A Card": {
        "architecture": "sm_90",
        "k": {"bfloat16": {"64x512": [4, 4, 4, 1], "64x8192": [5, 5, 4, 1], "64": [6, 6, 4, 1]}},
    },
}
RANGE_LENGTH = configs._range_length
"""As it is shipped, whatever the fixture in conftest.py puts in its place."""
CARD, OTHER = ("A Card", "sm_90", "default"), ("Another", "sm_90", "default")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "table", lambda: TABLE)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("keys", "dtype", "width", "length", "wanted"),
    [
        (CARD, "bfloat16", 64, 512, "64x512"),
        (CARD, "bfloat16", 40, 1, "64x512"),
        (CARD, "bfloat16", 64, 1500, "64x512"),
        (CARD, "bfloat16", 64, 3000, "64x8192"),
        (CARD, "bfloat16", 64, 10**6, "64x8192"),
        (CARD, "bfloat16", 65, 512, "256"),  # a block must hold it: the default does
        (CARD, "float32", 16, 512, "64"),
        (OTHER, "bfloat16", 64, 512, "64"),
    ],
)
def test_the_nearest_shape(
    keys: tuple[str, ...], dtype: str, width: int, length: int, wanted: str
) -> None:
    assert entry("k", dtype, width, length, keys, whole=True)[0] == wanted


@pytest.mark.parametrize("order", [1, -1])
def test_of_lengths_as_near_the_shorter(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"64x512": [4, 4, 4, 1], "64x8192": [5, 5, 4, 1]}
    table = {"default": {"k": {"any": dict(list(shapes.items())[::order])}}}
    monkeypatch.setattr(configs, "table", lambda: table)
    assert entry("k", "float32", 64, 2048, ("default",))[0] == "64x512"
    assert entry("k", "float32", 64, 3000, ("default",))[0] == "64x8192"


@pytest.mark.usefixtures("table")
def test_where_blocks_need_not_hold_all_the_widest_serves_what_is_wider() -> None:
    assert entry("k", "bfloat16", 3072, 512, CARD)[0] == "64x512"
    assert entry("k", "bfloat16", 3072, 512, OTHER)[1] == Config(3, 3, 4, 1)
    assert entry("k", "float32", 3072, 512, OTHER)[0] == "256"


def test_a_variant_has_entries_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its kernel's in the same place, after the kernel's in a better one."""
    table = {
        "default": {"k": {"any": {"64": [1, 1, 4, 1]}}, "k/odd": {"any": {"64": [2, 2, 4, 1, 40]}}},
        "sm_90": {"k/odd": {"bfloat16": {"64": [3, 3, 8, 2, 128]}}},
        "A Card": {"architecture": "sm_90", "k": {"bfloat16": {"64x512": [4, 4, 4, 1]}}},
    }
    monkeypatch.setattr(configs, "table", lambda: table)
    where = "k", "bfloat16", 64, 512
    assert entry(*where, CARD, variant="odd")[1] == Config(4, 4, 4, 1)
    assert entry(*where, OTHER, variant="odd")[1] == Config(3, 3, 8, 2, 128)
    assert entry(*where, OTHER, variant="even")[1] == Config(1, 1, 4, 1)
    assert entry(*where, OTHER)[1] == Config(1, 1, 4, 1)
    assert entry("k", "float16", 64, 512, OTHER, variant="odd")[1] == Config(2, 2, 4, 1, 40)


def test_a_bound_of_registers_is_launched_where_there_is_one() -> None:
    free, bound = Config(128, 64, 8, 3), Config(128, 64, 8, 3, 128)
    assert free.launch == {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
    assert bound.launch == free.launch | {"maxnreg": 128}
    assert (free.numbers, bound.numbers) == ([128, 64, 8, 3], [128, 64, 8, 3, 128])
    assert Config(*bound.numbers) == bound
    fixed = Config(128, 64, 8, 3, None, True)
    assert fixed.numbers == [128, 64, 8, 3, None, True]
    assert fixed.launch == free.launch
    assert len({free.key, bound.key, fixed.key}) == 3
    # AMD's compiler knows no such thing, and the defaults are its too.
    for key, kernels in configs.table().items():
        if not key.startswith("sm_") and "architecture" not in kernels:
            for dtypes in filter(lambda of: isinstance(of, dict), kernels.values()):
                every = [Config(*x) for shapes in dtypes.values() for x in shapes.values()]
                assert all(config.maxnreg is None for config in every), key


@pytest.mark.parametrize(
    ("keys", "least"), [(CARD, 700), (OTHER, 900), (("Third", "sm_80", "default"), 500)]
)
def test_from_which_length_on_ranges_pay(
    keys: tuple[str, ...], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's own number, its architecture's, the default; of an average length."""
    table = {
        "default": {"range_length": 500}, "sm_90": {"range_length": 900},
        "A Card": {"architecture": "sm_90", "range_length": 700},
    }  # fmt: skip
    monkeypatch.setattr(configs, "table", lambda: table)
    monkeypatch.setattr(configs, "keys_of", lambda device: keys)
    monkeypatch.setattr(configs, "_range_length", RANGE_LENGTH.__wrapped__)
    device = torch.device("cpu")
    for n_sequences in (1, 3, 200):
        assert configs.ranges_pay(device, least * n_sequences, n_sequences)
        assert not configs.ranges_pay(device, least * n_sequences - 1, n_sequences)


def test_every_device_has_a_length_from_which_ranges_pay() -> None:
    for key in configs.table():
        assert RANGE_LENGTH((key, "default")) > 0


@pytest.mark.usefixtures("table")
def test_what_has_no_entry_is_named() -> None:
    with pytest.raises(KeyError, match="no default for k, float16, width 257"):
        entry("k", "float16", 257, 1, CARD, whole=True)
    with pytest.raises(KeyError, match="no default for unheard_of"):
        entry("unheard_of", "float16", 1, 1, CARD)


@pytest.mark.parametrize(
    ("width", "whole", "block"),
    [(16, False, (256, 16)), (100, False, (32, 128)), (5000, False, (4, 1024)),
     (5000, True, (1, 8192)), (768, True, (4, 1024))],
)  # fmt: skip
def test_a_block_of_as_many_elements(width: int, whole: bool, block: tuple[int, int]) -> None:
    assert Config(4, 1024, 4, 1).block(width, whole=whole) == block


@pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")
def test_a_dense_bias_is_compiled_for_any_length_that_a_card_has() -> None:
    aot_calls.call("dense", torch.float32, 16, 300)


def test_what_is_shipped_serves_every_kernel_dtype_and_width() -> None:
    for kernel, tunable in tunables.TUNABLES.items():
        for dtype in ("float32", "bfloat16", "float16"):
            for width in (1, 16, 40, 64, 80, 256):
                whole = tunable.op in ("alibi", "none", "disentangled")
                for key in configs.table():
                    keys = (key, "default")
                    _, config = entry(
                        tunables.kernel_of(kernel), dtype, width, 300, keys, whole=whole
                    )
                    assert config.block_m * config.block_n >= 256


def test_a_card_without_entries_takes_those_of_one_of_its_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"64": [32, 32, 4, 1]}
    table = {
        "default": {"attention_forward": {"bfloat16": {"64": [64, 64, 4, 2]}}},
        "sm_90": {"attention_forward": {"bfloat16": {"64": [128, 64, 8, 3]}}},
        "A Card": {"architecture": "sm_90", "attention_forward": {"bfloat16": there}},
        "Its Elder": {"architecture": "sm_80", "attention_forward": {"bfloat16": there}},
    }
    monkeypatch.setattr(configs, "table", lambda: table)
    keys = configs.of_card("Another", "sm_90")
    assert keys == ("Another", "A Card", "sm_90", "default")
    assert entry("attention_forward", "bfloat16", 64, 300, keys)[1] == Config(32, 32, 4, 1)
    assert configs.of_card("A Card", "sm_90") == ("A Card", "sm_90", "default")
    assert configs.of_card("Another", "sm_86") == ("Another", "sm_86", "default")


@pytest.mark.parametrize("kernel", [k for k in tunables.TUNABLES if k.startswith("attention")])
def test_the_form_that_is_tuned_is_the_one_that_is_written(
    kernel: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunables, "TOKENS", 16)
    monkeypatch.setattr(tunables, "HEADS", 1)
    seen: dict[str, str | None] = {}
    real = attention_call.config_for

    def noting(asked: str, *rest: Any, variant: str | None = None, **named: Any) -> Config:
        seen[asked] = variant
        return real(asked, *rest, variant=variant, **named)

    monkeypatch.setattr(attention_call, "config_for", noting)
    call = tunables.TUNABLES[kernel].call(kernel, "float32", 16, 16, torch.device(device))
    call(None)  # type: ignore[arg-type]
    assert seen[tunables.kernel_of(kernel)] == tunables.TUNABLES[kernel].variant


def test_a_tuned_entry_is_the_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "configs.json"
    file.write_text(configs.FILE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(configs, "FILE", file)
    monkeypatch.setattr(configs, "keys_of", lambda device: ("A Card", "sm_90", "default"))
    best = Config(32, 32, 4, 1)
    tune.write(torch.device("cpu"), "attention_forward", "bfloat16", "64x512", best)
    written = json.loads(file.read_text("utf-8"))
    assert written.pop("A Card") == {
        "architecture": "sm_90",
        "attention_forward/affine": {"bfloat16": {"64x512": [32, 32, 4, 1]}},
    }
    assert written == json.loads(Path(configs.__file__).with_name("configs.json").read_text())


@pytest.mark.parametrize("kernel", tunables.TUNABLES)
def test_a_candidate_is_what_is_launched(
    kernel: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunables, "TOKENS", 96)
    monkeypatch.setattr(tunables, "HEADS", 1)
    tunable = tunables.TUNABLES[kernel]
    call = tunable.call(kernel, "float32", 32, 64, torch.device(device))
    real = configs.config_for

    def not_this_one(asked: str, *rest: Any, **named: Any) -> Config:
        assert asked != tunables.kernel_of(kernel), "configs.json was asked, whatever the candidate"
        return real(asked, *rest, **named)

    for module in (
        attention_call,
        embedding.launch,
        gated.launch,
        norm.launch,
        norm_rotary.launch,
        rotary.launch,
        segment_mean.launch,
    ):
        monkeypatch.setattr(module, "config_for", not_this_one)
    call(tunable.candidates("float32")[-1])
    with pytest.raises(AssertionError, match="whatever the candidate"):
        call(None)  # type: ignore[arg-type]
