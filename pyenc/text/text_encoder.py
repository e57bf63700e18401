"""`TextEncoder`: texts in, vectors out."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..callers import stacklevel
from ..errors import CheckpointError, InputAttributeError, InputError, InputTypeError
from ..forking import check_forked
from ..loading import Checkpoint, save_checkpoint
from ..models import Encoder
from ..ops.segment_mean import normalize_rows
from .assumed import limit_file, recipe_files, told
from .batching import token_batches
from .names import meant, names_nearest
from .pooling import pool
from .recipe import Recipe
from .tokenizer import TextTokenizer, Tokens, surrogate_in

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


class TruncationWarning(UserWarning):
    """Texts were longer than the model's limit and were cut.

    Attributes:
        count: how many.
        longest: tokens of the longest of them; at least so many where the message says so, for
            the rest of a very long text is not tokenised.
    """

    def __init__(self, message: str, count: int = 0, longest: int = 0) -> None:
        super().__init__(message)
        self.count = count
        self.longest = longest


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
        return _max_length(self.checkpoint, *self._loaded)

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self._max_length = None if value is None else self._limit(value, self.tokenizer)

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
        texts: str | Iterable[str],
        *,
        instruction: str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        on_long: str = "truncate",
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        output: str = "pooled",
        progress: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
            texts: one string, or any number of them.
            instruction: put before every text, seen by attention and left out of the mean.
            prompt: put before every text; counts in the mean unless the checkpoint says otherwise.
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
            output: "pooled", or "tokens" for a list of `TokenVectors`.
            progress: a progress bar; default: if standard error is a terminal.
            convert_to_tensor: torch on the model's device instead of numpy (pooled output).

        Returns:
            float32 (len(texts), dim), in the order of the input; (dim,) for one string; or a list
            of `TokenVectors` (one, for one string).

        Raises:
            InputTypeError: something among the texts is not a string; the message names its index.
            InputError: an option is out of range, or a text is too long under `on_long="error"`.
        """
        check_forked()
        single = isinstance(texts, str)
        listed = _checked_texts(texts)
        tokenizer = self._needed_tokenizer()
        limit = self._limit(max_length, tokenizer)
        if on_long not in ("truncate", "error"):
            raise InputError(f'on_long must be "truncate" or "error", got {on_long!r}')
        if output not in ("pooled", "tokens"):
            raise InputError(f'output must be "pooled" or "tokens", got {output!r}')
        dim = self._checked_dim(truncate_dim, output)
        # The files' truncate_dim comes after their Normalize, the call's before.
        cut_first = truncate_dim is not None or normalize is not None
        before, skip = self._before(instruction, prompt, prompt_name, tokenizer)
        if skip >= limit:
            raise InputError(f"the prompt takes {skip} of the {limit} tokens of max_length")
        tokens = tokenizer(listed, limit, spans=output == "tokens", before=before)
        _report_long(tokens, limit, on_long)
        if normalize is None:
            normalize = self.recipe.normalize and output == "pooled"
        if batch_tokens is not None:
            batch_tokens = _whole("batch_tokens", batch_tokens)
        else:
            batch_tokens = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        batches = list(token_batches([len(t.ids) for t in tokens], batch_tokens))
        # On a GPU the vectors leave it batch by batch, unless they are asked for as a tensor there.
        place = self.device if convert_to_tensor else torch.device("cpu")
        pooled = torch.zeros(len(listed), dim, dtype=torch.float32, device=place)
        rows: list[TokenVectors | None] = [None] * len(listed)
        hide = None if progress is None else not progress
        bar = tqdm(
            total=len(listed), desc="encode", unit="text", disable=hide, leave=False,
            delay=0 if progress else 2,
        )  # fmt: skip
        with bar, _evaluating(self.model):
            for batch in batches:
                values = self._run(
                    [tokens[i] for i in batch], skip, output, dim, normalize, cut_first
                )
                if output == "pooled":
                    pooled[torch.tensor(batch, dtype=torch.long, device=place)] = values.to(place)
                else:
                    bounds = np.cumsum([0] + [len(tokens[i].ids) for i in batch])
                    states = values.cpu().numpy()
                    for i, start, end in zip(batch, bounds[:-1], bounds[1:], strict=True):
                        spans = _spans(tokens[i], len(before))
                        rows[i] = TokenVectors(states[start:end].copy(), spans)
                bar.update(len(batch))
        if output == "tokens":
            return rows[0] if single else rows
        result = pooled if convert_to_tensor else pooled.numpy()
        return result[0] if single else result

    def save(self, folder: str | Path) -> None:
        """Write the checkpoint back: original tensor names, the files it came with, and what was
        said since: pooling, normalisation, `max_length`.

        Raises:
            CheckpointError: `folder` cannot be written as a checkpoint's folder, or something was
                added or replaced that a checkpoint cannot hold; the message names it.
        """
        folder = Path(folder)
        files = self._said_files()
        inside = self.recipe.transformer_path
        below = {k: v for k, v in files.items() if inside and k.startswith(inside + "/")}
        rest = {k: v for k, v in files.items() if k not in below}
        if inside:
            save_checkpoint(
                self.checkpoint, folder / inside,
                {k.removeprefix(inside + "/"): v for k, v in below.items()},
            )  # fmt: skip
            for name, content in rest.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        else:
            save_checkpoint(self.checkpoint, folder, rest)

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"TextEncoder({self.name!r}, {self.checkpoint.family.name}, dim={self.dim}, "
            f"layers={config.num_layers}, max_length={self.max_length}, {self.device}, "
            f"{str(self.model.dtype).removeprefix('torch.')})"
        )

    def _run(
        self,
        tokens: Sequence[Tokens],
        skip: int,
        output: str,
        dim: int,
        normalize: bool,
        cut_first: bool,
    ) -> Tensor:
        """One packed batch: pooled (B, dim), or every token's state (T, dim); float32."""
        ids = torch.from_numpy(np.concatenate([t.ids for t in tokens]))
        cu_seqlens = torch.from_numpy(np.cumsum([0] + [len(t.ids) for t in tokens]))
        self.model.check(ids, cu_seqlens)  # here, where looking at them waits for nobody
        ids, cu_seqlens = ids.to(self.device), cu_seqlens.to(self.device)
        with torch.inference_mode():
            values = self.model.forward_packed(ids, cu_seqlens, checked=True)
            if output == "pooled":
                values = pool(
                    values, cu_seqlens, self.recipe, skip_tokens=skip, backend=self.model.backend
                )
            values = (values[:, :dim] if cut_first else values).float()
            values = normalize_rows(values) if normalize else values
            return values[:, :dim]

    def _before(
        self,
        instruction: str | None,
        prompt: str | None,
        prompt_name: str | None,
        tokenizer: TextTokenizer,
    ) -> tuple[str, int]:
        """What is put before each text, and how many of its tokens the mean leaves out."""
        given = {"instruction": instruction, "prompt": prompt, "prompt_name": prompt_name}
        set_ones = [name for name, value in given.items() if value is not None]
        if len(set_ones) > 1:
            raise InputError(f"give one of {' and '.join(set_ones)}, not both")
        for name in set_ones:
            if not isinstance(given[name], str):
                raise InputTypeError(f"{name} must be a string, got {type(given[name]).__name__}")
            if (fault := surrogate_in(str(given[name]))) is not None:
                raise InputError(f"{name} is not valid Unicode: {fault}")
        if instruction is not None:
            return instruction, tokenizer.prompt_length(instruction) if instruction else 0
        if prompt is None:
            prompt_name = prompt_name or self.recipe.default_prompt_name
            if prompt_name is None:
                return "", 0
            if prompt_name not in self.recipe.prompts:
                raise InputError(
                    f"prompt_name {prompt_name!r} is unknown; this checkpoint has: "
                    f"{', '.join(self.recipe.prompts) or 'none'}"
                )
            prompt = self.recipe.prompts[prompt_name]
        skip = prompt and not self.recipe.include_prompt
        return prompt, tokenizer.prompt_length(prompt) if skip else 0

    def _needed_tokenizer(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name}: no tokenizer files, so texts cannot be encoded (token ids can: "
                "encoder.model); give pyenc.load(..., tokenizer=...), or --tokenizer, a folder or "
                "Hub name that has them, such as bert-base-uncased for MosaicBERT"
            )
        return self.tokenizer

    def _said_files(self) -> dict[str, bytes]:
        """The files to save: as they came, and what has been set since."""
        tokenizer, recipe = self._loaded
        if self.tokenizer is not tokenizer:
            raise CheckpointError(
                f"{self.name}: its tokenizer was replaced, whose files are not known here; "
                "pyenc.load(..., tokenizer=...) brings them along"
            )
        files = dict(self._files)
        if self.recipe != recipe:
            said = told(recipe, self.recipe.pooling, self.recipe.normalize)
            if self.recipe != replace(said, assumed=self.recipe.assumed):
                raise CheckpointError(
                    f"{self.name}: its recipe was changed beyond pooling and normalize, which a "
                    "saved folder would not hold"
                )
            files |= recipe_files(files, self.recipe, self.model.config.hidden_size)
        if self._max_length is not None:
            files |= limit_file(files, self.recipe, self._max_length)
        return files

    def _limit(self, max_length: int | None, tokenizer: TextTokenizer | None) -> int:
        if max_length is None:
            return self.max_length
        max_length = _whole("max_length", max_length)
        special = 0 if tokenizer is None else tokenizer.num_special
        if max_length < max(1, special):
            raise InputError(
                f"max_length {max_length} leaves no room for the {special} special tokens"
            )
        table = self.model.config.num_positions
        if table and max_length > table:
            raise InputError(
                f"max_length {max_length} is beyond this checkpoint's {table} position embeddings"
            )
        return max_length

    def _checked_dim(self, truncate_dim: int | None, output: str) -> int:
        # Token states have not been through the dense layers.
        most = self.dim if output == "pooled" else self.model.config.hidden_size
        if truncate_dim is None:
            return min(self.recipe.truncate_dim or most, most) if output == "pooled" else most
        truncate_dim = _whole("truncate_dim", truncate_dim)
        if not 1 <= truncate_dim <= most:
            raise InputError(f"truncate_dim must be 1 to {most}, got {truncate_dim!r}")
        return truncate_dim


def _max_length(checkpoint: Checkpoint, tokenizer: TextTokenizer | None, recipe: Recipe) -> int:
    """The recipe's word, else the tokenizer's up to the model's, else the model's; never beyond a
    position table.
    """
    config = checkpoint.encoder.config
    by_tokenizer = None if tokenizer is None else tokenizer.max_length
    if by_tokenizer is not None and "model_max_length" not in recipe.tokenizer_settings:
        # As in sentence-transformers: what tokenizer_config.json says is capped, what the recipe
        # puts over it is not. MosaicBERT states positions beside the size that it starts at.
        stated = checkpoint.config.get("max_position_embeddings")
        own = max(config.max_length, stated if type(stated) is int else 0)
        by_tokenizer = min(by_tokenizer, own)
    limit = recipe.max_length or by_tokenizer or config.max_length
    return min(limit, config.num_positions or limit)


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


def _whole(name: str, value: Any) -> int:
    """A whole number of any kind (numpy's too), or an error that names the option."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {value!r}") from None


def _checked_texts(texts: Any) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InputTypeError(
            f"texts must be a string or an iterable of strings, got {type(texts).__name__}"
        )
    try:
        listed = list(texts)
    except TypeError as error:  # a numpy array of no dimension calls itself iterable
        raise InputTypeError(f"texts must be a string or an iterable of them: {error}") from error
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputTypeError(
                f"text {index} is {text!r:.40} ({type(text).__name__}), expected a string"
            )
    return listed


def _report_long(tokens: Sequence[Tokens], limit: int, on_long: str) -> None:
    long = [i for i, t in enumerate(tokens) if t.full_length > limit]
    if not long:
        return
    worst = max(long, key=lambda i: tokens[i].full_length)
    most = tokens[worst].full_length
    has = f"has {most}" if all(tokens[i].exact for i in long) else f"has at least {most}"
    story = (
        f"{len(long)} of {len(tokens)} texts exceed {limit} tokens (the longest, text {worst}, "
        f"{has})"
    )
    if on_long == "error":
        raise InputError(f"{story}; the first is text {long[0]}")
    warning = TruncationWarning(f"{story} and were truncated", len(long), most)
    warnings.warn(warning, stacklevel=stacklevel())


def _spans(tokens: Tokens, before: int) -> np.ndarray:
    """Spans in the text alone: what lies in the prompt is empty, what straddles it is clipped."""
    assert tokens.spans is not None
    return np.clip(tokens.spans - before, 0, None) if before else tokens.spans
