"""`TextEncoder`: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import CheckpointError, InputAttributeError, InputError, InputTypeError
from ..forking import check_forked
from ..loading import Checkpoint
from ..models import Encoder
from .arguments import checked_before, checked_texts, whole
from .batching import token_batches
from .finish import Finish, checked_finish
from .limits import checked_limit, loaded_limit, report_long
from .names import meant, names_nearest
from .pooling import pool
from .prefixed import prefixed
from .recipe import Recipe
from .saving import said_files, write_folder
from .tokenizer import TextTokenizer, Tokens, not_unicode

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch: enough to fill the machine, few enough for its caches and memory."""


SETTABLE = (
    "checkpoint", "max_length", "name", "recipe", "tokenizer", "_files", "_loaded", "_max_length",
)  # fmt: skip
READ_ONLY = ("device", "dim", "model")


class TokenVectors(NamedTuple):
    """One text, token by token, special tokens included."""

    vectors: np.ndarray
    """(n, C) float32."""
    spans: np.ndarray
    """(n, 2) int32 [start, end) in characters of the text; empty for special and prompt tokens."""


class TextEncoder:
    """A checkpoint ready to embed text; made by `pyenc.load`.

    It holds no state between calls, so threads may share it, and it can be pickled.

    Attributes:
        model: the `Encoder`, for token ids instead of text.
        recipe: pooling, normalisation and prompts.
        max_length: tokens a text may have, special tokens included; may be set (None: as loaded).
        dim: length of the vectors.
        name: the name or folder it was loaded from.
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
        width = checkpoint.encoder.config.hidden_size
        for i, dense in enumerate(recipe.dense):
            if dense.weight.shape[1] != width:
                raise CheckpointError(
                    f"{name}: dense layer {i} takes {dense.weight.shape[1]} features, but is given "
                    f"{width}"
                )
            width = int(dense.weight.shape[0])

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass may keep what it likes.
        if type(self) is TextEncoder and name not in SETTABLE:
            known = [n for n in (*SETTABLE, *READ_ONLY) if not n.startswith("_")]
            if name in READ_ONLY:
                raise InputAttributeError(f"{name} of a TextEncoder is read-only")
            raise InputAttributeError(
                f"a TextEncoder has no attribute {name!r}{meant(name, known)}; it has: "
                f"{', '.join(known)}"
            )
        # Afterwards: a checkpoint may come without a tokenizer.
        if type(self) is TextEncoder and "_loaded" in self.__dict__:
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
        if self.recipe.dense:
            return int(self.recipe.dense[-1].weight.shape[0])
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @names_nearest
    def encode(
        self,
        texts: str | Iterable[str] | Iterable[Sequence[str]],
        *,
        instruction: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        on_long: str = "truncate",
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        layer_norm: bool = False,
        output: str = "pooled",
        progress: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
            texts: one string, any number of them, or any number of `[instruction, text]` pairs, as
                INSTRUCTOR's users write them. Instructions may differ from pair to pair and be
                empty; pairs and plain strings do not mix.
            instruction: put before every text, as a pair's is; see below.
            prompt: put before every text as it is given, as in sentence-transformers; its tokens
                are left out of pooling only where the checkpoint says so (`include_prompt`).
            prompt_name: one of the checkpoint's own prompts (`recipe.prompts`).
            batch_tokens: tokens of a batch at the most; default by device.
            max_length: tokens of a text at the most, special tokens included; default
                `self.max_length`. ALiBi checkpoints accept more than their default.
            on_long: "truncate" (with one warning that counts) or "error".
            normalize: to unit length; default as the checkpoint says. Token output is normalised
                only when this is True.
            truncate_dim: keep the first dimensions only, before normalising. Where it is the
                checkpoint's files that say so, the vector is cut after its own normalisation, as
                in sentence-transformers: shorter than unit length, unless `normalize` is True.
            layer_norm: layer norm over the whole pooled vector (no weights, eps 1e-5), before it is
                cut and normalised. No file asks for it: the model card of nomic-embed-text-v1.5
                does, for its vectors that are cut, together with `normalize=True`.
            output: "pooled", or "tokens" for a list of `TokenVectors`.
            progress: a progress bar; default: if standard error is a terminal.
            convert_to_tensor: torch on the model's device instead of numpy (pooled output).

        Returns:
            float32 (len(texts), dim), in the order of the input; (dim,) for one string; or a list
            of `TokenVectors` (one, for one string).

        Instructions, on every checkpoint, are those of InstructorEmbedding 1.0.1, by which the
        published scores of INSTRUCTOR (Su et al., arXiv 2212.09741) were made: the encoder is given
        `(instruction + text.strip()).strip()`, attention sees it all, and the mean leaves out the
        first n tokens, n being those of `instruction.strip()` without the closing one; an n of 1
        leaves out nothing. A maximum likewise; where the first or last token is the vector, it
        stays that. Two others differ: the later code of INSTRUCTOR's repository strips the
        instruction before it joins, so that "Represent the sentence: " loses its space, and
        sentence-transformers (`prompt` here) strips nothing and leaves out an n of 1 too. The
        limit is the checkpoint's own, not 512 whatever the files say.

        Raises:
            InputTypeError: something among the texts is not a string, or not a pair of strings; the
                message names its index.
            InputError: an option is out of range, a text is too long under `on_long="error"`, an
                instruction leaves no room for a text or no token to pool, or one is given beside
                pairs.
        """
        check_forked()
        single = isinstance(texts, str)
        listed, instructions = checked_texts(texts)
        tokenizer = self._needed_tokenizer()
        limit = self.max_length
        if max_length is not None:
            limit = checked_limit(max_length, tokenizer, self.model.config)
        if on_long not in ("truncate", "error"):
            raise InputError(f'on_long must be "truncate" or "error", got {on_long!r}')
        if output not in ("pooled", "tokens"):
            raise InputError(f'output must be "pooled" or "tokens", got {output!r}')
        finish = checked_finish(
            self.recipe,
            # Token states have not been through the dense layers.
            width=self.dim if output == "pooled" else self.model.config.hidden_size,
            output=output, truncate_dim=truncate_dim, normalize=normalize, layer_norm=layer_norm,
        )  # fmt: skip
        before = checked_before(instructions, instruction, prompt, prompt_name, self.recipe)
        joined = prefixed(listed, before, self.recipe, tokenizer, limit)
        try:
            tokens = tokenizer(joined, limit, spans=output == "tokens")
        except InputError as error:
            # By the text as it was given, without what is put before it.
            if (fault := not_unicode(listed)) is not None:
                raise InputError(fault) from error
            raise
        report_long(tokens, limit, on_long)
        if output == "pooled":
            joined.check_left([len(t.ids) for t in tokens])
        if batch_tokens is not None:
            batch_tokens = whole("batch_tokens", batch_tokens)
        else:
            batch_tokens = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        batches = list(token_batches([len(t.ids) for t in tokens], batch_tokens))
        # On a GPU the vectors leave it batch by batch, unless they are asked for as a tensor there.
        place = self.device if convert_to_tensor else torch.device("cpu")
        pooled = torch.zeros(len(listed), finish.dim, dtype=torch.float32, device=place)
        rows: list[TokenVectors | None] = [None] * len(listed)
        hide = None if progress is None else not progress
        bar = tqdm(
            total=len(listed), desc="encode", unit="text", disable=hide, leave=False,
            delay=0 if progress else 2,
        )  # fmt: skip
        with bar, _evaluating(self.model):
            for batch in batches:
                skip = torch.from_numpy(joined.skip[batch])
                values = self._run([tokens[i] for i in batch], skip, output, finish)
                if output == "pooled":
                    pooled[torch.tensor(batch, dtype=torch.long, device=place)] = values.to(place)
                else:
                    bounds = np.cumsum([0] + [len(tokens[i].ids) for i in batch])
                    states = values.cpu().numpy()
                    for i, start, end in zip(batch, bounds[:-1], bounds[1:], strict=True):
                        spans = tokens[i].spans
                        assert spans is not None
                        rows[i] = TokenVectors(states[start:end].copy(), joined.spans(i, spans))
                bar.update(len(batch))
        if output == "tokens":
            return rows[0] if single else rows
        result = pooled if convert_to_tensor else pooled.numpy()
        return result[0] if single else result

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
        check_forked()
        self.model.check_head()
        listed, instructions = checked_texts(texts)
        if instructions is not None:
            raise InputError("token_logits takes plain texts, not [instruction, text] pairs")
        tokenizer, limit = self._needed_tokenizer(), self.max_length
        if max_length is not None:
            limit = checked_limit(max_length, tokenizer, self.model.config)
        if on_long not in ("truncate", "error"):
            raise InputError(f'on_long must be "truncate" or "error", got {on_long!r}')
        budget = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        if batch_tokens is not None:
            budget = whole("batch_tokens", batch_tokens)
        tokens = tokenizer(listed, limit)
        report_long(tokens, limit, on_long)
        rows: list[np.ndarray] = [np.empty(0)] * len(listed)
        with _evaluating(self.model), torch.inference_mode():
            for batch in token_batches([len(t.ids) for t in tokens], budget):
                ids = torch.from_numpy(np.concatenate([tokens[i].ids for i in batch]))
                lengths = [len(tokens[i].ids) for i in batch]
                bounds = torch.from_numpy(np.cumsum([0, *lengths]))
                self.model.check(ids, bounds)
                states = self.model.forward_packed(
                    ids.to(self.device), bounds.to(self.device), checked=True
                )
                # A text at a time: the logits of a batch may be larger than the model.
                for i, state in zip(batch, states.split(lengths), strict=True):
                    rows[i] = self.model.logits(state).float().cpu().numpy()
        return rows[0] if isinstance(texts, str) else rows

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint back: original tensor names, the files it came with, and what was
        said since: pooling, normalisation, `max_length`.

        Raises:
            CheckpointError: `folder` cannot be written as a checkpoint's folder, or something was
                added or replaced that a checkpoint cannot hold; the message names it.
        """
        tokenizer, loaded = self._loaded
        if self.tokenizer is not tokenizer:
            raise CheckpointError(
                f"{self.name}: its tokenizer was replaced, whose files are not known here; "
                "pyenc.load(..., tokenizer=...) brings them along"
            )
        files = said_files(
            self._files, loaded, self.recipe, max_length=self._max_length,
            width=self.model.config.hidden_size, name=self.name,
        )  # fmt: skip
        write_folder(self.checkpoint, files, self.recipe, Path(folder))

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"TextEncoder({self.name!r}, {self.checkpoint.family.name}, dim={self.dim}, "
            f"layers={config.num_layers}, max_length={self.max_length}, {self.device}, "
            f"{str(self.model.dtype).removeprefix('torch.')})"
        )

    def _run(self, tokens: Sequence[Tokens], skip: Tensor, output: str, finish: Finish) -> Tensor:
        """One packed batch: pooled (B, dim), or every token's state (T, dim); float32."""
        ids = torch.from_numpy(np.concatenate([t.ids for t in tokens]))
        cu_seqlens = torch.from_numpy(np.cumsum([0] + [len(t.ids) for t in tokens]))
        self.model.check(ids, cu_seqlens)  # here, where looking at them waits for nobody
        leading = skip.to(self.device) if bool(skip.any()) else 0
        ids, cu_seqlens = ids.to(self.device), cu_seqlens.to(self.device)
        with torch.inference_mode():
            values = self.model.forward_packed(ids, cu_seqlens, checked=True)
            if output == "pooled":
                values = pool(
                    values, cu_seqlens, self.recipe, skip_tokens=leading, backend=self.model.backend
                )
            return finish(values)

    def _needed_tokenizer(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name}: no tokenizer files, so texts cannot be encoded (token ids can: "
                "encoder.model); give pyenc.load(..., tokenizer=...), or --tokenizer, a folder or "
                "Hub name that has them, such as bert-base-uncased for MosaicBERT (a SentencePiece "
                ".model alone is not read: save_pretrained of transformers' tokenizer writes a "
                "tokenizer.json)"
            )
        return self.tokenizer


@contextmanager
def _evaluating(model: Encoder) -> Iterator[None]:
    """No dropout while texts are encoded, whatever mode training left the model in."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
