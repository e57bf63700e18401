"""What is read of a SentencePiece model's file, and what is refused of one, by name."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from pyenc.text.protobuf import BYTES, VARINT, fields
from pyenc.text.sentencepiece_model import read_sentencepiece
from tests.seeds import seed
from tests.text.sentencepiece_folders import (
    MODELS,
    SPECIAL,
    SPECS,
    field,
    piece,
    sentencepiece,
    varint,
)
from tests.text.tokenizer_folders import charsmap

WORDS = piece("▁", -3.0) + piece("a", -4.0) + piece("b", -4.0) + piece("▁ab", -5.0)
NAMES = ("albert", "bytes", "deberta", "fairseq", "t5")


def written(folder: Path, content: bytes) -> Path:
    folder = sentencepiece(folder, "t5", extra_ids=0)
    (folder / "spiece.model").write_bytes(content)
    return folder


def test_a_model_of_a_few_bytes(tmp_path: Path) -> None:
    """Fields that nobody needs are passed over, whatever their type, and so are their places."""
    others = (
        field(9, 1 << 63) + field(10, b"x") + field(11, 0.5) + varint(12 << 3 | 1) + b"8 bytes."
    )
    content = others + SPECS + SPECIAL + others + WORDS + field(5, b"")
    folder = written(tmp_path, content)
    model = read_sentencepiece(folder / "spiece.model")
    assert model.pieces[2:5] == [("<unk>", 0.0), ("▁", -3.0), ("a", -4.0)]
    assert (model.unknown, model.charsmap) == (2, None)
    assert model.types == [3, 3, 2, 1, 1, 1, 1]
    (tokens,) = TextTokenizer(folder)(["ab  ba</s>c"], 99)
    assert tokens.ids.tolist() == [6, 3, 5, 4, 1, 3, 2, 1]


def test_defaults_and_what_is_said_twice(tmp_path: Path) -> None:
    """A piece without score or type, and of what two parts of a message say the last."""
    plain = field(1, field(1, b"c"))
    table = field(3, field(2, b"gone")) + field(3, field(2, b""))
    trainer = field(2, field(3, 2))
    path = written(tmp_path, SPECIAL + plain + trainer + SPECS + table)
    model = read_sentencepiece(path / "spiece.model")
    assert (model.pieces[3], model.types[3], model.charsmap) == (("c", 0.0), 1, None)


def test_the_table_of_characters(tmp_path: Path) -> None:
    """Its message is in two parts, which are one."""
    table = base64.b64decode(charsmap("Q", "a"))
    content = SPECIAL + WORDS + field(2, b"") + field(3, field(2, table)) + field(3, field(3, 1))
    (tokens,) = TextTokenizer(written(tmp_path, content))(["Qb"], 99)
    assert tokens.ids.tolist() == [6, 1]


def test_a_table_without_texts(tmp_path: Path) -> None:
    table = struct.pack("<I", 8) + bytes(8)
    path = written(tmp_path, SPECIAL + SPECS + field(3, field(2, table))) / "spiece.model"
    assert read_sentencepiece(path).charsmap == table


def test_the_unknown_piece(tmp_path: Path) -> None:
    """DeBERTa's class takes it by its type, whatever a file beside the model says and its score."""
    folder = sentencepiece(tmp_path, "deberta", unk_id=0)
    first = piece("[PAD]", 0.0, 3) + piece("[CLS]", 0.0, 3) + piece("[SEP]", 0.0, 3)
    content = first + piece("[UNK]", -1.0, 2) + WORDS + field(2, field(40, 3)) + field(3, b"")
    (folder / "spm.model").write_bytes(content)
    (tokens,) = TextTokenizer(folder)(["ab ?"], 99)
    assert tokens.ids.tolist() == [1, 7, 4, 3, 2]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 255, 256, 16255, 16256, 16383, 16384])
def test_lengths_and_numbers_of_any_size(size: int) -> None:
    """Of one byte, or of more, whose first or last is the least or the largest of its kind."""
    content = field(7, bytes(size)) + field(size + 1, size) + field(8, b"x")
    wanted = [(7, BYTES, bytes(size)), (size + 1, VARINT, size), (8, BYTES, b"x")]
    assert list(fields(content)) == wanted


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"pieces", "it ends inside of|wire type"),
        (b"<!doctype html><html>", "it ends inside of|wire type"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "begins a field of wire type 7"),
        (bytes(40), "byte 0 begins a field of number 0"),
        (field(2, b"") + field(3, b""), "it holds no pieces"),
        (SPECIAL + WORDS, "ends after 7 pieces, without trainer_spec"),
        (SPECIAL + WORDS + field(2, b""), "ends after 7 pieces, without normalizer_spec"),
        (b"\xff" * 11, "byte 0 begins a number of more than 64 bits"),
        (SPECIAL + SPECS + varint(8 << 3), "ends inside of the number"),
        (SPECIAL + SPECS + varint(8 << 3 | 5) + b"123", "3 bytes of 4"),
        (SPECIAL + field(1, field(1, b"\xff")) + SPECS, "piece 3: not UTF-8"),
        (SPECIAL + field(1, 7) + SPECS, "piece 3: expected a message, got another wire"),
        (SPECIAL + field(1, field(2, 7)) + SPECS, "piece 3: score: expected four bytes, got a who"),
        (SPECIAL + field(1, field(1, b"ab")[:-1]) + SPECS, "piece 3: it ends inside of the field"),
        (SPECIAL + field(2, field(3, b"1")) + field(3, b""), "trainer_spec: model_type: expected"),
    ],
)  # fmt: skip
def test_no_model(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"spiece.model: not a readable Sent.*({why})") as no:
        TextTokenizer(written(tmp_path, content))
    assert "expected the file that SentencePiece's trainer writes, whole" in str(no.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (SPECIAL + piece("") + SPECS, "piece 3 is empty"),
        (SPECIAL + piece("a", float("nan")) + SPECS, r"piece 3 \('a'\): its score is nan"),
        (SPECIAL + piece("a") + piece("a") + SPECS, "pieces 3 and 4 are both 'a'"),
        (SPECIAL + piece("a", -1.0, 5) + SPECS, r"piece 3 \('a'\): the type UNUSED is not served"),
        (SPECIAL + piece("a", -1.0, 7) + SPECS, r"piece 3 \('a'\): the type 7 is not served"),
        (WORDS + SPECS, "0 pieces are of the type UNKNOWN; expected one"),
        (SPECIAL + piece("?", 0.0, 2) + SPECS, "2 pieces are of the type UNKNOWN; expected one"),
        (SPECIAL + SPECS + field(3, field(2, b"abc")), "precompiled_charsmap: of its 3 bytes"),
        (SPECIAL + SPECS + field(3, field(2, bytes(4))), "first four count 0 of a tab"),
        (SPECIAL + SPECS + field(3, field(2, struct.pack("<I", 9) + bytes(9))), "count 9 of a tab"),
        (SPECIAL + SPECS + field(3, field(2, struct.pack("<I", 8) + bytes(7))), "count 8 of a tab"),
    ],
)  # fmt: skip
def test_a_damaged_model(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"spiece.model: a damaged Sentence.*{why}"):
        TextTokenizer(written(tmp_path, content))


@pytest.mark.parametrize(
    ("part", "fault", "why"),
    [
        (2, field(3, 2), "trainer_spec.model_type: BPE is not served .*; expected unigram, or"),
        (2, field(3, 4), "trainer_spec.model_type: char is not served"),
        (2, field(24, 1), "trainer_spec.treat_whitespace_as_suffix: true is not .* expected false"),
        (3, field(3, 0), "normalizer_spec.add_dummy_prefix: false is not served.* expected true"),
        (3, field(5, 0), "normalizer_spec.escape_whitespaces: false is not served.* expected true"),
    ],
)  # fmt: skip
def test_settings_that_are_not_served(tmp_path: Path, part: int, fault: bytes, why: str) -> None:
    folder = written(tmp_path, SPECIAL + WORDS + SPECS + field(part, fault))
    with pytest.raises(CheckpointError, match=f"spiece.model: {why}"):
        TextTokenizer(folder)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    folder = written(tmp_path, (MODELS / "bpe.model").read_bytes())
    with pytest.raises(CheckpointError, match="model_type: BPE is not served"):
        TextTokenizer(folder)


def _read_or_refused(read: Callable[[Path], Any], path: Path) -> tuple[Any, str]:
    """What is read, or what is said of it."""
    try:
        return read(path), ""
    except CheckpointError as error:
        return None, str(error)


@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    """A file that was not fetched whole is refused wherever it ends, up to what tokens need."""
    whole = (MODELS / f"{name}.model").read_bytes()
    path = tmp_path / "spiece.model"
    path.write_bytes(whole)
    right = read_sentencepiece(path)
    some = random.Random(seed())
    ends = [*range(40), *range(len(whole) - 40, len(whole))]
    for end in ends + some.sample(range(len(whole)), 60):
        path.write_bytes(whole[:end])
        read, refused = _read_or_refused(read_sentencepiece, path)
        if refused:
            assert "spiece.model: not a readable SentencePiece model" in refused
        else:
            # Behind what is read stands how ids become text again, and what a trainer tested.
            assert read == right
            assert end > len(whole) - 40
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"spiece.model: not a readable"):
        read_sentencepiece(path)


def test_bytes_that_were_changed(tmp_path: Path) -> None:
    """Whatever a file holds: it is read, or refused by name."""
    folder = sentencepiece(tmp_path, "t5")
    path = folder / "spiece.model"
    whole = path.read_bytes()
    some = random.Random(seed())
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(some.randint(1, 3)):
            changed[some.randrange(len(changed))] = some.randrange(256)
        path.write_bytes(bytes(changed))
        words, refused = _read_or_refused(TextTokenizer, folder)
        assert "spiece.model" in refused or words.num_closing == 1


@pytest.mark.parametrize(
    ("kind", "model", "config", "why"),
    [
        ("albert", "t5", {}, "its unknown piece is 2, but AlbertTokenizer has it at 1; expected"),
        ("t5", "deberta", {}, "its unknown piece is 3, but T5Tokenizer has it at 2"),
        ("xlm-roberta", "t5", {}, "its unknown piece is 2, but XLMRobertaTokenizer has it at 0"),
        ("xlm-roberta", "fairseq", {"mask_token": "▁"}, "the token '▁' would have two ids"),
        ("camembert", "fairseq", {"pad_token": "<s>"}, "the token '<s>' would have two ids"),
        ("camembert", "fairseq", {"mask_token": None}, "mask_token: null, but Camembert"),
        ("deberta", "deberta", {"unk_token": "<x>"}, "special token '<x>' is missing"),
        ("deberta", "deberta", {"added_tokens.json": {"[MASK]": 7}}, "is said to be 7, but"),
        ("t5", "t5", {"extra_ids": "3"}, "extra_ids: expected int"),
    ],
)  # fmt: skip
def test_no_model_of_its_class(
    tmp_path: Path, kind: str, model: str, config: dict[str, Any], why: str
) -> None:
    folder = sentencepiece(tmp_path, kind, **config)
    (path,) = folder.glob("*.model")
    path.write_bytes((MODELS / f"{model}.model").read_bytes())
    with pytest.raises(CheckpointError, match=why):
        TextTokenizer(folder)


def test_words_where_special_pieces_are_left_out(tmp_path: Path) -> None:
    folder = sentencepiece(tmp_path, "xlm-roberta")
    first = piece("<unk>", 0.0, 2) + piece("the", -3.0) + piece("</s>", 0.0, 3)
    (folder / "sentencepiece.bpe.model").write_bytes(first + WORDS + SPECS)
    message = "piece 'the' is one of the first 3, which XLMRobertaTokenizer leaves out"
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(folder)


def test_a_pointer_in_its_place(tmp_path: Path) -> None:
    content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2464616\n"
    with pytest.raises(CheckpointError, match=r"spiece.model: a pointer of Git LFS"):
        TextTokenizer(written(tmp_path, content))


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    """As for transformers, whatever else is there."""
    folder = written(tmp_path, SPECIAL + WORDS + SPECS)
    words = TextTokenizer(folder)
    (folder / "tokenizer.json").write_bytes(words.as_file())
    (folder / "spiece.model").write_bytes(b"")
    again = TextTokenizer(folder)
    assert again.made_of == ("tokenizer.json",)
    assert again.same_rules(words)
