"""Model cards: their front matter as authors write it, and scores run again beside theirs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyenc
from tests.integrations.texts import GOLDEN

mteb = pytest.importorskip("mteb")

from pyenc.cli.main import main
from pyenc.integrations.mteb import NotRun, PyencEncoder, Rerun, read_card, rerun
from pyenc.integrations.mteb.card import CardResult, in_percent
from pyenc.integrations.mteb.rerun import offline

# Spelt in the ways that published cards are; the figures are made up.
FRONT = """\
---
tags:
- mteb
- sentence-transformers
language:
- en
- no
license: apache-2.0
model-index:
- name: some-model
  results:
  - task:
      type: Classification
    dataset:
      type: mteb/amazon_counterfactual
      name: MTEB AmazonCounterfactualClassification (en)
      config: en
      split: test
      revision: e8379541af4e31359cca9fbcf4b00f2671dba205
    metrics:
    - type: accuracy
      value: 76.79104477611939
    - type: ap
      value: 40.12345
    - type: f1
      value: 71
  - task: {type: STS}
    dataset: {type: mteb/sts17-crosslingual-sts, name: 'MTEB STS17 (en-en)', config: en-en,
              split: test, revision: 12345678901234567890}
    metrics: [{type: cos_sim_pearson, value: 87.5}, {type: cos_sim_spearman, value: '88.25'}]
  - task:
      type: Retrieval
    dataset:
      type: arguana
      name: MTEB ArguAna
      config: default
      split: test
      revision: None
    metrics:
    - type: map_at_1
      value: .nan
    - type: ndcg_at_10
      value: 55.5
    - type: mrr_at_10
      value: null
    - type: main_score
      value: 55.5
  - task:
      type: Classification
    dataset:
      type: mteb/some-languages
      name: MTEB Massive
      config: [da, no, sv]
      split: [test, validation]
    metrics:
    - type: accuracy
      value: 1e1
  - task:
      type: semantic-similarity
      name: Semantic Similarity
    dataset:
      name: sts dev
      type: sts-dev
    metrics:
    - type: pearson_cosine
      value: 0.8765
      name: Pearson Cosine
  - task: {type: STS}
    dataset: {type: mteb/without-metrics, name: MTEB NoMetrics, config: ~}
---

# A model

--- not the end of anything
"""


def write(folder: Path, content: str, name: str = "README.md") -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def test_real_front_matter_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, FRONT)
    results = read_card(path)
    assert results == read_card(tmp_path)  # the folder that has a README.md
    first, sts, retrieval, *massive, own, empty = results
    assert (first.task, first.subset, first.split) == (
        "AmazonCounterfactualClassification", "en", "test",
    )  # fmt: skip
    assert first.revision == "e8379541af4e31359cca9fbcf4b00f2671dba205"
    assert first.metrics == {"accuracy": 76.79104477611939, "ap": 40.12345, "f1": 71.0}
    assert (sts.task, sts.subset) == ("STS17", "en-en")
    assert sts.revision == "12345678901234567890"
    assert sts.metrics == {"cos_sim_pearson": 87.5, "cos_sim_spearman": 88.25}
    assert (retrieval.task, retrieval.subset, retrieval.revision) == ("ArguAna", "default", None)
    assert retrieval.metrics == {"ndcg_at_10": 55.5, "main_score": 55.5}
    assert retrieval.unreadable == ("map_at_1", "mrr_at_10")
    places = [(each.subset, each.split) for each in massive]
    assert places == [(s, p) for s in ("da", "no", "sv") for p in ("test", "validation")]
    assert {each.metrics["accuracy"] for each in massive} == {10.0}
    assert (own.task, own.subset, own.is_mteb) == ("sts dev", None, False)
    assert (empty.task, empty.subset, empty.metrics) == ("NoMetrics", None, {})
    assert all(each.is_mteb for each in results if each is not own)
    assert in_percent(results)
    assert not in_percent([own])


def test_percent_is_not_told_by_areas_that_have_no_lower_end() -> None:
    """Of chance, nAUC is negative without end; all else of this card is a share of 1."""
    areas = {"nauc_map_at_1000_diff1": -1.5, "map_at_1000": 0.5}
    assert not in_percent([CardResult("A", None, None, None, areas)])
    assert in_percent([CardResult("A", None, None, None, {**areas, "main_score": -3.1})])


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_bytes(b"\xef\xbb\xbf" + FRONT.replace("\n", "\r\n").encode())
    assert read_card(path) == read_card(write(tmp_path, FRONT))


def test_empty_lines_before_the_front_matter(tmp_path: Path) -> None:
    """As the Hub's own reader has it."""
    expected = read_card(write(tmp_path, FRONT))
    assert read_card(write(tmp_path, "\n  \n" + FRONT)) == expected


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("# A model\n", "no front matter"),
        ("---\nlanguage: en\n", "no second line ---"),
        ("---\nlanguage: en\n---\n", "has no model-index"),
        ("---\n- a list\n---\n", "has no model-index"),
        ("---\na: [\n---\n", "is not YAML"),
        ("---\nmodel-index: words\n---\n", "must be a list of models, got 'words'"),
        ("---\nmodel-index:\n- name: m\n---\n", "has no results"),
        ("---\nmodel-index:\n- results: {a: b}\n---\n", "must be a list, got {'a': 'b'}"),
        ("---\nmodel-index:\n- results:\n  - task: {type: STS}\n---\n", "result 0 .* no dataset"),
    ],
)
def test_a_card_that_is_none(tmp_path: Path, content: str, fault: str) -> None:
    with pytest.raises(pyenc.InputError, match=fault):
        read_card(write(tmp_path, content))


def test_a_card_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(pyenc.InputError, match="no such card; give a file, a folder"):
        read_card(tmp_path / "nowhere" / "at" / "all.md")
    with pytest.raises(pyenc.InputError, match=r"README\.md"):
        read_card(tmp_path)
    path = tmp_path / "README.md"
    path.write_bytes(b"---\n\xff\xfe\n---\n")
    with pytest.raises(pyenc.InputError, match="not UTF-8"):
        read_card(path)
    with offline(), pytest.raises(pyenc.InputError, match="no-such/model: the card cannot be read"):
        read_card("no-such/model")


def entry(task: str, metrics: dict[str, Any], **data: str) -> str:
    told = "".join(f"\n      {key}: {value}" for key, value in data.items())
    values = "".join(f"\n    - type: {k}\n      value: {v}" for k, v in metrics.items())
    return (
        "  - task:\n      type: any\n    dataset:\n      type: mteb/any\n"
        f"      name: MTEB {task}{told}\n    metrics:{values}\n"
    )


def card(folder: Path, *entries: str) -> Path:
    return write(folder, f"---\nmodel-index:\n- name: m\n  results:\n{''.join(entries)}---\n")


@pytest.fixture(scope="module")
def folder() -> Path:
    return GOLDEN / "modernbert_embed_like_h2"


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, dict[str, float]]:
    """What sentence-transformers scores."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from tests.integrations.mteb.small_tasks import SmallRetrieval, SmallSTS

    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    found = mteb.evaluate(
        model, [SmallSTS(), SmallRetrieval()], cache=None, co2_tracker=False,
        show_progress_bar=False,
    )  # fmt: skip
    return {each.task_name: each.scores["test"][0] for each in found.task_results}


Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(folder: Path, capsys: pytest.CaptureFixture[str], small_tasks: None) -> Verify:
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["verify", str(folder), "--device", "cpu", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("unit", [1, 100])
def test_a_card_that_is_right_passes(
    verify: Verify, truth: dict[str, dict[str, float]], tmp_path: Path, unit: int
) -> None:
    sts, found = truth["SmallSTS"], truth["SmallRetrieval"]
    path = card(
        tmp_path,
        entry("SmallSTS (default)",
              {"cos_sim_pearson": unit * sts["cosine_pearson"],
               "cos_sim_spearman": round(unit * sts["cosine_spearman"], 3)},
              config="default", split="test", revision="'1'"),
        entry("SmallRetrieval",
              {"map_at_10": unit * found["map_at_10"], "ndcg_at_10": unit * found["ndcg_at_10"],
               "of_old": 3 * unit / 4}),
        entry("NoSuchTaskOfMteb", {"accuracy": unit / 2}, config="default"),
        entry("STSBenchmark", {"cos_sim_spearman": unit / 2}, split="test"),
    )  # fmt: skip
    status, out, err = verify("--model-card", path)
    assert (status, out.splitlines()[-1]) == (0, "ok: within the tolerance"), out + err
    lines = out.splitlines()
    (line,) = [each for each in lines if "SmallSTS (default) test" in each]
    stated, ours, off = map(float, line.split()[:3])
    assert stated == pytest.approx(unit * sts["cosine_spearman"], abs=1e-3)
    assert ours == pytest.approx(unit * sts["cosine_spearman"], abs=1e-4)
    assert off == pytest.approx(ours - stated, abs=2e-4)
    assert "cos_sim_spearman" in line
    (line,) = [each for each in lines if " SmallRetrieval" in each]
    assert "ndcg_at_10; of 2 metrics" in line
    assert any("not compared" in each and "of_old" in each for each in lines)
    assert any("NoSuchTaskOfMteb (default): not run: mteb" in each for each in lines)
    (line,) = [each for each in lines if "STSBenchmark" in each]
    assert "not run: its data are not here" in line
    assert "mteb.get_task('STSBenchmark').load_data()" in line
    assert "2 of 4 results run, 0 of them off" in out


@pytest.mark.parametrize(("off", "tolerance", "status"), [(0.3, [], 1), (0.3, [0.01], 0)])
def test_a_card_that_is_wrong_fails(
    verify: Verify, truth: dict[str, dict[str, float]], tmp_path: Path, off: float,
    tolerance: list[float], status: int,
) -> None:  # fmt: skip
    """A score of another metric than the main one, off by 0.3 points of 100, is enough."""
    sts = truth["SmallSTS"]
    pearson = 100 * sts["cosine_pearson"] - off
    scores = {"cosine_spearman": 100 * sts["cosine_spearman"], "cosine_pearson": pearson}
    path = card(tmp_path, entry("SmallSTS", scores))
    options = ["--tolerance", *tolerance] if tolerance else []
    found, out, _ = verify("--model-card", path, *options)
    assert found == status, out
    assert ("FAILED" in out) == bool(status)
    if status:
        assert "cosine_pearson is furthest off, by +0.3000  OFF" in out


def test_other_options_of_encoding_are_used(
    verify: Verify, truth: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    path = card(tmp_path, entry("SmallSTS", {"cosine_spearman": truth["SmallSTS"]["main_score"]}))
    assert verify("--model-card", path, "--truncate-dim", "8")[0] == 1


def test_data_of_another_revision_are_said(
    verify: Verify, truth: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    scores = {"cosine_spearman": truth["SmallSTS"]["cosine_spearman"]}
    path = card(tmp_path, entry("SmallSTS", scores, revision="abcdef"))
    status, out, _ = verify("--model-card", path)
    assert status == 0
    assert "data at revision 1; the card's were at abcdef" in out


def test_bad_input(verify: Verify, tmp_path: Path) -> None:
    path = card(tmp_path, entry("STSBenchmark", {"cos_sim_spearman": 50}))
    status, out, err = verify("--model-card", path)
    assert status == 2
    assert "STSBenchmark: not run: its data are not here" in out
    assert err.endswith("none of its 1 results could be run\n")
    texts = write(tmp_path, "a\n", "texts.txt")
    status, _, err = verify("--model-card", path, "--texts", texts)
    assert status == 2
    assert "it goes without --texts" in err
    status, _, err = verify("--model-card", tmp_path / "no" / "such" / "card")
    assert status == 2
    assert "no such card" in err


def test_why_a_result_is_not_run(folder: Path, small_tasks: None, tmp_path: Path) -> None:
    path = card(
        tmp_path,
        entry("SmallSTS (xx)", {"cosine_spearman": 1}, config="xx"),
        entry("SmallSTS", {"cosine_spearman": 1}, split="train"),
        entry("SmallSTS", {"of_old": 1}),
        entry("SmallSTS", {"cosine_spearman": ".nan"}),
        entry("STS17", {"cosine_spearman": 1}),
    )
    outcomes = list(rerun(PyencEncoder(folder, device="cpu"), read_card(path)))
    reasons = [each.why for each in outcomes if isinstance(each, NotRun)]
    assert len(reasons) == len(outcomes) == 5
    assert reasons[0] == "the task has no subset 'xx'; it has: default"
    assert reasons[1] == "the task has no split 'train'; it has: test"
    assert reasons[2] == "no metric in both: the card has of_old"
    assert reasons[3] == "no metric in both: the card has -"
    assert reasons[4].startswith("the card names none of its ")


def test_a_score_that_is_nan_is_furthest_off(folder: Path) -> None:
    result = read_card_of("SmallSTS")
    off = Rerun(result, "a", {"a": (1.0, 0.0), "b": (1.0, math.nan)}, (), None, 1.0)
    assert off.largest[0] == "b"
    assert math.isnan(off.largest[1])


def read_card_of(task: str) -> Any:
    from pyenc.integrations.mteb import CardResult

    return CardResult(task, None, None, None)


def test_a_missing_mteb_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    import sys

    for name in list(sys.modules):
        if name.split(".")[0] == "mteb" or name.startswith("pyenc.integrations.mteb"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delattr("pyenc.integrations.mteb", raising=False)
    assert main(["verify", str(folder), "--model-card", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'pyenc[integrations]'" in error
