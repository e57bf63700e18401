"""The scores that a card has, computed again by mteb on the data that are here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..missing import needs
from .card import CardResult, in_percent
from .encoder import PyencEncoder

with needs("mteb"):
    import datasets
    import huggingface_hub.constants
    import mteb
    from mteb.abstasks import AbsTask

# A name of mteb 1 -> of mteb 2.
RENAMED = (("cos_sim_", "cosine_"),)


@dataclass(frozen=True)
class Rerun:
    """A result of the card beside ours, in the card's units."""

    result: CardResult
    main: str
    """The task's main metric, as the card calls it if the card has it."""
    compared: dict[str, tuple[float, float]]
    """Metric -> the card's score, ours."""
    left_out: tuple[str, ...]
    """Metrics of the card without one of ours, or of no readable value."""
    revision: str | None
    """Of the data that were used, where the card names another."""
    unit: float
    """1 or 100: the best score."""

    @property
    def largest(self) -> tuple[str, float]:
        """The metric that is furthest off, and by how much (ours - the card's), as a share of 1."""
        off = {name: (ours - card) / self.unit for name, (card, ours) in self.compared.items()}
        # NaN is furthest off: no tolerance covers it.
        name = max(off, key=lambda n: math.inf if math.isnan(off[n]) else abs(off[n]))
        return name, off[name]


@dataclass(frozen=True)
class NotRun:
    """A result of the card that was not computed again, and why."""

    result: CardResult
    why: str


def rerun(
    encoder: PyencEncoder,
    results: Iterable[CardResult],
    tasks: Mapping[str, AbsTask] | None = None,
) -> Iterator[Rerun | NotRun]:
    """Run what can be run, one result after another, and compare.

    Nothing is fetched: a task's data are used where they are in the cache of `datasets` already.
    `mteb.get_task(NAME).load_data()` brings them there.

    Args:
        encoder: who is scored.
        results: of `read_card`.
        tasks: more tasks by name, before mteb's own.

    Yields:
        For each result `Rerun`, or `NotRun` where there is no such task or subset, its data are not
        here, or no metric is in both.

    Raises:
        PyencError: what the encoder has against a task's texts.
    """
    results = list(results)
    unit = 100.0 if in_percent(results) else 1.0
    for result in results:
        with offline():
            yield _one(encoder, result, tasks or {}, unit)


@contextmanager
def offline() -> Iterator[None]:
    """Data sets come from the cache or not at all."""
    switches: list[Any] = [huggingface_hub.constants, datasets.config]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _one(
    encoder: PyencEncoder, result: CardResult, tasks: Mapping[str, AbsTask], unit: float
) -> Rerun | NotRun:
    # As Any: an aggregate has more metadata, and the protocol its own names in __init__.
    task: Any
    scored: Any = encoder
    if result.task in tasks:
        task = tasks[result.task]
    else:
        try:
            task = mteb.get_task(result.task)
        except KeyError:
            return NotRun(result, f"mteb {mteb.__version__} has no task of that name")
    where = _place(task, result)
    if isinstance(where, str):
        return NotRun(result, where)
    subset, split = where
    if not task.is_aggregate:
        task = task.filter_languages(None, hf_subsets=[subset]).filter_eval_splits([split])
    try:
        for part in task.metadata.tasks if task.is_aggregate else [task]:
            part.load_data()
    # Whatever the data sets' builders, the Hub's client and its HTTP libraries have against it.
    except Exception as error:
        story = (str(error).splitlines() or [""])[0]
        return NotRun(
            result,
            f"its data are not here ({type(error).__name__}: {story:.120}); "
            f"mteb.get_task({task.metadata.name!r}).load_data() fetches them",
        )
    found = mteb.evaluate(
        scored, task, cache=None, co2_tracker=False, show_progress_bar=False
    ).task_results[0]
    task.unload_data()
    scores = [each for each in found.scores[split] if each["hf_subset"] == subset]
    if not scores:
        return NotRun(result, f"mteb gave no scores for subset {subset!r}, split {split!r}")
    compared, left_out = _compared(result, scores[0], unit)
    if not compared:
        return NotRun(result, f"no metric in both: the card has {', '.join(result.metrics) or '-'}")
    main = next(
        (m for m in compared if ours_of(m) == task.metadata.main_score), next(iter(compared))
    )
    used = task.metadata.revision
    other = used if result.revision not in (None, used) else None
    return Rerun(result, main, compared, (*left_out, *result.unreadable), other, unit)


def ours_of(metric: str) -> str:
    """mteb's name today of a metric that a card names."""
    for old, new in RENAMED:
        if metric.startswith(old):
            return new + metric.removeprefix(old)
    return metric


def _place(task: AbsTask, result: CardResult) -> tuple[str, str] | str:
    """Subset and split to run; or why that cannot be told."""
    subsets = ["default"] if task.is_aggregate else list(task.metadata.hf_subsets)
    subset = result.subset
    if subset is None or (subset not in subsets and len(subsets) == 1 and subset == "default"):
        if len(subsets) > 1:
            return f"the card names none of its {len(subsets)} subsets"
        subset = subsets[0]
    if subset not in subsets:
        return f"the task has no subset {subset!r}; it has: {', '.join(subsets)}"
    splits = list(task.metadata.eval_splits)
    split = result.split
    if split is None:
        if len(splits) > 1 and "test" not in splits:
            return f"the card names none of its splits {', '.join(splits)}"
        split = "test" if "test" in splits else splits[0]
    if split not in splits:
        return f"the task has no split {split!r}; it has: {', '.join(splits)}"
    return subset, split


def _compared(
    result: CardResult, scores: Mapping[str, Any], unit: float
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    compared, left_out = {}, []
    for metric, value in result.metrics.items():
        ours = scores.get(ours_of(metric))
        if isinstance(ours, int | float) and not isinstance(ours, bool):
            compared[metric] = (value, float(ours) * unit)
        else:
            left_out.append(metric)
    return compared, left_out
