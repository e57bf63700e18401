"""A file's masked-LM head: its tensors by name, which of them are one, and whether it is whole.

Heads stand outside of what the encoder's prefix wraps, files keep a decoder that is the word
embeddings or leave it out, and old code stored the decoder's bias twice. What is settled here is
only the head: one that is not whole is no reason to refuse the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models import EncoderConfig
from ..models.families import ConfigFile, Family, HeadNames, Names, head_parts, with_head
from ..models.families.heads import tensors, tie_wanted
from ..models.head import MaskedLMHead
from ..models.meta import on_meta
from .strict import readings
from .target import DTYPES
from .weights import WeightFiles


@dataclass
class Head:
    """What `with_head` and `head_parts` need to know of a file, and what they cannot know."""

    bare: Names
    """All names of the file without prefix, except what is one with another tensor."""
    modern: dict[str, str] = field(default_factory=dict)
    """Name of a head's tensor without prefix -> with it."""
    tied: dict[str, str] = field(default_factory=dict)
    """Name (with prefix) of a tensor that is one with a parameter -> the parameter."""
    fault: str = ""
    """Why what the names promise is no head."""


def find_head(
    files: WeightFiles,
    names: dict[str, str],
    family: Family,
    prefix: str,
    config: ConfigFile,
    shape: EncoderConfig,
    word: str,
) -> Head:
    """The masked-LM head among a checkpoint's tensors.

    Args:
        files: the weights.
        names: modern name -> name in the file.
        family: whose they are.
        prefix: what all names of the encoder begin with.
        config: `config.json`.
        shape: the encoder that it describes, without a head.
        word: the word embeddings' name in the file.
    """
    found = Head(frozenset(name.removeprefix(prefix) for name in names))
    if family.head is None:
        return found
    try:
        head = family.head(config, found.bare)
        tie = tie_wanted(head, config)
    except CheckpointError:
        return found  # with_head comes upon it too, and says so
    try:
        _take_names(found, head, names, family, prefix)
        # By name again: which spelling is there is only known now.
        head = family.head(config, found.bare)
        _find_ties(found, head, files, names, word, tie)
        _check_tensors(found, files, names, family, config, shape)
    except CheckpointError as error:
        bare = found.bare - tensors(head)
        return Head(bare, fault=str(error))
    return found


def _take_names(
    found: Head, head: HeadNames, names: dict[str, str], family: Family, prefix: str
) -> None:
    """Names of the head's tensors as they read without a prefix, or a part of it."""
    known = tensors(head)
    for modern in names:
        for reading in set(readings(modern, family, prefix)) & known:
            if reading in found.modern:
                raise CheckpointError(
                    f"{names[found.modern[reading]]!r} and {names[modern]!r} are both its {reading}"
                )
            found.modern[reading] = modern
    found.bare |= found.modern.keys()


def _find_ties(
    found: Head, head: HeadNames, files: WeightFiles, names: dict[str, str], word: str, tie: bool
) -> None:
    """Leave out of `bare` what is one with another tensor."""
    decoder = f"{head.decoder}.weight"
    if tie and decoder in found.modern:
        modern = found.modern[decoder]
        if same(files.read(names[modern]), files.read(word)):
            found.tied[modern] = "embeddings.word.weight"
            found.bare -= {decoder}
    biases = [name for name in head.biases if name in found.modern]
    if len(biases) < 2:
        return
    first, second = (found.modern[name] for name in biases)
    if same(files.read(names[first]), files.read(names[second])):
        found.tied[second] = "lm_head.bias"
        found.bare -= {biases[1]}
    elif not tie:
        # transformers 5 keeps both where nothing is tied, and the decoder's own is added.
        found.bare -= set(biases) - {f"{head.decoder}.bias"}
    else:
        raise CheckpointError(
            f"{names[first]!r} and {names[second]!r} are one bias, and differ in "
            f"{files.file_of(names[first])}: which of the two counts is not known"
        )


def _check_tensors(
    found: Head,
    files: WeightFiles,
    names: dict[str, str],
    family: Family,
    config: ConfigFile,
    shape: EncoderConfig,
) -> None:
    """Every tensor of the head is shaped right, and no quantised one."""
    shape = with_head(family, config, shape, found.bare)
    if shape.lm_head is None:
        return
    with on_meta():
        right = {
            f"lm_head.{name}": tuple(parameter.shape)
            for name, parameter in MaskedLMHead(shape, shape.lm_head).named_parameters()
        }
    for parameter, (name,) in head_parts(family, config, shape, found.bare).items():
        stored = names[found.modern[name]]
        if files.shape(stored) != right[parameter]:
            raise CheckpointError(
                f"{stored!r} in {files.file_of(stored)} has shape {files.shape(stored)}, but "
                f"config.json asks for {right[parameter]}"
            )
        dtype = files.read(stored).dtype
        if dtype not in DTYPES.values():
            raise CheckpointError(
                f"{stored!r} in {files.file_of(stored)} is {dtype}, which is not served: quantised "
                f"weights; served: {', '.join(DTYPES)}"
            )


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype and all values; nothing is said of quantised ones."""
    return a.dtype == b.dtype and a.dtype in DTYPES.values() and torch.equal(a, b)
