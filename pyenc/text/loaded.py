"""What a checkpoint came as: its encoder, tokenizer and recipe, and which of them may be set."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import CheckpointError, InputAttributeError, InputTypeError
from ..loading import Checkpoint
from ..models import Encoder
from .limits import check_room, checked_limit, loaded_limit
from .names import meant
from .recipe import Recipe
from .tokenizer import TextTokenizer
from .tokenizer_files import LOOKED_FOR

SETTABLE = (
    "checkpoint", "max_length", "name", "recipe", "tokenizer", "_files", "_loaded", "_max_length",
)  # fmt: skip
READ_ONLY = ("device", "dim", "model")


class Loaded:
    """What `TextEncoder` stands on, and what everything that encodes for it needs to know.

    Refuses attributes that there are not, and values of a wrong kind; of `TextEncoder` itself
    alone, for a subclass of that may keep what it likes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: TextTokenizer | None,
        recipe: Recipe,
        *,
        name: str = "",
        files: dict[str, bytes] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.name = name
        self._files = files or {}
        self._loaded = (tokenizer, recipe)
        self._max_length: int | None = None
        width = checkpoint.encoder.config.hidden_size * len(recipe.poolings)
        for i, layer in enumerate(recipe.dense):
            if layer.takes != width:
                raise CheckpointError(
                    f"{name}: {layer.called} {i} takes {layer.takes} features, but is given {width}"
                )
            width = layer.gives
        check_room(loaded_limit(checkpoint, tokenizer, recipe), tokenizer, name)

    @property
    def max_length(self) -> int:
        """Tokens a text may have, special tokens included.

        Raises:
            InputError: set to what `encode` would refuse as its `max_length`.
        """
        if self._max_length is not None:
            return self._max_length
        return loaded_limit(self.checkpoint, *self._loaded)

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        if value is not None:
            value = checked_limit(value, self.tokenizer, self.model.config)
        self._max_length = value

    @property
    def model(self) -> Encoder:
        return self.checkpoint.encoder

    @property
    def dim(self) -> int:
        return self.recipe.width(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def needed_tokenizer(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: the checkpoint came without one.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name}: no tokenizer files, so texts cannot be encoded (token ids can: "
                "encoder.model); give pyenc.load(..., tokenizer=...), or --tokenizer, a folder or "
                "Hub name that has them, such as bert-base-uncased for MosaicBERT; looked for "
                f"{LOOKED_FOR}; of what else transformers reads, save_pretrained of its tokenizer "
                "writes a tokenizer.json"
            )
        return self.tokenizer

    def __setattr__(self, name: str, value: Any) -> None:
        strict = Loaded in type(self).__bases__
        if strict and name not in SETTABLE:
            known = [n for n in (*SETTABLE, *READ_ONLY) if not n.startswith("_")]
            if name in READ_ONLY:
                raise InputAttributeError(f"{name} of a TextEncoder is read-only")
            raise InputAttributeError(
                f"a TextEncoder has no attribute {name!r}{meant(name, known)}; it has: "
                f"{', '.join(known)}"
            )
        # Afterwards: a checkpoint may come without a tokenizer.
        if strict and "_loaded" in self.__dict__:
            self._check_kind(name, value)
        super().__setattr__(name, value)

    def _check_kind(self, name: str, value: Any) -> None:
        right = {
            "checkpoint": ("a Checkpoint", isinstance(value, Checkpoint)),
            "recipe": ("a Recipe", isinstance(value, Recipe)),
            "tokenizer": ("a TextTokenizer", callable(value) or value is self._loaded[0]),
            "name": ("a string", isinstance(value, str)),
        }
        wanted, good = right.get(name, ("", True))
        if not good:
            raise InputTypeError(f"{name} of a TextEncoder must be {wanted}, got {value!r:.80}")
