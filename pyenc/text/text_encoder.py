"""`TextEncoder`: texts in, vectors out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError, InputTypeError
from ..loading import Checkpoint, save_checkpoint
from ..models import Encoder
from ..ops.segment_mean import normalize_rows
from .batching import token_batches
from .pooling import pool
from .recipe import Recipe
from .tokenizer import TextTokenizer, Tokens

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch: enough to fill the machine, few enough for its caches and memory."""

CHUNK = 1024
"""Texts tokenised at a time, so that the library's own objects do not pile up."""


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
        longest: tokens of the longest of them.
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
        max_length: tokens a text may have, special tokens included.
        dim: length of the vectors.
        name: the name or folder it was loaded from.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: TextTokenizer,
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
        self.max_length = _max_length(checkpoint.encoder, tokenizer, recipe)

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
            truncate_dim: keep the first dimensions only, before normalising.
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
        single = isinstance(texts, str)
        listed = _checked_texts(texts)
        limit = self._limit(max_length)
        dim = self._checked_dim(truncate_dim)
        if on_long not in ("truncate", "error"):
            raise InputError(f'on_long must be "truncate" or "error", got {on_long!r}')
        if output not in ("pooled", "tokens"):
            raise InputError(f'output must be "pooled" or "tokens", got {output!r}')
        before, skip = self._before(instruction, prompt, prompt_name)
        tokens = self._tokenize(listed, before, limit, spans=output == "tokens")
        _report_long(tokens, limit, on_long)
        if normalize is None:
            normalize = self.recipe.normalize and output == "pooled"
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        batches = list(token_batches([len(t.ids) for t in tokens], batch_tokens))
        # On a GPU the vectors leave it batch by batch, unless they are asked for as a tensor there.
        place = self.device if convert_to_tensor else torch.device("cpu")
        pooled = torch.zeros(len(listed), dim, device=place)
        rows: list[TokenVectors | None] = [None] * len(listed)
        hide = None if progress is None else not progress
        with tqdm(total=len(listed), desc="encode", unit="text", disable=hide, leave=False) as bar:
            for batch in batches:
                values = self._run([tokens[i] for i in batch], skip, output, dim, normalize)
                if output == "pooled":
                    pooled[torch.tensor(batch, device=place)] = values.to(place)
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
        """Write the checkpoint back: original tensor names, and the files it came with.

        Raises:
            CheckpointError: `folder` cannot be written as a checkpoint's folder.
        """
        folder = Path(folder)
        inside = self.recipe.transformer_path
        below = {k: v for k, v in self._files.items() if inside and k.startswith(inside + "/")}
        rest = {k: v for k, v in self._files.items() if k not in below}
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
        self, tokens: Sequence[Tokens], skip: int, output: str, dim: int, normalize: bool
    ) -> Tensor:
        """One packed batch: pooled (B, dim), or every token's state (T, dim); float32."""
        ids = torch.from_numpy(np.concatenate([t.ids for t in tokens])).to(self.device)
        lengths = np.array([0] + [len(t.ids) for t in tokens])
        cu_seqlens = torch.from_numpy(np.cumsum(lengths)).to(self.device)
        with torch.inference_mode():
            values = self.model.forward_packed(ids, cu_seqlens)
            if output == "pooled":
                values = pool(
                    values, cu_seqlens, self.recipe, skip_tokens=skip, backend=self.model.backend
                )
            values = values[:, :dim].float()
            return normalize_rows(values) if normalize else values

    def _tokenize(self, texts: list[str], before: str, limit: int, spans: bool) -> list[Tokens]:
        tokens: list[Tokens] = []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            if before:
                chunk = [before + text for text in chunk]
            tokens += self.tokenizer(chunk, limit, spans, first=start)
        return tokens

    def _before(
        self, instruction: str | None, prompt: str | None, prompt_name: str | None
    ) -> tuple[str, int]:
        """What is put before each text, and how many of its tokens the mean leaves out."""
        given = {"instruction": instruction, "prompt": prompt, "prompt_name": prompt_name}
        set_ones = [name for name, value in given.items() if value is not None]
        if len(set_ones) > 1:
            raise InputError(f"give one of {' and '.join(set_ones)}, not both")
        for name in set_ones:
            if not isinstance(given[name], str):
                raise InputTypeError(f"{name} must be a string, got {type(given[name]).__name__}")
        if instruction is not None:
            return instruction, self.tokenizer.prompt_length(instruction)
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
        return prompt, self.tokenizer.prompt_length(prompt) if skip else 0

    def _limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_length
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise InputError(f"max_length must be a positive whole number, got {max_length!r}")
        table = self.model.config.num_positions
        if table and max_length > table:
            raise InputError(
                f"max_length {max_length} is beyond this checkpoint's {table} position embeddings"
            )
        return max_length

    def _checked_dim(self, truncate_dim: int | None) -> int:
        if truncate_dim is None:
            return self.dim
        whole = isinstance(truncate_dim, int) and not isinstance(truncate_dim, bool)
        if not whole or not 1 <= truncate_dim <= self.dim:
            raise InputError(f"truncate_dim must be 1 to {self.dim}, got {truncate_dim!r}")
        return truncate_dim


def _max_length(encoder: Encoder, tokenizer: TextTokenizer, recipe: Recipe) -> int:
    """The recipe's word, else the tokenizer's, else the model's; never beyond a position table."""
    limit = recipe.max_length or tokenizer.max_length or encoder.config.max_length
    return min(limit, encoder.config.num_positions or limit)


def _checked_texts(texts: Any) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InputTypeError(
            f"texts must be a string or an iterable of strings, got {type(texts).__name__}"
        )
    listed = list(texts)
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
    story = (
        f"{len(long)} of {len(tokens)} texts exceed {limit} tokens (the longest, text {worst}, has "
        f"{tokens[worst].full_length})"
    )
    if on_long == "error":
        raise InputError(f"{story}; the first is text {long[0]}")
    warning = TruncationWarning(f"{story} and were truncated", len(long), tokens[worst].full_length)
    warnings.warn(warning, stacklevel=3)


def _spans(tokens: Tokens, before: int) -> np.ndarray:
    """Spans in the text alone: what lies in the prompt is empty, what straddles it is clipped."""
    assert tokens.spans is not None
    return np.clip(tokens.spans - before, 0, None) if before else tokens.spans
