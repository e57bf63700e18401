"""When two `tokenizer.json` are seen to have the same rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyenc.text.tokenizer_rules import one_rule

SPLIT = {"type": "Split", "pattern": {"String": " "}, "invert": False}
RULES: dict[str, Any] = {
    "added_tokens": [{"id": 0, "content": "<s>"}, {"id": 1, "content": "</s>"}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]},
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<s>", 0.0], ["a", -3.7]]},
}


def changed(**parts: Any) -> str:
    return json.dumps(RULES | parts)


def model(*vocab: Any, **more: Any) -> str:
    return changed(model=RULES["model"] | {"vocab": list(vocab)} | more)


@pytest.mark.parametrize(
    "other",
    [
        changed(post_processor={"type": "TemplateProcessing"}, truncation=None, version="2.0"),
        json.dumps(dict(reversed(RULES.items()))),
        # The library writes scores that it has read with other last digits.
        model(["<s>", 0.0], ["a", -3.7000000000000006]),
    ],
    ids=["around", "order of keys", "rounding"],
)
def test_one_rule(other: str) -> None:
    assert one_rule(changed(), other)
    assert one_rule(other, changed())


@pytest.mark.parametrize(
    "other",
    [
        changed(added_tokens=RULES["added_tokens"][:1]),
        changed(added_tokens=RULES["added_tokens"][::-1]),
        changed(added_tokens=[]),
        changed(normalizer={"type": "NFC"}),
        changed(pre_tokenizer=None),
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"invert": True}]}),
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"more": None}]}),
        model(["<s>", 0.0], ["a", -3.7], unk_id=1),
        model(["<s>", 0.0], ["a", -3.7], byte_fallback=True),
        model(["<s>", 0.0], ["b", -3.7]),
        model(["<s>", 0.0], ["a", -3.70001]),
        model(["<s>", 0.0], ["a", -3.700000001]),
        model(["<s>", 0.0], None),
        model(["<s>", 0.0], ["a", -3.7], ["b", -4.0]),
        model(["<s>", 0.0], ["a", None]),
    ],
)
def test_another_rule(other: str) -> None:
    assert not one_rule(changed(), other)
    assert not one_rule(other, changed())
