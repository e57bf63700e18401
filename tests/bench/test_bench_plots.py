"""Plots: nothing hides anything, all that was measured is in sight, and a line's end says why."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from bench.show import plots
from bench.show.labels import extent
from bench.show.rates import LONGEST, reason

ENVIRONMENT = {
    "cpu": "A Processor With a Name as Long as Vendors Like Them, at 2.50 GHz, Model 1234 Rev B",
    "cores": 2, "instruction_set": "AVX512", "threads": 2, "versions": {"torch": "2.13.0+cpu"},
    "date": "2026-11-21 10:00 UTC", "commit": "0123456789ab+",
}  # fmt: skip
CLOSE = {
    "fma_gflops": 155.0, "bf16_dot_gflops": 158.0, "gemm_gflops": 152.0,
    "gemm_bf16_gflops": 157.0, "copy_gbs": 20.0,
}  # fmt: skip
TILES = CLOSE | {"bf16_tile_gflops": 1850.0, "gemm_bf16_gflops": 1790.0}


def row(gflops: float, spread: float = 0.1) -> dict[str, Any]:
    seconds = [1 / gflops * (1 + part * spread) for part in (-0.5, 0.0, 0.5)]
    return {"seconds": seconds, "median": 1 / gflops, "spread": spread}


def line_cases() -> list[dict[str, Any]]:
    cases = []
    for dtype, series, (i, at) in itertools.product(
        ("float32", "bfloat16"), ("ALiBi, scores of std 3", "std 6"), enumerate((512, 2048, 8192))
    ):
        peers = {
            "pyenc cpu": row(150.0 * 2**i, 1.6), "pyenc torch": row(152.0),
            "a floor": row(155.0, 0.9), "another": row(149.0),
            "eager": row(60.0) if at < 8192 else {"error": "cannot serve: too slow: about 83 s"},
            "greedy": row(9.0)
            if at < 2048
            else {"error": "cannot serve: OutOfMemoryError: CUDA out of memory. Tried 8 GiB"},
            "late": row(30.0) if at > 512 else {"error": "cannot serve: left out: needs more"},
            "never": {"error": "absent: x is not installed"},
        }  # fmt: skip
        case = {"name": f"n={at}", "dtype": dtype, "series": series, "at": at, "gflop": 1.0}
        cases.append(case | {"gigabytes": 0.0, "peers": peers})
    return cases


def bar_cases() -> list[dict[str, Any]]:
    cases = []
    for dtype, name in itertools.product(
        ("float32", "bfloat16"), ("add_layer_norm T=8,192 forward+backward", "short")
    ):
        peers = {
            "pyenc cpu": row(22.0, 0.5), "torch, eager": row(9.0, 1.2),
            "torch, compiled": row(7.0)
            if name == "short"
            else {"error": "cannot serve: left out of a quick look: it compiles for many seconds"},
        }  # fmt: skip
        case = {"name": name, "dtype": dtype, "series": "", "at": 0, "gflop": 0.0}
        cases.append(case | {"gigabytes": 1.0, "peers": peers})
    return cases


def model_cases() -> list[dict[str, Any]]:
    peers = {f"peer {i}": row(0.1 * (i + 1)) for i in range(12)} | {"gone": {"error": "absent"}}
    return [
        {"model": model, "name": name, "tokens": 2048, "texts": 4, "gflop": 9.0, "peers": peers}
        for model in ("minilm", "jina")
        for name in ("512", "20 to 512")
    ]


RESULTS = {
    "lines": {"op": "attention", "cases": line_cases(), "ceilings": CLOSE},
    "a line of one length": {
        "op": "attention", "cases": [c for c in line_cases() if c["at"] == 512], "ceilings": CLOSE,
    },
    "tiles": {"op": "linear", "cases": line_cases()[-3:], "ceilings": TILES},
    "bars": {"op": "norm", "cases": bar_cases(), "ceilings": CLOSE},
    "models": {"op": "models", "cases": model_cases(), "ceilings": CLOSE},
}  # fmt: skip


@functools.cache
def drawing(name: str) -> Figure:
    with mpl.rc_context(plots.STYLE):
        figure = plots.figure(RESULTS[name] | {"environment": ENVIRONMENT})
        plt.close(figure)  # out of pyplot's list; it stays as it is
        figure.draw_without_rendering()
    return figure


@pytest.fixture(params=RESULTS)
def figure(request: pytest.FixtureRequest) -> Figure:
    return drawing(request.param)


def said(figure: Figure) -> list[Text]:
    """Every text that is in sight."""
    texts = list(figure.texts)
    for legend in figure.legends:
        texts += legend.get_texts()
    for panel in figure.axes:
        texts += [*panel.texts, panel.title]
        for axis, limits in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
            texts.append(axis.label)
            low, high = sorted(limits)
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def pixels(line: Any) -> np.ndarray:
    return line.get_transform().transform(np.column_stack(line.get_data()).astype(float))


def test_no_text_lies_on_another(figure: Figure) -> None:
    boxes = [(text.get_text(), extent(text)) for text in said(figure)]
    assert len(boxes) > 5
    on = [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]
    assert not on


def test_no_text_is_cut_off(figure: Figure) -> None:
    width, height = figure.bbox.size
    for text in said(figure):
        box = extent(text)
        assert box.x0 >= 0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.y1 <= height, text.get_text()


def test_no_line_strikes_a_text_through(figure: Figure) -> None:
    for panel in figure.axes:
        for line in panel.get_lines():
            if line.get_linestyle() == "None" or len(line.get_xdata()) < 2:
                continue
            for text in panel.texts:
                box = extent(text)
                for a, b in itertools.pairwise(pixels(line)):
                    points = np.linspace(a, b, 400)
                    within = ((points > box.min) & (points < box.max)).all(1)
                    assert not within.any(), text.get_text()


def test_limits_hold_all_that_was_measured(figure: Figure) -> None:
    for panel in figure.axes:
        ends = [path.vertices for c in panel.collections for path in c.get_paths()]
        assert ends, "no spread is drawn"
        (x0, x1), (y0, y1) = sorted(panel.get_xlim()), sorted(panel.get_ylim())
        for points in ends:
            assert (points[:, 0] >= x0).all()
            assert (points[:, 0] <= x1).all()
            assert (points[:, 1] >= y0).all()
            assert (points[:, 1] <= y1).all()
        for line in panel.get_lines():  # of lines the ceilings too, of bars the mark
            corners = panel.transAxes.inverted().transform(pixels(line))
            assert (corners >= -1e-9).all()
            assert (corners <= 1 + 1e-9).all()
        assert len([t for t in panel.get_xticks() if x0 <= t <= x1]) >= 1
        assert len([t for t in panel.get_yticks() if y0 <= t <= y1]) >= 2


def spreads(panel: Axes) -> set[tuple[float, float]]:
    """(lowest, highest) of each bar of spread in a panel of lines."""
    paths = [path.vertices for c in panel.collections for path in c.get_paths()]
    return {(round(p[:, 1].min(), 3), round(p[:, 1].max(), 3)) for p in paths}


def test_the_spread_is_of_the_slowest_and_the_fastest_run() -> None:
    figure = drawing("lines")
    rows = line_cases()[0]["peers"]
    for name in ("pyenc cpu", "a floor"):
        seconds = rows[name]["seconds"]
        assert (round(1 / max(seconds), 3), round(1 / min(seconds), 3)) in spreads(figure.axes[0])


def test_the_end_of_a_line_says_why() -> None:
    figure = drawing("lines")
    for panel in figure.axes:
        texts = {" ".join(text.get_text().split()) for text in panel.texts}
        assert "8,192: too slow: about 83 s" in texts
        assert "2,048: out of memory" in texts
        assert "512: needs more" in texts
        assert not any("not installed" in text for text in texts)


def test_the_ceiling_of_tiles_stands_for_the_registers() -> None:
    figure = drawing("tiles")
    texts = {text.get_text() for panel in figure.axes for text in panel.texts}
    assert any("AMX tiles" in text and "1,850" in text for text in texts)
    assert not any("bf16 dot" in text for text in texts)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        ("cannot serve: too slow: about 82 s a run", "too slow: about 82 s a run"),
        ("cannot serve: OutOfMemoryError: CUDA out of memory. Tried to", "out of memory"),
        ("cannot serve: RuntimeError: [enforce fail at alloc_cpu.cpp:117] err", "out of memory"),
        ("cannot serve: MemoryError: ", "out of memory"),
        ("cannot serve: left out: it compiles", "it compiles"),
        ("absent: x is not installed", "absent: x is not installed"),
        ("one\ntwo", "one"),
    ],
)
def test_reasons_are_short(error: str, short: str) -> None:
    assert reason({"error": error}) == short
    assert reason({}) == ""
    assert len(reason({"error": "a" * 100})) == LONGEST


def test_every_result_in_the_repository_can_be_drawn(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "bench" / "results"
    files = sorted(results.glob("rotary*.json"))
    assert files
    for file in files:
        copy = tmp_path / file.name
        copy.write_text(file.read_text("utf-8"), "utf-8")
        (out,) = plots.draw(copy)
        assert "<svg" in out.read_text("utf-8")
        once = out.read_bytes()
        plots.draw(copy)
        assert out.read_bytes() == once, "the same figures draw another file"
    (tmp_path / "none.json").write_text(json.dumps({"cases": []}), "utf-8")
    assert plots.draw(tmp_path / "none.json") == []


def test_labels_are_annotations_that_keep_their_place_when_drawn() -> None:
    figure = drawing("lines")
    labels = [t for panel in figure.axes for t in panel.texts if isinstance(t, Annotation)]
    before = np.array([extent(label).bounds for label in labels])
    figure.draw_without_rendering()
    np.testing.assert_allclose([extent(label).bounds for label in labels], before)
