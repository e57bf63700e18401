"""The tensors of a LoRA adapter by their names: what each is, and which of the base's it means.

An adapter names the modules that it changes as the model that was trained has them, below
`base_model.model.`; what that model's own prefix is (`bert.`, `model.`) and what the base's file
has in its place may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

from ..errors import CheckpointError
from ..models.families import FAMILIES
from .weights import WeightFiles
from .wrappers import modern_name

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
    def of_rows(self) -> bool:
        """Whether it is an embedding's."""
        return "rows A" in self.tensors or "rows B" in self.tensors

    @property
    def pair(self) -> tuple[str, str]:
        """A and B, as they are called here."""
        return ("rows A", "rows B") if self.of_rows else ("A", "B")


def sorted_tensors(adapter: WeightFiles) -> tuple[dict[str, Change], dict[str, str]]:
    """Module, as the families know it -> its change; and name -> tensor of those that stand whole
    in the base's place."""
    changes: dict[str, Change] = {}
    whole: dict[str, str] = {}
    for stored in adapter.names:
        path = stored.removeprefix(WRAPPER)
        end = next((end for end in FACTORS if path.endswith(end)), None)
        if end is not None:
            module = path.removesuffix(end)
            change = changes.setdefault(_modern(module), Change(module))
            if change.module != module or FACTORS[end] in change.tensors:
                first = change.tensors.get(FACTORS[end], change.module)
                raise _one(adapter, first, stored)
            change.tensors[FACTORS[end]] = stored
            continue
        if ".lora_" in path or "trainable_tokens" in path:
            raise CheckpointError(
                f"{adapter.file_of(stored)}: tensor {stored!r} is of a kind that is not served; "
                f"served: {', '.join(FACTORS)}, and tensors that stand in the base's place"
            )
        name = modern_name(path.replace(BESIDE, "."))
        if name in whole:
            raise _one(adapter, whole[name], stored)
        whole[name] = stored
    return changes, whole


def _modern(module: str) -> str:
    """A module's path as the families know it; settings speak of it as it was trained."""
    return modern_name(f"{module}.weight").removesuffix(".weight")


def _one(adapter: WeightFiles, first: str, second: str) -> CheckpointError:
    return CheckpointError(
        f"{adapter.file_of(second)}: {first!r} and {second!r} are one; which of the two counts is "
        "not known"
    )


def renaming(modules: set[str], names: Iterable[str]) -> Callable[[str], str]:
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
