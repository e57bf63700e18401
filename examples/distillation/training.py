"""The loop: steps, the curve, checkpoints; stopped anywhere, it goes on as if it had not been.

A step's batch follows from the seed and its number, the optimizer's state and the parameters are in
the checkpoint, so that a run which was stopped has the curve of one which was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc import Encoder
from pyenc.ops import segment_mean

from .progress import Averages, Between, Curve, Sums, resume, save
from .student import is_position
from .teacher import Teacher
from .windows import batches, packed

EVERY = 25
"""Steps whose mean losses are a point of the curve."""


@dataclass(frozen=True)
class Settings:
    """What a run's curve depends on, beside the texts."""

    steps: int
    batch_tokens: int = 6144
    rate: float = 2.5e-4
    warm_up: int = 50
    last_rate: float = 0.02
    """Of the peak, at the end of the cosine."""
    position_rate: float = 320.0
    """Of the positions' parameters, times that of the others: they begin with nothing that was
    trained, and a score moves by whole units where a weight moves by hundredths."""
    token_weight: float = 1.0
    vector_weight: float = 4.0
    similarity_weight: float = 1.0
    clip: float = 1.0
    bfloat16: bool = False
    """Whether the matrix products of a step, and of the teacher, are made in bfloat16 by autocast;
    parameters, norms, losses and the optimizer stay in float32."""
    average: float = 0.995
    """Of the parameters' running average, which is what is judged and kept: it stands for a smaller
    rate at any step, so that a run which is stopped early has something to show."""
    texts: str = ""
    """A hash of what is read."""
    seed: int = 0

    def weights(self) -> dict[str, float]:
        """Of each part of the loss, by its name."""
        return {
            "tokens": self.token_weight,
            "vectors": self.vector_weight,
            "similarities": self.similarity_weight,
        }


def rate_at(step: int, settings: Settings) -> float:
    """Linear warm-up, then half a cosine down to `last_rate` of the peak."""
    if step < settings.warm_up:
        return settings.rate * (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    share = settings.last_rate + (1 - settings.last_rate) * (1 + math.cos(math.pi * done)) / 2
    return settings.rate * share


def losses(states_TC: Tensor, targets_TC: Tensor, bounds: Tensor) -> dict[str, Tensor]:
    """Three distances between a batch and its targets; each 0 where they are equal.

    Returns:
        tokens: squared error of the states as a share of the targets' squares; vectors: one less
        the mean cosine of the texts' means; similarities: root of the mean squared error of the
        cosines among a batch's texts.
    """
    ours_BC = F.normalize(segment_mean(states_TC, bounds), dim=-1)
    theirs_BC = F.normalize(segment_mean(targets_TC, bounds), dim=-1)
    error_BB = ours_BC @ ours_BC.T - theirs_BC @ theirs_BC.T
    pairs = max(1, len(error_BB) * (len(error_BB) - 1))
    return {
        "tokens": (states_TC - targets_TC).square().sum() / targets_TC.square().sum(),
        "vectors": 1 - (ours_BC * theirs_BC).sum(-1).mean(),
        "similarities": ((error_BB.square().sum() + 1e-8) / pairs).sqrt(),
    }


class Stop:
    """Whether SIGTERM or SIGINT came, while it is entered: the step in hand is finished first."""

    def __enter__(self) -> Stop:
        self.came = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(
    student: Encoder,
    parameters: Mapping[str, nn.Parameter],
    teacher: Teacher,
    settings: Settings,
    folder: Path,
    judge: Callable[[], dict[str, float]],
    *,
    judge_every: int = 250,
    save_seconds: float = 240.0,
    until: int | None = None,
    between: Between | None = None,
    say: Callable[[str], object] = print,
) -> bool:
    """Take the steps that are left.

    Args:
        student: in float32, on the CPU.
        parameters: those that train, by name.
        teacher: gives the targets, and has the windows and what is read.
        settings: of the run.
        folder: `state.pt` (the checkpoint) and `curve.jsonl` are there.
        judge: figures on held-out texts, for the curve.
        judge_every: steps.
        save_seconds: between checkpoints; one is written at the end, and where it is stopped, too.
        until: stop before this step, as a signal would make it.
        between: where the parameters are not the student's own.

    Returns:
        Whether all steps are done. The student has the averages.

    Raises:
        ValueError: the folder's checkpoint is of a run with other settings.
        FloatingPointError: the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(parameters, settings)
    path, curve = folder / "state.pt", Curve(folder / "curve.jsonl")
    averages = Averages(parameters, settings.average, between)
    sums = Sums()
    step = resume(path, parameters, averages, optimizer, asdict(settings), sums)
    curve.cut(step)

    def keep() -> None:
        save(path, step, parameters, averages, optimizer, asdict(settings), sums)

    epoch, plan = -1, batches(teacher.windows, settings.batch_tokens, settings.seed, 0)
    if not plan:
        raise ValueError(f"the windows are no batch of {settings.batch_tokens} tokens")
    count = len(plan)
    student.train()
    weights = settings.weights()
    products = torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16)
    started, seen, saved = time.monotonic(), 0, time.monotonic()
    with Stop() as stop:
        while step < settings.steps:
            if step % judge_every == 0:
                with averages.in_place():
                    found = judge()
                curve.add(step, "held out", found)
                say(f"step {step:,}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
            if stop.came or step == until:
                break
            # Epochs differ in the number of batches by a few, so each is cut to the first one's.
            if step // count != epoch:
                epoch = step // count
                plan = batches(teacher.windows, settings.batch_tokens, settings.seed, epoch)
            batch = plan[(step % count) % len(plan)]
            ids = torch.from_numpy(packed(teacher.corpus, teacher.windows, batch, *teacher.special))
            lengths = teacher.windows.lengths[batch] + 2
            bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
            with products:
                targets_TC = teacher(batch).float()
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * rate_at(step, settings)
            optimizer.zero_grad()
            with products:
                states_TC = student.forward_packed(ids, bounds, contiguous=True).float()
            parts = losses(states_TC, targets_TC, bounds)
            loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"step {step}: the loss is {loss.item()}")
            loss.backward()
            if between is not None:
                between.pull()
            nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
            optimizer.step()
            if between is not None:
                between.push()
            step += 1
            averages.update(step)
            seen += len(ids)
            sums.add({name: value.item() for name, value in parts.items()})
            if step % EVERY == 0:
                means = sums.means()
                rate = seen / (time.monotonic() - started)
                curve.add(step, "training", means)
                say(
                    f"step {step:,} of {settings.steps:,}, {rate:,.0f} tokens/s: "
                    + ", ".join(f"{k} {v:.4f}" for k, v in means.items())
                )
            if time.monotonic() - saved > save_seconds and step % EVERY == 0:
                keep()
                saved = time.monotonic()
        keep()
    student.eval()
    averages.put()
    if step >= settings.steps:
        found = judge()
        curve.add(step, "held out", found)
        say(f"step {step:,}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
    else:
        say(f"stopped before step {step:,}; the same command goes on from there")
    return step >= settings.steps


def _optimizer(parameters: Mapping[str, nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW in two groups, each with its `times` of the rate."""
    named: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in parameters.items():
        named[is_position(name)].append(parameter)
    groups = [
        {"params": named[own], "times": settings.position_rate if own else 1.0}
        for own in (False, True)
        if named[own]
    ]
    return torch.optim.AdamW(
        groups, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
