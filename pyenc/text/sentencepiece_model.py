"""A SentencePiece model from its file, without its library or the one of protocol buffers.

The file is a message `ModelProto`, whose fields `sentencepiece_model.proto` names:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .protobuf import BYTES, FIXED32, VARINT, DamagedMessage, fields, read

PIECE = {1: ("piece", BYTES), 2: ("score", FIXED32), 3: ("type", VARINT)}
TRAINER = {3: ("model_type", VARINT), 24: ("treat_whitespace_as_suffix", VARINT)}
NORMALIZER = {
    2: ("precompiled_charsmap", BYTES), 3: ("add_dummy_prefix", VARINT),
    5: ("escape_whitespaces", VARINT),
}  # fmt: skip
PARTS: Mapping[int, tuple[str, dict[int, tuple[str, int]]]] = {
    2: ("trainer_spec", TRAINER), 3: ("normalizer_spec", NORMALIZER),
}  # fmt: skip

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""

KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
"""Values of `model_type`."""


@dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece model holds, as far as tokens depend on it."""

    path: Path
    pieces: list[tuple[str, float]]
    """Each with its score: the logarithm of a probability."""
    types: list[int]
    unknown: int
    """Which piece stands for what no other covers."""
    charsmap: bytes | None
    """The table of characters to normalise; None: there is none."""

    def of_type(self, kind: int) -> list[str]:
        """The pieces of a type, in order."""
        return [
            piece for (piece, _), own in zip(self.pieces, self.types, strict=True) if own == kind
        ]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The unigram model of a file.

    Raises:
        CheckpointError: the file is none or is damaged, has another kind of model than unigram, or
            a setting that no tokenizer's class of transformers follows.
    """
    try:
        data = path.read_bytes()
        pieces, types, said = _parsed(data)
    except (DamagedMessage, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable SentencePiece model: {error}; expected the file that "
            "SentencePiece's trainer writes, whole"
        ) from error
    trainer, normalizer = said["trainer_spec"], said["normalizer_spec"]
    kind = trainer.get("model_type", 1)
    if kind != 1:
        raise CheckpointError(
            f"{path}: trainer_spec.model_type: {KINDS.get(kind, kind)} is not served of a "
            "SentencePiece model; expected unigram, or a tokenizer.json beside it"
        )
    wanted = (
        ("trainer_spec", "treat_whitespace_as_suffix", False),
        ("normalizer_spec", "add_dummy_prefix", True),
        ("normalizer_spec", "escape_whitespaces", True),
    )
    for part, name, right in wanted:
        if bool(said[part].get(name, right)) != right:
            raise CheckpointError(
                f"{path}: {part}.{name}: {str(not right).lower()} is not served: words are marked "
                f"by a space before each; expected {str(right).lower()}, or a tokenizer.json "
                "beside it"
            )
    try:
        _check_pieces(pieces, types)
        unknown = [number for number, own in enumerate(types) if own == UNKNOWN]
        if len(unknown) != 1:
            raise DamagedMessage(
                f"{len(unknown)} pieces are of the type UNKNOWN; expected one, which stands for "
                "what no other covers"
            )
        charsmap = normalizer.get("precompiled_charsmap") or None
        _check_charsmap(charsmap)
    except DamagedMessage as error:
        raise CheckpointError(f"{path}: a damaged SentencePiece model: {error}") from error
    return SentencePieceModel(path, pieces, types, unknown[0], charsmap)


Parsed = tuple[list[tuple[str, float]], list[int], dict[str, dict[str, Any]]]


def _parsed(data: bytes) -> Parsed:
    """Pieces, their types, and what the other messages inside say by name."""
    if not data:
        raise DamagedMessage("it is empty")
    pieces: list[tuple[str, float]] = []
    types: list[int] = []
    said: dict[str, Any] = {name: None for name, _ in PARTS.values()}
    for number, kind, value in fields(data):
        if number != 1 and number not in PARTS:
            continue
        name, known = PARTS.get(number, (f"piece {len(pieces)}", PIECE))
        if kind != BYTES:
            raise DamagedMessage(f"{name}: expected a message, got another wire type ({kind})")
        try:
            found = read(bytes(value), known)
            if number != 1:
                said[name] = (said[name] or {}) | found
                continue
            pieces.append((found.get("piece", b"").decode("utf-8"), found.get("score", 0.0)))
            types.append(found.get("type", NORMAL))
        except UnicodeDecodeError as error:
            raise DamagedMessage(f"{name}: not UTF-8: {error}") from error
        except DamagedMessage as error:
            raise DamagedMessage(f"{name}: {error}") from error
    if not pieces:
        raise DamagedMessage("it holds no pieces")
    # They stand behind the pieces: a file that was cut between two of these lacks them.
    if lacking := [name for name, found in said.items() if found is None]:
        raise DamagedMessage(f"it ends after {len(pieces)} pieces, without {lacking[0]}")
    return pieces, types, said


def _check_pieces(pieces: list[tuple[str, float]], types: list[int]) -> None:
    """What the library holds of every model too; it writes no piece that is not used."""
    seen: dict[str, int] = {}
    for number, ((piece, score), kind) in enumerate(zip(pieces, types, strict=True)):
        if not piece:
            raise DamagedMessage(f"piece {number} is empty")
        if not math.isfinite(score):
            raise DamagedMessage(f"piece {number} ({piece!r:.40}): its score is {score}")
        if kind == UNUSED or not NORMAL <= kind <= BYTE:
            name = "UNUSED" if kind == UNUSED else kind
            raise DamagedMessage(f"piece {number} ({piece!r:.40}): the type {name} is not served")
        if seen.setdefault(piece, number) != number:
            raise DamagedMessage(f"pieces {seen[piece]} and {number} are both {piece!r:.40}")


def _check_charsmap(table: bytes | None) -> None:
    """A count of bytes, as many of a double array, and texts that each end in a zero."""
    if table is None:
        return
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or size == 0 or 4 + size > len(table):
        raise DamagedMessage(
            f"normalizer_spec.precompiled_charsmap: of its {len(table)} bytes the first four count "
            f"{size} of a table"
        )
