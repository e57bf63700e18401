"""From texts to vectors, step by step: tokenised, cut into batches, run, put back in order.

Who runs the batches is a `Start`: this process (`here`), or a team of others (`team.py`). Either is
given the same batches of the same ids, so that errors, warnings and order do not depend on it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..forking import check_forked
from .arguments import Texts, checked_texts
from .batching import token_batches
from .limits import Overlong, count_long
from .loaded import Loaded
from .options import Call, Options, checked_call
from .packed import Packed, run_packed
from .precision import Precision
from .prefixed import Prefixed, prefixed
from .text_pieces import Tokens
from .tokenizer import not_unicode
from .transfer import landed, sent


class TokenVectors(NamedTuple):
    """One text, token by token, special tokens included."""

    vectors: np.ndarray
    """(n, C) float32."""
    spans: np.ndarray
    """(n, 2) int32 [start, end) in characters of the text; empty for special and prompt tokens."""


@dataclass(frozen=True)
class Prepared:
    """Texts on their way into the model."""

    call: Call
    joined: Prefixed
    tokens: list[Tokens]
    batches: list[list[int]]
    """Indices of the texts of each."""
    overlong: Overlong

    def __len__(self) -> int:
        return len(self.tokens)

    def packed(self, number: int) -> Packed:
        """The batch of that number."""
        batch = self.batches[number]
        ids = [self.tokens[i].ids for i in batch]
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        return Packed(np.concatenate(ids), lengths, self.joined.skip[batch])


class Results(Protocol):
    """Numbers of batches, in any order, and their values."""

    def __iter__(self) -> Iterator[tuple[int, Tensor]]: ...

    def close(self) -> None:
        """What has not been begun will not be."""


class Start(Protocol):
    """Sets about batches; those of another process are under way when it returns."""

    @property
    def ahead(self) -> int:
        """How many lots of texts are worth having under way before one is waited for."""

    def __call__(self, prepared: Prepared) -> Results: ...


Starting = AbstractContextManager[Start]
"""Entered when all that was asked for has been found to be in order."""


@dataclass
class _Here:
    """Batches run in this process, one after the other, as they are asked for."""

    encoder: Loaded
    ahead: int = 0

    def __call__(self, prepared: Prepared) -> Generator[tuple[int, Tensor], None, None]:
        model, recipe, call = self.encoder.model, self.encoder.recipe, prepared.call
        for number in range(len(prepared.batches)):
            batch = prepared.packed(number)
            yield number, run_packed(model, recipe, batch, call.output, call.finish)


@contextmanager
def here(encoder: Loaded) -> Iterator[Start]:
    """No other process."""
    yield _Here(encoder)


def encode(
    encoder: Loaded,
    texts: Any,
    options: Options,
    starting: Starting,
    task: str | None = None,
) -> Any:
    """What `TextEncoder.encode` gives, which explains it."""
    check_forked()
    single = isinstance(texts, str)
    listed = checked_texts(texts)
    encoder.needed_tokenizer()
    call = checked_call(encoder, options, task)
    prepared = prepare(encoder, listed, call)
    prepared.overlong.report(call.options.on_long)
    with starting as start:
        precision = calibrated(encoder, call, start)
        hide = None if options.progress is None else not options.progress
        bar = tqdm(
            total=len(prepared), desc="encode", unit="text", disable=hide, leave=False,
            delay=0 if options.progress else 2,
        )  # fmt: skip
        with bar, closing(start(prepared)) as results:
            made: Any = collect(prepared, results, place_of(encoder, call), bar)
    if isinstance(made, Tensor):
        made = finished(made, precision, encoder, call)
    return made[0] if single else made


def place_of(encoder: Loaded, call: Call) -> torch.device:
    """On a GPU the vectors leave it batch by batch, unless they are asked for as a tensor there."""
    asked = call.options.convert_to_tensor and call.precision.name == "float32"
    return encoder.device if asked else torch.device("cpu")


def finished(
    vectors: Tensor, precision: Precision, encoder: Loaded, call: Call, first: int = 0
) -> Tensor | np.ndarray:
    """Vectors (n, dim) in the precision and the kind of array that were asked for."""
    wanted = call.options.convert_to_tensor
    if precision.name == "float32":
        return vectors if wanted else vectors.numpy()
    if len(vectors):
        array = precision.of(vectors.numpy())(vectors.numpy(), first)
    else:
        array = np.zeros((0, precision.columns), dtype=precision.dtype)
    return torch.from_numpy(array).to(encoder.device) if wanted else array


def calibrated(encoder: Loaded, call: Call, start: Start) -> Precision:
    """The precision of a call with its ranges, where something to take them from was given."""
    precision, calibration = call.precision, call.precision.calibration
    if calibration is None:
        return precision
    if isinstance(calibration, list):
        # Texts: embedded as those to come will be.
        plain = replace(call, precision=Precision(dim=precision.dim))
        prepared = prepare(encoder, (calibration, None), plain, what="calibration text")
        prepared.overlong.report(call.options.on_long)
        with closing(start(prepared)) as results:
            made = collect(prepared, results, torch.device("cpu"))
        assert isinstance(made, Tensor)
        calibration = made.numpy()
    return precision.of(calibration)


def prepare(
    encoder: Loaded, texts: Texts, call: Call, first: int = 0, what: str = "text"
) -> Prepared:
    """Tokenise texts and cut them into batches.

    Args:
        texts: checked.
        first: the number of the first of them, for messages.
        what: they are, for messages.

    Raises:
        InputError: one is no Unicode, or what stands before it leaves it no room.
    """
    listed, instructions = texts
    tokenizer = encoder.needed_tokenizer()
    before = call.before(instructions, encoder)
    joined = prefixed(listed, before, encoder.recipe, tokenizer, call.limit, first)
    try:
        tokens = tokenizer(joined, call.limit, spans=call.output == "tokens", first=first)
    except InputError as error:
        # By the text as it was given, without what is put before it.
        if (fault := not_unicode(listed, first)) is not None:
            raise InputError(fault) from error
        raise
    lengths = [len(each.ids) for each in tokens]
    if call.output == "pooled":
        joined.check_left(lengths)
    batches = list(token_batches(lengths, call.batch_tokens))
    return Prepared(call, joined, tokens, batches, count_long(tokens, call.limit, first, what))


def collect(
    prepared: Prepared, results: Results, place: torch.device, bar: Any = None
) -> Tensor | list[TokenVectors]:
    """Batches put back in the order of their texts: float32 (n, dim), or each text's tokens."""
    call, count = prepared.call, len(prepared)
    pooled = torch.zeros(count, call.finish.dim, dtype=torch.float32, device=place)
    rows: list[Any] = [None] * count
    wanted = place if call.output == "pooled" else torch.device("cpu")
    for number, values in landed(results, wanted):
        batch = prepared.batches[number]
        if call.output == "pooled":
            pooled[sent([np.array(batch)], place)[0]] = values
        else:
            bounds = np.cumsum([0] + [len(prepared.tokens[i].ids) for i in batch])
            states = values.numpy()
            for i, start, end in zip(batch, bounds[:-1], bounds[1:], strict=True):
                spans = prepared.tokens[i].spans
                assert spans is not None
                where = prepared.joined.spans(i, spans)
                rows[i] = TokenVectors(states[start:end].copy(), where)
        if bar is not None:
            bar.update(len(batch))
    return rows if call.output == "tokens" else pooled
