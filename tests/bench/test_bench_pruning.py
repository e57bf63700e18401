"""What is dropped before a card times it, what a card has chosen never being among it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from bench import aot, occupancy, pruning, tune
from bench.ahead_of_time import SHARED_LIMIT, Compiled
from bench.aot_work import listed
from bench.pruning import FAILS, SHARED, SPILLED_BYTES, SPILLS, WAITING, Form, Judged
from bench.tunables import TUNABLES, kernel_of
from pyenc_kernels import configs, interpreting
from pyenc_kernels.configs import Config

GOOD = Compiled("attention_forward", "sm_90", 8, 128, None, 0, 0, 65536, (), (3,), (pruning.WGMMA,))
FORM = Form("attention_forward", "bfloat16", 64, 8192)


@pytest.mark.parametrize(
    ("architecture", "registers", "warps", "shared", "expected"),
    [
        ("sm_90", 128, 8, 65536, 2),  # registers: 16 warps of 128
        ("sm_90", 129, 8, 65536, 1),  # of 136, as they are given: three a quarter
        ("sm_90", 168, 4, 0, 3),
        ("sm_90", 255, 8, 0, 1),
        ("sm_90", 32, 4, 75 * 1024, 3),  # 228 KB, a kilobyte more of each block
        ("sm_90", 32, 4, 76 * 1024, 2),
        ("sm_90", 32, 4, SHARED_LIMIT["sm_90"], 1),
        ("sm_90", 32, 4, SHARED_LIMIT["sm_90"] + 1, 0),
        ("sm_90", 20, 1, 0, 32),  # blocks
        ("sm_90", 20, 4, 0, 16),  # warps
        ("sm_86", 20, 4, 0, 12),
        ("sm_86", 20, 1, 0, 16),
        ("sm_89", 20, 1, 0, 24),
        ("sm_80", 64, 4, 40 * 1024, 4),
    ],
)
def test_blocks_a_multiprocessor(
    architecture: str, registers: int, warps: int, shared: int, expected: int
) -> None:
    assert occupancy.blocks(architecture, registers, warps, shared) == expected


def test_every_card_of_nvidias_that_is_compiled_for_is_known() -> None:
    assert occupancy.RESIDENT.keys() == SHARED_LIMIT.keys()
    assert not pruning.serves("gfx942")


def test_what_is_dropped() -> None:
    assert pruning.why_dropped(GOOD) is None
    assert pruning.why_dropped(replace(GOOD, spilled_bytes=SPILLED_BYTES)) is None
    assert pruning.why_dropped(replace(GOOD, spilled_bytes=SPILLED_BYTES + 4)) == SPILLS
    assert pruning.why_dropped(replace(GOOD, warnings=("C7510", "C7515"))) == WAITING
    assert pruning.why_dropped(replace(GOOD, shared_bytes=SHARED_LIMIT["sm_90"] + 1)) == SHARED


def timed() -> Iterator[tuple[str, str, list[int]]]:
    """(card, kernel, configuration) that a card of NVIDIA's has chosen."""
    for card, entries in configs.table().items():
        if not pruning.serves(entries.get("architecture", "")):
            continue
        for name, dtypes in entries.items():
            if isinstance(dtypes, dict):
                for shapes in dtypes.values():
                    yield from (
                        (card, name.partition("/")[0], numbers) for numbers in shapes.values()
                    )


def test_what_a_card_has_chosen_is_kept() -> None:
    """By the rows that `make aot` has written of it; every form of each kernel, whatever bias."""
    made = aot.read()
    seen = set()
    for work in listed():
        entry = made.get(work.key, {"kernels": []})
        for row in entry["kernels"]:
            chosen = work.card, row["kernel"], entry["configs"].get(row["kernel"])
            if chosen in list(timed()):
                assert pruning.why_dropped(Compiled.of(row)) is None, (work.key, row)
                seen.add((work.card, row["kernel"]))
    assert {kernel for _, kernel in seen} >= {
        kernel_of(k) for k in TUNABLES if k.startswith("attention")
    }


def candidates(*compiled: Compiled | None) -> list[Judged]:
    return [
        Judged(Config(16 * (i + 1), 64, 8, 3), each, pruning.why_dropped(each) if each else FAILS)
        for i, each in enumerate(compiled)
    ]


def kept(*compiled: Compiled | None) -> list[int]:
    of = pruning.some_kept(candidates(*compiled))
    assert [one.config for one in of] == [one.config for one in candidates(*compiled)]
    return [i for i, one in enumerate(of) if one.why is None]


SMALL = replace(GOOD, matrix_instructions=("mma.sync",))


def test_products_that_wait_are_dropped_for_others_that_do_not() -> None:
    waits = replace(GOOD, warnings=("C7515",))
    assert kept(GOOD, waits, SMALL) == [0, 2]
    assert kept(waits, SMALL, replace(waits, spilled_bytes=SPILLED_BYTES + 4)) == [0, 1]
    assert kept(waits, waits) == [0, 1]
    assert kept(waits, replace(GOOD, spilled_bytes=SPILLED_BYTES + 4)) == [0]
    said = pruning.summary(FORM, pruning.some_kept(candidates(waits, SMALL)))
    assert said.endswith("2 of 2 candidates kept; kept for want of others: " + WAITING)


def test_of_nothing_but_dropped_ones_the_best_is_kept() -> None:
    spills, less = (replace(GOOD, spilled_bytes=SPILLED_BYTES + more) for more in (800, 400))
    too_large = replace(GOOD, shared_bytes=SHARED_LIMIT["sm_90"] + 1024)
    assert kept(spills, GOOD, less, GOOD) == [1, 3]
    assert kept(None, spills, too_large, less) == [3]
    assert kept(spills, too_large) == [0]
    assert kept(too_large, replace(too_large, shared_bytes=SHARED_LIMIT["sm_90"] + 512)) == [1]
    assert kept(less, replace(less, registers=64)) == [1]  # four blocks of it for two
    assert kept(less, replace(less, registers=127)) == [1]
    assert kept(None, None) == []
    assert kept() == []
    of = pruning.some_kept(candidates(None, spills, less))
    assert pruning.summary(FORM, of) == (
        "attention_forward, bfloat16, 64: 1 of 3 candidates kept; dropped: 1 (does not compile), "
        f"1 ({SPILLS}); all would be: the best of them is kept"
    )


def test_they_are_said_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without a card: a line a candidate, and the file."""
    asked: list[Any] = []

    def over_candidates(run: Any, of: dict[Any, list[Config]]) -> tuple[list[Any], set[Any]]:
        asked.extend(of)
        ((what, listed),) = of.items()
        first, second, third, *rest = listed
        found = [
            Judged(first, GOOD, None),
            Judged(second, replace(GOOD, warnings=("C7515",)), WAITING),
            Judged(third, None, FAILS, "RuntimeError: no such layout"),
        ]
        return [(what[0], found)], {(what, config) for config in rest}

    monkeypatch.setattr(pruning, "over_candidates", over_candidates)
    out = tmp_path / "ahead.json"
    options = Namespace(
        op="tune", architecture="sm_90", kernel=["attention_forward"], shape=None, dtype=None,
        cases=None, quick=True, list=False, out=str(out),
    )  # fmt: skip
    assert tune.main(options) == 0
    assert asked == [(FORM, "sm_90", False)]  # one width, whatever the lengths
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:4] == ["rows", "columns", "warps", "stages"]
    assert said[1].split()[7:] == ["128", "0", "0", "65,536", "2", "no", "kept"]
    assert said[2].endswith(f"yes  {WAITING}")
    assert said[3].endswith("RuntimeError: no such layout")
    assert said[4].endswith("-  ends the compiler")
    count = len(tune.candidates_of("attention_forward", "bfloat16", True))
    assert f"64: 1 of {count} candidates kept; dropped: {count - 3} (ends the compiler)" in said[-2]
    (work,) = json.loads(out.read_text())["work"]
    rows = work["candidates"]
    assert len(rows) == count
    assert (rows[0]["dropped"], rows[0]["blocks"], rows[0]["registers"]) == (None, 2, 128)
    assert (rows[2]["dropped"], rows[2]["error"]) == (FAILS, "RuntimeError: no such layout")


@pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")
def test_a_candidate_is_compiled_and_kept_for_a_launch(tmp_path: Path) -> None:
    """Nothing but the kernel that is tuned; what a cache has of it is compiled again, for what the
    assembler says."""
    form = Form("norm_parameters", "bfloat16", 64, 16)
    config = Config(16, 16, 4, 1)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        for keep in (False, True, True):
            found, (judged,) = pruning._compile(((form, "sm_90", keep), [config]))
            assert found == form
            assert judged.why is None
            assert judged.compiled is not None
            assert (judged.compiled.kernel, judged.compiled.warps) == ("norm_parameters", 4)
            assert judged.blocks > 1
            cubins = {path.name for path in tmp_path.rglob("*.cubin")}
            assert cubins == ({"norm_parameters.cubin"} if keep else set())
        _, (judged,) = pruning._compile(((form, "sm_90", False), [replace(config, num_warps=3)]))
        assert judged.why == FAILS
        assert judged.error
