"""What examples/long_minilm.py is made of; the whole of it is `make long-minilm`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyenc
from examples import bundled, long_minilm
from examples.distillation import (
    judging,
    low_rank,
    progress,
    student,
    training,
    windows,
)
from examples.distillation.teacher import Teacher
from examples.distillation.tokens import Corpus, cached
from pyenc.loading import own_checkpoint
from pyenc.loading.difference import apply_difference, read_metadata
from pyenc.ops import segment_mean
from tests.seeds import seed

CLS, SEP = 1, 2
MARKS = (CLS, SEP)


@pytest.fixture(scope="module")
def texts() -> Corpus:
    """40 documents of 60 to 900 random tokens in paragraphs."""
    rng = np.random.default_rng(seed(1))
    sizes = rng.integers(60, 900, 40)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.union1d(bounds[1:], rng.integers(1, bounds[-1], 150))
    ids = rng.integers(3, 90, bounds[-1]).astype(np.int32)
    parts = ["test"] * 12 + ["curve"] * 4 + ["train"] * 24
    return Corpus(ids, bounds, ends, [str(i) for i in range(40)], parts)


@pytest.fixture(scope="module")
def tiny() -> pyenc.Encoder:
    torch.manual_seed(seed(2))
    config = pyenc.EncoderConfig(
        vocab_size=90, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=32,
        position="absolute", num_positions=256, max_length=256, type_vocab_size=2, pooler=True,
    )  # fmt: skip
    return pyenc.Encoder(config).eval()


def drawn_of(texts: Corpus, tokens: int = 3000) -> windows.Windows:
    return windows.draw(texts, texts.of_part("train"), tokens, 0.3, seed=0)


# Windows


def test_windows_are_of_their_documents(texts: Corpus) -> None:
    drawn = drawn_of(texts)
    long = drawn.lengths > windows.CHUNK
    assert 0.2 < drawn.lengths[long].sum() / drawn.lengths.sum() < 0.5
    assert drawn.lengths.min() >= windows.SHORTEST
    owners = np.searchsorted(texts.bounds, drawn.starts, "right") - 1
    assert (drawn.starts + drawn.lengths <= texts.bounds[owners + 1]).all()
    assert set(owners) <= set(texts.of_part("train"))
    again = drawn_of(texts)
    assert np.array_equal(again.starts, drawn.starts)
    # Every batch within its budget, every window once an epoch, but for what is left over.
    plan = windows.batches(drawn, 1100, 0, 0)
    taken = [window for batch in plan for window in batch]
    assert len(set(taken)) == len(taken) > 0.6 * len(drawn.lengths)
    assert all((drawn.lengths[batch] + 2).sum() <= 1100 for batch in plan)
    assert windows.batches(drawn, 1100, 0, 1) != plan == windows.batches(drawn, 1100, 0, 0)


def test_a_target_is_the_chunks_states(texts: Corpus, tiny: pyenc.Encoder, tmp_path: Path) -> None:
    drawn = drawn_of(texts)
    long = int(np.argmax(drawn.lengths))
    teacher = Teacher(tiny, texts, drawn, MARKS, tmp_path / "t.f16")
    batch = [long, 0]
    first = teacher(batch)
    start, length = int(drawn.starts[long]), int(drawn.lengths[long])
    ids = texts.ids[start : start + length]
    states = []
    for at in range(0, length, windows.CHUNK):
        row = torch.tensor([[CLS, *ids[at : at + windows.CHUNK], SEP]])
        with torch.inference_mode():
            chunk = tiny(row)[0]
        last = at + windows.CHUNK >= length
        states.append(chunk[(at > 0) : (None if last else -1)])
    wanted = torch.cat(states)
    assert len(first) == length + 2 + drawn.lengths[0] + 2
    assert torch.allclose(first[: length + 2].float(), wanted, rtol=0, atol=3e-3)
    # From the file, with a model that is another one by now.
    other = pyenc.Encoder(tiny.config).eval()
    stored = Teacher(other, texts, drawn, MARKS, tmp_path / "t.f16")
    assert torch.equal(stored(batch), first)
    unstored = Teacher(other, texts, drawn, MARKS, None)
    assert not torch.equal(unstored(batch), first)


# Training


def run(
    texts: Corpus, tiny: pyenc.Encoder, folder: Path, stops: tuple[int | None, ...],
    with_factors: bool = False, bfloat16: bool = False,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:  # fmt: skip
    """Parameters and curve of three steps, in as many runs as there are stops."""
    settings = training.Settings(
        steps=3, batch_tokens=700, rate=1e-2, warm_up=1, bfloat16=bfloat16, seed=seed(3)
    )
    for until in stops:  # each as a process of its own would begin
        model = student.without_table(tiny)
        parameters: dict[str, torch.nn.Parameter] = student.trained(model)
        between = None
        if with_factors:
            before = {n: t.detach() for n, t in tiny.state_dict().items()}
            torch.manual_seed(0)
            tensors = {
                f"{n}.{end}": torch.randn(shape) * 0.1
                for n, p in model.named_parameters() if n in before and p.ndim == 2
                and "layers" in n
                for end, shape in (("left", (p.shape[0], 2)), ("right", (2, p.shape[1])))
            }  # fmt: skip
            tensors |= {
                f"{n}.value": p.detach() for n, p in model.named_parameters() if n not in before
            }
            between = low_rank.Factors(model, before, tensors)
            parameters = between.parameters
        teacher = Teacher(tiny, texts, drawn_of(texts), MARKS, None)
        training.train(
            model, parameters, teacher, settings, folder, lambda m=model: {"sum": float(
                sum(p.detach().abs().sum() for p in m.parameters()))}, judge_every=2, until=until,
            between=between, say=lambda line: None,
        )  # fmt: skip
    curve = progress.Curve(folder / "curve.jsonl").points()
    return {n: p.detach().clone() for n, p in model.named_parameters()}, curve


@pytest.mark.parametrize("with_factors", [False, True])
def test_stopped_and_resumed_it_has_the_same_curve(
    texts: Corpus, tiny: pyenc.Encoder, tmp_path: Path, with_factors: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped between two points of the training's losses, too, which are means of their steps."""
    monkeypatch.setattr(training, "EVERY", 3)
    whole, curve = run(texts, tiny, tmp_path / "whole", (None,), with_factors)
    parts, again = run(texts, tiny, tmp_path / "parts", (1, 2, None), with_factors)
    assert again == curve
    points = [(point["step"], point["of"]) for point in curve]
    assert points == [(0, "held out"), (2, "held out"), (3, "training"), (3, "held out")]
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name
    assert torch.equal(whole["embeddings.word.weight"], tiny.embeddings.word.weight)
    moved = student.without_table(tiny).state_dict()
    for name in ("layers.0.attention.qkv.weight", "layers.1.attention.position_bias.table"):
        assert not torch.equal(whole[name], moved[name]), name


def test_positions_have_a_rate_of_their_own(
    texts: Corpus, tiny: pyenc.Encoder, tmp_path: Path
) -> None:
    """The first step of AdamW is the rate, times what the positions have."""
    start = student.without_table(tiny).state_dict()
    settings = training.Settings(1, 700, rate=1e-4, warm_up=1, position_rate=30.0, seed=seed(3))
    model = student.without_table(tiny)
    teacher = Teacher(tiny, texts, drawn_of(texts), MARKS, None)
    training.train(
        model, student.trained(model), teacher, settings, tmp_path, dict, say=lambda line: None
    )
    parameters = torch.load(tmp_path / "state.pt", weights_only=True)["parameters"]
    for name, times in (("position_bias.table", 30), ("qkv.weight", 1)):
        moved = parameters[f"layers.1.attention.{name}"] - start[f"layers.1.attention.{name}"]
        assert float(moved.abs().median()) == pytest.approx(1e-4 * times, rel=0.05), name


def test_products_in_bfloat16_follow_those_in_float32(
    texts: Corpus, tiny: pyenc.Encoder, tmp_path: Path
) -> None:
    """Parameters stay in float32 and go where they went, by nearly as much, and not to the bit."""
    wide, _ = run(texts, tiny, tmp_path / "wide", (None,))
    halves, _ = run(texts, tiny, tmp_path / "halves", (1, None), bfloat16=True)
    start = student.without_table(tiny).state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in halves.values())
    one, other = (
        torch.cat([(moved[name] - start[name]).flatten() for name in moved])
        for moved in (wide, halves)
    )
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
    assert not torch.equal(one, other)


def test_another_runs_checkpoint_is_refused(
    texts: Corpus, tiny: pyenc.Encoder, tmp_path: Path
) -> None:
    run(texts, tiny, tmp_path, (1,))
    model = student.without_table(tiny)
    teacher = Teacher(tiny, texts, drawn_of(texts), MARKS, None)
    other = training.Settings(steps=4, batch_tokens=700, rate=1e-2, warm_up=1, seed=seed(3))
    with pytest.raises(ValueError, match="is of a run with another steps"):
        training.train(model, student.trained(model), teacher, other, tmp_path, dict)


def test_losses_are_what_they_say() -> None:
    torch.manual_seed(seed(4))
    a, b = torch.randn(2, 9, 5, dtype=torch.float64)
    bounds = torch.tensor([0, 4, 9])
    found = training.losses(a, b, bounds)
    means = [torch.stack([x[:4].mean(0), x[4:].mean(0)]) for x in (a, b)]
    units = [m / m.norm(dim=1, keepdim=True) for m in means]
    assert found["tokens"].item() == pytest.approx(((a - b) ** 2).sum() / (b**2).sum())
    assert found["vectors"].item() == pytest.approx(1 - (units[0] * units[1]).sum() / 2)
    off = [(u[0] @ u[1]).item() for u in units]
    assert found["similarities"].item() == pytest.approx(abs(off[0] - off[1]), abs=1e-4)
    assert all(x.item() < 1e-4 for x in training.losses(b, b, bounds).values())


def test_the_rate_warms_up_and_falls() -> None:
    settings = training.Settings(steps=100, rate=2.0, warm_up=10)
    rates = [training.rate_at(step, settings) for step in range(101)]
    assert rates[0] == 0.2
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[100] == pytest.approx(0.04)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# Low rank


def test_factors_lose_least_of_what_is_felt() -> None:
    torch.manual_seed(seed(5))
    change = torch.randn(9, 7, dtype=torch.float64)
    x = torch.randn(500, 7, dtype=torch.float64) * torch.tensor([9, 5, 3, 1, 0.3, 0.1, 0.05])
    second = x.T @ x / len(x)

    def lost(left: Tensor, right: Tensor) -> float:
        return float((x @ (change - left.double() @ right.double()).T).norm())

    u, s, vt = torch.linalg.svd(change)
    errors = [lost(*low_rank.factors_of(change, second, rank)) for rank in (1, 3, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.7 * lost(u[:, :3] * s[:3], vt[:3])
    # The least that any of that rank can lose: the rest of the answers' own spectrum.
    spectrum = torch.linalg.svdvals(x @ change.T)
    assert errors[1] == pytest.approx(float(spectrum[3:].norm()), rel=1e-3)
    assert errors[2] < 1e-4 * float(spectrum.norm())


def test_a_difference_of_full_rank_is_the_student(texts: Corpus, tiny: pyenc.Encoder) -> None:
    torch.manual_seed(seed(6))
    model = student.without_table(tiny)
    for name, parameter in student.trained(model).items():
        parameter.data += 0.1 * torch.randn_like(parameter) * ("layers.1" in name)
    trained = {n: t.clone() for n, t in model.state_dict().items()}
    before = {n: t.detach() for n, t in tiny.state_dict().items()}
    second = low_rank.moments(model, [np.arange(3, 80)])
    assert len(second) == 8
    tensors = low_rank.differences(before, trained, second, 24)
    kept = [name for name in tensors if ".position_bias." not in name]
    assert not any("layers.0" in name or "word" in name for name in kept)
    low_rank.Factors(model, before, tensors)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, trained[name], rtol=0, atol=2e-3), name


# Judging


def test_judging(texts: Corpus, tiny: pyenc.Encoder) -> None:
    rows = judging.special([texts.document(i) for i in (0, 1, 2)], *MARKS)
    model = student.without_table(tiny)
    found = judging.vectors_of(model, rows, budget=800)
    for row, vector in zip(rows, found, strict=True):
        ids, bounds = torch.from_numpy(row), torch.tensor([0, len(row)])
        with torch.inference_mode():
            wanted = segment_mean(model.forward_packed(ids, bounds), bounds, normalize=True)[0]
        assert np.allclose(vector, wanted, atol=1e-5)
    same = judging.agreement(found, found)
    assert same["top-1"] == 1
    assert same["cosine"] == pytest.approx(1)
    assert judging.recall(found, found) == 1
    assert judging.recall(found, found[[1, 0, 2]]) == pytest.approx(1 / 3)
    assert judging.spearman(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 2])) == pytest.approx(1)
    # By hand: ranks 0, 1.5, 1.5, 3 with 0, 1, 2, 3.
    tied = judging.spearman(np.array([1, 2, 2, 3]), np.arange(4))
    assert tied == pytest.approx(np.corrcoef([0, 1.5, 1.5, 3], range(4))[0, 1])


def test_paragraphs_are_held_out_of_their_documents(texts: Corpus) -> None:
    found = judging.retrieval_of(texts, range(40), 30, seed=0, shortest=300, longest=900)
    assert len(found.documents) > 5
    for whole, without, paragraph, at in zip(*found, strict=True):
        assert at > 256
        assert np.array_equal(whole[at : at + len(paragraph)], paragraph)
        assert np.array_equal(np.concatenate([without[:at], paragraph, without[at:]]), whole)
    pairs = judging.pairs_of(texts, range(40), 90, seed=0)
    assert np.bincount(pairs.grade).tolist() == [30, 30, 30]


def test_the_cache_is_what_was_made(tmp_path: Path, texts: Corpus) -> None:
    path = tmp_path / "c.npz"
    made = cached(path, lambda: texts)
    read = cached(path, lambda: pytest.fail("made again"))
    assert made is texts
    assert read.names == texts.names
    for ours, theirs in zip(read[:3], texts[:3], strict=True):
        assert np.array_equal(ours, theirs)


# The script's own


def test_what_is_written_is_what_was_judged(
    tiny: pyenc.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed(7))
    model = student.without_table(tiny)
    for parameter in student.trained(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    rows = [np.arange(3, 60), np.arange(5, 50), np.arange(9, 80)]
    theirs = judging.vectors_of(tiny, rows)
    said: list[str] = []
    work: Any = SimpleNamespace(
        teacher=tiny, model=model, rows=rows,
        options=SimpleNamespace(batch_tokens=10, steps=4, factor_steps=2, bfloat16=True),
        judge=lambda: judging.agreement(judging.vectors_of(model, rows), theirs),
    )  # fmt: skip
    monkeypatch.setattr(long_minilm, "say", said.append)
    monkeypatch.setattr(long_minilm, "HEADER", 6000)
    monkeypatch.setattr(low_rank, "LARGEST", 19_000)
    tensors = long_minilm.cut(work)
    judged = judging.vectors_of(model, rows)
    assert [line.partition(",")[0] for line in said[1:]] == ["rank 8", said[-1].partition(",")[0]]
    path = tmp_path / "d.safetensors"
    long_minilm.write(work, tensors, {"full": 3}, {"texts": {"count": 2}}, path)
    assert 14_000 < path.stat().st_size <= 19_000
    base = own_checkpoint(tiny)
    made = apply_difference(base, bundled.MINILM_SHA256, path)
    assert made.encoder.config.position == "table_alibi"
    assert made.encoder.config.position_per_layer
    assert np.allclose(judging.vectors_of(made.encoder, rows), judged, atol=1e-6)
    metadata = read_metadata(path)
    assert "3 steps (full)" in metadata["trained"]
    assert metadata["command"] == (
        "python examples/long_minilm.py --steps 4 --factor-steps 2 --bfloat16"
    )
