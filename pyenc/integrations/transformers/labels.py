"""What config.json, or a call, says of a classifier's labels: how many, their names, the kind of
problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, InputError

KEYS = ("id2label", "label2id", "num_labels", "problem_type")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def checked(
    said: Mapping[str, Any], where: str, error: type[CheckpointError] | type[InputError]
) -> dict[str, Any]:
    """Those of the keys that are said, labels by whole numbers.

    Raises:
        CheckpointError, InputError: as `error` says; a value is of the wrong kind.
    """
    found = {key: said[key] for key in KEYS if said.get(key) is not None}
    if "id2label" in found:
        try:
            found["id2label"] = {int(key): name for key, name in found["id2label"].items()}
        except (AttributeError, TypeError, ValueError):
            raise error(
                f"{where}: id2label must be labels by whole numbers, got {said['id2label']!r:.80}"
            ) from None
    if not isinstance(found.get("label2id", {}), Mapping):
        raise error(f"{where}: label2id must be numbers by label, got {said['label2id']!r:.80}")
    number = found.get("num_labels", 1)
    if type(number) is not int or number < 1:
        raise error(f"{where}: num_labels must be a whole number from 1 on, got {number!r:.80}")
    if found.get("problem_type", PROBLEMS[0]) not in PROBLEMS:
        raise error(
            f"{where}: problem_type {said['problem_type']!r:.80} is unknown; known: "
            f"{', '.join(PROBLEMS)}"
        )
    return found


def together(file: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of transformers is given, of what `checked` gave: a call's number of
    labels comes before names of another number, and names before a number."""
    values = {**file, **call}
    if "num_labels" in call and "id2label" not in call:
        if len(file.get("id2label", {})) != call["num_labels"]:
            values.pop("id2label", None)
            values.pop("label2id", None)
    elif "id2label" in call and "label2id" not in call:
        values.pop("label2id", None)
    if "id2label" in values:
        values.pop("num_labels", None)
    return values


def contradiction(said: Mapping[str, Any]) -> str:
    """What is wrong with the labels that one place says; empty if nothing is."""
    names, number = said.get("id2label"), said.get("num_labels")
    if names is None:
        return ""
    if number is not None and len(names) != number:
        return f"num_labels is {number}, and id2label names {len(names)}"
    if {int(key) for key in names} != set(range(len(names))):
        return f"id2label names {', '.join(map(str, names))}; expected 0 to {len(names) - 1}"
    return ""
