"""Whole encoders on a card, run on a CPU with tiny shapes: what is compared, listed and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyenc
from bench import bert_folder, card_models, subjects, workloads
from bench.compare import Ready
from bench.peers import card_call, card_encoders, pyenc_encoder, torch_encoder
from bench.peers.encoders import Peer
from bench.show import models_table
from bench.workloads import Case
from pyenc.cli.arguments import parse

CPU = torch.device("cpu")
CASES = [Case("jina-base", "16", (16,) * 3), Case("jina-base", "mixed", (9, 40, 3, 17))]
RATES = {"gemm_gflops": 100.0, "gemm_bf16_gflops": 100.0, "copy_gbs": 10.0}


@pytest.fixture(scope="module")
def tiny() -> pyenc.Encoder:
    return subjects._jina(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)


@pytest.fixture
def programs(tiny: pyenc.Encoder, monkeypatch: pytest.MonkeyPatch) -> dict[str, Peer]:
    """Those of the tiny encoder in place of Jina-base's; may be added to."""
    listed = card_encoders.peers("jina-base", CPU)
    # One layer's compilation takes a CPU many seconds, and is torch's own business.
    del listed["torch.compile, dense bias"]
    small = replace(subjects.SUBJECTS["jina-base"], source=lambda: tiny, checked=(12, 7))
    monkeypatch.setitem(subjects.SUBJECTS, "jina-base", small)
    monkeypatch.setattr(card_encoders, "peers", lambda model, device: listed)
    monkeypatch.setattr(card_models.ceilings, "ceilings", lambda device: RATES)
    return listed


def run(out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    options = parse(["bench", "models", "--quick", "--no-plot", f"--out={out}", *more])
    status = card_models.run(CASES, options, CPU)
    return status, json.loads(out.read_text())


def failing(at: str) -> Callable[..., Any]:
    """What dies when it is loaded, prepared or run."""

    def fail(stage: str) -> None:
        if stage == at:
            raise RuntimeError(f"no kernel image\n{stage}")

    def load(source: Any) -> Callable[[list[Tensor]], Ready]:
        fail("loaded")

        def prepare(texts: list[Tensor]) -> Ready:
            fail("prepared")
            return Ready(lambda: fail("run"))

        return prepare

    return load


def test_one_that_dies_is_listed_and_the_others_go_on(
    programs: dict[str, Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = "loaded", "prepared", "run"
    programs |= {f"dies {at}": Peer(failing(at), "bfloat16", 0.15) for at in stages}
    programs["dies, of another function"] = Peer(failing("run"), "bfloat16")
    status, result = run(tmp_path / "out.json")
    assert status == 0
    assert [case["name"] for case in result["cases"]] == ["16", "mixed"]
    for case in result["cases"]:
        rows = case["peers"]
        assert list(rows) == list(programs)
        timed = {name for name, row in rows.items() if "median" in row}
        assert timed == {
            "pyenc", "torch, SDPA, dense bias", "transformers BertModel, no ALiBi",
        }  # fmt: skip
        for name in set(rows) - timed:
            assert rows[name]["error"].startswith("cannot serve: "), name
        assert "no kernel image" in rows["dies prepared"]["error"]
        assert rows["pyenc"]["ratio"] == 1.0
        plain = rows["torch, SDPA, dense bias"]
        assert plain["ratio"] == pytest.approx(plain["median"] / rows["pyenc"]["median"], 1e-4)
        assert 0 < plain["difference"] < 0.15
        assert "difference" not in rows["transformers BertModel, no ALiBi"]
        assert case["best"]["bfloat16"] == {
            "peer": "torch, SDPA, dense bias", "ratio": plain["ratio"]
        }  # fmt: skip
    assert set(result["oracle"]["jina-base"]) == {"pyenc", "torch, SDPA, dense bias"}
    assert result["ceilings_after"] == RATES
    said = capsys.readouterr()
    assert "cannot serve: RuntimeError: no kernel image" in said.out
    assert "written: out.json" in said.out
    assert not said.err


def test_what_disagrees_or_does_not_run_ends_with_1(
    programs: dict[str, Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = programs["pyenc"]

    def off(source: Any) -> Callable[[list[Tensor]], Ready]:
        prepare = ours.load(source)

        def wrong(texts: list[Tensor]) -> Ready:
            good = prepare(texts)
            return Ready(lambda: good.run() + (texts[0].numel() == 16))

        return wrong

    programs["off in a case"] = Peer(off, "bfloat16", 0.15)
    status, _ = run(tmp_path / "out.json", "--no-memory")
    assert status == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "jina-base at 16: off in a case" in said
    programs["pyenc"] = Peer(failing("run"), "bfloat16", 0.15)
    status, result = run(tmp_path / "out.json", "--no-memory")
    assert status == 1
    assert "jina-base at mixed: pyenc" in capsys.readouterr().err
    rows = result["cases"][0]["peers"]
    assert "ratio" not in rows["torch, SDPA, dense bias"]
    assert result["cases"][0]["best"] == {"bfloat16": None}


def test_strings_go_to_vectors_in_both_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint that is made here; in float32, where they agree to rounding."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "bert"
    folder.mkdir()
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    bert_folder.write(folder, {"vocab_size": 1500, "num_hidden_layers": 2, **sizes})
    small = replace(subjects.SUBJECTS["bert-base"], source=lambda: folder, checked=(64, 9))
    monkeypatch.setitem(subjects.SUBJECTS, "bert-base", small)
    monkeypatch.setattr(card_models.ceilings, "ceilings", lambda device: RATES)
    monkeypatch.setattr(card_encoders, "BF16", torch.float32)
    case = Case("bert-base", "mixed", (40, 5, 512, 17))
    options = parse(["bench", "models", "--quick", f"--out={tmp_path / 'out.json'}", "--no-plot"])
    assert card_models.run([case], options, CPU) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["oracle"]["bert-base"]) == ["pyenc", "sentence-transformers"]
    assert max(result["oracle"]["bert-base"].values()) < 1e-6
    (found,) = result["cases"]
    assert found["texts"] == 4
    assert found["tokens"] == 574
    assert found["peers"]["sentence-transformers"]["difference"] < 1e-6
    assert found["best"]["bfloat16"]["peer"] == "sentence-transformers"
    encoder = subjects.tokenizing(folder)
    vectors = encoder.encode(workloads.texts_of((9, 64), encoder))
    assert abs(vectors[0] - vectors[1]).max() > 1e-2, "all texts are one to these weights"


@pytest.mark.parametrize("lengths", [(24, 24), (5, 31, 1, 8, 30) * 8])
def test_rows_are_the_packed_texts_again(tiny: pyenc.Encoder, lengths: tuple[int, ...]) -> None:
    """In float32, so that a text in another's place cannot hide in rounding."""
    texts = workloads.token_ids(lengths, 30522)
    facts: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    truth = pyenc_encoder.ids_oracle(tiny)(texts)
    for load in (pyenc_encoder.packed, torch_encoder.in_rows):
        ready = load(tiny, **facts)(texts)
        torch.testing.assert_close(
            ready.results(ready.run())["out"].double(), truth, rtol=0, atol=1e-4
        )


def test_padded_rows_begin_at_sixteen_bytes() -> None:
    shapes: list[tuple[int, ...]] = []

    def forward(ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        shapes.append(tuple(ids_BN.shape))
        assert mask_BN.sum(1).tolist() == sorted(mask_BN.sum(1).tolist(), reverse=True)
        return ids_BN[..., None] * mask_BN[..., None]

    texts = workloads.token_ids([1 + i * 7 % 50 for i in range(50)], 1000)
    ready = card_call.in_rows(texts, lambda ids, mask: mask, forward)
    assert torch.equal(ready.results(ready.run())["out"][:, 0], torch.cat(texts))
    assert [rows for rows, _ in shapes] == [card_call.BATCH, 50 - card_call.BATCH]
    assert all(length % 8 == 0 for _, length in shapes)


def test_the_cases_are_as_long_as_they_say() -> None:
    cases = {(case.model, case.name): case for case in workloads.card_cases(quick=False)}
    ids = {name: case.tokens for (model, name), case in cases.items() if model == "jina-base"}
    assert {tokens for name, tokens in ids.items() if name != "16 to 512"} == {32768}
    for model, count in (("jina-base", 256), ("bert-base", 1024)):
        ragged = cases[model, "16 to 512"].lengths
        assert (len(ragged), min(ragged), max(ragged)) == (count, 16, 512)
        assert list(ragged) != sorted(ragged)
    quick = {(case.model, case.name): case for case in workloads.card_cases(quick=True)}
    assert set(cases) - set(quick) == {("jina-base", "8,192")}
    assert len(quick["jina-base", "16 to 512"].lengths) == 32


def test_a_table_of_a_card_says_so() -> None:
    peers = {"pyenc": {"median": 0.1, "ratio": 1.0}}
    case = {"model": "m", "name": "512", "tokens": 100, "peers": peers}
    environment = {"cpu": "a CPU", "cores": 2, "instruction_set": "AVX2", "versions": {}}
    result = {"cases": [case], "environment": environment}
    assert "fp32 GEMM" in models_table.explanation(result)
    assert "a CPU" in models_table.markdown(result)
    result["environment"] = environment | {"gpu": {"name": "A Card"}}
    assert "bf16 GEMM" in models_table.explanation(result)
    said = models_table.markdown(result)
    assert "A Card; ; bf16." in said
    assert "a CPU" not in said
