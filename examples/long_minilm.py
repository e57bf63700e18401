"""A long-context encoder out of MiniLM, a bias by distance for its position table, made on a CPU.

    python examples/long_minilm.py [--work DIR] [--folder DIR ...]   # or: make long-minilm

all-MiniLM-L6-v2 reads 256 tokens. Its layers are taken without the position table, with ALiBi and a
number for each near distance in its place, all learned (`pyenc.models.TableALiBi`), and taught to
give the states that it gives, on English documentation found on this machine (or in the folders
given). What comes out is `long-minilm.safetensors`, a low-rank difference of at most 3 MB, which
`pyenc.load("long-minilm")` puts on MiniLM's own weights.

    corpus.npz     what was found, deduplicated, files held out
    teacher-*.f16  the teacher's states, computed once (4 GB by the default --tokens)
    full/          all layers trained; the curve and the checkpoint it goes on from
    factors/       the low-rank factors trained on
    curve.svg, figures.json, long-minilm.safetensors

Stopped by SIGTERM or Ctrl-C it writes a checkpoint, and the same command goes on from there, along
the same curve. `--now` trains nothing: it cuts, judges and writes what the checkpoints have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Two threads that wait for one another by spinning take each other's time on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch
from torch import Tensor

if str(Path(__file__).resolve().parents[1]) not in sys.path:  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import pyenc
from examples import bundled
from examples.distillation import (
    corpus,
    judging,
    low_rank,
    progress,
    student,
    tokens,
    training,
    windows,
)
from examples.distillation.options import parse
from examples.distillation.teacher import Teacher
from pyenc.loading.difference import write_difference

LONG_SHARE = 0.25
CLS, SEP = 101, 102
RANKS = (8, 16, 32)
"""Beside the largest that fits."""


def say(line: str) -> None:
    print(line, flush=True)


class Work:
    """What all stages share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.work
        encoder = pyenc.load(bundled.minilm())
        self.teacher = encoder.model
        roots = corpus.given_roots(options.folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyenc.LongWordWarning)
            self.texts = tokens.cached(
                self.folder / "corpus.npz",
                lambda: tokens.tokenized(
                    corpus.collect(roots or corpus.default_roots(), say), encoder.tokenizer
                ),
                options.folder,
            )
        self.drawn = windows.draw(
            self.texts, self.texts.of_part("train"), options.tokens, LONG_SHARE, seed=0
        )
        say(f"{len(self.drawn.lengths):,} windows, {self.drawn.tokens:,} tokens")
        self.digest = digest(self.texts, self.drawn)
        self.model = student.without_table(self.teacher)
        self.parameters = student.trained(self.model)
        curve = windows.draw(self.texts, self.texts.of_part("curve"), 60_000, 0.0, seed=1)
        self.rows = [
            windows.packed(self.texts, curve, [i], CLS, SEP) for i in range(len(curve.lengths))
        ][:256]
        self.theirs = judging.vectors_of(self.teacher, self.rows)

    def judge(self) -> dict[str, float]:
        """Figures of the part that the curve is of: 256 short windows."""
        return judging.agreement(judging.vectors_of(self.model, self.rows), self.theirs)

    def settings(self, stage: str) -> training.Settings:
        if stage == "full":
            return training.Settings(
                self.options.steps, self.options.batch_tokens, self.options.rate,
                bfloat16=self.options.bfloat16, texts=self.digest,
            )  # fmt: skip
        # In another order.
        return training.Settings(
            self.options.factor_steps, self.options.batch_tokens, self.options.rate,
            bfloat16=self.options.bfloat16, texts=self.digest, seed=1,
        )  # fmt: skip

    def train(self, stage: str, parameters: Any, between: Any = None) -> bool:
        made = "-bfloat16" if self.options.bfloat16 else ""
        path = self.folder / f"teacher-{self.digest}{made}.f16"
        teacher = Teacher(self.teacher, self.texts, self.drawn, (CLS, SEP), path)
        return training.train(
            self.model, parameters, teacher, self.settings(stage), self.folder / stage, self.judge,
            judge_every=100, between=between, say=say,
        )  # fmt: skip


def digest(texts: tokens.Corpus, drawn: windows.Windows) -> str:
    """Of what is read, for the settings."""
    whole = hashlib.sha256()
    for array in (texts.ids, drawn.starts, drawn.lengths):
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def base_state(teacher: pyenc.Encoder) -> dict[str, Tensor]:
    """What a difference is put on: the teacher's parameters, by name."""
    return {name: tensor.detach() for name, tensor in teacher.state_dict().items()}


def cut(work: Work) -> dict[str, Tensor]:
    """The trained model's difference, of the largest rank that fits; what other ranks cost is said.

    The model is left with what the difference gives.
    """
    second = low_rank.moments(work.model, work.rows)
    trained = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    before = base_state(work.teacher)
    uncut = work.judge()
    say("not cut: " + ", ".join(f"{k} {v:.4f}" for k, v in uncut.items()))
    one = low_rank.size_of(low_rank.differences(before, trained, second, 1))
    two = low_rank.size_of(low_rank.differences(before, trained, second, 2))
    largest = 2 + (low_rank.LARGEST - HEADER - two) // (two - one)
    tensors: dict[str, Tensor] = {}
    for rank in (*(r for r in RANKS if r < largest), largest):
        tensors = low_rank.differences(before, trained, second, rank)
        low_rank.Factors(work.model, before, halved(tensors))
        found = work.judge()
        size = low_rank.size_of(tensors) / 1e6
        say(f"rank {rank}, {size:.2f} MB: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
    return tensors


HEADER = 30_000
"""Bytes of the file's own words, generously."""


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the file will have them."""
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def state_in(folder: Path) -> dict[str, Any]:
    """A stage's checkpoint, or nothing."""
    path = folder / "state.pt"
    return torch.load(path, weights_only=True) if path.is_file() else {}


def make(work: Work, now: bool) -> tuple[dict[str, Tensor], dict[str, int]] | None:
    """The difference's tensors and the steps of each stage; None where it was stopped."""
    if not now and not work.train("full", work.parameters):
        return None
    full = state_in(work.folder / "full")
    if not full:
        raise SystemExit(f"long_minilm: {work.folder / 'full'} has no checkpoint yet")
    progress.copy(full["averages"], work.parameters)
    steps = {"full": int(full["step"])}
    factors = state_in(work.folder / "factors")
    if now and not factors:
        return cut(work), steps
    tensors = cut(work) if not factors else dict(factors["averages"])
    holder = low_rank.Factors(work.model, base_state(work.teacher), tensors)
    if not now and not work.train("factors", holder.parameters, holder):
        return None
    factors = state_in(work.folder / "factors")
    return dict(factors["averages"]), steps | {"factors": int(factors["step"])}


def judged(work: Work, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """All figures of what the file will have; the teacher's vectors are kept for the next time."""
    low_rank.Factors(work.model, base_state(work.teacher), halved(tensors))
    path = work.folder / f"judged-{work.digest}-{work.options.documents}.npz"
    known = dict(np.load(path)) if path.is_file() else {}
    found = judging.evaluate(
        work.teacher, work.model, work.texts, (CLS, SEP), documents=work.options.documents,
        known=known,
    )  # fmt: skip
    np.savez(path.with_suffix(".partial.npz"), **known)
    path.with_suffix(".partial.npz").replace(path)
    return found


def write(
    work: Work, tensors: dict[str, Tensor], steps: dict[str, int], figures: dict[str, Any],
    path: Path,
) -> None:  # fmt: skip
    """The file that `pyenc.load("long-minilm")` reads."""
    seen = sum(steps.values()) * work.options.batch_tokens
    config = student.POSITION | {"max_length": student.MAX_LENGTH}
    command = f"python examples/long_minilm.py --steps {work.options.steps}"
    command += f" --factor-steps {work.options.factor_steps}"
    command += " --bfloat16" * work.options.bfloat16
    write_difference(
        path,
        {name: tensor.half() for name, tensor in tensors.items()},
        {
            "name": "long-minilm",
            "base": "all-MiniLM-L6-v2",
            "base_sha256": bundled.MINILM_SHA256,
            "config": json.dumps(config | {"pooler": False}),
            "licence": "Apache-2.0, as the base's",
            "trained": "by the pyenc authors, to give the base's hidden states: "
            + ", ".join(f"{n:,} steps ({stage})" for stage, n in steps.items())
            + f", about {seen / 1e6:.1f} M tokens of documentation found on one machine, "
            + f"Python {platform.python_version()}, torch {torch.__version__}",
            "command": command,
            "figures": json.dumps(figures),
        },
    )


def plot(folder: Path) -> None:
    """`curve.svg` of both stages, where matplotlib is there."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        say("matplotlib is not installed: curve.svg is left out")
        return
    figure, axes = plt.subplots(figsize=(7, 4))
    offset = 0
    for stage in ("full", "factors"):
        points = progress.Curve(folder / stage / "curve.jsonl").points()
        held_out = [p for p in points if p["of"] == "held out"]
        for name, colour in (("cosine", "C0"), ("top-1", "C1")):
            axes.plot(
                [offset + p["step"] for p in held_out], [p[name] for p in held_out],
                color=colour, label=f"{name} to the teacher" if stage == "full" else None,
            )  # fmt: skip
        offset += max((p["step"] for p in points), default=0)
    axes.set(xlabel="step", ylabel="held-out texts of at most 256 tokens", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curve.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__ or "")
    torch.set_num_threads(options.threads)
    try:
        work = Work(options)
        made = make(work, options.now)
        if made is None:
            return 1
        tensors, steps = made
        figures = judged(work, tensors)
    except (bundled.WeightsError, pyenc.PyencError, ValueError, FloatingPointError) as error:
        print(f"long_minilm: {error}", file=sys.stderr)
        return 2
    path = options.export or options.work / "long-minilm.safetensors"
    write(work, tensors, steps, figures, path)
    (options.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    say("\n".join(judging.table(figures)))
    plot(options.work)
    say(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
