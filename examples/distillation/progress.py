"""How far a run is: its curve, the parameters' running averages, and the checkpoint.

A checkpoint has all that the next step follows from, so that a run which was stopped has the curve
of one which was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Between(Protocol):
    """What stands between the parameters that train and the model's own, such as `Factors`."""

    def pull(self) -> None:
        """Gradients of the model's parameters to those that train."""

    def push(self) -> None:
        """Values of those that train to the model's."""


class Averages:
    """Running averages of parameters, and putting them in their place for a while."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, between: Between | None = None
    ) -> None:
        self.parameters, self.decay, self.between = parameters, decay, between
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # what it began with is soon forgotten
        for name, value in self.values.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def put(self, values: Mapping[str, Tensor] | None = None) -> None:
        """Values, by default the averages, into the parameters."""
        copy(self.values if values is None else values, self.parameters)
        if self.between is not None:
            self.between.push()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        latest = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.put()
        try:
            yield
        finally:
            self.put(latest)


@torch.no_grad()
def copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


class Sums:
    """Figures of steps, added up until their means are a point of the curve."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Of what was added since they were asked for last."""
        found = {name: value / self.count for name, value in self.values.items()}
        self.values, self.count = {}, 0
        return found


class Curve:
    """A line of JSON a point: step, what it is of, and its figures."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def points(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        # A process that is killed as it writes leaves a line without its end.
        *lines, _ = self.path.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def add(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "of": kind} | dict(values)) + "\n")

    def cut(self, step: int) -> None:
        """Forget points that the run will come to again."""
        kept = [
            p
            for p in self.points()
            if p["step"] < step or (p["step"] == step and p["of"] != "held out")
        ]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(p) + "\n" for p in kept))
        partial.replace(self.path)


def save(
    path: Path, step: int, parameters: Mapping[str, nn.Parameter], averages: Averages,
    optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], sums: Sums,
) -> None:  # fmt: skip
    """Write a checkpoint, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "step": step,
            "settings": dict(settings),
            "parameters": {name: p.detach() for name, p in parameters.items()},
            "averages": averages.values,
            "optimizer": optimizer.state_dict(),
            "sums": {"values": sums.values, "count": sums.count},
        },
        partial,
    )
    partial.replace(path)


def resume(
    path: Path, parameters: Mapping[str, nn.Parameter], averages: Averages,
    optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], sums: Sums,
) -> int:  # fmt: skip
    """The step that comes next, with all values of the checkpoint in their places; 0 without one.

    Raises:
        ValueError: it is of a run with other settings.
    """
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state["settings"] != dict(settings):
        other = [k for k, v in settings.items() if state["settings"].get(k) != v]
        raise ValueError(
            f"{path} is of a run with another {', '.join(other)}; give its settings, or another "
            "--work"
        )
    averages.put(state["parameters"])
    averages.values = state["averages"]
    optimizer.load_state_dict(state["optimizer"])
    # Older checkpoints have none, and what was begun is the mean of fewer steps.
    sums.values, sums.count = (state.get("sums") or {"values": {}, "count": 0}).values()
    return int(state["step"])
