"""`TextEncoder`: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, InputTypeError
from ..models import Encoder
from .encoding import Start, here
from .loaded import Loaded
from .logits import token_logits
from .names import names_nearest
from .processes import EncoderPool, team_for
from .saving import said_files, words_as_read, write_folder
from .similarity import similarity, similarity_pairwise
from .verbs import Verbs


class TextEncoder(Verbs, Loaded):
    """A checkpoint ready to embed text; made by `pyenc.load`.

    It holds no state between calls, so threads may share it, and it can be pickled.

    Attributes:
        model: the `Encoder`, for token ids instead of text.
        recipe: pooling, normalisation and prompts.
        max_length: tokens a text may have, special tokens included; may be set (None: as loaded).
        dim: length of the vectors.
        name: the name or folder it was loaded from.
    """

    def pool(
        self, devices: Sequence[str | torch.device] | None = None, *, threads: int | None = None
    ) -> EncoderPool:
        """Processes that encode together, for more calls than one.

        >>> with encoder.pool(["cuda:0", "cuda:1"]) as pool:
        ...     vectors = pool.encode(texts)

        Each holds the model as it is now, ready before the `with` begins; it has the verbs of a
        `TextEncoder`: encode, encode_query, encode_document, encode_stream.

        Args:
            devices: one process each, and a device may be named more than once; default every CUDA
                card. Processes on "cpu" share one copy of the weights.
            threads: of each process; default this one's (`torch.get_num_threads`), divided among
                them.

        Raises:
            InputError: a device is not there, or none is named on a machine without a card.
        """
        return EncoderPool(self, devices, threads=threads)

    def similarity(self, a: Any, b: Any) -> Tensor:
        """How alike vectors are, each of `a` with each of `b`: the larger, the more alike.

        The function is the checkpoint's (`recipe.similarity`): "cosine", where its files name none,
        "dot", or the negative of the "euclidean" or "manhattan" distance, as of
        `SentenceTransformer.similarity`.

        Args:
            a: (n, C), numpy or torch, of floating point; or one vector (C,).
            b: (m, C) or (C,).

        Returns:
            A tensor (n, m), at least float32, where the vectors are.

        Raises:
            InputError: the shapes do not go together.
            InputTypeError: quantised vectors, or no numbers at all.
        """
        return similarity(self.recipe.similarity, a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """The same of each row of `a` with that row of `b`: (n, C) and (n, C) give (n,)."""
        return similarity_pairwise(self.recipe.similarity, a, b)

    @names_nearest
    def token_logits(
        self,
        texts: str | Iterable[str],
        *,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        on_long: str = "truncate",
    ) -> list[np.ndarray] | np.ndarray:
        """Logits of the masked-LM head for every token of texts, special tokens included.

        No prompt is put before them, not the checkpoint's default one either. Every token takes
        4 * V bytes of the result, 122 kB with BERT's 30,528 words, so 512 tokens take 63 MB: ask
        for few texts at a time. `model.logits` gives those of chosen tokens.

        Args:
            texts: one string, or any number of them.
            batch_tokens, max_length, on_long: as of `encode`.

        Returns:
            A list of float32 (n, V), in the order of the input; one, for one string. V is the
            model's vocabulary, which may be padded beyond the tokenizer's.

        Raises:
            InputTypeError, InputError: as of `encode`, or the checkpoint has no whole masked-LM
                head; the message names what it lacks.
        """
        return token_logits(
            self, texts, batch_tokens=batch_tokens, max_length=max_length, on_long=on_long
        )

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint back: original tensor names, the files it came with, and what was
        said since: pooling, normalisation, `max_length`.

        Raises:
            CheckpointError: `folder` cannot be written as a checkpoint's folder, or something was
                added or replaced that a checkpoint cannot hold; the message names it.
            InputTypeError: `folder` is no path.
        """
        if not isinstance(folder, (str, PathLike)):
            raise InputTypeError(f"save: folder must be a path, got {type(folder).__name__}")
        tokenizer, loaded = self._loaded
        if self.tokenizer is not tokenizer:
            raise CheckpointError(
                f"{self.name}: its tokenizer was replaced, whose files are not known here; "
                "pyenc.load(..., tokenizer=...) brings them along"
            )
        files = said_files(
            self._files, loaded, self.recipe, max_length=self._max_length,
            width=self.model.config.hidden_size, name=self.name,
            unsaid_pooling=self.checkpoint.pooling,
        )  # fmt: skip
        files |= words_as_read(self._files, loaded, tokenizer, self.checkpoint)
        write_folder(self.checkpoint, files, self.recipe, Path(folder))

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"TextEncoder({self.name!r}, {self.checkpoint.family.name}, dim={self.dim}, "
            f"layers={config.depth}, max_length={self.max_length}, {self.device}, "
            f"{str(self.model.dtype).removeprefix('torch.')})"
        )

    if not TYPE_CHECKING:  # which would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            """Called where there is no such attribute; what its module has is said to be there."""
            hint = f"; its module has: encoder.model.{name}" if hasattr(Encoder, name) else ""
            story = f"a {type(self).__name__} has no attribute {name!r}{hint}"
            # With both, Python itself says which name is near.
            raise AttributeError(story, name=name, obj=self)

    def _encoder(self) -> TextEncoder:
        return self

    def _starting(self, devices: Any) -> AbstractContextManager[Start]:
        return here(self) if devices is None else team_for(self, devices)
