"""A LoRA adapter's tensors by their names: what each is, and which of the base's it means.

An adapter names the modules that it changes as the model that was trained has them, below
`base_model.model.`; what that model's own prefix is (`bert.`, `model.`) and what the base's file
has in its place may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from ..errors import CheckpointError
from ..models.families import FAMILIES
from .lora_settings import LoraSettings
from .weights import WeightFiles
from .wrappers import modern_name, modern_names

WRAPPER = "base_model.model."
"""What peft puts before the paths of the model that it wraps."""

FACTORS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "rows A",
    ".lora_embedding_B": "rows B",
    ".lora_magnitude_vector": "lengths",
    ".lora_magnitude_vector.weight": "lengths",
}
"""How the names of a change's tensors end."""

BESIDE = ".base_layer."
"""Between a changed module and a tensor of its own that is saved whole."""


@dataclass
class Change:
    """What the adapter does to one module: which of its tensors is what."""

    module: str
    """As the trained model has it."""
    tensors: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """A tensor of it, for messages."""
        return next(iter(self.tensors.values()))

    @property
    def of_rows(self) -> bool:
        """Whether it is an embedding's."""
        return "rows A" in self.tensors or "rows B" in self.tensors

    @property
    def pair(self) -> tuple[str, str]:
        """A and B, as they are called here."""
        return ("rows A", "rows B") if self.of_rows else ("A", "B")


class LoraAdapter:
    """An adapter: its settings, and its tensors by what they are.

    Args:
        settings: what its file says.
        files: its tensors.

    Raises:
        CheckpointError: a tensor is of a kind that is not served, there are two of a kind, or none
            is of LoRA.
    """

    def __init__(self, settings: LoraSettings, files: WeightFiles) -> None:
        self.settings = settings
        self.files = files
        self.changes: dict[str, Change] = {}
        """Module, as the families know it -> its change."""
        self.whole: dict[str, str] = {}
        """Name -> tensor of those that stand whole in the base's place."""
        for stored in files.names:
            self._sort(stored)
        if not self.changes:
            some = ", ".join(files.names[:3]) or "none"
            raise CheckpointError(
                f"{files.file_of('')}: no tensors of LoRA; expected names such as "
                f"{WRAPPER}<module>.lora_A.weight, got {some}"
            )

    def _sort(self, stored: str) -> None:
        path = stored.removeprefix(WRAPPER)
        end = next((end for end in FACTORS if path.endswith(end)), None)
        if end is not None:
            module = path.removesuffix(end)
            modern, kind = _modern(module), FACTORS[end]
            change = self.changes.setdefault(modern, Change(module))
            if change.module != module or kind in change.tensors:
                raise self.both(change.tensors.get(kind) or change.first, stored, modern)
            change.tensors[kind] = stored
            return
        if ".lora_" in path or "trainable_tokens" in path:
            raise self.wrong(
                stored,
                f"is of a kind that is not served; served: {', '.join(FACTORS)}, and tensors that "
                "stand in the base's place",
            )
        name = modern_name(path.replace(BESIDE, "."))
        if name in self.whole:
            raise self.both(self.whole[name], stored, name)
        self.whole[name] = stored

    def wrong(self, name: str, why: str) -> CheckpointError:
        """What is said of one of the tensors."""
        return CheckpointError(f"{self.files.file_of(name)}: tensor {name!r} {why}")

    def both(self, first: str, second: str, place: str) -> CheckpointError:
        """What is said of two of the tensors that would do the same to one place."""
        return CheckpointError(
            f"{self.files.file_of(second)}: tensors {first!r} and {second!r} are both of "
            f"{place!r}; which of the two counts is not known; expected it by one name alone"
        )


def _modern(module: str) -> str:
    """A module's path as the families know it; settings speak of it as it was trained."""
    return modern_name(f"{module}.weight").removesuffix(".weight")


@dataclass(frozen=True)
class Matched:
    """An adapter beside a base, by names."""

    adapter: LoraAdapter
    base: WeightFiles
    names: Mapping[str, str]
    """The base's: name as the families know it -> stored name."""
    rename: Callable[[str], str]
    """From a module's path in the trained model to that in the base's files."""

    @property
    def fits(self) -> bool:
        """Whether the adapter changes any of the tensors that the base's files have."""
        return any(f"{self.rename(module)}.weight" in self.names for module in self.adapter.changes)


def matched(adapter: LoraAdapter, base: WeightFiles) -> Matched:
    """An adapter beside the weights that it may be of."""
    names = modern_names(base.names, base.folder)
    whole = {name.rpartition(".")[0] for name in adapter.whole}
    return Matched(adapter, base, names, _renaming({*adapter.changes, *whole}, names))


def _renaming(modules: set[str], names: Iterable[str]) -> Callable[[str], str]:
    """From a module's path in the trained model to that in the base's files: one prefix for
    another, the pair that fits the most of them; what the base does not have keeps its own.

    Args:
        modules: paths in the trained model.
        names: the base's, as the families know them.
    """
    there = {name.rpartition(".")[0] for name in names}
    prefixes = sorted({prefix for family in FAMILIES for prefix in family.prefixes}, key=len)

    def renamed(module: str, pair: tuple[str, str]) -> str:
        off, on = pair
        here = on + module.removeprefix(off)
        return here if module.startswith(off) and here in there else module

    # max keeps the first of equals: no change at all before any.
    best = max(
        product(prefixes, prefixes),
        key=lambda pair: sum(renamed(module, pair) in there for module in modules),
    )
    return lambda module: renamed(module, best)
