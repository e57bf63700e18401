"""The `model-index` of a model card: which scores its authors published."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ...errors import InputError
from ..missing import needs

with needs("yaml", "pyyaml"):
    import yaml

# Every scalar stays the text that it is: a Norwegian "no" is no boolean, a digest no number.
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

PREFIX = re.compile(r"^\s*MTEB[ _:-]+", re.IGNORECASE)
SUBSET = re.compile(r"^(?P<task>.*?)\s*\((?P<subset>[^()]*)\)\s*$")
NOTHING = ("", "null", "~", "none")


@dataclass(frozen=True)
class CardResult:
    """What a card says about one subset of one data set."""

    task: str
    """mteb's name of the task, or whatever stands there."""
    subset: str | None
    """Of the data set ("en", "default"); None: the card does not say."""
    split: str | None
    revision: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    """As written: shares of 1 or of 100. A value that is no number is left out."""
    unreadable: tuple[str, ...] = ()
    """Metrics whose value is no finite number."""
    is_mteb: bool = True
    """Whether the card calls it mteb's; results of a model's own evaluation stand beside them."""


def read_card(card: str | Path, revision: str | None = None) -> list[CardResult]:
    """The results in the front matter of a model card, one for each subset, in its order.

    Args:
        card: the file, a folder with a README.md, or the Hub name of a model.
        revision: of a Hub name.

    Raises:
        InputError: there is no such card, it has no front matter, no `model-index`, or one that is
            not as the Hub asks for it; the message says what was found instead.
    """
    name, text = _text(card, revision)
    text = text.lstrip()  # as the Hub reads it
    if not text.startswith("---"):
        raise InputError(f"{name}: no front matter: a card begins with a line ---")
    ends = re.search(r"^---[ \t]*$", text[3:], re.MULTILINE)
    if ends is None:
        raise InputError(f"{name}: the front matter has no end: no second line ---")
    try:
        content = yaml.load(text[3 : 3 + ends.start()], Loader=LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: the front matter is not YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{name}: the front matter is nested too deeply") from error
    index = content.get("model-index") if isinstance(content, dict) else None
    if not index:
        raise InputError(f"{name}: the front matter has no model-index, so no scores")
    if not isinstance(index, list):
        raise InputError(f"{name}: model-index must be a list of models, got {index!r:.60}")
    found = [result for model in index for result in _of_model(name, model)]
    if not found:
        raise InputError(f"{name}: the model-index has no results")
    return found


def in_percent(results: list[CardResult]) -> bool:
    """Whether a card's scores of mteb are shares of 100: one of them is above 1.

    Not by nAUC, which compares to chance and has no lower end.
    """
    return any(
        abs(value) > 1
        for result in results
        if result.is_mteb
        for name, value in result.metrics.items()
        if not name.startswith("nauc_")
    )


def _text(card: str | Path, revision: str | None) -> tuple[str, str]:
    path = Path(card)
    try:
        path = path / "README.md" if path.is_dir() else path
        if not path.is_file():
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(card)):
                raise InputError(
                    f"{card}: no such card; give a file, a folder with a README.md, or a Hub name"
                )
            path = Path(hf_hub_download(str(card), "README.md", revision=revision))
        text = path.read_text("utf-8-sig")
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}") from error
    # The Hub's own errors and those of three HTTP libraries, by its version.
    except Exception as error:
        story = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{card}: the card cannot be read: {story:.200}") from error
    return str(card), text.replace("\r\n", "\n")


def _of_model(name: str, model: Any) -> Iterator[CardResult]:
    results = model.get("results") if isinstance(model, dict) else None
    if results in (None, ""):
        return
    if not isinstance(results, list):
        raise InputError(f"{name}: results of the model-index must be a list, got {results!r:.60}")
    for number, result in enumerate(results):
        data = result.get("dataset") if isinstance(result, dict) else None
        if not isinstance(data, dict):
            raise InputError(
                f"{name}: result {number} of the model-index has no dataset: {result!r:.60}"
            )
        yield from _of_result(data, result.get("metrics"))


def _of_result(data: dict[str, Any], metrics: Any) -> Iterator[CardResult]:
    title = _said(data.get("name")) or _said(data.get("type")) or "(no name)"
    prefix = PREFIX.match(title)
    task, named = title[prefix.end() :].strip() if prefix else title, None
    if prefix and (match := SUBSET.match(task)):
        task, named = match["task"], match["subset"] or None
    values, unreadable = _values(metrics)
    nothing: list[str | None] = [None]
    configs = [named] if named else [*_listed(data.get("config"))] or nothing
    for subset in configs:
        for split in [*_listed(data.get("split"))] or nothing:
            yield CardResult(
                task, subset, split, _said(data.get("revision")), values, tuple(unreadable),
                is_mteb=prefix is not None or str(data.get("type", "")).startswith("mteb/"),
            )  # fmt: skip


def _values(metrics: Any) -> tuple[dict[str, float], list[str]]:
    values: dict[str, float] = {}
    unreadable = []
    for metric in metrics if isinstance(metrics, list) else []:
        kind = _said(metric.get("type")) if isinstance(metric, dict) else None
        if kind is None:
            continue
        try:
            value = float(metric.get("value"))
        except (TypeError, ValueError):
            value = math.nan
        if math.isfinite(value):
            values[kind] = value
        else:
            unreadable.append(kind)
    return values, unreadable


def _said(value: Any) -> str | None:
    """A scalar that says something, as text."""
    if not isinstance(value, str) or value.strip().lower() in NOTHING:
        return None
    return value.strip()


def _listed(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [said for item in items if (said := _said(item)) is not None]
