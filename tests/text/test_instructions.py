"""Instructions as InstructorEmbedding 1.0.1 has them, and prompts as sentence-transformers."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text.arguments import Before
from pyenc.text.prefixed import prefixed
from tests.conftest import GOLDEN, read_golden
from tests.seeds import seed
from tests.text.tokenizer_folders import edit

INSTRUCTORS = ["t5_instructor_relu_h4", "t5_instructor_gated_h6"]
PAIR = ["Represent the sentence: ", "the quick fox"]


@pytest.fixture(scope="module")
def instructor() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / INSTRUCTORS[0])


def by_hand(encoder: pyenc.TextEncoder, instruction: str, text: str) -> np.ndarray:
    """The rule of InstructorEmbedding 1.0.1 from token ids, pooling and Dense in float64; NaN where
    no token is left."""
    words = encoder.tokenizer
    assert words is not None
    joined = (instruction + text.strip()).strip()
    ids, said = (words([t], 10**6)[0].ids for t in (joined, instruction.strip()))
    left_out = len(said) - 1 if len(said) - 1 > 1 else 0
    with torch.no_grad():
        states = encoder.model(torch.from_numpy(ids)[None])[0].double().numpy()
    pooled = states[left_out:].mean(0) if left_out < len(ids) else states[0] * np.nan
    for dense in encoder.recipe.dense:
        pooled = dense.weight.double().numpy() @ pooled
    return pooled / np.linalg.norm(pooled) if encoder.recipe.normalize else pooled


@pytest.mark.parametrize("name", INSTRUCTORS)
def test_pairs_are_those_of_instructor_embedding(name: str) -> None:
    golden = read_golden(name)
    encoder = pyenc.load(golden.folder, skip_eps=0)
    right = golden.io["text.v101.embedding"].numpy()
    pairs = golden.texts
    for given in (pairs, [tuple(pair) for pair in pairs], iter(pairs)):
        np.testing.assert_allclose(encoder.encode(given), right, rtol=0, atol=1e-5)
    # Each alone, in other company, and by the option.
    for i, (instruction, text) in enumerate(pairs):
        options: list[dict[str, Any]] = [{}, {"batch_tokens": 1}, {"batch_tokens": 60}]
        for each in options:
            turned = [*pairs[i:], *pairs[:i]]
            np.testing.assert_allclose(encoder.encode(turned, **each)[0], right[i], atol=1e-5)
        np.testing.assert_allclose(
            encoder.encode(text, instruction=instruction), right[i], rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(by_hand(encoder, instruction, text), right[i], atol=1e-5)


@pytest.mark.parametrize("name", INSTRUCTORS)
def test_how_the_other_two_differ(name: str, tmp_path: Path) -> None:
    """As the docstring of `encode` says."""
    golden = read_golden(name)
    folder = tmp_path / "model"
    shutil.copytree(golden.folder, folder)
    config = json.loads((folder / "1_Pooling/config.json").read_text())
    (folder / "1_Pooling/config.json").write_text(json.dumps(config | {"include_prompt": False}))
    encoder = pyenc.load(folder, skip_eps=0)
    head, st = (golden.io[f"text.{which}.embedding"].numpy() for which in ("head", "st"))
    ours = encoder.encode(golden.texts)
    for i, (instruction, text) in enumerate(golden.texts):
        prompted = encoder.encode(text, prompt=instruction)
        np.testing.assert_allclose(prompted, st[i], rtol=0, atol=1e-5)
        one_token = instruction == "a"
        assert (np.abs(ours[i] - st[i]).max() > 1e-3) == one_token
        if not one_token:
            stripped = encoder.encode([[instruction.strip(), text]])[0]
            np.testing.assert_allclose(stripped, head[i], rtol=0, atol=1e-5)
            assert (np.abs(ours[i] - head[i]).max() > 1e-3) == instruction.endswith(" ")


@pytest.mark.parametrize("name", [*INSTRUCTORS, "bert_mean_h4", "roberta_distil_like_h4"])
def test_mixed_instructions_on_every_checkpoint(name: str) -> None:
    """One rule, whatever the checkpoint: white space around, one token, none, joined words."""
    encoder = pyenc.load(GOLDEN / name, skip_eps=0)
    some = random.Random(seed())
    words = ["the", "quick", "Fox", "a", "no", " ", "  ", "\n", "\u3000", ":", "É", "你", "</s>"]
    pairs = [
        ["".join(some.choice(words) for _ in range(some.randint(0, most))) for most in (8, 12)]
        for _ in range(40)
    ]
    pairs += [["", "a b"], [" ", " a b "], ["a", "no"], ["a b c", ""], ["", ""], ["  x y ", "  "]]
    right = [by_hand(encoder, *pair) for pair in pairs]
    some_left = [i for i, vector in enumerate(right) if np.isfinite(vector).all()]
    assert len(some_left) > 40
    pairs, right = [pairs[i] for i in some_left], [right[i] for i in some_left]
    np.testing.assert_allclose(encoder.encode(pairs), np.stack(right), rtol=0, atol=1e-5)
    for pair, vector in zip(pairs[::8], right[::8], strict=True):
        got = encoder.encode([pair[1]], instruction=pair[0])[0]
        np.testing.assert_allclose(got, vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "max"])
def test_other_poolings(pooling: str) -> None:
    """First and last token stay what they are; a maximum is of what a mean is of."""
    encoder = pyenc.load(GOLDEN / "bert_mean_h4", pooling=pooling, normalize=False)
    states, _ = encoder.encode("why: the sky", output="tokens")
    skip = encoder.tokenizer.prompt_length("why:")
    right = {"cls": states[0], "lasttoken": states[-1], "max": states[skip:].max(0)}[pooling]
    np.testing.assert_allclose(encoder.encode([["why: ", "the sky"]])[0], right, atol=1e-5)
    if pooling == "max":
        assert (states.max(0) != right).any()


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_prompts_left_out_as_in_sentence_transformers(pooling: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("sentence_transformers", minversion="6")
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    said = {"word_embedding_dimension": 64, "pooling_mode": pooling, "include_prompt": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    theirs = transformers.SentenceTransformer(str(folder), device="cpu")
    texts = ["the sky", "a quick brown fox", ""]
    right = theirs.encode(texts, prompt="why is: ")
    np.testing.assert_allclose(
        pyenc.load(folder).encode(texts, prompt="why is: "), right, rtol=0, atol=1e-5
    )


def test_published_instructors_leave_their_prompts_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, as in sentence-transformers; what is saved says so itself."""
    golden = read_golden(INSTRUCTORS[0])
    module = importlib.import_module("pyenc.text.located")
    monkeypatch.setattr(module, "resolve", lambda *_: golden.folder)
    encoder = pyenc.load("hkunlp/instructor-large", skip_eps=0)
    instruction, text = golden.texts[0]
    right = golden.io["text.st.embedding"][0].numpy()
    encoder.save(tmp_path / "saved")
    monkeypatch.undo()
    for each in (encoder, pyenc.load(tmp_path / "saved", skip_eps=0)):
        got = each.encode(text, prompt=instruction)
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-5)
    plain = pyenc.load(golden.folder)
    assert np.abs(plain.encode(text, prompt=instruction) - right).max() > 1e-3


def test_spans_are_of_the_text_alone(instructor: pyenc.TextEncoder) -> None:
    for encoder in (instructor, pyenc.load(GOLDEN / "roberta_distil_like_h4")):
        for instruction in ("", "a", "Represent it: ", "  odd", "\n"):
            for text in ("the quick", "   the quick  ", "", "  ", "\u3000quick"):
                vectors, spans = encoder.encode([[instruction, text]], output="tokens")[0]
                joined = (instruction + text.strip()).strip()
                assert len(vectors) == len(encoder.tokenizer([joined], 999)[0].ids)
                seen = sorted({i for a, b in spans.tolist() for i in range(a, b)})
                lead = len(text) - len(text.lstrip())
                inside = [i for i, c in enumerate(text.strip(), lead) if not c.isspace()]
                assert [i for i in seen if not text[i].isspace()] == inside
                assert not (spans[:, 0] > spans[:, 1]).any()


def test_white_space_is_a_prompts_and_not_an_instructions(instructor: pyenc.TextEncoder) -> None:
    """As the two libraries join them: which tokenizers may see, and vectors of words do not."""
    assert instructor.tokenizer is not None
    for before, right in (
        (Before(prompt=" a: "), [" a:  b ", " a: "]),
        (Before(instruction=" a: "), ["a: b", "a:"]),
        (Before([" a: ", " c "]), ["a: b", "c"]),
        (Before(), [" b ", ""]),
    ):
        joined = prefixed([" b ", ""], before, instructor.recipe, instructor.tokenizer, 99)
        assert list(joined) == right


def test_an_empty_instruction_is_none(instructor: pyenc.TextEncoder) -> None:
    plain = instructor.encode("the quick fox")
    assert (instructor.encode("the quick fox", instruction="") == plain).all()
    for nothing in ("", " ", "\n"):
        assert (instructor.encode([[nothing, " the quick fox "]])[0] == plain).all()
    assert instructor.encode([], instruction="why").shape == (0, instructor.dim)


def test_pairs_take_the_place_of_the_default_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / INSTRUCTORS[0], folder)
    plain = pyenc.load(folder).encode([PAIR])
    prompts = {"prompts": {"query": "why: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert (pyenc.load(folder).encode([PAIR]) == plain).all()


def test_a_cut_text_keeps_its_instruction(instructor: pyenc.TextEncoder) -> None:
    words = instructor.tokenizer
    assert words is not None
    count = words.prompt_length(PAIR[0].strip())
    limit = count + 4
    with pytest.warns(pyenc.TruncationWarning, match=f"1 of 2 texts exceed {limit} tokens"):
        got = instructor.encode([[PAIR[0], "fox " * 50], ["", "ok"]], max_length=limit)
    with pytest.warns(pyenc.TruncationWarning):
        rows = instructor.encode([[PAIR[0], "fox " * 50]], max_length=limit, output="tokens")
    pooled = rows[0].vectors[count:].astype(np.float64).mean(0)
    pooled = instructor.recipe.dense[0].weight.double().numpy() @ pooled
    np.testing.assert_allclose(got[0], pooled / np.linalg.norm(pooled), atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "options", "kind", "message"),
    [
        ([PAIR, ["a", "b", "c"]], {}, InputTypeError,
         "text 1 is ['a', 'b', 'c'] (list of 3), expected an [instruction, text] pair"),
        ([("a",)], {}, InputTypeError, "text 0 is ('a',) (tuple of 1), expected an [instruction"),
        ([PAIR, [None, "b"]], {}, InputTypeError,
         "the instruction of pair 1 is None (NoneType), expected a string"),
        ([PAIR, ["a", None]], {}, InputTypeError, "the text of pair 1 is None (NoneType)"),
        ([[1, 2]], {}, InputTypeError, "the instruction of pair 0 is 1 (int), expected a string"),
        ([[b"a", "b"]], {}, InputTypeError, "the instruction of pair 0 is b'a' (bytes)"),
        ([["a", PAIR]], {}, InputTypeError, "the text of pair 0 is ['Represent"),
        ([PAIR, "b"], {}, InputTypeError,
         "text 1 is 'b' (str) among [instruction, text] pairs, expected a pair"),
        (["b", PAIR], {}, InputTypeError, "pairs and plain texts do not mix"),
        ([PAIR, None], {}, InputTypeError, "text 1 is None (NoneType) among [instruction, text]"),
        ([PAIR], {"instruction": "a"}, InputError, "instruction is given, and [instruction, text]"),
        ([PAIR], {"instruction": ""}, InputError, "instruction is given, and [instruction, text]"),
        ([PAIR], {"prompt": "a"}, InputError, "prompt is given, and [instruction, text] pairs"),
        ([PAIR], {"prompt_name": "a"}, InputError, "prompt_name is given, and [instruction, text]"),
        ([PAIR, ["a\ud800", "b"]], {}, InputError,
         "the instruction of pair 1 is not valid Unicode: lone surrogate '\\ud800' at character 1"),
        ([PAIR, ["abc", "b\ud800"]], {}, InputError,
         "text 1 is not valid Unicode: lone surrogate '\\ud800' at character 1"),
        (["b\ud800"], {"prompt": "abc"}, InputError, "text 0 is not valid Unicode: lone surrogate "
         "'\\ud800' at character 1"),
        ([PAIR, ["why " * 600, "b"]], {}, InputError, "the instruction of pair 1 takes"),
        (["b"], {"instruction": "why " * 600}, InputError,
         "of the 512 tokens of max_length, which leaves no room for the text"),
        (["b"], {"instruction": "why " * 600}, InputError, "the instruction takes "),
        (["b"], {"instruction": 3}, InputTypeError, "instruction must be a string, got int"),
    ],
)  # fmt: skip
def test_refused(
    instructor: pyenc.TextEncoder,
    texts: Any,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        instructor.encode(texts, **options)
    assert message in str(caught.value)


def test_a_text_in_the_place_of_an_instruction(
    instructor: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus whose pairs are the wrong way round is refused before all of it is tokenised."""
    whole: list[int] = []
    length = pyenc.text.TextTokenizer.prompt_length

    def counted(self: Any, prompt: str) -> int:
        whole.append(len(prompt))
        return length(self, prompt)

    monkeypatch.setattr(pyenc.text.TextTokenizer, "prompt_length", counted)
    story = r"the instruction of pair 1 takes at least \d+ of the 512 tokens of max_length"
    with pytest.raises(InputError, match=story):
        instructor.encode([["a: ", "b"], ["a long text " * 20_000, "Represent it: "]])
    assert whole == [2]


@pytest.mark.parametrize("name", [INSTRUCTORS[0], "bert_mean_h4", "bert_cls_h2"])
def test_an_instruction_as_long_as_the_limit(name: str) -> None:
    """One token of room is enough; none is refused, whatever the pooling."""
    encoder = pyenc.load(GOLDEN / name)
    assert encoder.tokenizer is not None
    closing = encoder.tokenizer.num_closing
    assert closing == 1
    full = encoder.tokenizer.prompt_length("the quick fox") + closing
    with pytest.raises(InputError, match=f"takes {full - 1} of the {full} tokens of max_length"):
        encoder.encode("ok", instruction="the quick fox", max_length=full)
    ids = encoder.tokenizer(["the quick fox ok"], 99)[0].ids
    with pytest.warns(pyenc.TruncationWarning):
        row = encoder.encode(
            "ok ok ok", instruction="the quick fox ", max_length=full + 1, output="tokens"
        )
    assert len(row.vectors) == full + 1 <= len(ids) + closing


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_no_token_is_left(pooling: str) -> None:
    """A tokenizer may make fewer tokens of both than of the instruction alone: of a word of more
    than 100 letters BERT makes one."""
    encoder = pyenc.load(GOLDEN / "bert_mean_h4", pooling=pooling, normalize=False)
    words = encoder.tokenizer
    assert words is not None
    pairs = [["", "the sky"], ["the " + "fox" * 20, "fox" * 20]]
    assert words.prompt_length(pairs[1][0]) > 4 == len(words(["".join(pairs[1])], 99)[0].ids)
    assert len(encoder.encode(pairs, output="tokens")) == 2
    if pooling == "cls":
        assert np.isfinite(encoder.encode(pairs)).all()
        return
    with pytest.raises(InputError, match=r"text 1 has 4 tokens with 'the fox.* none is left"):
        encoder.encode(pairs)
    with pytest.raises(InputError, match=r"text 1 has 4 tokens .* leaves out the first 4: none is"):
        encoder.encode([pairs[0], ["the ax", "fox" * 40]])
    with pytest.raises(InputError, match="text 90 has 4 tokens"):
        list(encoder.encode_stream([pairs[0]] * 90 + [["the ax", "fox" * 40]], batch_tokens=9))
    assert np.isfinite(encoder.encode([pairs[0], ["the", "fox" * 40]])).all()


def test_no_token_is_left_of_a_tokenizer_without_special_ones(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    as_is = {"tokenizer_class": "PreTrainedTokenizerFast"}
    edit(folder / "tokenizer_config.json", lambda old: old | as_is)
    edit(folder / "tokenizer.json", lambda old: old | {"post_processor": None})
    edit(folder / "1_Pooling/config.json", lambda old: old | {"include_prompt": False})
    encoder = pyenc.load(folder, normalize=False)
    nothing, word = encoder.encode(["", "the"])
    assert not nothing.any()
    assert word.any()
    with pytest.raises(InputError, match=r"text 1 has 1 tokens with 't' .* the first 1: none is l"):
        encoder.encode(["x", "he"], prompt="t")
    with pytest.raises(InputError, match=r"text 300 has 1 tokens"):
        list(encoder.encode_stream(["x"] * 300 + ["he"], prompt="t", batch_tokens=9))


def test_pairs_of_a_stream_are_told_by_their_numbers(instructor: pyenc.TextEncoder) -> None:
    long = ["why " * 600, "b"]
    with pytest.raises(InputError, match="the instruction of pair 300 takes"):
        list(instructor.encode_stream([PAIR] * 300 + [long], batch_tokens=9))


def test_without_a_prompt_every_token_counts(tmp_path: Path) -> None:
    """Also those of special tokens, which a prompt that does not count takes with it."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    plain = pyenc.load(folder).encode(["the sky", ""])
    edit(folder / "1_Pooling/config.json", lambda old: old | {"include_prompt": False})
    encoder = pyenc.load(folder)
    for prompt in (None, ""):
        assert (encoder.encode(["the sky", ""], prompt=prompt) == plain).all()
    assert (encoder.encode(["the sky", ""], prompt="a ") != plain).any(1).all()
