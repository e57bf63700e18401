"""Gains of linear layers: the cautious of two estimates, filed as the package reads them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import tune_linear
from pyenc.cli.arguments import parse
from pyenc.errors import InputError
from pyenc.ops import extension
from pyenc.ops.linear import amx, choices, onednn, parts, processor, product, wide


def test_the_ratio_is_the_cautious_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half the rounds of the one disturbed nor one lucky round of the other count."""
    now = [0.0]

    def taking(*seconds: float) -> Callable[[], None]:
        left = itertools.cycle(seconds)
        return lambda: now.__setitem__(0, now[0] + next(left))

    def ratio(old: Callable[[], None], new: Callable[[], None]) -> float:
        return tune_linear.ratios(old, {"new": new}, 9, lambda: now[0])["new"]

    monkeypatch.setattr(tune_linear, "SECONDS", 1e9)
    assert ratio(taking(1, 9, 9), taking(1)) == 1
    assert ratio(taking(1), taking(1, 1, 0.1)) == 1
    assert ratio(taking(3), taking(2)) == 1.5
    monkeypatch.setattr(tune_linear, "SECONDS", 0.0)
    calls: list[int] = []

    def noted(number: int) -> Callable[[], None]:
        second = taking(1)
        return lambda: calls.append(number) or second()

    ways = {"one": noted(1), "other": noted(2)}
    assert tune_linear.ratios(noted(0), ways, 9, lambda: now[0]) == dict.fromkeys(ways, 1)
    assert calls == [0, 1, 2] * (1 + 3)  # in turns


@pytest.mark.parametrize("dtype", onednn.DTYPES)
def test_what_is_measured_are_the_ways_that_serve(dtype: torch.dtype) -> None:
    ways = tune_linear.ways(dtype, (70, 48, 96))
    packs = onednn.why_not(dtype) is None
    expected = {"onednn", "few_packed", "forward", "unpacked", "gelu_fused"} if packs else set()
    expected |= {"wide"} if dtype in wide.DTYPES else set()
    expected |= {"few_rows"} if extension.missing() is None else set()
    x = torch.randn(2, dtype=dtype)
    expected |= {way for way in parts.PARTS if product.why_not(way, x) is None}
    if product.why_not(amx.WAY, x) is None:
        expected |= {"amx", "amx_unpacked"}
    assert set(ways) == expected
    for old, new in ways.values():
        first, second = old(), new()
        assert isinstance(first, torch.Tensor | tuple)
        torch.testing.assert_close(first, second, rtol=0.02, atol=0.02)


def test_an_entry_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = processor.Processor("GenuineIntel", "6", "143", "avx512_core_amx", "AVX512")
    threads = torch.get_num_threads()
    file = tmp_path / "choices.json"
    file.write_text(choices.FILE.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(choices, "FILE", file)
    monkeypatch.setattr(processor, "here", lambda: kind)
    shapes = {tune_linear.SHAPES[0]: 2.0, tune_linear.SHAPES[1]: 8.0}
    monkeypatch.setattr(tune_linear, "SHAPES", tuple(shapes))
    monkeypatch.setattr(tune_linear, "gains", lambda dtype, shape, _: {"onednn": shapes[shape]})
    assert tune_linear.main(parse(["bench", "tune", "--device=cpu", "--write"])) == 0
    assert capsys.readouterr().out.startswith(f"{kind.name}\n  256 tokens")
    assert torch.get_num_threads() == threads
    written = json.loads(file.read_text("utf-8"))
    assert written[kind.name]["float16"] == {"onednn": 4.0}  # the geometric mean
    assert written.pop(kind.name)["source"].startswith("measured 20")
    assert written == json.loads(Path(choices.__file__).with_suffix(".json").read_text("utf-8"))
    assert choices.lookup(choices.table(), kind, torch.float32).prefers("onednn")
    monkeypatch.setattr(processor, "here", processor.Processor)
    with pytest.raises(InputError, match="not known"):
        tune_linear.main(parse(["bench", "tune", "--device=cpu", "--write"]))


def test_the_shipped_file_is_as_it_would_be_written() -> None:
    assert tune_linear.as_text(choices.table()) == choices.FILE.read_text("utf-8")
